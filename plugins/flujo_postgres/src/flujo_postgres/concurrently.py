"""How is a statement run that can't be in a transaction, CREATE INDEX CONCURRENTLY above all?

By one process at a time, which holds a *lease*: a row that says until when, by the server's clock, and that is renewed
while the statement runs. Nothing marks a step as half done. After a crash the lease runs out, and whoever comes next
does the step again: an index that is left invalid is dropped first, one that was finished is only recorded. That it is
the step's own index is known by the lease that is still there: without one, somebody else made it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from time import monotonic, perf_counter
from typing import Any, Final, NamedTuple

import asyncpg

from flujo_core.errors import MigrationError, StorageUnavailableError
from flujo_core.migrations import AppliedMigration, Migration, Series
from flujo_core.scripts import keywords
from flujo_core.store import Interrupted, Migrated

from . import queries as sql
from .schema import LOCK, Place, applied, in_place, in_transaction, make_tables, meaning, record

LEASE: Final = 30.0
"""Seconds after which a process that no longer renews it has lost its lease."""
_PAUSE: Final = (0.01, 0.1)
"""Seconds between two attempts to record what is done."""
_BLANK: Final = r"(?:\s|--[^\n]*\n|/\*.*?\*/)"
_NAME: Final = r'(?:"(?:[^"]|"")+"|(?!ON\b)[^\W\d][\w$]*)'
_INDEX: Final = re.compile(
    rf"{_BLANK}*CREATE{_BLANK}+(?:UNIQUE{_BLANK}+)?INDEX{_BLANK}+CONCURRENTLY{_BLANK}+"
    rf"(?:IF{_BLANK}+NOT{_BLANK}+EXISTS{_BLANK}+)?(?P<name>{_NAME}){_BLANK}+ON{_BLANK}+(?:ONLY{_BLANK}+)?"
    rf"(?P<table>{_NAME}(?:{_BLANK}*\.{_BLANK}*{_NAME})*)",
    re.IGNORECASE | re.DOTALL,
)
_PART: Final = re.compile(rf"{_BLANK}*(?:\.{_BLANK}*)?({_NAME})", re.IGNORECASE | re.DOTALL)
_LONGEST_NAME: Final = 63
"""Bytes; the server cuts off the rest."""

Connect = Callable[[], Awaitable[Any]]
Lease = tuple[Series, int, str]
"""Of which migration, and who holds it."""


class Index(NamedTuple):
    name: str
    table: str
    """Quoted, and with its schema if the statement says one."""


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
    work = _Work(place, step, statement, index_of(statement, f"{place.shown}: migration {step}"))

    async def claim() -> Migrated | None:
        if not await connection.fetchval(LOCK, place.schema):
            return "busy"
        if await applied(connection, place) != list(expected):
            return "changed"
        await make_tables(connection, place, step, True)
        work.was_begun = await connection.fetchval(place.sql(sql.IS_LEASED), *lease[:2]) is not None
        if not await connection.fetchval(place.sql(sql.TAKE_LEASE), *lease, LEASE):
            return "busy"
        if await applied(connection, place) != list(expected):
            # Whoever held the lease recorded the step just before it was taken: to finish needs no lock.
            await connection.execute(place.sql(sql.END_LEASE), *lease)
            return "changed"
        return None

    async def finish() -> Migrated:
        if await connection.fetchval(place.sql(sql.END_LEASE), *lease) is None:
            raise _Lost(place)
        await record(connection, place, step, started)
        return "applied"

    async def finish_in_the_end() -> Migrated:
        """What is done is not done again because a table is locked for a moment; the lease is renewed meanwhile."""
        give_up = monotonic() + place.limit
        while True:
            try:
                return await in_transaction(connection, place, step, finish)
            except Interrupted as signal:
                if isinstance(signal, _Lost) or connection.is_closed() or monotonic() >= give_up:
                    raise
            await asyncio.sleep(random.uniform(*_PAUSE))

    refused = await in_transaction(connection, place, step, claim)
    if refused:
        return refused
    outcome: Migrated = "busy"
    try:
        started = perf_counter()
        outcome = await _while_renewed(work.run(connection), finish_in_the_end, connect, place, lease)
    finally:
        if outcome != "applied":
            await _give_back(connection, place, lease, work)
    return outcome


class _Work:
    """The statement, and whose the index is that is there by its name."""

    def __init__(self, place: Place, step: Migration, statement: str, index: Index | None) -> None:
        self._place = place
        self._step = step
        self._statement = statement
        self._index = index
        self.was_begun = False
        """Whether a process began this step before: a finished index may be its work."""
        self._is_others = False
        """Whether a finished index was there before this step was begun."""

    async def run(self, connection: Any) -> Migrated:
        with meaning(self._place, self._step):
            return await self._run(connection)

    async def _run(self, connection: Any) -> Migrated:
        limit, index = self._place.limit, self._index
        state = await self._state(connection)
        if state is not None:
            valid, is_being_built, schema = state
            if is_being_built:
                return "busy"  # by the server, for a process that is gone
            if valid and self.was_begun:
                return "applied"
            self._is_others = valid
            if not valid and index is not None:
                drop = f"DROP INDEX CONCURRENTLY IF EXISTS {sql.quoted(schema)}.{sql.quoted(index.name)}"
                await connection.execute(drop, timeout=limit)
        try:
            await connection.execute(self._statement, timeout=limit)
        except asyncpg.DuplicateTableError:
            if self.was_begun and await self._state(connection) is not None:
                # While this waited for the table, the server went on building it for a process that is gone.
                return "busy"
            self._is_others = True
            raise
        if index is not None:
            state = await self._state(connection)
            if state is None:
                raise MigrationError(
                    f"{self._place.shown}: migration {self._step}: there is an index {index.name} already, of another "
                    "table; give this one another name"
                )
            if not state[0]:
                raise MigrationError(
                    f"{self._place.shown}: migration {self._step} left the index {index.name} invalid; run it again"
                )
        return "applied"

    async def _state(self, connection: Any) -> Any:
        """Of the index: whether it is finished, whether it is being built, and its schema; None if it isn't there."""
        if self._index is None:
            return None
        return await connection.fetchrow(sql.INDEX_STATE, self._index.table, self._index.name)

    async def is_lease_kept(self, connection: Any) -> bool:
        """Whether the lease has to stay, expired: it tells that a finished index is this step's."""
        if self._is_others or self.was_begun:
            return not self._is_others
        state = await self._state(connection)
        return state is not None and bool(state[0])


