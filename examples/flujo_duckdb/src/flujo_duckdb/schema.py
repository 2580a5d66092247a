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
from .errors import is_refused


def applied(raw: duckdb.DuckDBPyConnection, path: Path) -> list[AppliedMigration]:
    """Raise for a file that this library can't keep its tables in; one with other tables beside is fine."""
    tables = {table.lower() for (table,) in raw.execute(sql.TABLES).fetchall()}
    for table in (*TABLE_OF.values(), "workflow_state"):
        # A table that records a series has these columns itself.
        recorded_in = table if table in TABLE_OF.values() else VERSIONS_TABLE
        if table in tables and not (recorded_in in tables and _columns(raw, recorded_in) >= VERSION_COLUMNS):
            raise UnsupportedStorageError(
                f"{path} has a table {table} that this library did not make; name another file"
            )
    return [
        AppliedMigration.of_row(row, series)
        for series, table in TABLE_OF.items()
        if table in tables
        for row in raw.execute(sql.VERSIONS.format(table=table)).fetchall()
    ]


def _columns(raw: duckdb.DuckDBPyConnection, table: str) -> set[str]:
    return {row[1] for row in raw.execute(sql.COLUMNS.format(table=table)).fetchall()}


def migrate(
    raw: duckdb.DuckDBPyConnection, path: Path, step: Migration, expected: Sequence[AppliedMigration]
) -> Migrated:
    """Writers of a file are one process and come one after the other, so there is no other lock to take."""
    if applied(raw, path) != list(expected):
        return "changed"
    table = TABLE_OF[step.series]
    raw.execute(sql.CREATE_VERSIONS.format(table=table))
    started = perf_counter()
    for statement in step.statements:
        try:
            raw.execute(statement)
        except duckdb.Error as error:
            if not is_refused(error):
                raise
            raise MigrationError(
                f"{path}: migration {step} failed and was undone: {error}; mend what it says"
            ) from None
    record = [step.version, step.name, step.checksum, step.code_version, step.min_code]
    if not raw.execute(sql.REPEAT_VERSION.format(table=table), record).fetchall():
        raw.execute(sql.REMOVE_VERSION.format(table=table), [step.version])
        duration = (perf_counter() - started) * 1000
        raw.execute(sql.INSERT_VERSION.format(table=table), [*record, duration])
    return "applied"


def script(step: Migration) -> list[str]:
    table = TABLE_OF[step.series]
    created = sql.CREATE_VERSIONS.format(table=table).strip()
    return ["BEGIN", created, *step.statements, record_statement(step, table), "COMMIT"]
