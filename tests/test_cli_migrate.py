"""Does ``flujo migrate`` tell, check and do what it says, on both databases?"""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from command_support import files, own_migrations, run

from flujo.state import open_backend

pytest_plugins = ["command_support"]

GUIDE = """\
BEGIN;
-- of the deployment
ALTER TABLE workflow_state ADD COLUMN custom_field TEXT; -- the last word is a comment
INSERT INTO flujo_schema_versions (version, applied_at) VALUES (3, NOW()) ON CONFLICT (version) DO NOTHING;
COMMIT;
"""


class Command:
    """``flujo migrate`` on one database, with a folder of the deployment's own files."""

    def __init__(self, uri: str, folder: Path) -> None:
        self.uri = uri
        self.cwd = folder
        self.flujos = own_migrations(uri)
        """Names of Flujo's migrations; those of the deployment are in `own`."""
        self.own = folder / "own"
        self.own.mkdir()
        plugin = uri.partition(":")[0]
        (folder / "flujo.toml").write_text(f"[state]\nuri = '{uri}'\n[state.{plugin}]\nmigrations_dir = '{self.own}'\n")

    def __call__(self, *options: str) -> tuple[int, str, str]:
        return run("migrate", *options, cwd=self.cwd)

    def told(self, *options: str) -> Any:
        code, out, err = self(*options, "--json")
        assert (code, err) == (0, "")
        return json.loads(out)

    @property
    def is_file(self) -> bool:
        return self.uri.startswith("sqlite")

    def execute(self, script: str) -> None:
        if self.is_file:
            with closing(sqlite3.connect(self.uri.removeprefix("sqlite:///"), isolation_level=None)) as connection:
                connection.executescript(script)
            return

        async def execute() -> None:
            connection = await asyncpg.connect(self.uri)
            await connection.execute(script)
            await connection.close()

        asyncio.run(execute())

    @contextmanager
    def migrating_elsewhere(self) -> Iterator[None]:
        """Somebody holds the lock of migrations for the length of the block."""
        if self.is_file:
            with closing(sqlite3.connect(self.uri.removeprefix("sqlite:///"), isolation_level=None)) as connection:
                connection.execute("BEGIN IMMEDIATE")
                yield
            return
        with asyncio.Runner() as runner:
            connection = runner.run(asyncpg.connect(self.uri))
            lock = "SELECT pg_advisory_lock(hashtextextended('flujo migrate public', 0))"
            runner.run(connection.execute(lock))
            yield
            runner.run(connection.close())


@pytest.fixture
def migrate(uri: str, tmp_path: Path) -> Command:
    return Command(uri, tmp_path)


def test_what_is_printed_as_sql_makes_the_same_database(migrate: Command) -> None:
    (migrate.own / "003_add.sql").write_text(GUIDE)
    before = files(migrate.cwd)
    code, script, err = migrate("--print-sql")
    assert (code, err) == (0, "")
    assert migrate("--dry-run")[1].endswith(f"\n\n{script}")
    assert [statement in script for statement in migrate.told("--dry-run")["sql"]] == [True] * script.count(";\n")
    assert files(migrate.cwd) == before

    migrate.execute(script)
    done = migrate.told("--status")
    assert (done["state"], done["current_version"]) == ("current", len(migrate.flujos))
    assert [(row["series"], row["name"], row["state"]) for row in done["migrations"]] == [
        *(("flujo", name, "applied") for name in migrate.flujos),
        ("deployment", "003_add", "applied"),
    ]
    assert migrate("--print-sql") == (0, "", "")

    async def use() -> None:
        async with open_backend(migrate.uri, auto_migrate=False) as backend:
            await backend.save_run_start({"run_id": "r", "metadata": {"a": 1}})
            assert await backend.count_runs(metadata_filter={"a": 1}) == 1

    asyncio.run(use())


