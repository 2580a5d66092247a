"""Are files of the deployment applied to a DuckDB file, once and as a whole?"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pytest

from flujo_core.errors import ChecksumMismatchError, MigrationError, SchemaOutdatedError, UnsupportedStorageError
from flujo_duckdb import DuckDBBackend

Result = TypeVar("Result")


def use(path: Path, work: Callable[[DuckDBBackend], Awaitable[Result]], **settings: Any) -> Result:
    async def used() -> Result:
        async with DuckDBBackend(path, **{"migrations_dir": path.parent, **settings}) as backend:
            return await work(backend)

    return asyncio.run(used())


def count(backend: DuckDBBackend) -> Awaitable[int]:
    return backend.count_runs()


def ask(path: Path, statement: str) -> list[Any]:
    with duckdb.connect(path) as connection:
        return connection.execute(statement).fetchall()


def test_files_of_the_deployment_are_applied_once(tmp_path: Path) -> None:
    path = tmp_path / "x.duckdb"
    (tmp_path / "003_log.sql").write_text(
        "BEGIN;\nCREATE TABLE log (a INTEGER); INSERT INTO log VALUES (1);\n"
        "INSERT INTO flujo_schema_versions (version, applied_at) VALUES (3, NOW());\nCOMMIT;\n"
    )
    for _ in range(2):
        use(path, count)
    assert ask(path, "FROM log") == [(1,)]
    assert ask(path, "SELECT version, name FROM flujo_deployment_versions") == [(3, "log")]
    assert ask(path, "SELECT max(version) FROM flujo_schema_versions") == [(1,)]

    (tmp_path / "004_more.sql").write_text("INSERT INTO log VALUES (2)")
    with pytest.raises(SchemaOutdatedError, match="004_more"):
        use(path, count, auto_migrate=False)
    assert ask(path, "FROM log") == [(1,)]


def test_a_step_that_fails_is_undone(tmp_path: Path) -> None:
    path = tmp_path / "x.duckdb"
    (tmp_path / "001_bad.sql").write_text("CREATE TABLE log (a INTEGER); INSERT INTO nowhere VALUES (1)")
    with pytest.raises(MigrationError, match="001_bad failed and was undone"):
        use(path, count)
    assert ask(path, "SELECT count(*) FROM pg_tables WHERE tablename IN ('log', 'flujo_deployment_versions')") == [(0,)]
    (tmp_path / "001_bad.sql").write_text("-- transaction=false\nCREATE TABLE log (a INTEGER)")
    with pytest.raises(MigrationError, match="remove transaction=false"):
        use(path, count)


def test_a_changed_file_is_told_and_recorded_anew(tmp_path: Path) -> None:
    path, file = tmp_path / "x.duckdb", tmp_path / "001_log.sql"
    file.write_text("CREATE TABLE log (a INTEGER)")
    use(path, count)
    before = ask(path, "SELECT applied_at, duration_ms FROM flujo_deployment_versions")
    file.write_text("CREATE TABLE log (b INTEGER)")
    with pytest.raises(ChecksumMismatchError, match="001_log changed"):
        use(path, count)
    backend = DuckDBBackend(path, migrations_dir=tmp_path)
    assert [str(step) for step in asyncio.run(backend.repair_checksums())] == ["001_log"]
    assert use(path, count) == 0
    assert ask(path, "SELECT applied_at, duration_ms FROM flujo_deployment_versions") == before


@pytest.mark.parametrize("table", ["flujo_schema_versions", "flujo_deployment_versions"])
def test_a_table_of_somebody_elses_is_refused(tmp_path: Path, table: str) -> None:
    path = tmp_path / "x.duckdb"
    ask(path, f"CREATE TABLE {table} (version INTEGER)")
    with pytest.raises(UnsupportedStorageError, match=table):
        use(path, count)
