"""Does the facade give the names of the guide, and say what to install where one is missing?"""

from __future__ import annotations

import subprocess
import sys

import pytest


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False)


def test_the_guide_s_names_are_the_plugins_and_core_s_own() -> None:
    import flujo_core
    import flujo_postgres
    import flujo_sqlite
    from flujo.state import open_backend
    from flujo.state.backends.postgres import PostgresBackend
    from flujo.state.backends.sqlite import SQLiteBackend

    assert open_backend is flujo_core.open_backend
    assert SQLiteBackend is flujo_sqlite.SQLiteBackend
    assert PostgresBackend is flujo_postgres.PostgresBackend


@pytest.mark.parametrize("missing", ["flujo_postgres", "asyncpg"])
@pytest.mark.parametrize("caught_as", ["ImportError", "flujo_core.errors.BackendNotInstalledError"])
def test_d4_a_missing_postgres_backend_says_what_to_install(missing: str, caught_as: str) -> None:
    result = run(f"""
import sys, flujo_core.errors
sys.modules[{missing!r}] = None
try:
    import flujo.state.backends.postgres
except {caught_as} as error:
    print(error)
""")
    assert result.returncode == 0, result.stderr
    assert missing in result.stdout
    assert "pip install 'flujo[postgres]'" in result.stdout


def test_d4_the_sqlite_backend_works_without_the_postgres_one() -> None:
    result = run("""
import sys
sys.modules["flujo_postgres"] = sys.modules["asyncpg"] = None
from flujo.state.backends.sqlite import SQLiteBackend
print(SQLiteBackend.__name__)
""")
    assert result.stdout == "SQLiteBackend\n", result.stderr
