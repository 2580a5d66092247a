"""How does PostgreSQL keep what core hands it?"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from hashlib import sha256
from time import monotonic
from typing import Any, TypeVar

from flujo_core.errors import FlujoStateError, StorageTimeoutError
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
from .connection import Connections, Target
from .errors import LOST, NOT_YET, ROLLED_BACK, translated
from .settings import PostgresSettings

Result = TypeVar("Result")


class PostgresStore(Store):
    """A pool of connections. Lone writes of a snapshot are one statement; all others are one transaction."""

    def __init__(self, target: Target, settings: PostgresSettings) -> None:
        self._settings = settings
        self._schema = settings.schema_name
        self._connections = Connections(target, settings)

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
            except Exception as error:
                passing = isinstance(error, (*LOST, *NOT_YET, *ROLLED_BACK)) and not isinstance(error, TimeoutError)
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
        if len(changes) == 1 and _is_row_only(changes[0]):
            return [await self._commit_row(changes[0])]
        return await self._commit_all(changes)

    async def _commit_row(self, change: Change) -> Outcome:
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
        text = self._sql(statement)
        status = await self._writing(lambda connection: _send(connection.execute(text, *values)))
        if status.endswith(" 1"):
            return APPLIED
        return (await self.stored_runs([change.run_id])).get(change.run_id)

    async def _commit_all(self, changes: Sequence[Change]) -> list[Outcome]:
        async def write(connection: Any) -> list[Outcome]:
            transaction = connection.transaction()
            try:
                await transaction.start()
                outcomes = await self._apply(connection, changes)
            except BaseException:
                await _roll_back(connection, transaction)
                raise
            await _send(transaction.commit())
            return outcomes

        return await self._writing(write)

    async def _writing(self, work: Callable[[Any], Awaitable[Result]]) -> Result:
        """Tells core apart what certainly had no effect, what may have had one, and what fails for good."""
        try:
            async with self._connections.acquire() as connection:
                return await work(connection)
        except _NoAnswer as error:
            raise CommitUnknown(self._translated(error.reason)) from None
        except StorageTimeoutError as error:
            raise Interrupted(error) from None
        except FlujoStateError:
            raise
        except (*ROLLED_BACK, *NOT_YET, *LOST) as error:
            raise Interrupted(self._translated(error)) from None
        except Exception as error:
            raise self._translated(error) from None

    async def _apply(self, connection: Any, changes: Sequence[Change]) -> list[Outcome]:
        outcomes = await self._expected(connection, changes)
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

    async def _expected(self, connection: Any, changes: Sequence[Change]) -> dict[str, Outcome]:
        """Locks the rows that are expected, and tells those apart that are as expected.

        A batch leaves out rows that others have locked, so that it never waits for one of them; a lone change waits.
        New runs are tried by the insert.
        """
        known = {change.run_id: change.expected for change in changes if change.expected is not None}
        outcomes: dict[str, Outcome] = {change.run_id: APPLIED for change in changes if change.expected is None}
        if not known:
            return outcomes
        if len(changes) == 1:
            limit = int(self._settings.lock_timeout * 1000)
            await connection.execute(f"SET LOCAL lock_timeout = {limit}")
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
        done = await connection.fetch(self._sql(sql.INSERT_RUNS), *_columns(rows))
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
        # Repeating it changes nothing, so it may be treated as a read.
        await self._rows(sql.PUT_SYSTEM_STATE, key, document)

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


class _NoAnswer(Exception):  # noqa: N818 - caught where it is raised
    """The connection broke while a write was being committed: the server may have committed all the same."""

    def __init__(self, reason: BaseException) -> None:
        super().__init__()
        self.reason = reason


async def _send(command: Awaitable[Result]) -> Result:
    """A command after which the write is done."""
    try:
        return await command
    except (*ROLLED_BACK, *NOT_YET):
        raise
    except LOST as error:
        raise _NoAnswer(error) from None


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
    if not connection.is_closed() and connection.is_in_transaction():
        try:
            await transaction.rollback()
        except Exception:
            # The connection is useless then; the server undoes the transaction when it goes.
            connection.terminate()
