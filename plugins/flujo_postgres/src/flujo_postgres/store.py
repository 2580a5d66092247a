"""How does PostgreSQL keep what core hands it?"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from time import monotonic
from typing import Any, Final, TypeVar

import asyncpg

from flujo_core.errors import FlujoStateError, OutcomeUnknownError, StorageTimeoutError
from flujo_core.migrations import AppliedMigration, Migration
from flujo_core.store import (
    APPLIED,
    BUSY,
    Change,
    CommitUnknown,
    Interrupted,
    Migrated,
    Outcome,
    RunQuery,
    RunStatistic,
    Snapshot,
    SpanStatistic,
    Store,
    StoredRun,
)

from . import concurrently, original, schema
from . import queries as sql
from .changes import Changes, milliseconds, outcome, replaces
from .connection import CANCEL_TIMEOUT, Connections, Target, roll_back
from .errors import NOT_YET, ROLLED_BACK, NoAnswer, is_lost, translated
from .settings import PostgresSettings

Result = TypeVar("Result")
PATIENCE: Final = 0.05
"""Seconds that a change waits for a locked run while others may be waiting for it."""


class PostgresStore(Store):
    """A pool of connections. A batch is written by one statement; what replaces records takes a transaction."""

    migrations = "flujo_postgres.migrations"
    migrates_outside_transactions = True
    # The server writes one batch while Python prepares the next; both take about as long for an operation.
    batch_size = 32
    commits_at_once = 2

    def __init__(self, target: Target, settings: PostgresSettings) -> None:
        self._settings = settings
        self._schema = settings.schema_name
        self._connections = Connections(target, settings)
        self._changes = Changes(self._schema, settings.lock_timeout)
        self._holder = secrets.token_hex(8)
        self._held: set[str] = set()
        """Runs whose last outcome was BUSY: their next change comes alone, beside the others, and waits."""

    # --- opening and closing -----------------------------------------------------------------------------------

    async def open(self, *, create: bool) -> None:
        await self._connections.open()

    async def close(self) -> None:
        await self._connections.close()

    def abandon(self) -> None:
        self._connections.abandon()

    # --- doing a piece of work -----------------------------------------------------------------------------------

    def _sql(self, statement: str) -> str:
        return sql.in_schema(statement, self._schema)

    def _translated(self, error: BaseException) -> FlujoStateError:
        if isinstance(error, TimeoutError):
            return StorageTimeoutError(
                f"{self._connections.shown} did not answer within {self._settings.command_timeout:g} s "
                "(command_timeout); the command was stopped"
            )
        return translated(error, self._connections.shown)

    async def _read(self, work: Callable[[Any], Awaitable[Result]]) -> Result:
        """Reads may be repeated: a connection that broke is replaced, up to connect_timeout."""
        give_up = monotonic() + self._settings.connect_timeout
        while True:
            try:
                async with self._connections.acquire() as connection:
                    return await work(connection)
            except FlujoStateError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever the driver raises becomes an error of ours
                passing = is_lost(error) or isinstance(error, (*NOT_YET, *ROLLED_BACK))
                if not passing or monotonic() >= give_up:
                    raise self._translated(error) from None
            await asyncio.sleep(random.uniform(0.01, 0.1))

    async def _rows(self, statement: str, *values: Any) -> list[Any]:
        return await self._read(lambda connection: connection.fetch(self._sql(statement), *values))

    async def _documents(self, statement: str, *values: Any) -> list[str]:
        return [row[0] for row in await self._rows(statement, *values)]

    async def _document(self, statement: str, *values: Any) -> str | None:
        found = await self._documents(statement, *values)
        return found[0] if found else None

    # --- schema --------------------------------------------------------------------------------------------------

    @property
    def database(self) -> str:
        return self._connections.shown

    @property
    def _place(self) -> schema.Place:
        return schema.Place(self.database, self._schema, self._settings.migration_timeout)

    async def applied_migrations(self) -> list[AppliedMigration]:
        return await self._read(lambda connection: schema.read_applied(connection, self._place))

    async def migrate(self, step: Migration, expected: Sequence[AppliedMigration]) -> Migrated:
        async def work(connection: Any) -> Migrated:
            if step.transaction:
                return await schema.migrate(connection, self._place, step, expected)
            return await concurrently.migrate(
                connection, self._place, step, expected, connect=self._connections.connect, holder=self._holder
            )

        return await self._migrating(work)

    async def is_original(self) -> bool:
        return await self._read(lambda connection: schema.read_is_original(connection, self._place))

    async def take_over(self, steps: Sequence[Migration]) -> Migrated:
        return await self._migrating(
            lambda connection: original.take_over(connection, self._place, steps, self._changes)
        )

    async def _migrating(self, work: Callable[[Any], Awaitable[Migrated]]) -> Migrated:
        """Nobody uses the connection afterwards: what a file did to the session, nobody can tell."""

        async def alone(connection: Any) -> Migrated:
            try:
                return await work(connection)
            finally:
                with contextlib.suppress(asyncpg.InterfaceError):
                    connection.terminate()

        return await self._writing(alone)

    def migration_script(self, step: Migration) -> list[str]:
        return schema.script(self._place, step)

    # --- writing -------------------------------------------------------------------------------------------------

    async def commit(self, changes: Sequence[Change]) -> list[Outcome]:
        """The first time a run is locked by another writer it is BUSY, so that the runs behind it needn't wait."""
        alone = changes[0].run_id if len(changes) == 1 else None
        again = alone in self._held
        wait = self._settings.lock_timeout if again else PATIENCE
        self._held.discard(alone or "")
        try:
            if alone is not None and _is_row_only(changes[0]):
                outcomes = [await self._commit_row(changes[0], wait)]
            else:
                outcomes = await self._commit_all(changes, wait)
        except asyncpg.LockNotAvailableError as error:
            if alone is None or again:
                raise Interrupted(self._translated(error)) from None
            outcomes = [BUSY]
        self._held.update(change.run_id for change, outcome in zip(changes, outcomes, strict=True) if outcome == BUSY)
        return outcomes

    async def _commit_row(self, change: Change, wait: float) -> Outcome:
        """One statement, which commits by itself."""
        values = [change.run_id, *change.values]
        if change.expected is None:
            statement = sql.INSERT_RUN
        else:
            statement = sql.update_run(change.columns)
            values.append(change.expected)
        values.append(milliseconds(wait))
        text = self._sql(statement)

        async def write(connection: Any) -> str:
            command = self._execute(connection, text, *values)
            return await self._last(connection, command, lambda: self._is_applied(connection, change)) or "UPDATE 1"

        try:
            status = await self._writing(write)
        except Interrupted as signal:
            # A deadline has passed already; core would begin another one.
            if isinstance(signal.error, StorageTimeoutError):
                raise signal.error from None
            raise
        if status.endswith(" 1"):
            return APPLIED
        return (await self.stored_runs([change.run_id])).get(change.run_id)

    async def _commit_all(self, changes: Sequence[Change], wait: float) -> list[Outcome]:
        write = self._write_in_transaction if replaces(changes) else self._write_at_once
        done = await self._writing(lambda connection: write(connection, changes, wait))
        others = [change.run_id for change in changes if change.run_id not in done]
        try:
            stored = await self.stored_runs(others) if others else {}
        except FlujoStateError as error:
            if done:
                # Core looks at each: some were written.
                raise CommitUnknown(error) from None
            raise
        return [outcome(change, done, stored) for change in changes]

    async def _write_at_once(self, connection: Any, changes: Sequence[Change], wait: float) -> set[str]:
        async def is_applied() -> bool | None:
            # One that was locked by another writer is as expected, and others were written.
            told = [await self._is_applied(connection, change) for change in changes]
            return True if True in told else None if None in told else False

        async def fetch(statement: str, *values: Any) -> Sequence[Any]:
            command = self._stopped_in_time(connection, connection.fetch, statement, *values)
            rows: Sequence[Any] | None = await self._last(connection, command, is_applied)
            if rows is None:  # it was stopped after it had ended; which runs it wrote, nobody has heard
                raise NoAnswer(TimeoutError())
            return rows

        return await self._changes.apply(fetch, changes, wait)

    async def _write_in_transaction(self, connection: Any, changes: Sequence[Change], wait: float) -> set[str]:
        transaction = connection.transaction()
        try:
            await transaction.start()
            done = await self._changes.apply(connection.fetch, changes, wait)
        except BaseException:
            await roll_back(connection, transaction)
            raise
        applied = next((change for change in changes if change.run_id in done), None)
        await self._last(
            connection,
            transaction.commit(),
            lambda: self._is_applied(connection, applied) if applied else _nothing_applied(),
        )
        return done

    async def _writing(self, work: Callable[[Any], Awaitable[Result]]) -> Result:
        """Tells core apart what certainly had no effect, what may have had one, and what fails for good."""
        try:
            async with self._connections.acquire() as connection:
                return await work(connection)
        except NoAnswer as error:
            raise CommitUnknown(self._translated(error.reason)) from None
        except StorageTimeoutError as error:
            raise Interrupted(error) from None
        except (FlujoStateError, Interrupted, CommitUnknown, asyncpg.LockNotAvailableError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever the driver raises becomes an error of ours
            if is_lost(error) or isinstance(error, (TimeoutError, *ROLLED_BACK, *NOT_YET)):
                raise Interrupted(self._translated(error)) from None
            raise self._translated(error) from None

    async def _execute(self, connection: Any, statement: str, *values: Any) -> str:
        return str(await self._stopped_in_time(connection, connection.execute, statement, *values))

    async def _stopped_in_time(self, connection: Any, run: Callable[..., Awaitable[Result]], *given: Any) -> Result:
        """A statement that commits by itself. At command_timeout the server is asked to stop it, and its answer is
        waited for, which tells whether it did: asyncpg's own timeout doesn't listen any more."""
        loop, limit = asyncio.get_running_loop(), self._settings.command_timeout
        stopping: list[asyncio.Task[None]] = []

        def stop() -> None:
            stopping.append(loop.create_task(connection._cancel(loop.create_future())))

        timer = loop.call_later(limit, stop)
        try:
            return await run(*given, timeout=limit + CANCEL_TIMEOUT)
        except asyncpg.QueryCanceledError:
            if not stopping:
                raise
            raise Interrupted(self._translated(TimeoutError())) from None
        finally:
            timer.cancel()
            if stopping:
                await asyncio.gather(*stopping, return_exceptions=True)

    async def _last(
        self, connection: Any, command: Awaitable[Result], is_applied: Callable[[], Awaitable[bool | None]]
    ) -> Result | None:
        """The command that makes a write durable. None if it was stopped at its deadline, but was done before."""
        try:
            return await command
        except TimeoutError as error:
            try:
                # The same connection answers as soon as the command has ended, one way or the other.
                applied = await is_applied()
            except Exception:  # noqa: BLE001 - then nobody can tell, for whatever reason
                applied = None
            if applied is None:
                raise NoAnswer(error) from None
            if applied:
                return None
            raise
        except Exception as error:
            if is_lost(error):
                raise NoAnswer(error) from None
            raise

    async def _is_applied(self, connection: Any, change: Change) -> bool | None:
        """None if it can't be told: somebody wrote the run meanwhile."""
        try:
            row = await connection.fetchrow(self._sql(sql.OPERATION_ID), change.run_id, timeout=CANCEL_TIMEOUT)
        except asyncpg.InFailedSQLTransactionError:
            return False
        if connection.is_in_transaction():
            return False
        stored = row[0] if row else None
        ours = change.row.operation_id if change.row else None
        return True if stored == ours else False if stored == change.expected else None

    async def put_system_state(self, key: str, document: str) -> None:
        give_up, sent = monotonic() + self._settings.lock_timeout, False

        async def write(connection: Any) -> None:
            async def is_applied() -> bool:
                found = await connection.fetchval(self._sql(sql.GET_SYSTEM_STATE), key, timeout=CANCEL_TIMEOUT)
                return bool(found == document)

            # The document tells the time of the call, so that it is told from an older one.
            if not (sent and await is_applied()):
                command = self._execute(connection, self._sql(sql.PUT_SYSTEM_STATE), key, document, limit)
                await self._last(connection, command, is_applied)

        limit = milliseconds(self._settings.lock_timeout)
        while True:
            try:
                return await self._writing(write)
            except CommitUnknown as signal:
                sent, error = True, signal.error
            except Interrupted as signal:
                error = signal.error
            except asyncpg.LockNotAvailableError as reason:
                error = self._translated(reason)
            if monotonic() >= give_up or (isinstance(error, StorageTimeoutError) and not sent):
                break
            await asyncio.sleep(random.uniform(0.01, 0.1))
        if sent:
            error = OutcomeUnknownError(
                f"system state {key!r}: the connection was lost while it was being written, and it can't be told "
                "whether it was; read it before you repeat it"
            )
        raise error

    # --- reading -------------------------------------------------------------------------------------------------

    async def stored_runs(self, run_ids: Sequence[str]) -> dict[str, StoredRun]:
        return await self._read(lambda connection: self._changes.stored(connection, run_ids))

    async def load(self, run_id: str) -> Snapshot | None:
        rows = await self._rows(sql.LOAD, run_id)
        if not rows:
            return None
        revision, created_at, snapshot, history = rows[0]
        return Snapshot(revision, created_at, snapshot, history or "")

    async def list_runs(self, query: RunQuery) -> list[str]:
        if query.limit == 0:
            return []
        if not query.metadata_filter:
            return await self._documents(*_flat(sql.select_runs(query)))

        async def read(connection: Any) -> list[str]:
            await connection.execute(sql.CUSTOM_PLANS)
            try:
                if query.limit is not None and query.offset + query.limit <= sql.NEWEST:
                    statement, *values = _flat(sql.select_newest(query))
                    found = await connection.fetch(self._sql(statement), *values)
                    if len(found) == query.limit:
                        return [row[0] for row in found]
                statement, *values = _flat(sql.select_runs(query))
                return [row[0] for row in await connection.fetch(self._sql(statement), *values)]
            finally:
                await connection.execute("ROLLBACK")

        return await self._read(read)

    async def count_runs(self, query: RunQuery) -> int:
        rows = await self._rows(*_flat(sql.select_runs(query, count=True)))
        return int(rows[0][0])

    async def run_details(self, run_id: str) -> tuple[str, dict[str, str]] | None:
        rows = await self._rows(sql.RUN_DETAILS, run_id)
        if not rows:
            return None
        return rows[0][0], {key: document for _, key, document in rows if key is not None}

    async def step_cost(self, run_id: str, record_id: str) -> float | None:
        rows = await self._rows(sql.STEP_COST, run_id, record_id)
        return rows[0][0] if rows else None

    async def list_steps(self, run_id: str) -> list[str]:
        return await self._documents(sql.LIST_STEPS, run_id)

    async def trace(self, run_id: str) -> str | None:
        return await self._document(sql.TRACE, run_id)

    async def spans(self, run_id: str, status: str | None, name: str | None) -> list[str]:
        return await self._documents(sql.SPANS, run_id, status, name)

    async def span_statistics(
        self, pipeline_name: str | None, start: float | None, end: float | None
    ) -> list[SpanStatistic]:
        return [SpanStatistic(*row) for row in await self._rows(sql.SPAN_STATISTICS, pipeline_name, start, end)]

    async def run_statistics(self, recent_from: datetime) -> list[RunStatistic]:
        return [RunStatistic(*row) for row in await self._rows(sql.RUN_STATISTICS, recent_from)]

    async def evaluations(self, run_id: str | None, limit: int | None) -> list[str]:
        return await self._documents(sql.EVALUATIONS, run_id, limit)

    async def get_system_state(self, key: str) -> str | None:
        return await self._document(sql.GET_SYSTEM_STATE, key)


def _flat(statement: tuple[str, list[Any]]) -> tuple[Any, ...]:
    return (statement[0], *statement[1])


async def _nothing_applied() -> bool:
    return False


def _is_row_only(change: Change) -> bool:
    return not (
        change.wipe
        or change.history
        or change.history_length is not None
        or change.steps
        or change.spans
        or change.drop_trace_spans
        or change.trace is not None
        or change.details
        or change.evaluations
    )
