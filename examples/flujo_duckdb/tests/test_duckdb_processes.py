"""Who else may use a DuckDB file: a second process, a fork, other code of this process, and which files are refused?"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pytest

from flujo_core.errors import (
    ConfigurationError,
    MigrationError,
    SchemaMissingError,
    StorageTimeoutError,
    StorageUnavailableError,
    UnsupportedStorageError,
)
from flujo_duckdb import DuckDBBackend, DuckDBSettings
from flujo_duckdb.connection import CONFIG, Connection

Result = TypeVar("Result")

STATE: Any = {"pipeline_id": "p", "pipeline_name": "n", "pipeline_version": "1", "current_step_index": 0}
PRELUDE = f"""
import warnings
# Python 3.12 and later warn of what the forks here are about.
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
import asyncio, os, sys, time
from flujo_core.errors import StorageUnavailableError
from flujo_duckdb import DuckDBBackend
state = {STATE!r}
path = sys.argv[1]

def save(path, run_id="r"):
    async def main():
        async with DuckDBBackend(path) as backend:
            return await backend.save_state(run_id, state)
    try:
        return asyncio.run(main())
    except StorageUnavailableError as error:
        return error
"""


def script(code: str, path: Path, timeout: float = 30) -> str:
    """What another interpreter prints; it ends well."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code, path], capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def with_backend(path: Any, use: Callable[[DuckDBBackend], Awaitable[Result]], **settings: Any) -> Result:
    """The result of ``use`` with a backend that is shut down in any case."""

    async def main() -> Result:
        backend = DuckDBBackend(path, **settings)
        try:
            return await use(backend)
        finally:
            await backend.shutdown()

    return asyncio.run(main())


def save(path: Any, run_id: str = "r", **settings: Any) -> int:
    return with_backend(path, lambda backend: backend.save_state(run_id, STATE), **settings)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- other processes --------------------------------------------------------------------------------------------------


def test_another_process_is_refused_in_one_line_that_names_the_file_until_the_last_shutdown(tmp_path: Path) -> None:
    path = tmp_path / "x.duckdb"

    async def main() -> None:
        async with DuckDBBackend(path) as one, DuckDBBackend(path) as two:
            await one.save_state("r", STATE)
            for _ in range(2):
                said = script("print(save(path))", path)
                assert said.startswith(
                    f"{path} is open in another process, and only one can use a DuckDB file at a time"
                )
                assert "use sqlite:// or postgres://" in said
                assert "\n" not in said
                await one.shutdown()
            assert await two.save_state("r", STATE) == 2

    asyncio.run(main())
    assert names(tmp_path) == ["x.duckdb"]
    assert script("print(save(path))", path) == "3"
    assert names(tmp_path) == ["x.duckdb"]


def test_a_fork_is_refused_and_leaves_the_parents_file_alone_however_it_ends(tmp_path: Path) -> None:
    code = """
backend = DuckDBBackend(path)
asyncio.run(backend.save_state("r", state))  # its loop is closed; one that is open doesn't survive a fork that exits
for end in (os._exit, sys.exit):
    log = os.stat(path + ".wal").st_size
    child = os.fork()
    if not child:
        print(save(path), save(path + "2"), flush=True)
        os.close(2)  # DuckDB complains there of what a process that forked leaves behind
        end(7)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), os.stat(path + ".wal").st_size == log, flush=True)
print(asyncio.run(backend.save_state("r", state)))
"""
    path = tmp_path / "x.duckdb"
    said = script(code, path).splitlines()
    for refused in (said[0], said[2]):
        assert refused.startswith(
            f"{path} was open in the process that this one was forked from, and only one can use a"
        )
    assert (said[0][-2:], said[2][-2:]) == (" 1", " 2")
    assert said[1::2] == ["7 True", "7 True"]
    assert said[4] == "2"
    assert save(path) == 3


def test_what_was_saved_outlives_a_kill_and_the_next_process_finds_the_file_free(tmp_path: Path) -> None:
    code = """
async def main():
    backend = DuckDBBackend(path)
    print(await backend.save_state("r", state), flush=True)
    os.kill(os.getpid(), 9)
asyncio.run(main())
"""
    path = tmp_path / "x.duckdb"
    done = subprocess.run([sys.executable, "-c", PRELUDE + code, path], capture_output=True, check=False, timeout=30)
    assert (done.returncode, done.stdout) == (-9, b"1\n")
    assert save(path) == 2
    assert names(tmp_path) == ["x.duckdb"]


def test_an_exit_without_shutdown_ends_soon_and_leaves_one_file(tmp_path: Path) -> None:
    code = """
backend = DuckDBBackend(path)
asyncio.run(backend.save_state("r", state))
"""
    script(code, tmp_path / "x.duckdb", timeout=10)
    assert names(tmp_path) == ["x.duckdb"]


# --- this process -----------------------------------------------------------------------------------------------------


