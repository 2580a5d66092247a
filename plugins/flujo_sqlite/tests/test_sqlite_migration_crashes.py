"""What is left of a migration that is killed, cancelled or out of time, and of several that come at once?"""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlite_migrations import (
    AUDIT,
    FILL,
    INDEX,
    LATEST,
    OWN,
    STATE,
    TAGS,
    ask,
    backups,
    dump,
    folder_of,
    header,
    migrate,
    names,
    recorded,
    save,
    whole,
    with_backend,
)

from flujo_conformance.leaks import held, left
from flujo_core.errors import MigrationError, MigrationLockError, StorageTimeoutError
from flujo_core.migrating import MigrationProgress
from flujo_sqlite import SQLiteBackend, backup, schema

# --- a killed process -------------------------------------------------------------------------------------------------

# The parent of all these processes opens no file and starts no thread, so it can fork them.
KILLED = """
import asyncio, os, sys
from pathlib import Path
from time import monotonic
import flujo_core.validation
from flujo_core.migrations import read_migrations
from flujo_sqlite import SQLiteBackend, backup, schema, store

base, folder, first, stride = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
plain_migrate, plain_connect = schema.migrate, backup._connect
left = None  # so many events may pass

def event(statement=""):
    global left
    if statement.startswith(("SELECT", "-- PRAGMA")) or (statement.startswith("PRAGMA") and "=" not in statement):
        return  # it changes nothing, so the next one is as good a place
    if left is not None:
        if left == 0:
            os.kill(os.getpid(), 9)
        left -= 1

def traced_migrate(raw, *args):
    raw.set_trace_callback(event)  # before each statement
    return plain_migrate(raw, *args)

def traced_connect(*args):
    raw = plain_connect(*args)
    raw.set_trace_callback(event)
    return raw

def clock():  # what the backup looks at in the middle of a statement
    event()
    return monotonic()

def hook(name, args):
    if name in ("os.rename", "os.remove") or (name == "open" and ".before-" in str(args[0])):
        event()

async def migrate(path):
    backend = SQLiteBackend(path, migrations_dir=folder, synchronous="normal")  # no power cut here
    await backend.migrate()
    await backend.shutdown()

def in_child(path, events):
    global left
    pid = os.fork()
    if pid == 0:
        left = events
        code = 1
        try:
            asyncio.run(migrate(path))
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

schema.migrate, backup._connect, backup.monotonic, backup._STEPS = traced_migrate, traced_connect, clock, 50
sys.addaudithook(hook)
read_migrations("flujo_sqlite.migrations")  # once for all children
number, code = first, -9
while code:
    place = base / f"{number:04d}"
    place.mkdir()
    code = in_child(place / "x.db", number)
    print(number, code, ",".join(sorted(entry.name.rpartition(".")[2] for entry in place.iterdir())), flush=True)
    assert code in (0, -9)
    repaired = in_child(place / "x.db", None)
    assert repaired == 0
    number += stride
"""


