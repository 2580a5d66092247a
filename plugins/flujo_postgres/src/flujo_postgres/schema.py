"""Which migrations has the database, and how is one applied in a transaction? `concurrently` has those without."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from time import monotonic, perf_counter
from typing import Any, Final, TypeVar

import asyncpg

from flujo_core.errors import FlujoStateError, MigrationError, StorageTimeoutError, UnsupportedStorageError
from flujo_core.migrations import (
    TABLE_OF,
    VERSION_COLUMNS,
    VERSIONS_TABLE,
    AppliedMigration,
    Migration,
    Series,
    record_statement,
)
from flujo_core.original import COLUMNS, recognised
from flujo_core.store import CommitUnknown, Interrupted, Migrated

from . import queries as sql
from . import refused
from .changes import milliseconds
from .connection import CANCEL_TIMEOUT, roll_back
from .errors import NOT_YET, ROLLED_BACK, is_lost, translated

Result = TypeVar("Result")
LOCK: Final = "SELECT pg_try_advisory_xact_lock(hashtextextended('flujo migrate ' || $1, 0))"
"""One migration at a time for each schema; released with the transaction, also through a pooler."""
_PATIENCE: Final = 2.0
"""Seconds that a statement waits for the lock of a table: readers and writers of it wait behind the one who waits."""
_AS_BEFORE: Final = (
    "SELECT set_config('search_path', $1, true), set_config('session_authorization', $2, false), "
    "set_config('role', $3, false)"
)
"""Who the session is, also after the transaction: a pooler hands it to others."""
_AGAIN: Final = "run `flujo migrate` again, which drops an index that was left invalid"


class Place:
    """Which schema of which database, and how long a step may take there."""

    def __init__(self, shown: str, schema: str, limit: float) -> None:
        self.shown = shown
        self.schema = schema
        self.limit = limit

    def sql(self, statement: str, series: Series = "flujo") -> str:
        return sql.in_schema(statement, self.schema).replace("{table}", TABLE_OF[series])


async def applied(connection: Any, place: Place) -> list[AppliedMigration]:
    """In a transaction of the caller's."""
    tables = await layout(connection, place)
    if is_original(tables, place):
        return []
    found = []
    for series, table in TABLE_OF.items():
        if table in tables:
            if not _is_ours(tables[table]):
                raise UnsupportedStorageError(
                    f"{place.shown} has a table {table} that this library did not make; name another database, or "
                    "another schema"
                )
            rows = await connection.fetch(place.sql(sql.VERSIONS, series))
            found += [AppliedMigration.of_row(row, series) for row in rows]
    return found


Layout = dict[str, dict[str, str]]
"""The types of the columns of tables, by name."""


async def layout(connection: Any, place: Place) -> Layout:
    """Of the tables there that have names of ours or of the original system's."""
    found: Layout = {}
    for table, column, kind in await connection.fetch(sql.LAYOUT, place.schema, [*TABLE_OF.values(), *COLUMNS]):
        found.setdefault(table, {})[column] = kind
    return found


def is_original(tables: Layout, place: Place) -> bool:
    """The original's table of versions has the name of ours. Raises for tables that are neither the original's nor
    ours."""
    if _is_ours(tables.get(VERSIONS_TABLE, {})):
        return False
    return recognised({table: tables[table] for table in COLUMNS if table in tables}, place.shown)


def _is_ours(columns: Collection[str]) -> bool:
    return set(columns) >= VERSION_COLUMNS


async def read_is_original(connection: Any, place: Place) -> bool:
    return is_original(await layout(connection, place), place)


