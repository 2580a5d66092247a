"""What do migrations do to a SQLite file, and what if they fail, are killed, cancelled, or come at the same time?"""

from __future__ import annotations

import asyncio
import re
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest

from flujo_conformance.leaks import held, left
from flujo_core.errors import (
    ChecksumMismatchError,
    ConfigurationError,
    MigrationError,
    MigrationLockError,
    SchemaOutdatedError,
    StorageTimeoutError,
    UnsupportedStorageError,
)
from flujo_core.migrating import MigrationProgress
from flujo_core.migrations import MigrationReport, read_migrations
from flujo_sqlite import SQLiteBackend, backup, schema

Result = TypeVar("Result")

STATE: Any = {"pipeline_id": "p", "pipeline_name": "n", "pipeline_version": "1", "current_step_index": 0}
OWN = read_migrations("flujo_sqlite.migrations")
LATEST = len(OWN)

# A step whose second run would show, one that rewrites, and one that adds.
TAGS = """
CREATE TABLE audit (what TEXT);
CREATE TABLE tag (id INTEGER PRIMARY KEY, name TEXT);
CREATE TRIGGER tag_made AFTER INSERT ON tag BEGIN
    INSERT INTO audit VALUES ('made ' || new.name);
    INSERT INTO audit VALUES (CASE new.id WHEN 1 THEN 'first; really' ELSE 'later' END);
END;
"""
FILL = """
INSERT INTO tag (name) VALUES ('a'), ('b');
ALTER TABLE tag RENAME COLUMN name TO label;
UPDATE tag SET label = upper(label);
"""
INDEX = "CREATE INDEX tag_label ON tag (label);"
AUDIT = [("made a",), ("first; really",), ("made b",), ("later",)]


def with_backend(path: Path, use: Callable[[SQLiteBackend], Awaitable[Result]], **settings: Any) -> Result:
    """The result of ``use`` with a backend that is shut down in any case."""

    async def main() -> Result:
        backend = SQLiteBackend(path, **settings)
        try:
            return await use(backend)
        finally:
            await backend.shutdown()

    return asyncio.run(main())


def migrate(path: Path, target: int | None = None, **settings: Any) -> MigrationReport:
    return with_backend(path, lambda backend: backend.migrate(target), **settings)


def save(path: Path, run_id: str = "r", **settings: Any) -> int:
    return with_backend(path, lambda backend: backend.save_state(run_id, STATE), **settings)


def folder_of(parent: Path, *texts: str, first: int = 1) -> Path:
    """A deployment's folder with these files, 001_step.sql and so on."""
    folder = parent / "deployment"
    folder.mkdir(exist_ok=True)
    for number, text in enumerate(texts, first):
        (folder / f"{number:03d}_step.sql").write_text(text)
    return folder


