"""How do tests run the installed ``flujo`` command, and on which databases?

A pytest plugin of the test modules that name it. PYTEST_DONT_REWRITE: they import it as well, and sooner.
"""

from __future__ import annotations

import os
import re
import subprocess
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from flujo_conformance.postgres_server import Server, provided_server
from flujo_core.migrations import read_migrations

FLUJO = str(Path(sysconfig.get_path("scripts")) / "flujo")

# What could change what the command does or shows.
FOREIGN = re.compile("FLUJO_|PG|COLUMNS|LINES|TERM|NO_COLOR|FORCE_COLOR|PY_COLORS|GITHUB_ACTIONS|TTY_|PYTHON(?!PATH)")
ENVIRONMENT = {name: value for name, value in os.environ.items() if not FOREIGN.match(name)}


def run(
    *command: str, cwd: Path, program: tuple[str, ...] = (FLUJO,), variables: Mapping[str, str] = {}
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    done = subprocess.run(
        [*program, *command], cwd=cwd, env={**ENVIRONMENT, **variables}, capture_output=True, timeout=60, check=False
    )
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def own_migrations(uri: str) -> list[str]:
    """Flujo's own, as ``001_init``, of the database that a URI names."""
    plugin = "flujo_sqlite" if uri.startswith("sqlite:") else "flujo_postgres"
    return [str(step) for step in read_migrations(f"{plugin}.migrations")]


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with provided_server() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgres"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/state.db"
    server: Server = request.getfixturevalue("server")
    return server.create_database()
