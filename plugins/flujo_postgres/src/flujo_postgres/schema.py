"""Which version is the database's schema, and how does it reach the next one?"""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from time import perf_counter
from typing import Any, Final

import asyncpg

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
from .errors import is_lost

LOCK: Final = "SELECT pg_advisory_xact_lock(hashtextextended('flujo migrate ' || $1, 0))"
"""One migration at a time for each schema; released with the transaction, also through a pooler."""


@cache
def migrations() -> tuple[Migration, ...]:
    return read_migrations("flujo_postgres.migrations")


async def status(connection: Any, shown: str, schema: str) -> SchemaStatus:
    tables = {row[0] for row in await connection.fetch(sql.TABLES, schema)}
    if "flujo_schema_versions" not in tables:
        if "workflow_state" in tables:
            raise UnsupportedStorageError(
                f"{shown} has a table workflow_state that this library did not make; "
                "name another database, or another schema"
            )
        return SchemaStatus(shown, migrations(), ())
    rows = await connection.fetch(sql.in_schema(sql.VERSIONS, schema))
    return SchemaStatus(shown, migrations(), tuple(AppliedMigration(*row) for row in rows))


def plan_only(found: SchemaStatus, target_version: int | None) -> MigrationReport:
    return report(found, plan(found, target_version), dry_run=True)


async def migrate(connection: Any, shown: str, schema: str, target_version: int | None) -> MigrationReport:
    """All pending steps in one transaction."""
    # Each statement sees what was committed before it, also where the role's default is stricter: the versions are read
    # after the wait for the lock.
    async with connection.transaction(isolation="read_committed"):
        await connection.execute(LOCK, schema)
        found = await status(connection, shown, schema)
        steps = plan(found, target_version)
        if steps:
            if not await connection.fetchval("SELECT 1 FROM pg_namespace WHERE nspname = $1", schema):
                await connection.execute(f"CREATE SCHEMA {sql.quoted(schema)}")
            # The files name no schema; pg_catalog comes first by itself.
            await connection.execute("SELECT set_config('search_path', $1, true)", sql.quoted(schema))
        for step in steps:
            started = perf_counter()
            try:
                await connection.execute(step.sql)
            except asyncpg.PostgresError as error:
                if is_lost(error):
                    raise
                raise MigrationError(f"{shown}: migration {step} failed and was undone: {error}") from None
            duration = (perf_counter() - started) * 1000
            record = sql.in_schema(sql.RECORD_VERSION, schema)
            await connection.execute(record, step.version, step.name, step.checksum, duration, _code_version())
        return report(found, steps, dry_run=False)


def _code_version() -> str | None:
    try:
        return version("flujo-postgres")
    except PackageNotFoundError:
        return None