@contextmanager
def connected(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as connection:
        yield connection


def ask(path: Path, statement: str, *values: Any) -> list[Any]:
    """What another program sees in the file, or does to it. Only while this process has it not open."""
    with connected(path) as connection:
        return connection.execute(statement, values).fetchall()


def dump(path: Path) -> list[Any]:
    return ask(path, "SELECT type, name, tbl_name, trim(sql, char(10)) FROM sqlite_master ORDER BY type, name")


def recorded(path: Path) -> list[Any]:
    """Of both series: version, name and checksum."""
    found = []
    for table in ("flujo_schema_versions", "flujo_deployment_versions"):
        if ask(path, "SELECT 1 FROM sqlite_master WHERE name = ?", table):
            found += [(table[6:12], *row) for row in ask(path, f"SELECT version, name, checksum FROM {table}")]
    return found


def header(path: Path) -> tuple[int, int]:
    return ask(path, "PRAGMA user_version")[0][0], ask(path, "PRAGMA application_id")[0][0]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def backups(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.name}.before-*"), key=lambda found: found.stat().st_mtime_ns)


def whole(path: Path) -> tuple[Any, ...]:
    """All that a failed step must leave as it was."""
    with connected(path) as connection:
        return tuple(connection.iterdump()), *header(path), dump(path)


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


# --- backups ----------------------------------------------------------------------------------------------------------


def test_d5_a_step_that_rewrites_is_preceded_by_a_checked_copy(tmp_path: Path) -> None:
    path = tmp_path / "not-utf8-\udcff %20?#.db"
    save(path)
    migrate(path, migrations_dir=folder_of(tmp_path, TAGS))
    path.chmod(0o644)
    before = recorded(path)
    migrate(path, migrations_dir=folder_of(tmp_path, TAGS, FILL))
    (copy,) = backups(path)
    assert re.fullmatch(r"\.before-002_step\.\d{8}T\d{6}\.\d{6}Z\.bak", copy.name.removeprefix(path.name))
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert ask(copy, "PRAGMA quick_check") == [("ok",)]
    assert ask(copy, "SELECT name FROM pragma_table_info('tag')") == [("id",), ("name",)]
    assert recorded(copy) == before
    assert header(copy) == (LATEST, schema.APPLICATION_ID)
    # It is a file to go on with.
    assert save(copy) == 2
    assert ask(path, "SELECT label FROM tag") == [("A",), ("B",)]
    assert names(tmp_path) == sorted([path.name, copy.name, "deployment"])


def test_d5_steps_that_only_add_need_no_copy(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    save(path)
    more = "ALTER TABLE tag ADD COLUMN more TEXT; CREATE TABLE copied AS SELECT * FROM tag;"
    migrate(path, migrations_dir=folder_of(tmp_path, TAGS, INDEX.replace("label", "name"), more))
    assert backups(path) == []


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE tag SET name = 'x'",
        "DELETE FROM tag",
        "INSERT OR REPLACE INTO tag VALUES (1, 'x')",
        "WITH one AS (SELECT 1) DELETE FROM tag",
        "DROP TABLE tag",
        "ALTER TABLE tag RENAME TO label",
        "CREATE TABLE pair (a, b); ALTER TABLE pair DROP COLUMN b",
        "/* CREATE */ REPLACE INTO tag VALUES (1, 'x')",
    ],
)
def test_d5_whatever_may_change_rows_is_preceded_by_a_copy(tmp_path: Path, statement: str) -> None:
    path = tmp_path / "x.db"
    migrate(path, migrations_dir=folder_of(tmp_path, TAGS, statement))
    assert len(backups(path)) == 1


def test_d5_two_copies_are_kept_and_nothing_of_others_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.db"
    theirs = [
        "x.db.before-lunch.bak",
        "x.db.before-lunch.20200101T000000.000000Z.bak",
        "x.db.before-upgrade.part",
        "x.db.before-001_step.20200101T000000.000000Z.bak.gz",
        "x.db.before-001_step.yesterday.bak",
        "xxdb.before-001_step.20200101T000000.000000Z.bak",
        "other-x.db.before-001_step.20200101T000000.000000Z.bak",
        "x.db.before-001_step.20200101T000000.000000Z.old.bak",
    ]
    for name in theirs:
        (tmp_path / name).touch()
    left_by_a_crash = tmp_path / "x.db.before-001_step.20200101T000000.000000Z.part"
    left_by_a_crash.touch()
    fixed = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

    class Clock:
        """Each look a microsecond later, all within one second."""

        looks = 0

        @classmethod
        def now(cls, zone: object) -> datetime:
            cls.looks += 1
            return fixed + timedelta(microseconds=cls.looks)

    monkeypatch.setattr(backup, "datetime", Clock)
    texts = [TAGS]
    migrate(path, migrations_dir=folder_of(tmp_path, *texts))
    assert left_by_a_crash.exists()  # nothing has been copied yet
    for number in range(5):
        texts.append(f"UPDATE tag SET name = '{number}'")
        migrate(path, migrations_dir=folder_of(tmp_path, *texts))
    ours = [name for name in names(tmp_path) if name not in (*theirs, "x.db", "deployment")]
    assert ours == [f"x.db.before-00{n}_step.20260102T030405.00000{n - 1}Z.bak" for n in (5, 6)]
    assert set(theirs) < set(names(tmp_path))
    # The clock was set back: what was made last stays all the same.
    fixed = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)
    migrate(path, migrations_dir=folder_of(tmp_path, *texts, "DELETE FROM tag"))
    ours = [name for name in names(tmp_path) if name not in (*theirs, "x.db", "deployment")]
    assert [name[:18] for name in ours] == ["x.db.before-006_st", "x.db.before-007_st"]


