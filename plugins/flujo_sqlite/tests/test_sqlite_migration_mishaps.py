"""What if a migration is stopped, a takeover is refused, or a file harms what records it? And how does one go back?"""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from original_system import check
from sqlite_migrations import (
    FILL,
    LATEST,
    STATE,
    TAGS,
    ask,
    backups,
    connected,
    folder_of,
    migrate,
    names,
    recorded,
    save,
    whole,
    with_backend,
)
from test_sqlite_original import dump, make, random_rows

from flujo_conformance.leaks import held, left
from flujo_core.errors import MigrationError, MigrationLockError
from flujo_core.migrating import MigrationProgress
from flujo_sqlite import SQLiteBackend, backup

NUMBERS = "WITH RECURSIVE n (i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n) SELECT max(i) AS i FROM n"
"""Without end."""
ENDLESS = f"CREATE TABLE begun (a); INSERT INTO begun VALUES (1); CREATE TABLE endless AS {NUMBERS};"

# --- stopped ----------------------------------------------------------------------------------------------------------


async def stop(backend: SQLiteBackend, after: float) -> None:
    """Cancel a migration so many seconds after its step began."""
    began = asyncio.Event()

    def tell(progress: MigrationProgress) -> None:
        began.set()

    task = asyncio.create_task(backend.migrate(told=tell))
    await began.wait()
    await asyncio.sleep(after)
    assert not task.done()
    cancelled = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - cancelled < 2


