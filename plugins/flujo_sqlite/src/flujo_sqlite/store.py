"""How does SQLite keep what core hands it?"""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from time import monotonic
from typing import Any, Final, TypeVar

from flujo_core.codec import decode_plain
from flujo_core.containment import contains, document_terms
from flujo_core.errors import StorageUnavailableError, UnsupportedStorageError
from flujo_core.migrations import MigrationReport, SchemaStatus
from flujo_core.store import (
    APPLIED,
    Change,
    Keep,
    Outcome,
    RunQuery,
    RunRow,
    RunStatistic,
    Snapshot,
    SpanStatistic,
    Store,
    StoredRun,
)
from flujo_core.timestamps import from_text, text_of

from . import queries as sql
from . import schema
from .connection import Connection
from .errors import is_busy, translated
from .settings import SQLiteSettings

Result = TypeVar("Result")
Raw = sqlite3.Connection
OLDEST: Final = (3, 37, 0)
"""The first SQLite with STRICT tables."""


class SQLiteStore(Store):
    """One connection writes, a few read. Every method does its work in one piece in the thread of a connection."""

    def __init__(self, path: Path, settings: SQLiteSettings) -> None:
        self._path = path
        self._settings = settings
        self._create = False
        self._writer: Connection | None = None
        self._writing = asyncio.Lock()
        self._idle_readers: list[Connection] = []
        self._readers: list[Connection] = []
        self._may_read = asyncio.Semaphore(settings.readers)

    # --- opening and closing -----------------------------------------------------------------------------------

    async def open(self, *, create: bool) -> None:
        if sqlite3.sqlite_version_info < OLDEST:
            raise UnsupportedStorageError(
                f"this Python has SQLite {sqlite3.sqlite_version}; Flujo needs {'.'.join(map(str, OLDEST))} or newer"
            )
        self._create = create
        if create:
            await asyncio.to_thread(_make_file, self._path)
        elif not self._path.exists():
            return
        await self._connect_writer()

    async def _connect_writer(self) -> Connection:
        writable = self._create or os.access(self._path, os.W_OK)
        self._writer = await self._connect("rw" if writable else "ro", self._set_up_writer)
        return self._writer

    async def _connect(self, mode: str, set_up: Callable[[Raw], None]) -> Connection:
        async def connect() -> Connection:
            return await Connection.open(self._path, mode=mode, timeout=self._settings.command_timeout, setup=set_up)

        return await self._patiently(connect)

    def _set_up_writer(self, raw: Raw) -> None:
        raw.execute(f"PRAGMA synchronous = {self._settings.synchronous}")
        raw.execute("PRAGMA secure_delete = OFF")
        if self._create:
            # Kept in the file from now on: readers don't block the writer, nor it them.
            raw.execute("PRAGMA journal_mode = WAL").fetchone()
        raw.execute("SELECT count(*) FROM sqlite_master").fetchone()

    def _set_up_reader(self, raw: Raw) -> None:
        raw.execute("PRAGMA query_only = ON")
        raw.create_function("flujo_contains", 2, _contains, deterministic=True)

    async def close(self) -> None:
        async with self._writing:
            connections = [*self._readers, *([self._writer] if self._writer else [])]
            # The writer goes last: it moves the rest of the log into the file.
            for connection in connections:
                await connection.close()
            self._writer, self._readers, self._idle_readers = None, [], []

    def abandon(self) -> None:
        for connection in [*self._readers, *([self._writer] if self._writer else [])]:
            connection.stop()

    # --- doing a piece of work -----------------------------------------------------------------------------------

    async def _patiently(self, work: Callable[[], Awaitable[Result]]) -> Result:
        """Tries again while another process holds a lock, after 0.5 to 3 ms, up to lock_timeout.

        SQLite's own handler sleeps in steps that grow: with eight processes that halves the commits, and some starve.
        """
        give_up = monotonic() + self._settings.lock_timeout
        while True:
            try:
                return await work()
            except sqlite3.Error as error:
                if not is_busy(error) or monotonic() >= give_up:
                    raise translated(error, self._path) from None
            await asyncio.sleep(random.uniform(0.0005, 0.003))

    async def _write(self, work: Callable[[Raw], Result]) -> Result:
        """In a transaction of its own: all of it or nothing."""

        def transaction(raw: Raw) -> Result:
            raw.execute("BEGIN IMMEDIATE")
            try:
                result = work(raw)
                raw.execute("COMMIT")
            except BaseException:
                if raw.in_transaction:
                    raw.execute("ROLLBACK")
                raise
            return result

        async with self._writing:
            writer = self._writer
            if writer is None:
                raise StorageUnavailableError(f"{self._path} does not exist; run `flujo migrate` or set auto_migrate")
            return await self._patiently(lambda: writer.run(transaction))

    async def _read(self, work: Callable[[Raw], Result]) -> Result:
        async with self._may_read:
            if self._idle_readers:
                reader = self._idle_readers.pop()
            else:
                reader = await self._connect("ro" if not self._create else "rw", self._set_up_reader)
                self._readers.append(reader)
            try:
                return await self._patiently(lambda: reader.run(work))
            finally:
                self._idle_readers.append(reader)

    async def _documents(self, statement: str, *values: Any) -> list[str]:
        return await self._read(lambda raw: [row[0] for row in raw.execute(statement, values)])

    async def _document(self, statement: str, *values: Any) -> str | None:
        found = await self._documents(statement, *values)
        return found[0] if found else None

    # --- schema --------------------------------------------------------------------------------------------------

    async def schema_status(self) -> SchemaStatus:
        if self._writer is None:
            return schema.missing(self._path)
        writer = self._writer
        return await self._patiently(lambda: writer.run(lambda raw: schema.status(raw, self._path)))

    async def migrate(self, target_version: int | None, dry_run: bool) -> MigrationReport:
        if dry_run:
            return schema.plan_only(await self.schema_status(), target_version)
        return await self._write(lambda raw: schema.migrate(raw, self._path, target_version))

    # --- writing -------------------------------------------------------------------------------------------------

    async def commit(self, changes: Sequence[Change]) -> list[Outcome]:
        return await self._write(lambda raw: [_apply(raw, change) for change in changes])

    async def put_system_state(self, key: str, document: str) -> None:
        await self._write(lambda raw: raw.execute(sql.PUT_SYSTEM_STATE, (key, document)))

    # --- reading -------------------------------------------------------------------------------------------------

    async def stored_runs(self, run_ids: Sequence[str]) -> dict[str, StoredRun]:
        def read(raw: Raw) -> dict[str, StoredRun]:
            raw.execute("BEGIN")
            try:
                found = {run_id: _stored(raw, run_id) for run_id in run_ids}
            finally:
                raw.execute("COMMIT")
            return {run_id: stored for run_id, stored in found.items() if stored}

        return await self._read(read)

    async def load(self, run_id: str) -> Snapshot | None:
        rows = await self._read(lambda raw: raw.execute(sql.LOAD, (run_id,)).fetchall())
        if not rows or rows[0][0] != -1:
            return None
        _, revision, created_at, snapshot = rows[0]
        return Snapshot(revision, from_text(created_at), snapshot, ",".join(row[3] for row in rows[1:]))

    async def list_runs(self, query: RunQuery) -> list[str]:
        def read(raw: Raw) -> list[str]:
            terms = _rarest_first(raw, sql.terms_of(query))
            return [row[0] for row in raw.execute(*sql.select_runs(query, terms))]

        return await self._read(read)

    async def count_runs(self, query: RunQuery) -> int:
        def read(raw: Raw) -> int:
            terms = _rarest_first(raw, sql.terms_of(query))
            return int(raw.execute(*sql.select_runs(query, terms, count=True)).fetchone()[0])

        return await self._read(read)

    async def run_details(self, run_id: str) -> tuple[str, dict[str, str]] | None:
        def read(raw: Raw) -> tuple[str, dict[str, str]] | None:
            raw.execute("BEGIN")
            try:
                row = raw.execute(sql.RUN_DETAILS, (run_id,)).fetchone()
                return (row[0], dict(raw.execute(sql.DETAILS, (run_id,)))) if row else None
            finally:
                raw.execute("COMMIT")

        return await self._read(read)

    async def step_cost(self, run_id: str, record_id: str) -> float | None:
        rows = await self._read(lambda raw: raw.execute(sql.STEP_COST, (run_id, record_id)).fetchall())
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
        values = (pipeline_name, start, end)
        rows = await self._read(lambda raw: raw.execute(sql.SPAN_STATISTICS, values).fetchall())
        return [SpanStatistic(*row) for row in rows]

    async def run_statistics(self, recent_from: datetime) -> list[RunStatistic]:
        values = (text_of(recent_from),)
        rows = await self._read(lambda raw: raw.execute(sql.RUN_STATISTICS, values).fetchall())
        return [RunStatistic(row[0], bool(row[1]), *row[2:]) for row in rows]

    async def evaluations(self, run_id: str | None, limit: int | None) -> list[str]:
        most = -1 if limit is None else limit
        if run_id is None:
            return await self._documents(sql.EVALUATIONS.format(where=""), most)
        return await self._documents(sql.EVALUATIONS.format(where="WHERE run_id = ?"), run_id, most)

    async def get_system_state(self, key: str) -> str | None:
        return await self._document(sql.GET_SYSTEM_STATE, key)


