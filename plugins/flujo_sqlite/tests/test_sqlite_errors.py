"""What happens to SQLite calls that are cancelled, take too long or fail, and what do they say?"""

from __future__ import annotations

import asyncio
import pickle
import random
import sqlite3
import time
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest

from flujo_core.errors import (
    FlujoStateError,
    InvalidStateError,
    StorageError,
    StorageTimeoutError,
    StorageUnavailableError,
    UnsupportedStorageError,
)
from flujo_sqlite import SQLiteBackend
from flujo_sqlite.errors import is_busy, translated
from flujo_sqlite.settings import SQLiteSettings
from flujo_sqlite.store import SQLiteStore

Result = TypeVar("Result")

ENDLESS = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"


def state(step: int = 0, **more: Any) -> Any:
    return {
        "pipeline_id": "p",
        "pipeline_name": "name",
        "pipeline_version": "1",
        "current_step_index": step,
        **more,
    }


def with_backend(path: Path, use: Callable[[SQLiteBackend], Awaitable[Result]], **settings: Any) -> Result:
    async def main() -> Result:
        async with SQLiteBackend(path, **settings) as backend:
            return await use(backend)

    return asyncio.run(main())


async def store_of(backend: SQLiteBackend) -> SQLiteStore:
    return cast(SQLiteStore, await backend._store())


def endless(raw: sqlite3.Connection) -> list[Any]:
    return raw.execute(ENDLESS).fetchall()


# --- G11: every code of SQLite has a meaning --------------------------------------------------------------------------


def driver_error(code: int) -> sqlite3.Error:
    error = sqlite3.OperationalError("what SQLite said")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (sqlite3.SQLITE_BUSY, StorageTimeoutError, "10 s (lock_timeout)"),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, StorageTimeoutError, "10 s (lock_timeout)"),
        (sqlite3.SQLITE_LOCKED, StorageTimeoutError, "10 s (lock_timeout)"),
        (sqlite3.SQLITE_PROTOCOL, StorageTimeoutError, "10 s (lock_timeout)"),
        (sqlite3.SQLITE_INTERRUPT, StorageTimeoutError, "60 s (command_timeout)"),
        (sqlite3.SQLITE_CANTOPEN, StorageUnavailableError, "check"),
        (sqlite3.SQLITE_PERM, StorageUnavailableError, "check its permissions"),
        (sqlite3.SQLITE_READONLY_DIRECTORY, StorageUnavailableError, "check the permissions"),
        (sqlite3.SQLITE_FULL, StorageError, "free some and try again"),
        (sqlite3.SQLITE_IOERR_WRITE, StorageError, "check the disk"),
        (sqlite3.SQLITE_CORRUPT, StorageError, "restore a backup"),
        (sqlite3.SQLITE_NOTADB, UnsupportedStorageError, "name another file"),
        (sqlite3.SQLITE_TOOBIG, InvalidStateError, "size"),
        (sqlite3.SQLITE_ERROR, StorageError, "see what changed its tables"),
    ],
)
def test_g11_a_code_of_sqlite_is_told_in_words(code: int, kind: type[Exception], words: str) -> None:
    path = Path("/folder/{braces} %s.db")
    error = translated(driver_error(code), path, SQLiteSettings())
    assert type(error) is kind
    assert str(error).startswith(f"{path} ")
    assert words in str(error)
    assert str(error).endswith("(what SQLite said)")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_g11_only_locks_are_tried_again() -> None:
    again = {code for code in range(1, 29) if is_busy(driver_error(code))}
    assert again == {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}
    assert not is_busy(sqlite3.ProgrammingError("of the driver, without a code"))


def test_g11_tables_that_somebody_dropped_are_our_error(tmp_path: Path) -> None:
    async def use(backend: SQLiteBackend) -> None:
        await backend.save_state("r", state(step_history=[1]))
        await (await store_of(backend))._write(lambda raw: raw.execute("DROP TABLE workflow_history"))
        calls: list[Awaitable[Any]] = [
            backend.load_state("r"),
            backend.save_state("r", state(step_history=[1, 2])),
            backend.save_state("other", state(step_history=[1, 2])),
        ]
        for call in calls:
            with pytest.raises(StorageError) as caught:
                await call
            error = caught.value
            assert "refused the command" in str(error)
            assert str(tmp_path / "x.db") in str(error)
            assert error.__cause__ is None
            shown = "".join(traceback.format_exception(error))
            assert "sqlite3.OperationalError" not in shown
        assert await backend.list_runs(limit=0) == []

    with_backend(tmp_path / "x.db", use)