def test_a_cancelled_statement_is_stopped_and_undone(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    save(path)
    folder = folder_of(tmp_path, ENDLESS)
    before = whole(path)

    async def main() -> None:
        opened = held()
        await stop(SQLiteBackend(path, migrations_dir=folder), 0.3)
        assert await left(opened) == set()

    asyncio.run(main())
    assert whole(path) == before


@pytest.mark.parametrize("number", [0, 1], ids=["the copy", "its check"])
def test_a_cancelled_backup_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    path = tmp_path / "x.db"
    migrate(path, migrations_dir=folder_of(tmp_path, TAGS))
    before, files = whole(path), names(tmp_path)
    plain = backup._connect
    opened: list[Path] = []

    def connect(which: Path, *rest: Any) -> sqlite3.Connection:
        opened.append(which)
        raw = plain(which, *rest)
        if len(opened) > number:
            try:
                raw.execute(NUMBERS).fetchone()
            except BaseException:
                raw.close()
                raise
        return raw

    monkeypatch.setattr(backup, "_connect", connect)
    asyncio.run(stop(SQLiteBackend(path, migrations_dir=folder_of(tmp_path, TAGS, FILL)), 0.3))
    assert len(opened) == number + 1
    assert whole(path) == before
    assert names(tmp_path) == files


@pytest.mark.parametrize("after", [0.05, 0.15, 0.3])
def test_a_cancelled_takeover_is_stopped(tmp_path: Path, after: float) -> None:
    rows = random_rows(3000)
    path = make(tmp_path / "x.db", rows)
    before = path.read_bytes()
    asyncio.run(stop(SQLiteBackend(path), after))
    assert path.read_bytes() == before
    assert names(tmp_path) == ["x.db"]


MIGRATE = """
import asyncio, sys
from pathlib import Path
from flujo_sqlite import SQLiteBackend

async def main():
    backend = SQLiteBackend(Path(sys.argv[1]), migrations_dir=Path(sys.argv[2]))
    try:
        await backend.migrate(told=lambda progress: print(progress.doing, flush=True))
    finally:
        await backend.shutdown()

asyncio.run(main())
"""


@pytest.mark.parametrize("times", [1, 3])
def test_ctrl_c_stops_a_migration(tmp_path: Path, times: int) -> None:
    path = tmp_path / "x.db"
    save(path)
    before = whole(path)
    command = [sys.executable, "-c", MIGRATE, str(path), str(folder_of(tmp_path, ENDLESS))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        assert process.stdout.readline() == "runs\n"
        time.sleep(0.3)
        for _ in range(times):
            process.send_signal(signal.SIGINT)
            time.sleep(0.002)
        _, errors = process.communicate(timeout=10)
    finally:
        process.kill()
    assert "KeyboardInterrupt" in errors
    assert "Exception in thread" not in errors
    assert "Event loop is closed" not in errors
    assert whole(path) == before


def test_a_connection_whose_loop_has_ended_says_nothing_more(tmp_path: Path) -> None:
    """As after the second Ctrl-C: all tasks are cancelled, also those that close."""
    path = tmp_path / "x.db"
    save(path)
    script = MIGRATE.replace("asyncio.run(main())", LOOP)
    command = [sys.executable, "-c", script, str(path), str(folder_of(tmp_path, ENDLESS))]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")


LOOP = """
import time, warnings
from flujo_sqlite import connection
plain = connection._Handle.close
def slowly(self):
    time.sleep(0.3)  # until the loop is closed
    plain(self)
connection._Handle.close = slowly
loop = asyncio.new_event_loop()
task = loop.create_task(main())
loop.run_until_complete(asyncio.sleep(0.5))
for _ in range(3):
    for one in asyncio.all_tasks(loop):
        one.cancel()
    loop.run_until_complete(asyncio.sleep(0.01))
loop.set_exception_handler(lambda *_: None)
loop.close()
for one in asyncio.all_tasks(loop):
    one._log_destroy_pending = False
"""


# --- refused ----------------------------------------------------------------------------------------------------------


def test_a_refused_takeover_changes_no_byte(tmp_path: Path) -> None:
    path = make(tmp_path / "x.db", random_rows(20), more="UPDATE runs SET status = 'exploded'")
    before = path.read_bytes()
    for use in (lambda b: b.migrate(), lambda b: b.list_runs()):  # type: Any
        with pytest.raises(MigrationError, match="nothing was changed"):
            with_backend(path, use)
    assert (path.read_bytes(), names(tmp_path)) == (before, ["x.db"])


@pytest.mark.parametrize("kind", ["original", "of others"])
def test_a_reader_of_a_file_that_is_none_of_ours_yet_is_waited_for_as_a_migration_waits(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "x.db"
    if kind == "original":
        make(path, random_rows(20))
    else:
        ask(path, "CREATE TABLE runs (a)")
    before = path.read_bytes()
    with connected(path) as other:
        other.execute("BEGIN")
        other.execute("SELECT count(*) FROM runs").fetchall()
        began = time.monotonic()
        with pytest.raises(MigrationLockError, match=r"001_init could not begin within 0\.3 s"):
            with_backend(path, lambda backend: backend.migrate(), migration_lock_wait=0.3)
        assert time.monotonic() - began < 5
    assert (path.read_bytes(), names(tmp_path)) == (before, ["x.db"])


@pytest.mark.parametrize("kind", ["original", "of others"])
@pytest.mark.parametrize("how", ["opening", "migrate"])
def test_once_it_is_ours_it_has_a_log(tmp_path: Path, kind: str, how: str) -> None:
    path = tmp_path / "x.db"
    if kind == "original":
        make(path, random_rows(20))
    else:
        ask(path, "CREATE TABLE mine (a)")
    if how == "migrate":
        migrate(path)
        assert ask(path, "PRAGMA journal_mode") == [("wal",)]

    async def use(backend: SQLiteBackend) -> None:
        await backend.save_state("new", STATE)
        assert (tmp_path / "x.db-wal").exists()

    with_backend(path, use)


def test_who_waits_for_the_log_finds_it_once_a_reader_has_gone(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    make(path, random_rows(20))
    # Another process took it over, and ended before it could make the log.
    migrate(path)
    ask(path, "PRAGMA journal_mode = DELETE")

    async def use(backend: SQLiteBackend) -> None:
        with connected(path) as other:
            other.execute("BEGIN")
            other.execute("SELECT count(*) FROM workflow_state").fetchall()
            task = asyncio.create_task(backend.migrate())
            await asyncio.sleep(0.3)
            assert not task.done()
            other.execute("COMMIT")
        await task

    with_backend(path, use)
    assert ask(path, "PRAGMA journal_mode") == [("wal",)]


# --- the record -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE flujo_schema_versions RENAME TO other",
        "ALTER TABLE flujo_schema_versions RENAME COLUMN checksum TO other",
        "DROP TABLE flujo_schema_versions",
        "DELETE FROM flujo_schema_versions",
        "UPDATE flujo_schema_versions SET min_code = 99",
        "DELETE FROM flujo_deployment_versions",
        "DROP TABLE flujo_deployment_versions",
        "INSERT INTO flujo_deployment_versions (version, checksum) VALUES (7, 'x')",
        """CREATE TRIGGER swallow AFTER INSERT ON flujo_deployment_versions BEGIN
               DELETE FROM flujo_deployment_versions WHERE version = new.version; END""",
    ],
)
def test_a_step_that_harms_the_records_is_undone(tmp_path: Path, statement: str) -> None:
    path = tmp_path / "x.db"
    migrate(path, migrations_dir=folder_of(tmp_path, TAGS))
    before = whole(path)
    with pytest.raises(MigrationError, match=r"002_step changed what records the migrations; it was undone"):
        migrate(path, migrations_dir=folder_of(tmp_path, TAGS, statement))
    assert whole(path) == before
    assert save(path) == 1


def test_a_temporary_table_takes_no_record(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    columns = "version INTEGER PRIMARY KEY, name, checksum, applied_at, duration_ms, code_version, min_code"
    hiding = "".join(
        f"CREATE TEMP TABLE {name} ({columns});" for name in ("flujo_schema_versions", "flujo_deployment_versions")
    )
    migrate(path, migrations_dir=folder_of(tmp_path, hiding))
    assert [version for _, version, _, _ in recorded(path)] == [*range(1, LATEST + 1), 1]
    assert save(path, migrations_dir=tmp_path / "deployment") == 1


# --- what others made on the original's tables -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ("CREATE VIEW mine AS SELECT run_id FROM workflow_state", "the view mine reads its tables; drop it first"),
        ('CREATE VIEW "a ""b" AS SELECT count(*) FROM spans', 'the view a "b reads its tables'),
        ("CREATE VIEW mine AS SELECT 1; CREATE VIEW z AS SELECT * FROM mine, RUNS", "the view z reads"),
        ("CREATE TRIGGER mine AFTER INSERT ON Runs BEGIN SELECT 1; END", "the trigger mine is on Runs; drop it first"),
        *(
            (
                f"CREATE TABLE log (a, b); CREATE TRIGGER t AFTER {event} ON log BEGIN DELETE FROM runs; END",
                r"log has a trigger \(such as t\) that uses its tables; drop it first",
            )
            for event in ("INSERT", "UPDATE OF b", "DELETE")
        ),
        ("CREATE TABLE mine (a REFERENCES Workflow_State (run_id))", "the table mine has a foreign key to Workflow_St"),
    ],
)
def test_what_a_takeover_would_break_is_named(tmp_path: Path, more: str, named: str) -> None:
    path = make(tmp_path / "x.db", random_rows(20), more=more)
    before = dump(path)
    with pytest.raises(MigrationError, match=f"nothing was changed: {named}"):
        migrate(path)
    assert dump(path) == before
    assert names(tmp_path) == ["x.db"]


def test_what_a_takeover_would_not_break_stays(tmp_path: Path) -> None:
    more = """
    CREATE TABLE mine (a PRIMARY KEY); CREATE TABLE other (a REFERENCES mine);
    CREATE VIEW seen AS SELECT a FROM mine;
    CREATE TRIGGER made AFTER INSERT ON mine BEGIN INSERT INTO other VALUES (new.a); END;
    CREATE TRIGGER put INSTEAD OF INSERT ON seen BEGIN INSERT INTO mine VALUES (new.a); END;
    CREATE VIEW broken AS SELECT * FROM nowhere;
    CREATE TRIGGER wrong AFTER DELETE ON mine BEGIN DELETE FROM nowhere; END;
    """
    rows = random_rows(20)
    path = make(tmp_path / "x.db", rows, more=more)
    with_backend(path, lambda backend: check(backend, rows))
    ask(path, "INSERT INTO seen VALUES (1)")
    assert ask(path, "SELECT * FROM other") == [(1,)]


# --- copies -----------------------------------------------------------------------------------------------------------


def test_the_copies_of_a_linked_file_lie_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "links").mkdir()
    path, link = tmp_path / "real" / "x.db", tmp_path / "links" / "y.db"
    save(path)
    link.symlink_to(path)
    folder = folder_of(tmp_path, TAGS, FILL, *["UPDATE tag SET label = lower(label);"] * 2)
    migrate(link, migrations_dir=folder)
    assert names(tmp_path / "links") == ["y.db"]
    assert [copy.name.split(".")[2] for copy in backups(path)] == ["before-003_step", "before-004_step"]


