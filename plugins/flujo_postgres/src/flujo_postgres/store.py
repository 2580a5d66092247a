"""How does PostgreSQL keep what core hands it?"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from hashlib import sha256
from time import monotonic
from typing import Any, Final, TypeVar

import asyncpg

from flujo_core.errors import FlujoStateError, OutcomeUnknownError, StorageTimeoutError
from flujo_core.migrations import MigrationReport, SchemaStatus
from flujo_core.store import (
    APPLIED,
    BUSY,
    Change,
    CommitUnknown,
    Interrupted,
    Keep,
    Outcome,
    RunQuery,
    RunStatistic,
    Snapshot,
    SpanStatistic,
    Store,
    StoredRun,
)

from . import queries as sql
from . import schema
from .connection import CANCEL_TIMEOUT, Connections, Target
from .errors import NOT_YET, ROLLED_BACK, NoAnswer, is_lost, translated
from .settings import PostgresSettings

Result = TypeVar("Result")
PATIENCE: Final = 0.05
"""Seconds that a change waits for a locked run while others may be waiting for it."""


class PostgresStore(Store):
    """A pool of connections. Lone writes of a snapshot are one statement; all others are one transaction."""

    def __init__(self, target: Target, settings: PostgresSettings) -> None:
        self._settings = settings
        self._schema = settings.schema_name
        self._connections = Connections(target, settings)
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

    async def schema_status(self) -> SchemaStatus:
        shown = self._connections.shown
        return await self._read(lambda connection: schema.status(connection, shown, self._schema))

    async def migrate(self, target_version: int | None, dry_run: bool) -> MigrationReport:
        if dry_run:
            return schema.plan_only(await self.schema_status(), target_version)
        shown = self._connections.shown
        # Repeatable: the versions are read anew under the lock.
        return await self._read(lambda connection: schema.migrate(connection, shown, self._schema, target_version))

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
        values: list[Any] = [*change.row] if change.row else []
        if change.expected is None:
            statement = sql.INSERT_RUN
            values += [change.metadata, _given(change.snapshot)]
        else:
            with_metadata, with_snapshot = isinstance(change.metadata, str), not isinstance(change.snapshot, Keep)
            statement = sql.UPDATE_RUN[with_metadata, with_snapshot]
            values += [change.metadata] if with_metadata else []
            values += [change.snapshot] if with_snapshot else []
            values.append(change.expected)
        values.append(_milliseconds(wait))
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
        async def write(connection: Any) -> list[Outcome]:
            transaction = connection.transaction()
            try:
                await transaction.start()
                outcomes = await self._apply(connection, changes, wait)
            except BaseException:
                await _roll_back(connection, transaction)
                raise
            applied = [change for change, outcome in zip(changes, outcomes, strict=True) if outcome == APPLIED]
            await self._last(
                connection,
                transaction.commit(),
                lambda: self._is_applied(connection, applied[0]) if applied else _nothing_applied(),
            )
            return outcomes

        return await self._writing(write)

    async def _writing(self, work: Callable[[Any], Awaitable[Result]]) -> Result:
        """Tells core apart what certainly had no effect, what may have had one, and what fails for good."""
        try:
            async with self._connections.acquire() as connection:
                return await work(connection)
        except NoAnswer as error:
            raise CommitUnknown(self._translated(error.reason)) from None
        except StorageTimeoutError as error:
            raise Interrupted(error) from None
        except (FlujoStateError, Interrupted, asyncpg.LockNotAvailableError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever the driver raises becomes an error of ours
            if is_lost(error) or isinstance(error, (TimeoutError, *ROLLED_BACK, *NOT_YET)):
                raise Interrupted(self._translated(error)) from None
            raise self._translated(error) from None

    async def _execute(self, connection: Any, statement: str, *values: Any) -> str:
        """A statement that commits by itself. At command_timeout the server is asked to stop it, and its answer is
        waited for, which tells whether it did: asyncpg's own timeout doesn't listen any more."""
        loop, limit = asyncio.get_running_loop(), self._settings.command_timeout
        stopping: list[asyncio.Task[None]] = []

        def stop() -> None:
            stopping.append(loop.create_task(connection._cancel(loop.create_future())))

        timer = loop.call_later(limit, stop)
        try:
            return str(await connection.execute(statement, *values, timeout=limit + CANCEL_TIMEOUT))
        except asyncpg.QueryCanceledError:
            if not stopping:
                raise
            raise Interrupted(self._translated(TimeoutError())) from None
        finally:
            timer.cancel()
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

    async def _apply(self, connection: Any, changes: Sequence[Change], wait: float) -> list[Outcome]:
        outcomes = await self._expected(connection, changes, wait)
        applied = [change for change in changes if outcomes.get(change.run_id) == APPLIED]
        wiped = [change.run_id for change in applied if change.wipe]
        if wiped:
            for statement in sql.WIPE:
                await connection.execute(self._sql(statement), wiped)
        inserted = await self._insert(connection, [c for c in applied if c.row and (c.wipe or c.expected is None)])
        refused = [c.run_id for c in applied if c.row and (c.wipe or c.expected is None) and c.run_id not in inserted]
        await self._update(connection, [c for c in applied if c.row and not c.wipe and c.expected is not None])
        await self._put_records(connection, [c for c in applied if c.row and c.run_id not in refused])
        if refused:
            stored = await self._stored(connection, refused)
            outcomes.update({run_id: stored.get(run_id) for run_id in refused})
        return [outcomes[change.run_id] for change in changes]

    async def _expected(self, connection: Any, changes: Sequence[Change], wait: float) -> dict[str, Outcome]:
        """Locks the rows that are expected, and tells those apart that are as expected.

        A batch leaves out rows that others have locked, so that it never waits for one of them; a lone change waits.
        New runs are tried by the insert.
        """
        known = {change.run_id: change.expected for change in changes if change.expected is not None}
        outcomes: dict[str, Outcome] = {change.run_id: APPLIED for change in changes if change.expected is None}
        if not known:
            return outcomes
        if len(changes) == 1:
            await connection.execute(f"SET LOCAL lock_timeout = {_milliseconds(wait)}")
            locked = await connection.fetch(self._sql(sql.LOCK_RUNS), list(known))
        else:
            locked = await connection.fetch(self._sql(sql.LOCK_FREE_RUNS), list(known))
        found = dict(locked)
        outcomes.update({run_id: APPLIED for run_id, expected in known.items() if found.get(run_id) == expected})
        others = [run_id for run_id in known if run_id not in outcomes]
        if others:
            stored = await self._stored(connection, others)
            for run_id in others:
                held = run_id not in found and run_id in stored
                outcomes[run_id] = BUSY if held else stored.get(run_id)
        return outcomes

    async def _insert(self, connection: Any, changes: list[Change]) -> set[str]:
        if not changes:
            return set()
        rows = [(*change.row, change.metadata, _given(change.snapshot)) for change in changes if change.row]
        limit = _milliseconds(self._settings.lock_timeout)
        done = await connection.fetch(self._sql(sql.INSERT_RUNS), *_columns(rows), limit)
        return {row[0] for row in done}

    async def _update(self, connection: Any, changes: list[Change]) -> None:
        for (with_metadata, with_snapshot), statement in sql.UPDATE_RUNS.items():
            rows = [
                (
                    *change.row,
                    *([change.metadata] if with_metadata else []),
                    *([change.snapshot] if with_snapshot else []),
                )
                for change in changes
                if change.row
                and isinstance(change.metadata, str) == with_metadata
                and isinstance(change.snapshot, Keep) != with_snapshot
            ]
            if rows:
                await connection.execute(self._sql(statement), *_columns(rows))

    async def _put_records(self, connection: Any, changes: list[Change]) -> None:
        async def put(statement: str, rows: list[tuple[Any, ...]]) -> None:
            if rows:
                await connection.execute(self._sql(statement), *_columns(rows))

        cuts = [(c.run_id, c.history_length) for c in changes if c.history_length is not None]
        await put(sql.CUT_HISTORY, cuts)
        await put(sql.PUT_HISTORY, [(c.run_id, *entry) for c in changes for entry in c.history])
        await put(sql.PUT_STEPS, [(c.run_id, *step) for c in changes for step in c.steps])
        dropped = [c.run_id for c in changes if c.drop_trace_spans]
        if dropped:
            await connection.execute(self._sql(sql.DROP_TRACE_SPANS), dropped)
        await put(sql.PUT_SPANS, [(c.run_id, *span) for c in changes for span in c.spans])
        await put(sql.PUT_TRACES, [(c.run_id, c.trace) for c in changes if c.trace is not None])
        await put(
            sql.PUT_DETAILS,
            [(c.run_id, _hash(key), key, document) for c in changes for key, document in c.details.items()],
        )
        await put(sql.INSERT_EVALUATIONS, [(c.run_id, *evaluation) for c in changes for evaluation in c.evaluations])

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

        limit = _milliseconds(self._settings.lock_timeout)
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
        return await self._read(lambda connection: self._stored(connection, run_ids))

    async def _stored(self, connection: Any, run_ids: Sequence[str]) -> dict[str, StoredRun]:
        rows = await connection.fetch(self._sql(sql.STORED_RUNS), list(run_ids))
        return {run_id: StoredRun(token, run, digests or b"") for run_id, token, run, digests in rows}

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


def _milliseconds(seconds: float) -> str:
    # 0 would be no limit, and the server's own limit is that of 32 bits.
    return str(min(max(int(seconds * 1000), 1), 2**31 - 1))


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


def _given(snapshot: str | Keep | None) -> str | None:
    return None if isinstance(snapshot, Keep) else snapshot


def _columns(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]


def _hash(key: str) -> bytes:
    return sha256(key.encode()).digest()[:16]


async def _roll_back(connection: Any, transaction: Any) -> None:
    try:
        if connection.is_in_transaction():
            await transaction.rollback()
    except Exception:  # noqa: BLE001 - the connection is useless then; the server undoes the transaction when it goes
        with contextlib.suppress(asyncpg.InterfaceError):
            connection.terminate()