def test_g11_one_bad_write_fails_alone(tmp_path: Path) -> None:
    async def use(backend: SQLiteBackend) -> None:
        script = (
            "CREATE TRIGGER picky BEFORE INSERT ON workflow_state WHEN NEW.run_id = 'bad' "
            "BEGIN SELECT RAISE(ABORT, 'not this one'); END"
        )
        await (await store_of(backend))._write(lambda raw: raw.execute(script))
        answers = await asyncio.gather(
            *(backend.save_state(run_id, state()) for run_id in ("a", "bad", "c", "d")), return_exceptions=True
        )
        assert [answer for answer in answers if answer != 1] == [answers[1]]
        assert type(answers[1]) is StorageError
        assert "not this one" in str(answers[1])

    with_backend(tmp_path / "x.db", use)


# --- G12: what takes too long -----------------------------------------------------------------------------------------


def test_g12_a_query_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    async def use(backend: SQLiteBackend) -> None:
        await asyncio.gather(*(backend.save_state(f"r{number}", state(metadata={"a": 1})) for number in range(60)))
        await backend.list_runs()
        store = await store_of(backend)

        def slow(metadata: str, filter_: str) -> bool:
            time.sleep(0.05)
            return True

        await store._readers[0].run(lambda raw: raw.create_function("flujo_contains", 2, slow))
        begun = time.monotonic()
        with pytest.raises(StorageTimeoutError) as caught:
            await backend.list_runs(metadata_filter={"a": 1})
        assert 0.25 < time.monotonic() - begun < 2
        assert str(tmp_path / "x.db") in str(caught.value)
        assert "0.3 s (command_timeout)" in str(caught.value)
        assert caught.value.__cause__ is None
        # The connection is as good as before.
        assert len(await backend.list_runs()) == 60
        assert await backend.save_state("r1", state()) == 2

    with_backend(tmp_path / "x.db", use, readers=1, command_timeout=0.3)


def test_g12_a_write_that_takes_too_long_is_stopped_and_undone(tmp_path: Path) -> None:
    async def use(backend: SQLiteBackend) -> None:
        assert await backend.save_state("r", state()) == 1

        def work(raw: sqlite3.Connection) -> list[Any]:
            raw.execute("UPDATE workflow_state SET revision = 77")
            return endless(raw)

        with pytest.raises(StorageTimeoutError, match=r"0.3 s \(command_timeout\)"):
            await (await store_of(backend))._write(work)
        assert await backend.save_state("r", state()) == 2

    with_backend(tmp_path / "x.db", use, command_timeout=0.3)


def test_g12_work_of_many_short_statements_is_stopped_too(tmp_path: Path) -> None:
    async def use(backend: SQLiteBackend) -> None:
        short = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 2000) SELECT count(*) FROM n"

        def work(raw: sqlite3.Connection) -> None:
            give_up = time.monotonic() + 15
            while time.monotonic() < give_up:
                raw.execute(short).fetchall()
                # Most interrupts fall here, where they do nothing.
                time.sleep(0.002)

        begun = time.monotonic()
        with pytest.raises(StorageTimeoutError, match="command_timeout"):
            await (await store_of(backend))._read(work)
        assert time.monotonic() - begun < 10

    with_backend(tmp_path / "x.db", use, command_timeout=0.2)


