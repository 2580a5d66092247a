"""Which migrations has the file, and how is one applied? Inside the caller's transaction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import duckdb

from flujo_core.errors import MigrationError, UnsupportedStorageError
from flujo_core.migrations import (
    TABLE_OF,
    VERSION_COLUMNS,
    VERSIONS_TABLE,
    AppliedMigration,
    Migration,
    record_statement,
)
from flujo_core.store import Migrated

from . import queries as sql
from .connection import Cursor
from .errors import is_refused


def applied(cursor: Cursor, path: Path) -> list[AppliedMigration]:
    """Raise for a file that this library can't keep its tables in; one with other tables beside is fine."""
    tables = {table.lower() for (table,) in cursor.execute(sql.TABLES).fetchall()}
    records = {table: table in tables and _columns(cursor, table) >= VERSION_COLUMNS for table in TABLE_OF.values()}
    # A table that records a series is ours by its columns, those of the runs if its migrations are recorded.
    ours = {**records, "workflow_state": records[VERSIONS_TABLE]}
    for table, is_ours in ours.items():
        if table in tables and not is_ours:
            raise UnsupportedStorageError(
                f"{path} has a table {table} that this library did not make; name another file"
            )
    return [
        AppliedMigration.of_row(row, series)
        for series, table in TABLE_OF.items()
        if table in tables
        for row in cursor.execute(sql.VERSIONS.format(table=table)).fetchall()
    ]


def _columns(cursor: Cursor, table: str) -> set[str]:
    return {row[1] for row in cursor.execute(sql.COLUMNS.format(table=table)).fetchall()}


def migrate(cursor: Cursor, path: Path, step: Migration, expected: Sequence[AppliedMigration]) -> Migrated:
    """Writers of a file are one process and come one after the other, so there is no other lock to take."""
    if applied(cursor, path) != list(expected):
        return "changed"
    table = TABLE_OF[step.series]
    cursor.execute(sql.CREATE_VERSIONS.format(table=table))
    started = perf_counter()
    for statement in step.statements:
        try:
            cursor.execute(statement)
        except duckdb.Error as error:
            if not is_refused(error):
                raise
            raise MigrationError(
                f"{path}: migration {step} failed and was undone: {error}; mend what it says"
            ) from None
    record = [step.version, step.name, step.checksum, step.code_version, step.min_code]
    if not cursor.execute(sql.REPEAT_VERSION.format(table=table), record).fetchall():
        cursor.execute(sql.REMOVE_VERSION.format(table=table), [step.version])
        duration = (perf_counter() - started) * 1000
        cursor.execute(sql.INSERT_VERSION.format(table=table), [*record, duration])
    return "applied"


def script(step: Migration) -> list[str]:
    table = TABLE_OF[step.series]
    created = sql.CREATE_VERSIONS.format(table=table).strip()
    return ["BEGIN", created, *step.statements, record_statement(step, table), "COMMIT"]