async def read_applied(connection: Any, place: Place) -> list[AppliedMigration]:
    """In a transaction that can't write."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        return await applied(connection, place)


async def migrate(connection: Any, place: Place, step: Migration, expected: Sequence[AppliedMigration]) -> Migrated:
    async def work() -> Migrated:
        if not await connection.fetchval(LOCK, place.schema):
            return "busy"
        if await applied(connection, place) != list(expected):
            return "changed"
        await run(connection, place, step)
        await _check_records(connection, place, step, expected)
        return "applied"

    refused.check(step.statements, f"{place.shown}: migration {step}")
    return await in_transaction(connection, place, step, work)


async def run(connection: Any, place: Place, step: Migration) -> None:
    """One step and its record, in a transaction of the caller's."""
    await make_tables(connection, place, step)
    # The files name no schema; pg_catalog comes first by itself.
    before = await connection.fetchrow(
        "SELECT set_config('search_path', $1, true), session_user::text, current_setting('role')",
        sql.quoted(place.schema),
    )
    started = perf_counter()
    for statement in step.statements:
        # Prepared, so the server takes one statement only.
        await connection.fetch(statement, timeout=place.limit + CANCEL_TIMEOUT)
    # Whoever the file became, and wherever it looked: the record is written as the file's first statement was.
    await connection.execute(_AS_BEFORE, *before)
    await record(connection, place, step, started)


async def _check_records(connection: Any, place: Place, step: Migration, expected: Sequence[AppliedMigration]) -> None:
    """A file that changes what the records say would make everything after it go wrong."""

    def is_step(row: AppliedMigration) -> bool:
        return (row.series, row.version) == (step.series, step.version)

    try:
        found = await applied(connection, place)
    except FlujoStateError:  # its tables are no longer ours
        found = []
    ours = [row.checksum for row in found if is_step(row)]
    if ours != [step.checksum] or [row for row in found if not is_step(row)] != [
        row for row in expected if not is_step(row)
    ]:
        raise MigrationError(
            f"{place.shown}: migration {step} changed what records the migrations; it was undone; remove from the file "
            f"what touches {' and '.join(TABLE_OF.values())}"
        )


async def make_tables(connection: Any, place: Place, step: Migration, leases: bool = False) -> None:
    """Where the step is recorded, and, if asked for, where it is leased."""
    if not await connection.fetchval("SELECT 1 FROM pg_namespace WHERE nspname = $1", place.schema):
        with needing("CREATE on the database", place, step):
            await connection.execute(f"CREATE SCHEMA {sql.quoted(place.schema)}")
    wanted = {TABLE_OF[step.series]: sql.CREATE_VERSIONS, **({sql.LEASES_TABLE: sql.CREATE_LEASES} if leases else {})}
    for table, statement in wanted.items():
        # Looked for first: IF NOT EXISTS asks for the right to create all the same.
        if not await connection.fetchval(
            "SELECT 1 FROM pg_tables WHERE schemaname = $1 AND tablename = $2", place.schema, table
        ):
            with needing(f"CREATE on the schema {place.schema}", place, step):
                await connection.execute(place.sql(statement, step.series))


@contextlib.contextmanager
def needing(right: str, place: Place, step: Migration) -> Iterator[None]:
    try:
        yield
    except asyncpg.InsufficientPrivilegeError as error:
        raise MigrationError(
            f"{place.shown}: migration {step} failed and was undone: {_first_line(error)}; the role needs {right}"
        ) from None


async def record(connection: Any, place: Place, step: Migration, started: float) -> None:
    duration = (perf_counter() - started) * 1000
    values = (step.version, step.name, step.checksum, duration, step.code_version, step.min_code)
    await connection.execute(place.sql(sql.RECORD_VERSION, step.series), *values)