def test_d5_a_copy_that_has_a_name_already_is_no_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.db"

    class Clock:
        @staticmethod
        def now(zone: object) -> datetime:
            return datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

    monkeypatch.setattr(backup, "datetime", Clock)
    migrate(path, migrations_dir=folder_of(tmp_path, TAGS))
    before = whole(path)
    taken = tmp_path / "x.db.before-002_step.20260102T030405.000000Z.bak"
    taken.write_text("precious")
    with pytest.raises(MigrationError, match="no backup could be made, so 002_step was not run"):
        migrate(path, migrations_dir=folder_of(tmp_path, TAGS, FILL))
    assert (taken.read_text(), whole(path)) == ("precious", before)
    assert names(tmp_path) == sorted([taken.name, "deployment", "x.db"])


def test_d5_a_damaged_copy_stops_the_migration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.db"
    migrate(path, migrations_dir=folder_of(tmp_path, TAGS))
    before = whole(path)
    plain = backup._connect

    def connect(file: Path, give_up: float) -> sqlite3.Connection:
        if file.suffix == ".part":
            with file.open("r+b") as copy:
                copy.seek(4096 * 3)
                copy.write(b"\xff" * 4096)
        return plain(file, give_up)

    monkeypatch.setattr(backup, "_connect", connect)
    with pytest.raises(MigrationError, match=r"no backup could be made.*the copy is damaged, so the file may be too"):
        migrate(path, migrations_dir=folder_of(tmp_path, TAGS, FILL))
    assert whole(path) == before
    assert names(tmp_path) == ["deployment", "x.db"]


def test_d5_a_copy_that_takes_too_long_stops_the_migration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.db"
    migrate(path, migrations_dir=folder_of(tmp_path, TAGS))
    before = whole(path)
    monkeypatch.setattr(backup, "_STEPS", 1)
    monkeypatch.setattr(backup, "monotonic", iter([0.0, 0.0, 1.0, *([1e9] * 100_000)]).__next__)
    with pytest.raises(MigrationError, match=r"no backup.*took longer than 3600 s \(migration_timeout\)"):
        migrate(path, migrations_dir=folder_of(tmp_path, TAGS, FILL))
    assert whole(path) == before
    assert names(tmp_path) == ["deployment", "x.db"]


NO_ROOM = """
import asyncio, os, resource, signal, sys
from pathlib import Path
from flujo_core.errors import MigrationError
from flujo_sqlite import SQLiteBackend

folder, kind = Path(sys.argv[1]), sys.argv[2]
path = folder / "x.db"

async def attempt(backend):
    try:
        await backend.migrate()
    except MigrationError as error:
        print(str(error).replace(str(folder), "FOLDER"))

async def main():
    # Somebody else has the file open, so that its log is there already and needs no new file.
    async with SQLiteBackend(path) as other:
        backend = SQLiteBackend(path, migrations_dir=folder / "deployment")
        assert await other.load_state("r") is not None
        if kind == "full":
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
        else:
            if os.getuid() == 0:
                for entry in (folder, *folder.iterdir()):
                    os.chown(entry, 65534, 65534)
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            os.chmod(folder, 0o500)
        await attempt(backend)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        os.chmod(folder, 0o700)
        print(*sorted(entry.name for entry in folder.iterdir()))
        await attempt(backend)

asyncio.run(main())
"""


