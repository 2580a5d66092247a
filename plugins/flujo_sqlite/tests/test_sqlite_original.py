"""Is a file of the original system taken over with all that it holds, or left as it is?"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from original_system import LATE, TABLES, Rows, check, dated, definitions, some_rows
from sqlite_migrations import LATEST, STATE, ask, connected, names, with_backend

from flujo_core.errors import (
    MigrationError,
    MigrationLockError,
    SchemaOutdatedError,
    UnsupportedStorageError,
)
from flujo_core.migrating import MigrationProgress
from flujo_sqlite import SQLiteBackend
from flujo_sqlite.schema import APPLICATION_ID


def dump(path: Path) -> list[str]:
    with connected(path) as connection:
        connection.text_factory = lambda text: text.decode(errors="surrogateescape")
        header = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("user_version", "application_id")]
        return [*connection.iterdump(), str(header)]


def random_rows(runs: int, seed: int = 0) -> Rows:
    return dated(some_rows(random.Random(seed).choice, [f"run{number:05d}" for number in range(runs)], sqlite=True))


def make(path: Path, rows: Rows, *, old: bool = False, more: str = "") -> Path:
    """A file of the original's; ``old``: as made long ago, without late columns."""
    with connected(path) as connection:
        connection.execute("BEGIN")
        for statement in definitions(postgres=False, without=LATE if old else None):
            connection.execute(statement)
        for table, columns in TABLES.items():
            known = [name for name, *_ in columns if not (old and name in LATE.get(table, ()))]
            marks = ", ".join("?" * len(known))
            connection.executemany(
                f"INSERT INTO {table} ({', '.join(known)}) VALUES ({marks})",
                [[row.get(name) for name in known] for row in rows[table]],
            )
        connection.execute("COMMIT")
        connection.executescript(more)
    return path


def without_late(rows: Rows) -> Rows:
    return {
        table: [{k: v for k, v in row.items() if k not in LATE.get(table, ())} for row in rows[table]] for table in rows
    }