# --- the file -------------------------------------------------------------------------------------------------------


def _make_file(path: Path) -> None:
    """An empty file that only its owner may read; SQLite gives its -wal and -shm the same permissions."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | getattr(os, "O_CLOEXEC", 0), 0o600))
    except OSError as error:
        reason = error.strerror or error
        raise StorageUnavailableError(f"{path} can't be opened for writing: {reason}; check the path") from None


# --- one change, in the writer's thread ---------------------------------------------------------------------------


def _values(row: RunRow) -> list[Any]:
    return [text_of(value) if isinstance(value, datetime) else value for value in row]


def _apply(raw: Raw, change: Change) -> Outcome:
    row, run_id = change.row, change.run_id
    if change.wipe:
        found = raw.execute(sql.OPERATION_ID, (run_id,)).fetchone()
        if (found[0] if found else None) != change.expected:
            return _stored(raw, run_id)
        _wipe(raw, run_id)
    if row is not None:
        applied = _insert(raw, change) if change.wipe or change.expected is None else _update(raw, change)
        if not applied:
            return _stored(raw, run_id)
        _put_records(raw, change)
    return APPLIED


def _insert(raw: Raw, change: Change) -> bool:
    assert change.row is not None
    assert isinstance(change.metadata, str)
    snapshot = None if isinstance(change.snapshot, Keep) else change.snapshot
    if raw.execute(sql.INSERT_RUN, (*_values(change.row), change.metadata, snapshot)).rowcount != 1:
        return False
    _put_terms(raw, change.row, _terms(change.metadata))
    return True


def _update(raw: Raw, change: Change) -> bool:
    row, metadata, snapshot = change.row, change.metadata, change.snapshot
    assert row is not None
    old: tuple[str, str] = ("{}", "")
    values = _values(row)[1:]
    if isinstance(metadata, str):
        old = raw.execute(sql.OLD_TERMS, (change.run_id,)).fetchone() or old
        values.append(metadata)
    if not isinstance(snapshot, Keep):
        values.append(snapshot)
    statement = sql.UPDATE_RUN[isinstance(metadata, str), not isinstance(snapshot, Keep)]
    if raw.execute(statement, (*values, change.run_id, change.expected)).rowcount != 1:
        return False
    if isinstance(metadata, str):
        # Only the terms that changed; they stand under created_at, which changes when a placeholder is completed.
        before, created_at = _terms(old[0]), old[1]
        after = _terms(metadata)
        kept = before & after if created_at == text_of(row.created_at) else set()
        raw.executemany(sql.DELETE_TERM, [(term, created_at, row.run_id) for term in before - kept])
        _put_terms(raw, row, after - kept)
    return True


@lru_cache(maxsize=512)
def _terms(metadata: str) -> frozenset[int]:
    return frozenset(document_terms(decode_plain(metadata)))


def _put_terms(raw: Raw, row: RunRow, terms: set[int] | frozenset[int]) -> None:
    if terms:
        created_at = text_of(row.created_at)
        raw.executemany(sql.INSERT_TERM, [(term, created_at, row.run_id) for term in sorted(terms)])


def _wipe(raw: Raw, run_id: str) -> None:
    old = raw.execute(sql.OLD_TERMS, (run_id,)).fetchone()
    if old is not None:
        raw.executemany(sql.DELETE_TERM, [(term, old[1], run_id) for term in _terms(old[0])])
    for statement in sql.WIPE:
        raw.execute(statement, (run_id,))


def _put_records(raw: Raw, change: Change) -> None:
    run_id = change.run_id
    if change.history_length is not None:
        raw.execute(sql.CUT_HISTORY, (run_id, change.history_length))
    if change.history:
        raw.executemany(sql.PUT_HISTORY, [(run_id, *entry) for entry in change.history])
    for step in change.steps:
        raw.execute(sql.PUT_STEP, (run_id, *step[:6], text_of(step.created_at), step.document))
    if change.drop_trace_spans:
        raw.execute(sql.DROP_TRACE_SPANS, (run_id,))
    for span in change.spans:
        raw.execute(sql.PUT_SPAN, (run_id, *span))
    if change.trace is not None:
        raw.execute(sql.PUT_TRACE, (run_id, change.trace))
    for key, document in change.details.items():
        raw.execute(sql.PUT_DETAIL, (run_id, key, document))
    for evaluation in change.evaluations:
        raw.execute(
            sql.INSERT_EVALUATION, (run_id, *evaluation[:3], text_of(evaluation.created_at), evaluation.document)
        )


def _stored(raw: Raw, run_id: str) -> StoredRun | None:
    row = raw.execute(sql.STORED_RUN, (run_id,)).fetchone()
    if row is None:
        return None
    return StoredRun(row[0], row[1], b"".join(digest for (digest,) in raw.execute(sql.STORED_HISTORY, (run_id,))))


# --- metadata filters, in a reader's thread -------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _filter(text: str) -> Any:
    return decode_plain(text)


def _contains(metadata: str, filter_: str) -> bool:
    return contains(decode_plain(metadata), _filter(filter_))


def _rarest_first(raw: Raw, terms: list[int]) -> list[int]:
    """Counts up to a cap that grows until some term stays below it: the cost follows the rarest, not the commonest."""
    if len(terms) < 2:
        return terms
    cap = 64
    while True:
        counts = {term: raw.execute(sql.COUNT_TERM, (term, cap)).fetchone()[0] for term in terms}
        if min(counts.values()) < cap:
            return sorted(terms, key=lambda term: counts[term])
        cap *= 16