@pytest.mark.parametrize(("kind", "words"), [("full", "disk"), ("read-only", "Permission denied")])
def test_d5_where_no_copy_can_be_made_nothing_is_run(kind: str, words: str) -> None:
    # Not below pytest's folder, which another user may not enter.
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "x.db"

        async def seed(backend: SQLiteBackend) -> None:
            await backend.save_state("r", {**STATE, "text": "x" * 500_000})

        with_backend(path, seed, migrations_dir=folder_of(Path(name), TAGS))
        folder_of(Path(name), TAGS, "UPDATE tag SET name = 'x'", "CREATE TABLE later (a);")
        done = subprocess.run(
            [sys.executable, "-c", NO_ROOM, name, kind], capture_output=True, text=True, timeout=30, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        refused, left_behind = done.stdout.splitlines()
        assert refused.startswith("FOLDER/x.db: no backup could be made, so 002_step was not run: ")
        assert words in refused
        assert left_behind == "deployment x.db x.db-shm x.db-wal"
        # With room it was done.
        assert len(backups(path)) == 1
        assert [version for _, version, _, _ in recorded(path)] == [*range(1, LATEST + 1), 1, 2, 3]


# --- references -------------------------------------------------------------------------------------------------------

FAMILY = """
CREATE TABLE parent (id INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE child (what TEXT, parent INTEGER REFERENCES parent (id) ON DELETE CASCADE);
CREATE TABLE chart (key TEXT PRIMARY KEY, parent INTEGER REFERENCES parent (id)) WITHOUT ROWID;
INSERT INTO parent VALUES (1, 'a'), (2, 'b');
INSERT INTO child VALUES ('one', 1), ('two', 2);
INSERT INTO chart VALUES ('k', 1);
"""
REBUILD = """
CREATE TABLE new_parent (id INTEGER PRIMARY KEY, name TEXT NOT NULL);
INSERT INTO new_parent SELECT id, name FROM parent;
DROP TABLE parent;
ALTER TABLE new_parent RENAME TO parent;
"""


def test_d5_a_table_made_anew_keeps_the_rows_that_refer_to_it(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    migrate(path, migrations_dir=folder_of(tmp_path, FAMILY, REBUILD))
    assert ask(path, "SELECT what, parent FROM child") == [("one", 1), ("two", 2)]
    assert ask(path, "PRAGMA foreign_key_check") == []
    assert "REFERENCES parent (id) ON DELETE CASCADE" in dict(
        ask(path, "SELECT name, sql FROM sqlite_master WHERE type = 'table'")
    ).get("child", "")


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM parent WHERE id = 1",
        "UPDATE chart SET parent = 7",
        "INSERT INTO child VALUES ('three', 3)",
        "INSERT INTO child VALUES ('three', 8); DELETE FROM child WHERE parent = 9",
        "ALTER TABLE child ADD COLUMN other INTEGER DEFAULT 5 REFERENCES parent (id)",
        "DROP TABLE parent; CREATE TABLE parent (id TEXT)",
    ],
)
def test_d5_a_step_that_leaves_dangling_references_is_undone(tmp_path: Path, statement: str) -> None:
    path = tmp_path / "x.db"
    migrate(path, migrations_dir=folder_of(tmp_path, FAMILY))
    ask(path, "INSERT INTO child VALUES ('lost', 9)")
    before = whole(path)
    with pytest.raises(MigrationError, match=r"002_step was undone: it leaves rows in (child|chart) that "):
        migrate(path, migrations_dir=folder_of(tmp_path, FAMILY, statement))
    assert whole(path) == before


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE child SET what = 'x'",
        "ALTER TABLE child ADD COLUMN other INTEGER REFERENCES parent (id)",
        # The rows get other numbers.
        """DELETE FROM child WHERE what = 'one'; CREATE TABLE c (what TEXT, parent INTEGER REFERENCES parent (id));
        INSERT INTO c SELECT * FROM child; DROP TABLE child; ALTER TABLE c RENAME TO child""",
        "CREATE TABLE more (a)",
        REBUILD,
    ],
)
def test_d5_references_that_dangled_before_are_no_hindrance(tmp_path: Path, statement: str) -> None:
    path = tmp_path / "x.db"
    migrate(path, migrations_dir=folder_of(tmp_path, FAMILY))
    with connected(path) as connection:
        connection.execute("INSERT INTO child VALUES ('lost', 9)")
        connection.execute("INSERT INTO chart VALUES ('lost', 9)")
        # A key that can't be checked, of some other program.
        connection.execute("CREATE TABLE broken (a REFERENCES child (what))")
        connection.execute("INSERT INTO broken VALUES (1)")
    migrate(path, migrations_dir=folder_of(tmp_path, FAMILY, statement))
    assert ask(path, "SELECT count(*) FROM child WHERE parent = 9") == [(1,)]


