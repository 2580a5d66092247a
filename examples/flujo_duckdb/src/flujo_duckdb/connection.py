"""How does a coroutine use DuckDB? One instance of the file for the process, and for each piece of work a cursor."""

from __future__ import annotations

import asyncio
import atexit
import ctypes
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Final, TypeVar

import duckdb

from flujo_core.errors import StorageTimeoutError, StorageUnavailableError

from .errors import translated, unopened
from .settings import DuckDBSettings

Result = TypeVar("Result")

CONFIG: Final[dict[str, str | bool | int | float | list[str]]] = {
    # What the file of another program seems to need is not fetched from the network.
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "threads": 1,
}
_AGAIN: Final = 0.01
"""Seconds between two interrupts: one that falls between two statements does nothing."""
_GRACE: Final = 0.5
"""Seconds that what nobody waits for may go on when it has to end; then as long for the interrupt."""


class Database:
    """The file, which this process opens once for all that use it."""

    def __init__(self, path: Path) -> None:
        try:
            self.raw = duckdb.connect(path, config=CONFIG)
        except duckdb.Error as error:
            raise unopened(error, path) from None
        self.users = 0
        self.writing = threading.Lock()
        """Held by the transaction that writes: of two at once that change one row, the later one would fail."""
        self.cursors: set[duckdb.DuckDBPyConnection] = set()
        """Those in use, so that none is freed in a fork."""
        self.parsed: dict[str, duckdb.Statement] = {}


class Cursor:
    """A cursor of the file that parses each text once: that is up to a third of the time of a small statement."""

    def __init__(self, raw: duckdb.DuckDBPyConnection, database: Database) -> None:
        self._raw = raw
        self._parsed = database.parsed

    def execute(self, text: str, values: Sequence[object] = ()) -> duckdb.DuckDBPyConnection:
        """Runs one statement; its rows are to be fetched from what this returns."""
        statement = self._parsed.get(text)
        if statement is None:
            [statement] = self._raw.extract_statements(text)
            self._parsed[text] = statement
        return self._raw.execute(statement, values)


class _Use:
    """One piece of work: what another thread may know of it and do to it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._raw: duckdb.DuckDBPyConnection | None = None
        self._began: float | None = None

    @contextmanager
    def cursor(self, database: Database) -> Iterator[Cursor]:
        """A cursor, which takes an open transaction along when it is closed."""
        raw = database.raw.cursor()
        database.cursors.add(raw)
        self._began, self._raw = monotonic(), raw
        try:
            yield Cursor(raw, database)
        finally:
            self.protect()
            raw.close()
            database.cursors.discard(raw)

    def protect(self) -> None:
        """From now on it isn't interrupted."""
        with self._lock:
            self._raw = None

    def interrupt(self) -> None:
        with self._lock:
            if self._raw is not None:
                self._raw.interrupt()

    def left(self, limit: float) -> float:
        """Seconds until it has taken too long; the wait for its turn doesn't count."""
        return limit if self._began is None else self._began + limit - monotonic()


