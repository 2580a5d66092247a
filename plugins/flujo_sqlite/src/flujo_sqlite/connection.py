"""How does a coroutine use SQLite? One thread for each connection, one wake-up of the loop for each piece of work."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import aiosqlite

Result = TypeVar("Result")


class Connection:
    """An aiosqlite connection whose thread runs whole functions.

    aiosqlite's public methods wake the loop for each statement, which costs more than the statement. So functions are put
    into the queue of its thread (``_tx``, the one private name that is used here; the dependency is bounded to the
    versions that have it). Answers go to a future of our own, which, unlike aiosqlite's, may come after the loop has
    closed.
    """

    def __init__(self, driver: aiosqlite.Connection, raw: sqlite3.Connection, timeout: float) -> None:
        self._driver = driver
        self._raw = raw
        self._timeout = timeout

    @classmethod
    async def open(
        cls, path: Path, *, mode: str, timeout: float, setup: Callable[[sqlite3.Connection], None]
    ) -> Connection:
        """``mode`` is SQLite's: ro, rw, rwc. ``timeout`` bounds each piece of work, in seconds."""
        raw: list[sqlite3.Connection] = []

        def connect() -> sqlite3.Connection:
            # The percent sign, ? and # mean something in an SQLite URI; as_uri encodes them.
            connection = sqlite3.connect(
                f"{path.as_uri()}?mode={mode}", uri=True, timeout=0, isolation_level=None, check_same_thread=False
            )
            try:
                setup(connection)
            except BaseException:
                connection.close()
                raise
            raw.append(connection)
            return connection

        driver = await aiosqlite.Connection(connect, 64)
        _stop_at_exit(driver)
        return cls(driver, raw[0], timeout)

    async def run(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """The result of ``work``, done in the connection's thread. If the caller is cancelled, it is done all the same."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()

        def settle(result: Any, error: BaseException | None) -> None:
            if not answer.done():
                answer.set_exception(error) if error else answer.set_result(result)

        def call() -> None:
            result, error = None, None
            try:
                result = work(self._raw)
            except BaseException as caught:
                error = caught
            try:
                loop.call_soon_threadsafe(settle, result, error)
            except RuntimeError:
                pass  # The loop has closed; nobody waits.

        alarm = loop.call_later(self._timeout, self._raw.interrupt)
        try:
            self._driver._tx.put_nowait((None, call))
            return await answer  # type: ignore[no-any-return]
        finally:
            alarm.cancel()

    async def close(self) -> None:
        """After all that is queued."""
        await self._driver.close()

    def stop(self) -> None:
        """Close from outside the loop: after all that is queued, without waiting."""
        _without_loop(self._driver.stop)


def _without_loop(stop: Callable[[], Any]) -> None:
    """``stop`` makes a future if there is a loop, which a closed loop would not like: so let there be none."""
    thread = threading.Thread(target=stop, daemon=True)
    thread.start()
    thread.join()


# aiosqlite's threads are no daemons, and the interpreter joins them before `atexit` runs: without this, a program that
# forgets shutdown() never ends. A daemon waits for the main thread and then stops them; the files close in order.
_open: weakref.WeakSet[aiosqlite.Connection] = weakref.WeakSet()
_watch_lock = threading.Lock()
_watcher: threading.Thread | None = None


def _stop_at_exit(driver: aiosqlite.Connection) -> None:
    global _watcher
    with _watch_lock:
        _open.add(driver)
        # After a fork the parent's watcher is not running here.
        if _watcher is None or not _watcher.is_alive():
            _watcher = threading.Thread(target=_watch, name="flujo_sqlite exit", daemon=True)
            _watcher.start()


def _watch() -> None:
    threading.main_thread().join()
    for driver in list(_open):
        driver.stop()
