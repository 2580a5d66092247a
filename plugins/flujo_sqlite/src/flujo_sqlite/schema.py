"""Which version is the file's schema, and how does it reach the next one?"""

from __future__ import annotations

import sqlite3
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import Final

from flujo_core.errors import MigrationError, UnsupportedStorageError
from flujo_core.migrations import (
    AppliedMigration,
    Migration,
    MigrationReport,
    SchemaStatus,
    plan,
    read_migrations,
    report,
)

from . import queries as sql
from .errors import is_refused

APPLICATION_ID: Final = 0x464C554A
"""``FLUJ``, what the ``file`` command and SQLite's header call the format."""


@cache
def migrations() -> tuple[Migration, ...]:
    return read_migrations("flujo_sqlite.migrations")


def missing(path: Path) -> SchemaStatus:
    return SchemaStatus(str(path), migrations(), ())


def refuse_foreign(raw: sqlite3.Connection, path: Path) -> None:
    """Raise for a file that this library can't keep its tables in; one with other tables beside is fine."""
    encoding = raw.execute("PRAGMA encoding").fetchone()[0]
    if encoding != "UTF-8":
        # Ids are compared byte for byte, which has another order there.
        raise UnsupportedStorageError(f"{path} stores text as {encoding}, not as UTF-8; name another file")
    tables = _tables(raw)
    columns = {row[0] for row in raw.execute(sql.VERSION_COLUMNS)}
    ours = "flujo_schema_versions" in tables and columns >= {"version", "name", "checksum"}
    for table in ("workflow_state", "flujo_schema_versions"):
        if table in tables and not ours:
            raise UnsupportedStorageError(
                f"{path} has a table {table} that this library did not make; name another file"
            )


def _tables(raw: sqlite3.Connection) -> set[str]:
    return {name.lower() for (name,) in raw.execute(sql.TABLES)}


def status(raw: sqlite3.Connection, path: Path) -> SchemaStatus:
    if "flujo_schema_versions" not in _tables(raw):
        return missing(path)
    applied = tuple(AppliedMigration(*row) for row in raw.execute(sql.VERSIONS))
    return SchemaStatus(str(path), migrations(), applied)


def plan_only(found: SchemaStatus, target_version: int | None) -> MigrationReport:
    return report(found, plan(found, target_version), dry_run=True)


def migrate(raw: sqlite3.Connection, path: Path, target_version: int | None) -> MigrationReport:
    """Inside the caller's transaction: the versions that are read here stay as they are until it ends."""
    refuse_foreign(raw, path)
    found = status(raw, path)
    steps = plan(found, target_version)
    # The numbers in the header of a file that has other tables belong to whoever made those.
    whole = not _tables(raw) or raw.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID
    for step in steps:
        started = perf_counter()
        try:
            for statement in _statements(step.sql):
                raw.execute(statement)
        except sqlite3.Error as error:
            if not is_refused(error):
                raise
            raise MigrationError(
                f"{path}: migration {step} failed and was undone: {error}; remove what is in its way"
            ) from None
        duration = (perf_counter() - started) * 1000
        raw.execute(sql.RECORD_VERSION, (step.version, step.name, step.checksum, duration, _code_version()))
    if steps and whole:
        raw.execute(f"PRAGMA user_version = {steps[-1].version}")
        raw.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    return report(found, steps, dry_run=False)


def _statements(script: str) -> list[str]:
    """The statements of a script, one by one: executescript would commit first."""
    statements, current = [], ""
    for line in script.splitlines(keepends=True):
        current += line
        if sqlite3.complete_statement(current):
            statements.append(current)
            current = ""
    return [*statements, current] if current.strip() else statements


def _code_version() -> str | None:
    try:
        return version("flujo-sqlite")
    except PackageNotFoundError:
        return None