# --- taken over -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("old", [False, True], ids=["full", "without late columns"])
@pytest.mark.parametrize("how", ["opening", "migrate"])
def test_all_that_it_holds_is_found_again(tmp_path: Path, how: str, old: bool) -> None:
    rows = random_rows(300)
    path = make(tmp_path / "x.db", rows, old=old)
    before = dump(path)
    if how == "migrate":
        told: list[MigrationProgress] = []
        report = with_backend(path, lambda backend: backend.migrate(told=told.append))
        assert (report.original, report.from_version, report.to_version) == (True, 0, LATEST)
        assert [step.version for step in report.steps] == list(range(1, LATEST + 1))
        assert [progress.doing for progress in told] == ["runs", "done"]

    async def use(backend: SQLiteBackend) -> None:
        await check(backend, without_late(rows) if old else rows)
        assert (await backend.schema_status()).state == "current"
        # It goes on as any other.
        assert await backend.save_state(rows["workflow_state"][0]["run_id"], STATE) == 2
        await backend.save_step_result({"run_id": "new", "step_name": "s", "step_index": 0})

    with_backend(path, use)
    tables = {name for (name,) in ask(path, "SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert not tables & {"runs", "steps", "traces", "spans", "evaluations", "system_state"}
    assert ask(path, "PRAGMA application_id") == [(APPLICATION_ID,)]
    assert ask(path, "PRAGMA user_version") == [(LATEST,)]
    assert ask(path, "PRAGMA integrity_check") == [("ok",)]
    # The backup is the file as it was, and can be taken over as well.
    (backup,) = tmp_path.glob("x.db.before-000_original.*.bak")
    assert dump(backup) == before
    backup.rename(tmp_path / "y.db")
    with_backend(tmp_path / "y.db", lambda backend: check(backend, without_late(rows) if old else rows))


def test_two_thousand_runs_and_those_without_tables_beside(tmp_path: Path) -> None:
    rows = random_rows(2000, seed=1)
    more = "CREATE TABLE mine (a TEXT); INSERT INTO mine VALUES ('b'); PRAGMA user_version = 7;"
    path = make(tmp_path / "x.db", rows, more=more)
    began = time.perf_counter()
    with_backend(path, lambda backend: backend.migrate())
    print(f"2,000 runs: {time.perf_counter() - began:.2f} s")
    with_backend(path, lambda backend: check(backend, rows))
    assert ask(path, "SELECT * FROM mine") == [("b",)]
    # The header belongs to the program whose tables are there too.
    assert ask(path, "PRAGMA user_version") == [(7,)]


def test_an_empty_one_and_one_with_snapshots_only(tmp_path: Path) -> None:
    empty: Rows = {table: [] for table in TABLES}
    path = make(tmp_path / "x.db", empty)
    assert with_backend(path, lambda backend: backend.list_runs()) == []
    path = make(tmp_path / "y.db", random_rows(5))
    for table in TABLES:
        if table != "workflow_state":
            ask(path, f"DROP TABLE {table}")
    with_backend(path, lambda backend: backend.migrate())
    assert with_backend(path, lambda backend: backend.count_runs()) == len(random_rows(5)["workflow_state"])


def test_migrations_of_the_deployment_follow(tmp_path: Path) -> None:
    folder = tmp_path / "deployment"
    folder.mkdir()
    (folder / "001_index.sql").write_text("CREATE INDEX mine ON workflow_state (task_id);")
    path = make(tmp_path / "x.db", random_rows(5))
    report = with_backend(path, lambda backend: backend.migrate(), migrations_dir=folder)
    assert [step.series for step in report.steps] == ["flujo"] * LATEST + ["deployment"]


def test_the_backup_outlives_those_of_later_migrations(tmp_path: Path) -> None:
    path = make(tmp_path / "x.db", random_rows(5))
    with_backend(path, lambda backend: backend.migrate())
    folder = tmp_path / "deployment"
    folder.mkdir()
    for number in range(1, 5):
        (folder / f"{number:03d}_rewrite.sql").write_text("UPDATE workflow_state SET task_id = task_id;")
    with_backend(path, lambda backend: backend.migrate(), migrations_dir=folder)
    kept = [name.split(".")[2] for name in names(tmp_path) if name.endswith(".bak")]
    assert kept == ["before-000_original", "before-003_rewrite", "before-004_rewrite"]


# --- not touched ------------------------------------------------------------------------------------------------------


def test_a_look_changes_nothing(tmp_path: Path) -> None:
    path = make(tmp_path / "x.db", random_rows(5))
    before = path.read_bytes()
    report = with_backend(path, lambda backend: backend.migrate(dry_run=True))
    assert (report.original, report.dry_run, report.to_version) == (True, True, LATEST)
    status = with_backend(path, lambda backend: backend.schema_status())
    assert (status.state, len(status.pending)) == ("original", LATEST)
    with pytest.raises(SchemaOutdatedError, match=r"was made by the original Flujo; run `flujo migrate`"):
        with_backend(path, lambda backend: backend.list_runs(), auto_migrate=False)
    with pytest.raises(MigrationError, match="SQL alone can't take over"):
        with_backend(path, lambda backend: backend.migration_script())
    for dry_run in (True, False):
        with pytest.raises(MigrationError, match="not by 1"):
            with_backend(path, lambda backend, dry_run=dry_run: backend.migrate(1, dry_run), auto_migrate=False)  # type: ignore[misc]
    assert names(tmp_path) == ["x.db"]
    assert path.read_bytes()[100:] == before[100:]


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ("ALTER TABLE spans ADD COLUMN colour TEXT", "a table spans .*an unknown column colour"),
        ("ALTER TABLE workflow_state DROP COLUMN pipeline_context", "lacks the column pipeline_context"),
    ],
)
def test_another_layout_is_refused(tmp_path: Path, change: str, wanted: str) -> None:
    path = make(tmp_path / "x.db", random_rows(5), more=change)
    before = path.read_bytes()
    for use in (lambda b: b.migrate(), lambda b: b.list_runs(), lambda b: b.schema_status()):  # type: Any
        with pytest.raises(UnsupportedStorageError, match=wanted):
            with_backend(path, use)
    assert (path.read_bytes(), names(tmp_path)) == (before, ["x.db"])


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ("UPDATE runs SET status = 'exploded' WHERE run_id = {last}", r"runs, run 'run.*': status is 'exploded'"),
        ("UPDATE workflow_state SET pipeline_context = '[broken'", r"pipeline_context is '\[broken', not a dict"),
        ("UPDATE steps SET run_id = NULL WHERE id = 1", "steps has a row whose run_id is None"),
        ("UPDATE steps SET output = CAST(x'22ff22' AS TEXT) WHERE id = 1", "steps holds text that is not UTF-8"),
        (
            "CREATE TABLE mine (a TEXT REFERENCES runs (run_id)); INSERT INTO mine SELECT {last}",
            "mine has a foreign key",
        ),
    ],
)
def test_what_cannot_be_understood_is_refused_as_a_whole(tmp_path: Path, change: str, wanted: str) -> None:
    rows = random_rows(500)
    change = change.format(last=repr(max(row["run_id"] for row in rows["runs"])))
    path = make(tmp_path / "x.db", rows, more=change)
    before = dump(path)
    for use in (lambda b: b.migrate(), lambda b: b.list_runs()):  # type: Any
        with pytest.raises(MigrationError, match=wanted) as caught:
            with_backend(path, use)
        assert "\n" not in str(caught.value)
    assert dump(path) == before
    assert names(tmp_path) == ["x.db"]


