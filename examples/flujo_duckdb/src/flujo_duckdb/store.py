"""How does DuckDB keep what core hands it?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from flujo_core.codec import decode_plain
from flujo_core.containment import contains, document_terms
from flujo_core.errors import StorageTimeoutError
from flujo_core.migrations import AppliedMigration, Migration
from flujo_core.store import (
    APPLIED,
    Change,
    Interrupted,
    Migrated,
    Outcome,
    RunQuery,
    RunStatistic,
    Snapshot,
    SpanRecord,
    SpanStatistic,
    StepRecord,
    Store,
    StoredRun,
)
from flujo_core.timestamps import from_text, text_of

from . import queries as sql
from . import schema
from .connection import Connection, Cursor
from .settings import DuckDBSettings


class DuckDBStore(Store):
    """Every method does its work in one piece, in a thread: a read on its view of the file, a write in its turn."""

    migrations = "flujo_duckdb.migrations"

    def __init__(self, path: Path, settings: DuckDBSettings) -> None:
        self._path = path
        self._settings = settings
        self._connection = Connection(path, settings)

    # --- opening and closing -----------------------------------------------------------------------------------

    async def open(self, *, create: bool) -> None:
        await self._connection.open(create=create)

    async def close(self) -> None:
        await self._connection.close()

    def abandon(self) -> None:
        self._connection.abandon()

    # --- schema --------------------------------------------------------------------------------------------------

    @property
    def database(self) -> str:
        return str(self._path)

    async def applied_migrations(self) -> list[AppliedMigration]:
        if not self._connection.is_open:
            return []
        return await self._connection.read(lambda cursor: schema.applied(cursor, self._path))

    async def migrate(self, step: Migration, expected: Sequence[AppliedMigration]) -> Migrated:
        limit = self._settings.migration_timeout
        try:
            return await self._connection.write(
                lambda cursor: schema.migrate(cursor, self._path, step, expected), limit
            )
        except StorageTimeoutError as error:
            raise Interrupted(error) from None

    def migration_script(self, step: Migration) -> list[str]:
        return schema.script(step)

    # --- writing -------------------------------------------------------------------------------------------------

    async def commit(self, changes: Sequence[Change]) -> list[Outcome]:
        try:
            return await self._connection.write(lambda cursor: [_apply(cursor, change) for change in changes])
        except StorageTimeoutError as error:
            # No fault of one of the changes: to try each alone would take as long again for each.
            raise Interrupted(error) from None

    async def put_system_state(self, key: str, document: str) -> None:
        def put(cursor: Cursor) -> None:
            cursor.execute(sql.REMOVE_SYSTEM_STATE, (key,))
            cursor.execute(sql.INSERT_SYSTEM_STATE, (key, document))

        await self._connection.write(put)

    # --- reading -------------------------------------------------------------------------------------------------

    async def _rows(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        return await self._connection.read(
            lambda cursor: cursor.execute(statement, values).fetchall(), in_one_view=False
        )

    async def _documents(self, statement: str, *values: Any) -> list[str]:
        return [row[0] for row in await self._rows(statement, *values)]

    async def _document(self, statement: str, *values: Any) -> str | None:
        found = await self._documents(statement, *values)
        return found[0] if found else None

    async def stored_runs(self, run_ids: Sequence[str]) -> dict[str, StoredRun]:
        def read(cursor: Cursor) -> dict[str, StoredRun]:
            found = {run_id: _stored(cursor, run_id) for run_id in run_ids}
            return {run_id: stored for run_id, stored in found.items() if stored}

        return await self._connection.read(read)

    async def load(self, run_id: str) -> Snapshot | None:
        def read(cursor: Cursor) -> Snapshot | None:
            row = cursor.execute(sql.LOAD, (run_id,)).fetchone()
            if row is None:
                return None
            entries = cursor.execute(sql.LOAD_HISTORY, (run_id,)).fetchall()
            return Snapshot(row[0], from_text(row[1]), row[2], ",".join(entry for (entry,) in entries))

        return await self._connection.read(read)

    async def list_runs(self, query: RunQuery) -> list[str]:
        if not query.metadata_filter:
            statement, values = sql.select_runs(query, None)
            return await self._documents(statement, *values)
        return await self._connection.read(
            lambda cursor: list(islice(islice(_matches(cursor, query), query.offset, None), query.limit))
        )

    async def count_runs(self, query: RunQuery) -> int:
        if not query.metadata_filter:
            statement, values = sql.count_runs(query)
            return int((await self._rows(statement, *values))[0][0])
        return await self._connection.read(lambda cursor: sum(1 for _ in _matches(cursor, query)))

    async def run_details(self, run_id: str) -> tuple[str, dict[str, str]] | None:
        def read(cursor: Cursor) -> tuple[str, dict[str, str]] | None:
            row = cursor.execute(sql.RUN_DETAILS, (run_id,)).fetchone()
            return (row[0], dict(cursor.execute(sql.DETAILS, (run_id,)).fetchall())) if row else None

        return await self._connection.read(read)

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
        rows = await self._rows(sql.SPAN_STATISTICS, pipeline_name, start, end)
        return [SpanStatistic(*row) for row in rows]

    async def run_statistics(self, recent_from: datetime) -> list[RunStatistic]:
        rows = await self._rows(sql.RUN_STATISTICS, text_of(recent_from))
        return [RunStatistic(*row) for row in rows]

    async def evaluations(self, run_id: str | None, limit: int | None) -> list[str]:
        return await self._documents(sql.EVALUATIONS, run_id, limit)

    async def get_system_state(self, key: str) -> str | None:
        return await self._document(sql.GET_SYSTEM_STATE, key)


# --- one change, inside the writer's transaction --------------------------------------------------------------------


def _apply(cursor: Cursor, change: Change) -> Outcome:
    found = cursor.execute(sql.OPERATION_ID, (change.run_id,)).fetchone()
    if (found[0] if found else None) != change.expected:
        return _stored(cursor, change.run_id)
    if change.wipe:
        for (table,) in cursor.execute(sql.TABLES_OF, (change.run_id,)).fetchall():
            cursor.execute(sql.WIPE.format(table=table), (change.run_id,))
    if change.row is not None:
        _put_row(cursor, change, fresh=found is None or change.wipe)
        _put_records(cursor, change)
    return APPLIED


def _put_row(cursor: Cursor, change: Change, *, fresh: bool) -> None:
    values = [_plain(value) for value in change.values]
    if fresh:
        cursor.execute(sql.INSERT_RUN, [change.run_id, *values])
    else:
        cursor.execute(sql.update_run(change.columns), [*values, change.run_id])
    if isinstance(change.metadata, str):
        if not fresh:
            cursor.execute(sql.DELETE_TERMS, (change.run_id,))
        terms = sorted(document_terms(decode_plain(change.metadata)))
        if terms:
            cursor.execute(sql.INSERT_TERMS, (change.run_id, terms))


def _put_records(cursor: Cursor, change: Change) -> None:
    run_id = change.run_id
    if change.history_length is not None:
        cursor.execute(sql.CUT_HISTORY, (run_id, change.history_length))
    if change.history:
        cursor.execute(sql.REMOVE_HISTORY, (run_id, [entry.position for entry in change.history]))
        _insert(cursor, sql.INSERT_HISTORY, run_id, change.history)
    if change.steps:
        _put_steps(cursor, run_id, change.steps)
    if change.drop_trace_spans:
        cursor.execute(sql.DROP_TRACE_SPANS, (run_id,))
    if change.spans:
        _put_spans(cursor, run_id, change.spans)
    if change.trace is not None:
        cursor.execute(sql.REMOVE_TRACE, (run_id,))
        cursor.execute(sql.INSERT_TRACE, (run_id, change.trace))
    if change.details:
        cursor.execute(sql.REMOVE_DETAILS, (run_id, list(change.details)))
        _insert(cursor, sql.INSERT_DETAILS, run_id, change.details.items())
    if change.evaluations:
        _insert(cursor, sql.INSERT_EVALUATIONS, run_id, change.evaluations)


def _put_steps(cursor: Cursor, run_id: str, steps: Sequence[StepRecord]) -> None:
    sequences: dict[str | None, int] = {}
    record_ids = [step.record_id for step in steps if step.record_id is not None]
    if record_ids:
        sequences.update(cursor.execute(sql.REMOVE_STEPS, (run_id, record_ids)).fetchall())
    kept = [step._replace(sequence=sequences.get(step.record_id, step.sequence)) for step in steps]
    _insert(cursor, sql.INSERT_STEPS, run_id, kept)


def _put_spans(cursor: Cursor, run_id: str, spans: Sequence[SpanRecord]) -> None:
    span_ids = list({span.span_id: None for span in spans})
    sequences = dict(cursor.execute(sql.REMOVE_SPANS, (run_id, span_ids)).fetchall())
    last: dict[str, SpanRecord] = {}
    for span in spans:
        # A change may name a span twice.
        last[span.span_id] = span._replace(sequence=sequences.setdefault(span.span_id, span.sequence))
    _insert(cursor, sql.INSERT_SPANS, run_id, last.values())


def _insert(cursor: Cursor, statement: str, run_id: str, records: Iterable[Iterable[Any]]) -> None:
    columns = [[_plain(value) for value in column] for column in zip(*records, strict=True)]
    cursor.execute(statement, [run_id, *columns])


def _plain(value: Any) -> Any:
    return text_of(value) if isinstance(value, datetime) else value


def _stored(cursor: Cursor, run_id: str) -> StoredRun | None:
    row = cursor.execute(sql.STORED_RUN, (run_id,)).fetchone()
    if row is None:
        return None
    digests = cursor.execute(sql.STORED_HISTORY, (run_id,)).fetchall()
    return StoredRun(row[0], row[1], b"".join(digest for (digest,) in digests))


# --- metadata filters -----------------------------------------------------------------------------------------------


def _matches(cursor: Cursor, query: RunQuery) -> Iterator[str]:
    """The ``run`` documents, in order: of the runs that hold the filter's rarest term, those that contain all of it."""
    terms = sql.terms_of(query)
    if len(terms) > 1:
        counts = dict(cursor.execute(sql.COUNT_TERMS, (terms,)).fetchall())
        terms.sort(key=lambda term: counts.get(term, 0))
    found = cursor.execute(*sql.select_runs(query, terms[0]))
    while rows := found.fetchmany(500):
        for run, metadata in rows:
            if contains(decode_plain(metadata), query.metadata_filter):
                yield run