def index_of(statement: str, where: str = "it") -> Index | None:
    """The index that it builds; None if it does something else."""
    words = keywords(statement)
    if [word for word in words if word != "UNIQUE"][:3] != ["CREATE", "INDEX", "CONCURRENTLY"]:
        return None
    found = _INDEX.match(statement)
    if found is None:
        # Without a name, what a crash left behind could not be told from what others made.
        raise MigrationError(
            f"{where} builds an index without a plain name; write CREATE INDEX CONCURRENTLY some_name ON some_table"
        )
    parts = [sql.quoted(_as_stored(part)) for part in _PART.findall(found["table"])]
    return Index(_as_stored(found["name"]), ".".join(parts))


def _as_stored(name: str) -> str:
    if name.startswith('"'):
        name = name[1:-1].replace('""', '"')
    else:
        name = re.sub("[A-Z]+", lambda capitals: capitals[0].lower(), name)
    return name.encode()[:_LONGEST_NAME].decode(errors="ignore")


async def _while_renewed(
    work: Coroutine[Any, Any, Migrated],
    finish: Callable[[], Awaitable[Migrated]],
    connect: Connect,
    place: Place,
    lease: Lease,
) -> Migrated:
    """Renews the lease while the work is done; if that fails, the work is stopped, for somebody else may begin."""
    working = asyncio.create_task(work, name="flujo migration")
    renewing = asyncio.create_task(_renew(connect, place, lease), name="flujo migration lease")
    both: tuple[asyncio.Task[Any], ...] = (working, renewing)
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise _Lost(place)
        outcome = working.result()
        # The lease ends in the transaction that records: it sees whether it was lost.
        return await finish() if outcome == "applied" else outcome
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


class _Lost(Interrupted):
    def __init__(self, place: Place) -> None:
        super().__init__(
            StorageUnavailableError(
                f"{place.shown}: the lease of the migration could not be renewed within {LEASE:g} s; run `flujo "
                "migrate` again"
            )
        )


async def _give_back(connection: Any, place: Place, lease: Lease, work: _Work) -> None:
    """So that the next one needn't wait; where it can't be, the lease runs out."""
    with contextlib.suppress(Exception):
        async with asyncio.timeout(1):
            statement = sql.EXPIRE_LEASE if await work.is_lease_kept(connection) else sql.END_LEASE
            await connection.execute(place.sql(statement), *lease)
