"""What do migrations do to a SQLite file and its references, and what if a migration's own file is wrong?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlite_migrations import (
    AUDIT,
    FILL,
    LATEST,
    OWN,
    TAGS,
    ask,
    backups,
    connected,
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

from flujo_core.errors import (
    ChecksumMismatchError,
    ConfigurationError,
    MigrationError,
    SchemaOutdatedError,
    UnsupportedStorageError,
)
from flujo_sqlite import SQLiteBackend, schema

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