def test_d5_wrong_keys_of_another_program_do_not_keep_ours_out(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    with connected(path) as connection:
        connection.executescript(
            "CREATE TABLE p (a); CREATE TABLE c (x REFERENCES p (a)); INSERT INTO c VALUES (1); PRAGMA user_version = 7"
        )
    assert save(path) == 1
    assert header(path) == (7, 0)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("CREATE TABLE a (b); COMMIT; CREATE TABLE c (d);", "COMMIT is not allowed"),
        ("BEGIN; CREATE TABLE a (b); COMMIT; CREATE TABLE c (d);", "BEGIN is not allowed"),
        ("SAVEPOINT s; CREATE TABLE a (b); RELEASE s;", "SAVEPOINT S is not allowed"),
        ("CREATE TABLE a (b); /* ; */ END;", "END is not allowed"),
        ("-- transaction=false\nCREATE TABLE a (b);", "runs every migration in a transaction"),
        ("CREATE TABLE a (b); CREATE TABLE c (d", "failed and was undone"),
        ("CREATE TABLE a (b); VACUUM;", "failed and was undone: cannot VACUUM"),
        # The scanner takes what stands between the apostrophes for a string, and two statements for one.
        ("CREATE TABLE `it's` (a); CREATE TABLE `that's` (b);", "failed and was undone"),
        ("INSERT INTO workflow_traces VALUES (?, 'x')", "failed and was undone"),
    ],
)
def test_d5_a_file_that_can_not_be_run_leaves_nothing(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "x.db"
    save(path)
    before = whole(path)
    with pytest.raises(MigrationError, match=words):
        save(path, migrations_dir=folder_of(tmp_path, text))
    assert whole(path) == before
    if "not allowed" in words or "every migration" in words:
        new = tmp_path / "new" / "x.db"
        with pytest.raises(MigrationError, match=words):
            save(new, migrations_dir=folder_of(tmp_path, text))
        # Flujo's own steps have not run either.
        assert not new.exists() or dump(new) == []


def test_d5_a_statement_is_run_to_its_last_row(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    rows = "WITH RECURSIVE n (i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 50) SELECT i FROM n"
    failing = f"SELECT abs(CASE i WHEN 50 THEN -9223372036854775807 - 1 END) FROM ({rows})"
    with pytest.raises(MigrationError, match="001_step failed and was undone: integer overflow"):
        migrate(path, migrations_dir=folder_of(tmp_path, failing))


def test_d5_a_failed_step_is_undone_and_those_before_it_stay(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    bad = "UPDATE tag SET name = 'x'; INSERT INTO audit VALUES ('no'); INSERT INTO nowhere VALUES (1);"
    with pytest.raises(MigrationError, match="migration 002_step failed and was undone: no such table: nowhere"):
        migrate(path, migrations_dir=folder_of(tmp_path, TAGS, bad))
    assert [version for _, version, _, _ in recorded(path)] == [*range(1, LATEST + 1), 1]
    assert ask(path, "SELECT * FROM audit") == []
    (tmp_path / "deployment" / "002_step.sql").write_text(FILL)
    report = migrate(path, migrations_dir=tmp_path / "deployment")
    assert [str(step) for step in report.steps] == ["002_step"]
    assert ask(path, "SELECT what FROM audit") == AUDIT


def test_d5_line_ends_make_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    folder = folder_of(tmp_path, TAGS)
    migrate(path, migrations_dir=folder)
    (folder / "001_step.sql").write_bytes(TAGS.replace("\n", "\r\n").encode())
    assert save(path, migrations_dir=folder) == 1
    other = tmp_path / "other.db"
    migrate(other, migrations_dir=folder)
    assert recorded(other) == recorded(path)
    assert dump(other) == dump(path)


@pytest.mark.parametrize("auto_migrate", [True, False])
def test_d5_an_edited_file_is_named_until_its_record_is_repaired(tmp_path: Path, auto_migrate: bool) -> None:
    path = tmp_path / "x.db"
    folder = folder_of(tmp_path, TAGS, FILL)
    migrate(path, migrations_dir=folder)
    settings: Any = {"migrations_dir": folder, "auto_migrate": auto_migrate}
    (folder / "001_step.sql").write_text("-- a word\n" + TAGS)
    before = whole(path)
    for use in (save, migrate):
        with pytest.raises(ChecksumMismatchError, match=r"001_step changed since .* --repair-checksums"):
            use(path, **settings)
    copies = backups(path)
    assert whole(path) == before
    times = ask(path, "SELECT applied_at, duration_ms FROM flujo_deployment_versions")
    repaired = with_backend(path, lambda backend: backend.repair_checksums(), **settings)
    assert [str(step) for step in repaired] == ["001_step"]
    assert ask(path, "SELECT applied_at, duration_ms FROM flujo_deployment_versions") == times
    assert with_backend(path, lambda backend: backend.repair_checksums(), **settings) == ()
    assert ask(path, "SELECT what FROM audit") == AUDIT
    assert backups(path) == copies
    assert save(path, **settings) == 1


def test_d5_a_repaired_record_of_an_older_step_leaves_the_header(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    save(path)
    ask(path, "UPDATE flujo_schema_versions SET checksum = 'other' WHERE version = 1")
    with pytest.raises(ChecksumMismatchError, match="001_init"):
        save(path)
    with_backend(path, lambda backend: backend.repair_checksums())
    assert header(path) == (LATEST, schema.APPLICATION_ID)
    assert save(path) == 2


def test_d5_the_deployment_has_numbers_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    folder = folder_of(tmp_path, TAGS, first=17)
    status = with_backend(path, lambda backend: backend.schema_status(), migrations_dir=folder)
    assert [str(step) for step in status.pending] == [*map(str, OWN), "017_step"]
    migrate(path, LATEST, migrations_dir=folder)
    with pytest.raises(SchemaOutdatedError, match=r"lacks .*017_step"):
        save(path, migrations_dir=folder, auto_migrate=False)
    assert save(path, migrations_dir=folder) == 1
    assert ask(path, "SELECT version, name FROM flujo_deployment_versions") == [(17, "step")]
    assert header(path) == (LATEST, schema.APPLICATION_ID)
    # Who doesn't know the deployment's files is not hindered by them.
    assert save(path, auto_migrate=False) == 2


def test_d5_looking_writes_nothing_and_makes_no_file(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, TAGS, FILL)
    place = tmp_path / "place"
    path = place / "x.db"

    async def look(backend: SQLiteBackend) -> None:
        await backend.schema_status()
        assert len((await backend.migrate(dry_run=True)).steps) > 0
        script = await backend.migration_script()
        assert any("tag_made" in statement for statement in script)

    with_backend(path, look, migrations_dir=folder)
    with_backend(path, lambda backend: backend.repair_checksums(), migrations_dir=folder)
    assert not place.exists()
    save(path)
    before = path.read_bytes()
    with_backend(path, look, migrations_dir=folder)
    assert (path.read_bytes(), names(place)) == (before, ["x.db"])
    with pytest.raises(ConfigurationError, match="migrations_dir"):
        save(path, migrations_dir=tmp_path / "nowhere")


def test_d5_the_script_does_by_hand_what_migrate_does(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, TAGS, FILL, FAMILY, REBUILD)
    path, by_hand = tmp_path / "x.db", tmp_path / "hand.db"
    script = with_backend(by_hand, lambda backend: backend.migration_script(), migrations_dir=folder)
    assert not by_hand.exists()
    migrate(path, migrations_dir=folder)
    with connected(by_hand) as connection:
        connection.execute("PRAGMA foreign_keys = ON")  # as some programs have it
        for statement in script:
            connection.execute(statement)
    assert (dump(by_hand), recorded(by_hand), header(by_hand)) == (dump(path), recorded(path), header(path))
    assert ask(by_hand, "SELECT what, parent FROM child") == [("one", 1), ("two", 2)]
    assert save(by_hand, migrations_dir=folder, auto_migrate=False) == 1


def test_d5_a_versions_table_of_somebody_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    ask(path, "CREATE TABLE flujo_deployment_versions (version INTEGER PRIMARY KEY, name TEXT)")
    before = path.read_bytes()
    with pytest.raises(UnsupportedStorageError, match="flujo_deployment_versions that this library did not make"):
        save(path)
    assert path.read_bytes() == before


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
    path = tmp_path / "x.db"

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
    assert names(tmp_path) == ["x.db"]