def kill_everywhere(base: Path, folder: Path) -> list[tuple[Path, list[str]]]:
    """Of each n: the folder of a file whose migration was killed at its n-th event and then run again, and the suffixes
    of the files that the killed process left."""
    points: list[tuple[Path, list[str]]] = []
    command = [sys.executable, "-c", KILLED, str(base), str(folder)]
    both = [
        subprocess.Popen(
            [*command, str(half), "2"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for half in (0, 1)
    ]
    try:
        for process in both:
            out, errors = process.communicate(timeout=60)
            assert (process.returncode, errors) == (0, "")
            lines = [line.split(" ") for line in out.splitlines()]
            assert [code for _, code, _ in lines] == ["-9"] * (len(lines) - 1) + ["0"]
            points += [(base / f"{int(number):04d}", suffixes.split(",")) for number, _, suffixes in lines]
    finally:
        for process in both:
            process.kill()
            process.wait()
    return sorted(points)


def check_killed(points: list[tuple[Path, list[str]]], undisturbed: Path) -> None:
    expected = (dump(undisturbed), recorded(undisturbed), header(undisturbed), AUDIT)
    for place, _ in points:
        path = place / "x.db"
        found = (dump(path), recorded(path), header(path), ask(path, "SELECT what FROM audit"))
        assert found == expected, place.name
        assert ask(path, "PRAGMA integrity_check") == [("ok",)]
        copies = backups(path)
        assert names(place) == ["x.db", *sorted(copy.name for copy in copies)], place.name
        assert 1 <= len(copies) <= backup.KEPT
        for copy in copies:
            assert copy.suffix == ".bak"
            assert ask(copy, "PRAGMA integrity_check") == [("ok",)]
            assert ask(copy, "SELECT name FROM tag") == []


def test_d5_a_migration_that_is_killed_anywhere_is_mended_by_the_next_one(tmp_path: Path) -> None:
    """Before every statement of all steps, and at many places of the backup."""
    folder = folder_of(tmp_path, TAGS, FILL, INDEX)
    undisturbed = tmp_path / "alone" / "x.db"
    migrate(undisturbed, migrations_dir=folder)
    base = tmp_path / "points"
    base.mkdir()
    points = kill_everywhere(base, folder)
    check_killed(points, undisturbed)
    suffixes = [left_behind for _, left_behind in points]
    # Killed within the backup, and between its rename and the commit.
    assert sum("part" in one for one in suffixes) > 5
    assert sum("bak" in one and "db-wal" in one for one in suffixes) > 5
    assert len(points) > 80


# --- locks and time ---------------------------------------------------------------------------------------------------

HOLDER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.readline()
"""


@contextmanager
def lock_of_another_process(path: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            yield holder
        finally:
            holder.kill()


def test_d5_a_lock_of_another_process_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    migrate(path, 1)
    heard: list[str] = []
    with lock_of_another_process(path) as holder:

        def told(progress: MigrationProgress) -> None:
            if progress.doing == "waits" and heard.count("waits") == 0:
                threading.Timer(0.2, holder.kill).start()
            heard.append(progress.doing)

        migrated = with_backend(path, lambda backend: backend.migrate(told=told), lock_timeout=0.05)
    assert [str(step) for step in migrated.steps] == ["002_metadata_index", *map(str, OWN[2:])]
    assert (heard[:2], heard[-1]) == (["runs", "waits"], "done")


@pytest.mark.parametrize("auto_migrate", [True, False])
def test_d5_a_lock_that_stays_is_an_error_and_nothing_is_changed(tmp_path: Path, auto_migrate: bool) -> None:
    path = tmp_path / "x.db"
    migrate(path, 1)
    before = whole(path)
    with lock_of_another_process(path):
        began = time.monotonic()
        with pytest.raises(MigrationLockError, match=r"002_metadata_index .* within 0.3 s \(migration_lock_wait"):
            (save if auto_migrate else migrate)(
                path, auto_migrate=auto_migrate, migration_lock_wait=0.3, lock_timeout=0.05
            )
        assert 0.3 <= time.monotonic() - began < 3
    assert whole(path) == before
    assert save(path) == 1


ENDLESS = "CREATE TABLE n AS WITH RECURSIVE n (i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n) SELECT sum(i) FROM n"


@pytest.mark.parametrize("before_it", ["", "UPDATE tag SET name = 'x'; "])
def test_d5_a_statement_without_end_is_stopped_and_undone(tmp_path: Path, before_it: str) -> None:
    path = tmp_path / "x.db"
    migrate(path, migrations_dir=folder_of(tmp_path, TAGS))
    before = whole(path)
    began = time.monotonic()
    with pytest.raises(MigrationError, match=r"002_step did not end within 0.3 s \(migration_timeout\) and was undone"):
        migrate(path, migrations_dir=folder_of(tmp_path, TAGS, before_it + ENDLESS), migration_timeout=0.3)
    assert time.monotonic() - began < 3
    assert whole(path) == before


def test_d5_writers_of_other_handles_go_on_before_and_after(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    folder = folder_of(tmp_path, TAGS, FILL, INDEX)

    async def main() -> None:
        second = SQLiteBackend(path, migrations_dir=folder)
        async with SQLiteBackend(path) as first:
            assert await first.save_state("r", STATE) == 1
            assert await first.load_state("r") is not None
            saves = [asyncio.create_task(first.save_state(f"r{number}", STATE)) for number in range(20)]
            report = await second.migrate()
            assert len(report.steps) == 3
            assert await asyncio.gather(*saves) == [1] * 20
            assert await first.save_state("r", STATE) == 2
            assert await second.save_state("r", STATE) == 3
            await second.shutdown()
            assert len(await first.list_runs(limit=100)) == 21

    asyncio.run(main())
    assert ask(path, "SELECT what FROM audit") == AUDIT


def test_d5_a_writer_is_told_that_the_file_is_locked_while_a_step_runs(tmp_path: Path) -> None:
    path = tmp_path / "x.db"

    async def main() -> None:
        async with SQLiteBackend(path, lock_timeout=0.1) as writer:
            assert await writer.save_state("r", STATE) == 1
            endless = SQLiteBackend(path, migrations_dir=folder_of(tmp_path, ENDLESS), migration_timeout=0.8)
            running = asyncio.create_task(endless.migrate())
            await asyncio.sleep(0.3)
            # Reading goes on, writing waits.
            assert await writer.load_state("r") is not None
            with pytest.raises(StorageTimeoutError, match="lock_timeout"):
                await writer.save_state("r", STATE)
            with pytest.raises(MigrationError, match="did not end"):
                await running
            assert await writer.save_state("r", STATE) == 2

    asyncio.run(main())


# --- cancellation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [*range(0, 24, 3), *range(24, 54, 6)])
def test_d5_a_cancelled_migration_leaves_nothing_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Cancelled when the migration's connections begin their statement number ``at``."""
    path = tmp_path / "x.db"
    save(path)
    folder = folder_of(tmp_path, TAGS, FILL, INDEX)
    plain = schema.migrate
    seen = 0

    async def main() -> None:
        loop = asyncio.get_running_loop()
        # With no other handle: SQLite keeps descriptors of a file that is open elsewhere in the process, to use again.
        before = held()
        backend = SQLiteBackend(path, migrations_dir=folder)
        task = asyncio.create_task(backend.migrate())

        def count(statement: str) -> None:
            nonlocal seen
            if seen == at:
                loop.call_soon_threadsafe(task.cancel)
                time.sleep(0.01)
            seen += 1

        def traced(raw: sqlite3.Connection, *rest: Any) -> Any:
            raw.set_trace_callback(count)
            return plain(raw, *rest)

        monkeypatch.setattr(schema, "migrate", traced)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await left(before) == set()
        monkeypatch.setattr(schema, "migrate", plain)
        await backend.migrate()
        assert await left(before) == set()

    asyncio.run(main())
    assert seen > at
    assert ask(path, "SELECT what FROM audit") == AUDIT
    assert [version for _, version, _, _ in recorded(path)] == [*range(1, LATEST + 1), 1, 2, 3]


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8, 13])
def test_d5_a_migration_cancelled_early_leaves_nothing_open(tmp_path: Path, turns: int) -> None:
    path = tmp_path / "new" / "x.db"
    path.parent.mkdir()
    save(tmp_path / "first.db")  # the first backend of a process starts the thread that ends with it

    async def main() -> None:
        before = held()
        backend = SQLiteBackend(path)
        task = asyncio.create_task(backend.migrate())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await left(before) == set()
        assert (await backend.migrate()).to_version == LATEST
        assert await left(before) == set()

    asyncio.run(main())
    assert names(path.parent) == ["x.db"]
