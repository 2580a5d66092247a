"""How is a statement run that can't be in a transaction, CREATE INDEX CONCURRENTLY above all?

By one process at a time, which holds a *lease*: a row that says until when, by the server's clock, and that is renewed
while the statement runs. Nothing marks a step as half done. After a crash the lease runs out, and whoever comes next
does the step again: an index that is left invalid is dropped first, one that was finished is only recorded.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from time import monotonic, perf_counter
from typing import Any, Final, TypeVar

import asyncpg

from flujo_core.errors import MigrationError, StorageUnavailableError
from flujo_core.migrations import AppliedMigration, Migration, Series
from flujo_core.scripts import keywords
from flujo_core.store import Interrupted, Migrated

from . import queries as sql
from .schema import LOCK, Place, applied, in_place, in_transaction, make_tables, meaning, record

LEASE: Final = 30.0
"""Seconds after which a process that no longer renews it has lost its lease."""
_BLANK: Final = r"(?:\s|--[^\n]*\n|/\*.*?\*/)"
_INDEX: Final = re.compile(
    rf"{_BLANK}*CREATE{_BLANK}+(?:UNIQUE{_BLANK}+)?INDEX{_BLANK}+CONCURRENTLY{_BLANK}+"
    rf"(?:IF{_BLANK}+NOT{_BLANK}+EXISTS{_BLANK}+)?"
    rf'(?:"(?P<quoted>(?:[^"]|"")+)"|(?P<plain>(?!ON\b)[^\W\d][\w$]*)){_BLANK}+ON\b',
    re.IGNORECASE | re.DOTALL,
)
_LONGEST_NAME: Final = 63
"""Bytes; the server cuts off the rest."""

Result = TypeVar("Result")
Connect = Callable[[], Awaitable[Any]]
Lease = tuple[Series, int, str]
"""Of which migration, and who holds it."""


async def migrate(
    connection: Any,
    place: Place,
    step: Migration,
    expected: Sequence[AppliedMigration],
    *,
    connect: Connect,
    holder: str,
) -> Migrated:
    """``connect`` makes the connection by which the lease is renewed meanwhile; ``holder`` names this store."""
    lease = (step.series, step.version, holder)
    statement = in_place(step, place)
    index = index_of(statement, f"{place.shown}: migration {step}")

    async def claim() -> Migrated | None:
        if not await connection.fetchval(LOCK, place.schema):
            return "busy"
        if await applied(connection, place) != list(expected):
            return "changed"
        await make_tables(connection, place, step.series)
        await connection.execute(place.sql(sql.CREATE_LEASES))
        return None if await connection.fetchval(place.sql(sql.TAKE_LEASE), *lease, LEASE) else "busy"

    async def finish() -> Migrated:
        if await connection.fetchval(place.sql(sql.END_LEASE), *lease) is None:
            raise _lost(place)
        await record(connection, place, step, started)
        return "applied"

    refused = await in_transaction(connection, place, step, claim)
    if refused:
        return refused
    outcome: Migrated = "busy"
    try:
        started = perf_counter()
        with meaning(place, step):
            outcome = await _while_renewed(_run(connection, place, step, statement, index), connect, place, lease)
        if outcome == "applied":
            outcome = await in_transaction(connection, place, step, finish)
    except BaseException:
        outcome = "busy"
        raise
    finally:
        if outcome != "applied":
            await _give_back(connection, place, lease)
    return outcome


async def _run(connection: Any, place: Place, step: Migration, statement: str, index: str | None) -> Migrated:
    if index is not None:
        state = await connection.fetchrow(sql.INDEX_STATE, place.schema, index)
        if state is not None:
            valid, is_being_built = state
            if is_being_built:
                return "busy"  # by the server, for a process that is gone
            if valid:
                return "applied"
            await connection.execute(_drop(place, index), timeout=place.limit)
    try:
        await connection.execute(statement, timeout=place.limit)
    except asyncpg.DuplicateTableError:
        if index is None or await connection.fetchrow(sql.INDEX_STATE, place.schema, index) is None:
            raise
        # While this waited for the table, the server went on building it for a process that is gone.
        return "busy"
    if index is not None:
        state = await connection.fetchrow(sql.INDEX_STATE, place.schema, index)
        if state is None or not state[0]:
            raise MigrationError(f"{place.shown}: migration {step} left the index {index} invalid; run it again")
    return "applied"


def _drop(place: Place, index: str) -> str:
    return f"DROP INDEX CONCURRENTLY IF EXISTS {sql.quoted(place.schema)}.{sql.quoted(index)}"


def index_of(statement: str, where: str = "it") -> str | None:
    """The name of the index that it builds; None if it does something else."""
    words = keywords(statement)
    if [word for word in words if word != "UNIQUE"][:3] != ["CREATE", "INDEX", "CONCURRENTLY"]:
        return None
    found = _INDEX.match(statement)
    if found is None:
        # Without a name, what a crash left behind could not be told from what others made.
        raise MigrationError(
            f"{where} builds an index without a plain name; write CREATE INDEX CONCURRENTLY some_name ON some_table"
        )
    if found["quoted"]:
        name = found["quoted"].replace('""', '"')
    else:
        name = re.sub("[A-Z]+", lambda capitals: capitals[0].lower(), found["plain"])
    return name.encode()[:_LONGEST_NAME].decode(errors="ignore")


async def _while_renewed(work: Coroutine[Any, Any, Result], connect: Connect, place: Place, lease: Lease) -> Result:
    """Renews the lease while the work is done; if that fails, the work is stopped, for somebody else may begin."""
    working = asyncio.create_task(work, name="flujo migration")
    renewing = asyncio.create_task(_renew(connect, place, lease), name="flujo migration lease")
    both: tuple[asyncio.Task[Any], ...] = (working, renewing)
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise _lost(place)
    finally:
        for task in both:
            task.cancel()
        await asyncio.wait(both)
        for task in both:
            # Looked at, so that nobody reports it as forgotten.
            _ = task.cancelled() or task.exception()


async def _renew(connect: Connect, place: Place, lease: Lease) -> None:
    """Returns when the lease could not be renewed in time. A connection that is lost is replaced till then."""
    connection: Any = None
    until = monotonic() + LEASE
    try:
        while True:
            await asyncio.sleep(LEASE / 3)
            began = monotonic()
            # The work is stopped a little before others may begin.
            async with asyncio.timeout(until - LEASE / 6 - began):
                while connection is None:
                    with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                        connection = await connect()
                        break
                    await asyncio.sleep(LEASE / 30)
                try:
                    if await connection.fetchval(place.sql(sql.RENEW_LEASE), *lease, LEASE) is None:
                        return
                    until = began + LEASE
                except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                    connection.terminate()
                    connection = None
    except TimeoutError:
        return
    finally:
        if connection is not None:
            connection.terminate()


def _lost(place: Place) -> Interrupted:
    why = (
        f"{place.shown}: the lease of the migration could not be renewed within {LEASE:g} s; run `flujo migrate` again"
    )
    return Interrupted(StorageUnavailableError(why))


async def _give_back(connection: Any, place: Place, lease: Lease) -> None:
    """So that the next one needn't wait; where it can't be, the lease runs out."""
    with contextlib.suppress(Exception):
        await connection.execute(place.sql(sql.END_LEASE), *lease, timeout=1)