class Connection:
    """A store's share of the file, and the threads in which its work is done."""

    def __init__(self, path: Path, settings: DuckDBSettings) -> None:
        self._path = path
        self._settings = settings
        self._database: Database | None = None
        self._threads = ThreadPoolExecutor(settings.threads, thread_name_prefix="flujo_duckdb")
        self._uses: set[_Use] = set()

    @property
    def is_open(self) -> bool:
        return self._database is not None

    async def open(self, *, create: bool) -> None:
        """Without ``create`` a file that isn't there stays away, and the connection closed."""

        def share(_: _Use) -> None:
            self._database = _share(self._path, create=create)

        try:
            async with asyncio.timeout(self._settings.connect_timeout):
                await self._run(share)
        except TimeoutError:
            limit = f"{self._settings.connect_timeout:g} s (connect_timeout)"
            raise StorageTimeoutError(f"{self._path} did not open within {limit}; check the disk") from None

    async def read(self, work: Callable[[Cursor], Result], *, in_one_view: bool = True) -> Result:
        """The result of ``work``, which sees one state of the file: a single statement does so by itself, without
        ``in_one_view``. It is stopped if the caller is cancelled."""

        def reading(use: _Use) -> Result:
            with use.cursor(self._open_database()) as cursor:
                if in_one_view:
                    cursor.execute("BEGIN")
                return work(cursor)

        return await self._run(reading, stops=True)

    async def write(self, work: Callable[[Cursor], Result], limit: float | None = None) -> Result:
        """The result of ``work``, done in one transaction. One that has begun goes on to its end, or to ``limit``
        seconds, if they are not command_timeout."""

        def transaction(use: _Use) -> Result:
            database = self._open_database()
            if not database.writing.acquire(timeout=self._settings.lock_timeout):
                limit = f"{self._settings.lock_timeout:g} s (lock_timeout)"
                raise StorageTimeoutError(f"{self._path} had another writer for {limit}; try again, or wait longer")
            try:
                with use.cursor(database) as cursor:
                    cursor.execute("BEGIN")
                    result = work(cursor)
                    # Interrupted in the middle, nobody could tell what became of it.
                    use.protect()
                    cursor.execute("COMMIT")
                    return result
            finally:
                database.writing.release()

        return await self._run(transaction, limit=limit)

    async def _run(self, work: Callable[[_Use], Result], *, stops: bool = False, limit: float | None = None) -> Result:
        use, limit = _Use(), limit or self._settings.command_timeout
        try:
            future = asyncio.get_running_loop().run_in_executor(self._threads, self._call, work, use)
        except RuntimeError:  # its threads have ended
            raise self._gone() from None
        try:
            while not future.done():
                left = use.left(limit)
                if left <= 0:
                    use.interrupt()
                await asyncio.wait({future}, timeout=max(left, _AGAIN))
        except asyncio.CancelledError:
            future.cancel()
            if stops:
                use.interrupt()
            raise
        if future.cancelled():
            raise self._gone()
        try:
            return future.result()
        except duckdb.Error as error:
            raise translated(error, self._path, self._settings) from None

    def _call(self, work: Callable[[_Use], Result], use: _Use) -> Result:
        self._uses.add(use)
        try:
            return work(use)
        finally:
            self._uses.discard(use)

    def _open_database(self) -> Database:
        if self._database is None:
            raise self._gone()
        return self._database

    def _gone(self) -> StorageUnavailableError:
        return StorageUnavailableError(f"{self._path} was closed while this call waited for it; call again")

    async def close(self) -> None:
        """After all that is under way."""
        await asyncio.to_thread(self._end)

    def abandon(self) -> None:
        """Close from outside the loop: what has begun may end, but what takes long is interrupted."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        # Waits a moment, so that the file is free when a shutdown returns that found only stores like this one.
        ending = threading.Thread(target=self._end, daemon=True)
        ending.start()
        ending.join(_GRACE)
        give_up = monotonic() + _GRACE
        while ending.is_alive() and monotonic() < give_up:
            for use in list(self._uses):
                use.interrupt()
            ending.join(_AGAIN)

    def _end(self) -> None:
        self._threads.shutdown()
        with _registry:
            database, self._database = self._database, None
            if database is not None:
                _give_back(database)


# --- the files that this process has open ---------------------------------------------------------------------------

# By real path: DuckDB's lock on a file is the process's, so it would open a second instance under another name.
_open: Final[dict[Path, Database]] = {}
_registry: Final = threading.Lock()
_inherited: Final[set[Path]] = set()
"""Files that the parent process had open when this one was forked off."""


def _share(path: Path, *, create: bool) -> Database | None:
    """One more user of the file; None if it isn't there and is not to be made."""
    try:
        real = path.resolve()
        if create:
            real.parent.mkdir(parents=True, exist_ok=True)
        elif not real.exists():
            return None
    except (OSError, RuntimeError) as error:  # the latter: links in a circle
        raise unopened(error, path) from None
    with _registry:
        if real in _inherited:
            raise StorageUnavailableError(
                f"{path} was open in the process that this one was forked from, and only one can use a DuckDB file at "
                "a time; fork before it is opened, or use sqlite:// or postgres:// for several"
            )
        if real not in _open:
            _open[real] = Database(real)
        _open[real].users += 1
        return _open[real]


def _give_back(database: Database) -> None:
    """One user less; the last one closes the file, into which DuckDB moves the rest of its log."""
    database.users -= 1
    if not database.users:
        for path in [path for path, other in _open.items() if other is database]:
            del _open[path]
        database.raw.close()


@atexit.register
def _close_all() -> None:
    """What nobody shut down; all threads that could use it have ended."""
    with _registry:
        for database in _open.values():
            database.raw.close()
        _open.clear()


# --- forks ------------------------------------------------------------------------------------------------------------


def _before_fork() -> None:
    _registry.acquire()


def _after_fork() -> None:
    _registry.release()


def _after_fork_in_child() -> None:
    for database in _open.values():
        # Never freed: DuckDB would write its log into the file, which is the parent's.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(database))
    _inherited.update(_open)
    _open.clear()
    _after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