def test_status_lists_what_is_applied_pending_changed_unknown_and_written_by_hand(migrate: Command) -> None:
    (migrate.own / "007_one.sql").write_text("CREATE TABLE one (a INTEGER)")
    (migrate.own / "008_two.sql").write_text("CREATE TABLE two (a INTEGER)")
    latest = len(migrate.flujos)
    assert migrate("--target-version", f"{latest}")[0] == 0
    code, out, err = migrate("--status")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["MIGRATION", "SERIES", "STATE", "APPLIED", "TOOK", "CODE"]
    assert [line.split()[:3] for line in lines[1:-1]] == [
        *([name, "flujo", "applied"] for name in migrate.flujos),
        ["007_one", "deployment", "pending"],
        ["008_two", "deployment", "pending"],
    ]
    assert lines[-1].endswith(f": outdated, schema version {latest} of {latest}")

    code, out, err = migrate()
    assert (code, err) == (0, "")
    assert out.splitlines()[1:] == ["  applied  007_one (deployment)", "  applied  008_two (deployment)"]
    (migrate.own / "008_two.sql").write_text("CREATE TABLE two (a TEXT)")
    (migrate.own / "007_one.sql").write_bytes(b"CREATE TABLE one (a INTEGER)")
    insert = "INSERT INTO flujo_schema_versions (version, name, checksum, applied_at) VALUES"
    migrate.execute(f"{insert} ({latest + 1}, NULL, NULL, '2026-01-01 10:00:00')")
    migrate.execute(f"{insert} ({latest + 2}, 'later', 'x', '2026-01-01T00:00Z')")
    rows = {(row["series"], row["name"]): row for row in migrate.told("--status")["migrations"]}
    assert {key: row["state"] for key, row in rows.items()} == {
        **{("flujo", name): "applied" for name in migrate.flujos},
        ("flujo", f"{latest + 1:03}"): "by hand",
        ("flujo", f"{latest + 2:03}_later"): "unknown",
        ("deployment", "007_one"): "applied",
        ("deployment", "008_two"): "changed",
    }
    assert rows["flujo", f"{latest + 1:03}"]["applied_at"] == "2026-01-01T10:00:00.000000+00:00"


def test_the_exit_code_tells_what_is_wrong(migrate: Command) -> None:
    code, out, err = migrate("--check")
    assert (code, err) == (3, "")
    assert out.endswith(f": pending: {', '.join(migrate.flujos)}\n")
    assert migrate("--target-version", "1")[0] == 0
    assert json.loads(migrate("--check", "--json")[1])["pending"] == [
        {"series": "flujo", "version": int(name[:3]), "name": name} for name in migrate.flujos[1:]
    ]

    with migrate.migrating_elsewhere():
        code, out, err = migrate("--lock-wait", "0.3")
    assert (code, out) == (4, "")
    assert re.fullmatch(rf"error: .*{migrate.flujos[1]} could not begin within 0\.3 s \(migration_lock_wait.*\n", err)

    assert migrate()[0] == 0
    assert migrate("--check")[0] == 0
    own = migrate.own / "001_mine.sql"
    own.write_text("CREATE TABLE mine (a INTEGER)")
    assert migrate("--check")[0] == 3
    assert migrate()[0] == 0
    own.write_text("CREATE TABLE mine (b INTEGER)")
    for options in ([], ["--check"], ["--dry-run"]):
        code, out, err = migrate(*options)
        assert code == 5
        assert "001_mine changed since it was applied; restore the file" in out + err
    code, out, err = migrate("--repair-checksums")
    assert (code, out, err) == (0, "  recorded as it is now  001_mine (deployment)\n", "")
    assert migrate.told("--repair-checksums")["repaired"] == []
    assert migrate("--check")[0] == 0

    too_new = len(migrate.flujos) + 1
    insert = "INSERT INTO flujo_schema_versions (version, checksum, min_code) VALUES"
    migrate.execute(f"{insert} ({too_new}, 'x', {too_new})")
    for options in ([], ["--check"], ["--dry-run"]):
        code, out, err = migrate(*options)
        assert code == 6
        assert f"is at schema version {too_new}, this code knows {too_new - 1}; upgrade Flujo here" in out + err


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--status", "--check"], "--status and --check exclude each other"),
        (["--dry-run", "--repair-checksums"], "--dry-run and --repair-checksums exclude each other"),
        (["--status", "--target-version", "1"], "--target-version goes with"),
        (["--print-sql", "--json"], "take --dry-run --json"),
    ],
)
def test_options_that_make_no_sense_together_are_refused(tmp_path: Path, options: list[str], complaint: str) -> None:
    code, out, err = run("migrate", *options, cwd=tmp_path)
    assert (code, out, files(tmp_path)) == (1, "", set())
    assert complaint in err


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("3_x.sql", "SELECT 1", "is not named like 001_init.sql"),
        ("003_x.sql", "COMMIT; SELECT 1", "COMMIT is not allowed"),
        ("003_x.sql", "SELECT 'a", "line 1: the string that begins here has no end"),
        ("003_x.sql", "-- transactional=false\nSELECT 1", "there is no directive transactional"),
        ("003_x.sql", "CREATE TABLE nonsense", "migration 003_x failed and was undone"),
    ],
)
def test_a_bad_file_is_named_in_one_line(migrate: Command, name: str, text: str, complaint: str) -> None:
    (migrate.own / name).write_text(text)
    before = files(migrate.cwd)
    code, out, err = migrate()
    assert (code, out) == (1, "")
    # What can be told from the file is told before anything is made.
    assert files(migrate.cwd) == before or "was undone" in complaint
    assert err.count("\n") == 1
    assert name.removesuffix(".sql") in err
    assert complaint in err