async def in_transaction(
    connection: Any, place: Place, step: Migration, work: Callable[[], Awaitable[Result]]
) -> Result:
    """All of the work or nothing. Tells core apart what certainly had no effect, and what may have had one."""
    # Each statement sees what was committed before it, also where the role's default is stricter: the versions are read
    # after the lock was taken.
    transaction = connection.transaction(isolation="read_committed")
    with meaning(place, step):
        try:
            await transaction.start()
            await connection.execute(
                f"SET LOCAL lock_timeout = {int(_PATIENCE * 1000)}; "
                f"SET LOCAL statement_timeout = {milliseconds(place.limit)}; "
                "SET LOCAL idle_in_transaction_session_timeout = 0"
            )
            result = await work()
        except BaseException:
            await roll_back(connection, transaction)
            raise
        try:
            await transaction.commit()
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            if not (is_lost(error) or isinstance(error, TimeoutError)):
                raise
            with contextlib.suppress(asyncpg.InterfaceError):
                connection.terminate()
            raise CommitUnknown(translated(error, place.shown)) from None
    return result


@contextlib.contextmanager
def meaning(place: Place, step: Migration) -> Iterator[None]:
    """Errors of the driver become errors of ours."""
    began = monotonic()
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever the driver raises
        raise _of_step(error, place, step, monotonic() - began) from None


def _of_step(error: Exception, place: Place, step: Migration, elapsed: float) -> Exception:
    """What an error in the middle of a step means; its transaction is undone."""
    if isinstance(error, (FlujoStateError, Interrupted, CommitUnknown)):
        return error
    if isinstance(error, asyncpg.LockNotAvailableError):
        return Interrupted(StorageTimeoutError(f"{place.shown}: another session holds a lock that {step} needs"))
    if is_lost(error) or isinstance(error, (*ROLLED_BACK, *NOT_YET)):
        return Interrupted(translated(error, place.shown))
    if isinstance(error, (asyncpg.QueryCanceledError, TimeoutError)):
        then = "it was undone" if step.transaction else _AGAIN
        if elapsed >= place.limit:
            why = f"did not end within {place.limit:g} s (migration_timeout)"
        elif isinstance(error, asyncpg.QueryCanceledError):
            why = f"was stopped: {_first_line(error)}"  # the file's or the role's own limit, or an administrator
        else:
            why = "was stopped: the server did not answer in time (command_timeout)"
        return MigrationError(f"{place.shown}: migration {step} {why}; {then}")
    if isinstance(error, asyncpg.PostgresError):
        reason = _first_line(error)
        if step.transaction:
            return MigrationError(f"{place.shown}: migration {step} failed and was undone: {reason}; mend what it says")
        return MigrationError(f"{place.shown}: migration {step} failed: {reason}; mend what it says, and {_AGAIN}")
    return error


def _first_line(error: Exception) -> str:
    """The other lines may quote what is stored."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def script(place: Place, step: Migration) -> list[str]:
    refused.check(step.statements, f"{place.shown}: migration {step}")
    schema = sql.quoted(place.schema)
    # As the runner does: a row that was written by hand is replaced.
    recorded = (
        f"{record_statement(step, f'{schema}.{TABLE_OF[step.series]}')} ON CONFLICT (version) DO UPDATE SET "
        "name = excluded.name, checksum = excluded.checksum, applied_at = excluded.applied_at, "
        "code_version = excluded.code_version, min_code = excluded.min_code"
    )
    prepared = [
        *([] if place.schema == "public" else [f"CREATE SCHEMA IF NOT EXISTS {schema}"]),
        place.sql(sql.CREATE_VERSIONS, step.series).strip(),
    ]
    if not step.transaction:
        return [*prepared, in_place(step, place), recorded]
    return ["BEGIN", *prepared, f"SET LOCAL search_path = {schema}", *step.statements, recorded, "COMMIT"]


def in_place(step: Migration, place: Place) -> str:
    """The statement of a step without a transaction: the search path can't be set for it alone, so it says where."""
    (statement,) = step.statements
    where = f"{place.shown}: migration {step}"
    if "{schema}" not in statement and place.schema != "public":
        raise MigrationError(
            f"{where} runs outside of a transaction, so it has to name the schema: write {{schema}}.some_table in it"
        )
    filled = statement.replace("{schema}", sql.quoted(place.schema))
    refused.check((filled,), where)
    refused.check_repeatable(filled, where)
    return filled