def test_g12_a_batch_that_is_locked_out_waits_once(tmp_path: Path) -> None:
    path = tmp_path / "x.db"

    async def use(backend: SQLiteBackend) -> None:
        await backend.save_state("r0", state())
        holder = sqlite3.connect(path, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        begun = time.monotonic()
        saves = [backend.save_state(f"r{number}", state()) for number in range(30)]
        answers = await asyncio.gather(*saves, return_exceptions=True)
        took = time.monotonic() - begun
        holder.execute("ROLLBACK")
        # Before the connection here is closed, as closing gives up the locks of the whole process.
        assert await backend.save_state("r0", state()) == 2
        holder.close()
        assert {type(answer) for answer in answers} == {StorageTimeoutError}
        assert len({id(answer) for answer in answers}) == 30
        assert took < 2.5

    with_backend(path, use, lock_timeout=0.3)


def test_g12_shutdown_gives_up_on_what_does_not_end(tmp_path: Path) -> None:
    async def main() -> None:
        backend = SQLiteBackend(tmp_path / "x.db", close_timeout=0.3)
        await backend.save_state("r", state())
        store = await store_of(backend)
        reading = asyncio.create_task(store._read(endless))
        await asyncio.sleep(0.05)
        begun = time.monotonic()
        with pytest.raises(StorageTimeoutError, match=r"0.3 s \(close_timeout\)"):
            await backend.shutdown()
        assert time.monotonic() - begun < 4
        with pytest.raises(StorageTimeoutError):
            await reading
        assert await backend.save_state("r", state()) == 2
        await backend.shutdown()

    asyncio.run(main())


# --- G9: what is cancelled --------------------------------------------------------------------------------------------


def test_g9_a_cancelled_read_is_stopped_and_hinders_nobody(tmp_path: Path) -> None:
    async def use(backend: SQLiteBackend) -> None:
        await backend.save_state("r", state())
        store = await store_of(backend)
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await store._read(endless)
            begun = time.monotonic()
            loaded: Any = await backend.load_state("r")
            assert loaded["revision"] == 1
            assert time.monotonic() - begun < 5

    # The only reader, and a deadline that would be far away.
    with_backend(tmp_path / "x.db", use, readers=1, command_timeout=30)


def test_g9_a_cancelled_write_that_runs_hinders_nobody_for_long(tmp_path: Path) -> None:
    async def use(backend: SQLiteBackend) -> None:
        await backend.save_state("r", state())
        store = await store_of(backend)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await store._write(endless)
        # Behind the endless one, which has its own deadline.
        assert await backend.save_state("r", state()) == 2

    with_backend(tmp_path / "x.db", use, command_timeout=0.5)


def whole(loaded: Any) -> int:
    """The step of a state whose parts all belong to one save."""
    step = loaded["current_step_index"]
    assert loaded["pipeline_context"] == {"step": step}
    assert loaded["metadata"] == {"step": step}
    assert loaded["step_history"] == [{"step": step, "entry": entry} for entry in range(step % 7)]
    return int(step)


def at_step(step: int) -> Any:
    parts = {"step": step}
    history = [{"step": step, "entry": entry} for entry in range(step % 7)]
    return state(step, pipeline_context=parts, metadata=parts, step_history=history)


def test_g9_a_cancelled_save_is_old_or_new(tmp_path: Path) -> None:
    chance = random.Random(5)

    async def use(backend: SQLiteBackend) -> None:
        assert await backend.save_state("r", at_step(0)) == 1
        outcomes = {"old": 0, "new": 0, "saved": 0}
        last = 0
        for step in range(1, 151):
            saving = asyncio.create_task(backend.save_state("r", at_step(step)))
            if step % 2:
                # At each of its awaits in turn …
                for _ in range(step // 2 % 12):
                    await asyncio.sleep(0)
            else:
                # … and at any time.
                await asyncio.sleep(chance.uniform(0, 0.004))
            saving.cancel()
            (answer,) = await asyncio.gather(saving, return_exceptions=True)
            loaded: Any = await backend.load_state("r")
            stored = whole(loaded)
            if isinstance(answer, int):
                assert (stored, loaded["revision"]) == (step, answer)
                outcomes["saved"] += 1
            else:
                assert isinstance(answer, asyncio.CancelledError)
                assert stored in (last, step) or stored > last
                outcomes["new" if stored == step else "old"] += 1
            last = stored
        print(outcomes)
        assert outcomes["old"]
        # A cancelled one may still come through; then comes the last one.
        revision = await backend.save_state("r", at_step(151))
        loaded = await backend.load_state("r")
        assert (whole(loaded), loaded["revision"]) == (151, revision)
        found = await backend.list_runs(metadata_filter={"step": 151})
        assert [row["run_id"] for row in found] == ["r"]
        terms = await (await store_of(backend))._read(
            lambda raw: raw.execute("SELECT count(*) FROM workflow_metadata_terms").fetchone()[0]
        )
        await backend.delete_run("r")
        left = await (await store_of(backend))._read(
            lambda raw: raw.execute("SELECT count(*) FROM workflow_metadata_terms").fetchone()[0]
        )
        assert (terms > 0, left) == (True, 0)

    with_backend(tmp_path / "x.db", use)


@pytest.mark.parametrize("operation", ["load_state", "list_runs", "set_system_state", "migrate", "save_step_result"])
def test_g9_cancelled_calls_leave_the_backend_in_order(tmp_path: Path, operation: str) -> None:
    chance = random.Random(operation)
    calls: dict[str, Callable[[SQLiteBackend], Awaitable[Any]]] = {
        "load_state": lambda backend: backend.load_state("r"),
        "list_runs": lambda backend: backend.list_runs(metadata_filter={"a": 1, "b": [2]}),
        "set_system_state": lambda backend: backend.set_system_state("key", [1, 2]),
        "migrate": lambda backend: backend.migrate(),
        "save_step_result": lambda backend: backend.save_step_result(
            {"run_id": "r", "step_name": "s", "step_index": 1, "record_id": "same"}
        ),
    }

    async def use(backend: SQLiteBackend) -> None:
        await backend.save_state("r", state(metadata={"a": 1, "b": [2, 3]}))
        for _ in range(20):
            tasks = [asyncio.ensure_future(calls[operation](backend)) for _ in range(4)]
            await asyncio.sleep(chance.choice([0, chance.uniform(0, 0.003)]))
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        async with asyncio.timeout(10):
            for _ in range(3):
                await calls[operation](backend)
            assert await backend.save_state("r", state()) == 2
            assert len(await backend.list_run_steps("r")) == (operation == "save_step_result")

    with_backend(tmp_path / "x.db", use, readers=2)


@pytest.mark.parametrize("turns", [*range(12), 20, 40])
def test_g9_a_cancelled_opening_can_be_repeated(tmp_path: Path, turns: int) -> None:
    async def main() -> None:
        backend = SQLiteBackend(tmp_path / "x.db")
        saving = asyncio.create_task(backend.save_state("r", state()))
        for _ in range(turns):
            await asyncio.sleep(0)
        saving.cancel()
        await asyncio.gather(saving, return_exceptions=True)
        # The whole loop ends here, with the opening in whatever state.

    asyncio.run(main())
    with_backend(tmp_path / "x.db", lambda backend: backend.save_state("s", state()))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.db"]


# --- G11: and the whole tree ------------------------------------------------------------------------------------------


def test_g11_numbers_that_sqlite_can_not_hold_are_no_surprise(tmp_path: Path) -> None:
    async def use(backend: SQLiteBackend) -> None:
        await backend.save_state("r", state())
        large = 10**30
        assert len(await backend.list_runs(limit=large)) == 1
        assert await backend.list_runs(offset=large) == []
        attempts: list[Awaitable[Any]] = [
            backend.save_state("r", state(large)),
            backend.save_state("r", state(total_steps=2**63)),
            backend.save_step_result({"run_id": "r", "step_name": "s", "step_index": large}),
            backend.save_state("r", state(), expected_revision=large),
        ]
        for attempt in attempts:
            with pytest.raises(FlujoStateError):
                await attempt
        assert await backend.save_state("r", state(2**63 - 1, text="\0\ud800")) == 2
        loaded: Any = await backend.load_state("r")
        assert (loaded["current_step_index"], loaded["text"]) == (2**63 - 1, "\0\ud800")
        await backend.save_run_end("r", {"error_message": "\0\ud800", "odd \0\ud800": "\udfff"})
        details: Any = await backend.get_run_details("r")
        assert details["odd \0\ud800"] == "\udfff"

    with_backend(tmp_path / "x.db", use)