def test_a_lock_of_another_is_waited_for(tmp_path: Path) -> None:
    path = make(tmp_path / "x.db", random_rows(5))
    with connected(path) as other:
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        with pytest.raises(MigrationLockError, match=r"001_init could not begin within 0\.3 s"):
            with_backend(path, lambda backend: backend.migrate(), migration_lock_wait=0.3)
        assert time.monotonic() - began < 5
    assert with_backend(path, lambda backend: backend.schema_status()).state == "original"


# --- in several processes ---------------------------------------------------------------------------------------------

MIGRATE = """
import asyncio, os, sys
from flujo_sqlite import SQLiteBackend, original

plain, left = original.take_over, int(sys.argv[2])

def event(*_):
    global left
    if left == 0:
        os.kill(os.getpid(), 9)
    left -= 1

def traced(raw, *args):
    raw.set_trace_callback(event)  # before each statement
    return plain(raw, *args)

async def main():
    backend = SQLiteBackend(sys.argv[1])
    print("ready", flush=True)
    sys.stdin.readline()
    report = await backend.migrate()
    print(len(report.steps), left, flush=True)
    await backend.shutdown()

original.take_over = traced
asyncio.run(main())
"""


def start(path: Path, events: int = -1) -> subprocess.Popen[str]:
    """A process that migrates when told to, and is killed before a statement."""
    command = [sys.executable, "-c", MIGRATE, str(path), str(events)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_of_several_at_once_one_takes_it_over(tmp_path: Path) -> None:
    rows = random_rows(300)
    path = make(tmp_path / "x.db", rows)
    processes = [start(path) for _ in range(4)]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    found = [process.communicate(timeout=60)[0].split()[0] for process in processes]
    assert sorted(found) == ["0", "0", "0", f"{LATEST}"]
    with_backend(path, lambda backend: check(backend, rows))
    assert len([name for name in names(tmp_path) if name.endswith(".bak")]) == 1


def test_one_that_is_killed_leaves_the_original_whole(tmp_path: Path) -> None:
    rows = random_rows(100)
    (tmp_path / "other").mkdir()
    out, _ = start(make(tmp_path / "other" / "x.db", rows)).communicate("\n", timeout=60)
    statements = -1 - int(out.split()[2])
    path = make(tmp_path / "x.db", rows)
    before = dump(path)
    for events in (0, 5, 12, statements // 3, statements * 2 // 3, statements - 2, statements - 1):
        process = start(path, events)
        process.communicate("\n", timeout=60)
        assert process.returncode == -signal.SIGKILL, events
        assert with_backend(path, lambda backend: backend.schema_status()).state == "original"
        assert dump(path) == before
    with_backend(path, lambda backend: backend.migrate())
    with_backend(path, lambda backend: check(backend, rows))
    assert not [name for name in names(tmp_path) if name.endswith(".part")]
    assert len([name for name in names(tmp_path) if name.endswith(".bak")]) == 2
