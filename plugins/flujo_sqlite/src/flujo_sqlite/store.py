"""How does SQLite keep what core hands it?"""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import stat
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import datetime
from errno import EACCES
from functools import lru_cache, partial
from pathlib import Path
from time import monotonic
from typing import Any, Final, TypeVar

from flujo_core.codec import decode_plain
from flujo_core.containment import contains
from flujo_core.errors import MigrationError, StorageTimeoutError, StorageUnavailableError, UnsupportedStorageError
from flujo_core.migrations import AppliedMigration, Migration
from flujo_core.store import (
    Change,
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
from flujo_core.timestamps import from_text, text_of

from . import original, schema
from . import queries as sql
from .backup import Keep, Stopped, back_up, stop_when
from .changes import apply, stored
from .connection import Connection, stop_all
from .errors import is_busy, is_interrupted, translated
from .settings import SQLiteSettings

Result = TypeVar("Result")
Raw = sqlite3.Connection
OLDEST: Final = (3, 37, 0)
"""The first SQLite with STRICT tables."""


class SQLiteStore(Store):
    """One connection writes, a few read. Every method does its work in one piece in the thread of a connection."""

    migrations = "flujo_sqlite.migrations"

    def __init__(self, path: Path, settings: SQLiteSettings) -> None:
        self._path = path
        self._settings = settings
        self._create = False
        self._abandoned = False
        self._writer: Connection | None = None
        self._writing = asyncio.Lock()
        self._migrating: dict[Connection, asyncio.Task[None] | None] = {}
        """Connections of migrations, and what closes them."""
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
        if create or _exists(self._path):
            await self._connect_writer()

    async def _connect_writer(self) -> None:
        writable = self._create or os.access(self._path, os.W_OK)
        self._writer = await self._connect("rw" if writable else "ro", self._set_up_writer)

    async def _connect(
        self, mode: str, set_up: Callable[[Raw], None], limit: float | None = None, *, stops: bool = False
    ) -> Connection:
        async def connect() -> Connection:
            return await Connection.open(
                self._path,
                mode=mode,
                limit=limit or self._settings.command_timeout,
                stops=stops,
                prepare=partial(_prepare_file, self._path, create=self._create),
                setup=set_up,
            )

        return await self._patiently(connect)

    def _set_up_writer(self, raw: Raw) -> None:
        raw.execute(f"PRAGMA synchronous = {self._settings.synchronous}")
        raw.execute("PRAGMA secure_delete = OFF")
        # Before anything in the file is changed; in one view, for another process may be making the tables.
        if not _in_one_view(partial(schema.is_of_others, path=self._path), raw):
            self._use_log(raw)

    def _use_log(self, raw: Raw) -> None:
        if self._create:
            # Kept in the file from now on: readers don't block the writer, nor it them.
            raw.execute("PRAGMA journal_mode = WAL").fetchone()

    def _set_up_reader(self, raw: Raw) -> None:
        raw.execute("PRAGMA query_only = ON")
        raw.create_function("flujo_contains", 2, _contains, deterministic=True)

    async def close(self) -> None:
        # Reads under way and those that wait end first, in their order; later ones are refused.
        for _ in range(self._settings.readers):
            await self._may_read.acquire()
        for _ in range(self._settings.readers):
            self._may_read.release()
        async with self._writing:
            # The writer goes last: it moves the rest of the log into the file.
            for connection in [*self._readers, *([self._writer] if self._writer else [])]:
                await connection.close()
            self._writer, self._readers, self._idle_readers = None, [], []
        for connection, closing in list(self._migrating.items()):
            if closing is not None:
                await asyncio.wait([closing])
            if closing is None or closing.cancelled():
                await connection.close()

    def abandon(self) -> None:
        self._abandoned = True
        # Waits a moment, so that the file is whole when a shutdown returns that found only stores like this one.
        stop_all(self._connections())

    def _connections(self) -> list[Connection]:
        return [*self._readers, *self._migrating, *([self._writer] if self._writer else [])]

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
                    raise translated(error, self._path, self._settings) from None
            await asyncio.sleep(random.uniform(0.0005, 0.003))

    async def _run(self, connection: Connection, work: Callable[[Raw], Result]) -> Result:
        def clean(raw: Raw) -> Result:
            # An interrupt may have hit the statement that was to end the transaction before.
            _leave_transaction(raw)
            return work(raw)

        return await self._patiently(lambda: connection.run(clean))

    async def _write(self, work: Callable[[Raw], Result]) -> Result:
        """In a transaction of its own: all of it or nothing."""

        def transaction(raw: Raw) -> Result:
            raw.execute("BEGIN IMMEDIATE")
            try:
                result = work(raw)
                raw.execute("COMMIT")
            except BaseException:
                _leave_transaction(raw)
                raise
            return result

        async with self._writing:
            if self._writer is None:
                raise self._gone()
            return await self._run(self._writer, transaction)

    async def _read(self, work: Callable[[Raw], Result]) -> Result:
        async with self._may_read:
            reader = self._idle_readers.pop() if self._idle_readers else await self._connect_reader()
            try:
                return await self._run(reader, work)
            finally:
                self._idle_readers.append(reader)

    async def _connect_reader(self) -> Connection:
        if self._writer is None:
            raise self._gone()
        reader = await self._connect("rw" if self._create else "ro", self._set_up_reader, stops=True)
        self._readers.append(reader)
        if self._abandoned:
            # Abandoned meanwhile: nobody else would.
            stop_all([reader])
        return reader

    def _gone(self) -> StorageUnavailableError:
        return StorageUnavailableError(f"{self._path} was closed while this call waited for it; call again")

    async def _documents(self, statement: str, *values: Any) -> list[str]:
        return await self._read(lambda raw: [row[0] for row in raw.execute(statement, values)])

    async def _document(self, statement: str, *values: Any) -> str | None:
        found = await self._documents(statement, *values)
        return found[0] if found else None

    # --- schema --------------------------------------------------------------------------------------------------

    @property
    def database(self) -> str:
        return str(self._path)

    async def applied_migrations(self) -> list[AppliedMigration]:
        if self._writer is None:
            return []
        found = await self._run(self._writer, partial(_in_one_view, schema.applied))
        if found:
            # It may have been a file of others until now, whoever made the tables.
            await self._run(self._writer, self._use_log)
        return found

    async def is_original(self) -> bool:
        if self._writer is None:
            return False
        return await self._run(self._writer, partial(_in_one_view, lambda raw: schema.is_original(raw, self._path)))

    async def migrate(self, step: Migration, expected: Sequence[AppliedMigration]) -> Migrated:
        return await self._migrate(
            lambda raw, stopped: schema.migrate(raw, self._path, step, expected, self._keep(stopped)), step
        )

    async def take_over(self, steps: Sequence[Migration]) -> Migrated:
        return await self._migrate(
            lambda raw, stopped: original.take_over(raw, self._path, steps, self._keep(stopped), stopped), steps[0]
        )

    def _keep(self, stopped: Stopped) -> Keep:
        return partial(back_up, self._path, patience=self._settings.migration_timeout, stopped=stopped)

    async def _migrate(self, work: Callable[[Raw, Stopped], Migrated], step: Migration) -> Migrated:
        """On a connection of its own, which may take longer. A caller who is cancelled stops it: it is one transaction,
        so either all of it has happened by then or nothing."""
        limit = self._settings.migration_timeout
        connection = await self._connect("rw", self._set_up_writer, limit, stops=True)
        self._migrating[connection] = None
        stop = threading.Event()

        def run(raw: Raw) -> Migrated:
            # Also when the loop ends before the work, so that nobody interrupts it.
            stop_when(stop.is_set, raw)
            return work(raw, stop.is_set)

        try:
            return await connection.run(run)
        except sqlite3.Error as error:
            if is_busy(error):
                return "busy"
            if is_interrupted(error):
                raise MigrationError(
                    f"{self._path}: migration {step} did not end within {limit:g} s (migration_timeout) and was undone"
                ) from None
            raise translated(error, self._path, self._settings) from None
        finally:
            stop.set()
            # To its end, also if the caller stops waiting; `close` does what was cancelled.
            closing = self._migrating[connection] = asyncio.get_running_loop().create_task(connection.close())
            await asyncio.shield(closing)
            del self._migrating[connection]

    def migration_script(self, step: Migration) -> list[str]:
        return schema.script(step)

    # --- writing -------------------------------------------------------------------------------------------------

    async def commit(self, changes: Sequence[Change]) -> list[Outcome]:
        try:
            return await self._write(lambda raw: [apply(raw, change) for change in changes])
        except StorageTimeoutError as error:
            # No fault of one of the changes: to try each alone would take as long again for each.
            raise Interrupted(error) from None

    async def put_system_state(self, key: str, document: str) -> None:
        await self._write(lambda raw: raw.execute(sql.PUT_SYSTEM_STATE, (key, document)))

    # --- reading -------------------------------------------------------------------------------------------------

    async def stored_runs(self, run_ids: Sequence[str]) -> dict[str, StoredRun]:
        def read(raw: Raw) -> dict[str, StoredRun]:
            found = {run_id: stored(raw, run_id) for run_id in run_ids}
            return {run_id: run for run_id, run in found.items() if run}

        return await self._read(partial(_in_one_view, read))

    async def load(self, run_id: str) -> Snapshot | None:
        rows = await self._read(lambda raw: raw.execute(sql.LOAD, (run_id, run_id)).fetchall())
        if not rows:
            return None
        revision, created_at, snapshot, history = rows[0]
        return Snapshot(revision, from_text(created_at), snapshot, history or "")

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
            row = raw.execute(sql.RUN_DETAILS, (run_id,)).fetchone()
            return (row[0], dict(raw.execute(sql.DETAILS, (run_id,)))) if row else None

        return await self._read(partial(_in_one_view, read))

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
        values = (start, end, pipeline_name, pipeline_name)
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


# To close any descriptor of a file gives up all locks that the process has on it: the last other process to close would
# remove the log under us. So a file is opened only to make it, and no connection to it opens meanwhile.
_making = threading.Lock()


def _prepare_file(path: Path, *, create: bool) -> None:
    """An empty file that only its owner may read; SQLite gives its -wal and -shm the same permissions."""
    try:
        with _making:
            if create and not _exists(path):
                _make_file(path)
        if not stat.S_ISREG(path.stat().st_mode):
            raise UnsupportedStorageError(f"{path} is not a file; name a file")
        if create and not os.access(path, os.R_OK | os.W_OK):
            raise PermissionError(EACCES, os.strerror(EACCES))
    except OSError as error:
        raise _unopened(path, error) from None


def _make_file(path: Path) -> None:
    # O_EXCL doesn't follow a link to a file that is not there yet.
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_CLOEXEC", 0), 0o600))


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise _unopened(path, error) from None
    return True


def _unopened(path: Path, error: OSError) -> StorageUnavailableError:
    reason = error.strerror or error
    return StorageUnavailableError(f"{path} can't be opened: {reason}; check the path and its permissions")


# --- transactions, in a connection's thread -------------------------------------------------------------------------


def _in_one_view(work: Callable[[Raw], Result], raw: Raw) -> Result:
    """All statements of ``work`` see one state of the file."""
    raw.execute("BEGIN")
    try:
        return work(raw)
    finally:
        _leave_transaction(raw)


def _leave_transaction(raw: Raw) -> None:
    if raw.in_transaction:
        raw.execute("ROLLBACK")


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
