"""What do the tests of SQLite's migrations share? Steps to apply, and looks at the file and its folder."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from flujo_core.migrations import MigrationReport, read_migrations
from flujo_sqlite import SQLiteBackend

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


def with_backend(path: Any, use: Callable[[SQLiteBackend], Awaitable[Result]], **settings: Any) -> Result:
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
