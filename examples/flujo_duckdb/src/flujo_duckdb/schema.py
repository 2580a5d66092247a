"""Which version is the file's schema, and how does it reach the next one?"""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter

import duckdb

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


@cache
def migrations() -> tuple[Migration, ...]:
    return read_migrations("flujo_duckdb.migrations")


def missing(path: Path) -> SchemaStatus:
    return SchemaStatus(str(path), migrations(), ())


def refuse_foreign(raw: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Raise for a file that this library can't keep its tables in; one with other tables beside is fine."""
    tables = _tables(raw)
    columns = raw.execute(sql.VERSION_COLUMNS).fetchall() if "flujo_schema_versions" in tables else []
    ours = {name for (name,) in columns} >= {"version", "name", "checksum"}
    for table in ("workflow_state", "flujo_schema_versions"):
        if table in tables and not ours:
            raise UnsupportedStorageError(
                f"{path} has a table {table} that this library did not make; name another file"
            )


def _tables(raw: duckdb.DuckDBPyConnection) -> set[str]:
    return {name.lower() for (name,) in raw.execute(sql.TABLES).fetchall()}


def status(raw: duckdb.DuckDBPyConnection, path: Path) -> SchemaStatus:
    if "flujo_schema_versions" not in _tables(raw):
        return missing(path)
    applied = tuple(AppliedMigration(*row) for row in raw.execute(sql.VERSIONS).fetchall())
    return SchemaStatus(str(path), migrations(), applied)


def plan_only(found: SchemaStatus, target_version: int | None) -> MigrationReport:
    return report(found, plan(found, target_version), dry_run=True)


def migrate(raw: duckdb.DuckDBPyConnection, path: Path, target_version: int | None) -> MigrationReport:
    """Inside the caller's transaction: the versions that are read here stay as they are until it ends."""
    refuse_foreign(raw, path)
    found = status(raw, path)
    steps = plan(found, target_version)
    for step in steps:
        started = perf_counter()
        try:
            raw.execute(step.sql)
        except duckdb.Error as error:
            if not is_refused(error):
                raise
            raise MigrationError(
                f"{path}: migration {step} failed and was undone: {error}; remove what is in its way"
            ) from None
        duration = (perf_counter() - started) * 1000
        raw.execute(sql.REMOVE_VERSION, (step.version,))
        raw.execute(sql.INSERT_VERSION, (step.version, step.name, step.checksum, duration, _code_version()))
    return report(found, steps, dry_run=False)


def _code_version() -> str | None:
    try:
        return version("flujo-duckdb")
    except PackageNotFoundError:
        return None
