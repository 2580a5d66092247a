"""Is there a checked copy of the file before each step that may change rows, and of nothing else?"""

from __future__ import annotations

import re
import sqlite3
import stat
import subprocess
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlite_migrations import (
    FILL,
    INDEX,
    LATEST,
    STATE,
    TAGS,
    ask,
    backups,
    folder_of,
    header,
    migrate,
    names,
    recorded,
    save,
    whole,
    with_backend,
)

from flujo_core.errors import MigrationError
from flujo_sqlite import SQLiteBackend, backup, schema


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


def test_d5_steps_that_leave_rows_as_they_are_need_no_copy(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    save(path)
    more = "ALTER TABLE tag ADD COLUMN more TEXT; CREATE TABLE copied AS SELECT * FROM tag;"
    index = INDEX.replace("label", "name")
    replaced = "DROP INDEX tag_name; CREATE INDEX tag_name ON tag (name, id); DROP INDEX IF EXISTS nowhere;"
    migrate(path, migrations_dir=folder_of(tmp_path, TAGS, index, more, replaced))
    assert backups(path) == []


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE tag SET name = 'x'",
        "DELETE FROM tag",
        "INSERT OR REPLACE INTO tag VALUES (1, 'x')",
        "WITH one AS (SELECT 1) DELETE FROM tag",
        "DROP TABLE tag",
        "DROP INDEX IF EXISTS nowhere; DELETE FROM tag",
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

    def connect(file: Path, *rest: Any) -> sqlite3.Connection:
        if file.suffix == ".part":
            with file.open("r+b") as copy:
                copy.seek(4096 * 3)
                copy.write(b"\xff" * 4096)
        return plain(file, *rest)

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