KILLED = """
import os, sqlite3, sys
raw = sqlite3.connect(sys.argv[1], isolation_level=None)
raw.execute("PRAGMA wal_autocheckpoint = 0")
raw.execute("UPDATE tag SET label = 'after'")
raw.execute("CREATE TABLE after AS SELECT * FROM tag, workflow_state")
os.kill(os.getpid(), 9)
"""


def test_how_to_go_back_to_a_copy(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    save(path)
    migrate(path, migrations_dir=folder_of(tmp_path, TAGS, "INSERT INTO tag (name) VALUES ('old');"))
    before = whole(path)
    rename = "ALTER TABLE tag RENAME COLUMN name TO label;"
    migrate(path, migrations_dir=folder_of(tmp_path, TAGS, "INSERT INTO tag (name) VALUES ('old');", rename))
    subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    log = tmp_path / "x.db-wal"
    assert log.stat().st_size > 0
    # All processes are stopped. First what belongs to the file that is put away:
    for suffix in ("-wal", "-shm", "-journal"):
        (tmp_path / f"x.db{suffix}").unlink(missing_ok=True)
    copy = backups(path)[-1]
    assert ".before-003_step." in copy.name
    path.unlink()
    path.write_bytes(copy.read_bytes())
    assert whole(path) == before
    assert ask(path, "PRAGMA integrity_check") == [("ok",)]
    assert save(path, "other") == 1