def test_names_of_one_file_are_one_database(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("x.duckdb")

    async def main() -> list[int]:
        async with DuckDBBackend(tmp_path / "x.duckdb") as one, DuckDBBackend(tmp_path / "link") as two:
            return [await backend.save_state("r", STATE) for backend in (one, two, one)]

    assert asyncio.run(main()) == [1, 2, 3]
    assert names(tmp_path) == ["link", "x.duckdb"]


def test_another_writer_of_this_process_is_waited_for_up_to_lock_timeout(tmp_path: Path) -> None:
    path = tmp_path / "x.duckdb"

    async def main() -> None:
        async with DuckDBBackend(path, lock_timeout=0.3) as backend:
            await backend.save_state("r", STATE)
            with duckdb.connect(path, config=CONFIG) as other:
                other.execute("BEGIN")
                other.execute("UPDATE workflow_state SET revision = 9")
                with pytest.raises(StorageTimeoutError, match=r"another writer in this process.*lock_timeout"):
                    await backend.save_state("r", STATE)
                other.execute("ROLLBACK")
            assert await backend.save_state("r", STATE) == 2

    asyncio.run(main())


def test_a_command_is_stopped_at_command_timeout_and_leaves_no_transaction(tmp_path: Path) -> None:
    endless = "INSERT INTO t SELECT count(*) FROM range(10000000000000) WHERE range % 7 = 1"

    async def main() -> None:
        connection = Connection(tmp_path / "x.duckdb", DuckDBSettings(command_timeout=0.3))
        await connection.open(create=True)
        await connection.write(lambda raw: raw.execute("CREATE TABLE t (n BIGINT)"))
        for use in (connection.read, connection.write):
            with pytest.raises(StorageTimeoutError, match="command_timeout"):
                await use(lambda raw: raw.execute(endless))
        assert await connection.read(lambda raw: raw.execute("SELECT * FROM t").fetchall()) == []
        await connection.write(lambda raw: raw.execute("INSERT INTO t VALUES (1)"))
        await connection.close()

    asyncio.run(main())


def test_what_is_abandoned_in_the_middle_of_a_command_soon_gives_the_file_free(tmp_path: Path) -> None:
    path = tmp_path / "x.duckdb"
    connection = Connection(path, DuckDBSettings())
    endless = "SELECT count(*) FROM range(10000000000000) WHERE range % 7 = 1"

    async def main() -> None:
        await connection.open(create=True)
        write = asyncio.ensure_future(connection.write(lambda raw: raw.execute(endless)))
        await asyncio.sleep(0.2)
        write.cancel()

    asyncio.run(main())
    started = time.monotonic()
    connection.abandon()
    assert time.monotonic() - started < 2
    assert script("print(save(path))", path) == "1"


def test_other_code_of_this_process_with_another_configuration_is_in_the_way(tmp_path: Path) -> None:
    path = tmp_path / "x.duckdb"
    with duckdb.connect(path), pytest.raises(StorageUnavailableError, match="another configuration; close"):
        save(path)
    assert save(path) == 1


# --- files ------------------------------------------------------------------------------------------------------------


def test_d2_paths_are_those_of_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert save("duckdb:///a.duckdb") == 1
    assert save(f"duckdb:///{tmp_path}/a.duckdb") == 2
    assert save("new/./b.duckdb", threads=1) == 1
    assert names(tmp_path) == ["a.duckdb", "new"]
    with pytest.raises(ConfigurationError, match="memory://"):
        DuckDBBackend("duckdb:///:memory:")
    with pytest.raises(ConfigurationError, match="lock_timeout"):
        DuckDBBackend("duckdb:///a.duckdb?lock_timeuot=1")


def test_d5_without_auto_migrate_nothing_is_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.duckdb"
    with pytest.raises(SchemaMissingError, match="flujo migrate"):
        save(path, auto_migrate=False)
    assert names(tmp_path) == []
    assert save(path) == 1
    assert save(path, auto_migrate=False) == 2


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\x00" + bytes(5000), b"text " * 1000])
def test_d5_a_file_of_another_program_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.duckdb"
    path.write_bytes(content)
    with pytest.raises(UnsupportedStorageError, match="is no DuckDB database; name another file"):
        save(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("table", ["workflow_state", "flujo_schema_versions"])
def test_d5_tables_of_our_names_that_are_not_ours_are_refused(tmp_path: Path, table: str) -> None:
    path = tmp_path / "x.duckdb"
    with duckdb.connect(path) as connection:
        connection.execute(f"CREATE TABLE {table} (version INTEGER)")
    with pytest.raises(UnsupportedStorageError, match=f"a table {table} that this library did not make"):
        save(path)


def test_d5_a_failed_migration_is_undone(tmp_path: Path) -> None:
    path = tmp_path / "x.duckdb"
    with duckdb.connect(path) as connection:
        connection.execute("CREATE VIEW workflow_steps AS SELECT 1")
    with pytest.raises(MigrationError, match=r"001_init failed and was undone.*workflow_steps"):
        save(path)
    with duckdb.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM duckdb_tables()").fetchall() == [(0,)]


def test_a_file_that_can_not_be_opened_is_unavailable(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "file" / "x.duckdb", tmp_path / "loop"):
        (tmp_path / "file").touch()
        if not os.path.lexists(tmp_path / "loop"):
            (tmp_path / "loop").symlink_to("loop")
        with pytest.raises(StorageUnavailableError, match="can't be opened"):
            save(path)
