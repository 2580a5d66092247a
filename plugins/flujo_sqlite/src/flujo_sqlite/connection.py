"""How does a coroutine use SQLite? One thread for each connection, one wake-up of the loop for each piece of work."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any, Final, TypeVar

import aiosqlite

from flujo_core.errors import StorageUnavailableError

Result = TypeVar("Result")
Raw = sqlite3.Connection

_AGAIN: Final = 0.01
"""Seconds between two interrupts: one that falls between two statements does nothing."""
_GRACE: Final = 0.5
"""Seconds that what nobody waits for may go on when its thread has to end; then as long for the interrupt."""
_FORK_PATIENCE: Final = 5.0
"""Seconds that a fork waits for a command under way before it is interrupted."""


class _Handle:
    """The connection to the file, which one thread uses, and which is closed while the process forks."""

    def __init__(self, path: Path, mode: str, prepare: Callable[[], None], setup: Callable[[Raw], None]) -> None:
        # The percent sign, ? and # mean something in an SQLite URI; as_uri encodes them.
        self._uri = f"{path.as_uri()}?mode={mode}"
        self._prepare = prepare
        self._setup = setup
        self._raw: Raw | None = None
        self._gone = False
        self._running: object = None
        self.held = threading.Lock()
        """Held by whoever uses or changes the connection."""
        self.thread: threading.Thread | None = None
        self.driver: Callable[[], aiosqlite.Connection | None] = lambda: None
        """Weak: a connection that is dropped ends by itself."""

    def open(self) -> Raw:
        """In the thread of aiosqlite, as its first work."""
        self.thread = threading.current_thread()
        with _registry:
            _handles.add(self)
        with self.held:
            self._prepare()
            return self._connect()

    def _connect(self) -> Raw:
        raw = sqlite3.connect(self._uri, uri=True, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            self._setup(raw)
        except BaseException:
            raw.close()
            raise
        self._raw = raw
        if self._gone:
            self._release()
        return raw

    def use(self, work: Callable[[Raw], Result], token: object) -> Result:
        with self.held:
            raw = self._raw or self._connect()
            self._running = token
            try:
                return work(raw)
            finally:
                self._running = None

    def interrupt(self, token: object = None) -> None:
        """Stop the statement that runs; with a token, only if it is of this piece of work."""
        raw = self._raw
        if raw is not None and self._running is not None and token in (None, self._running):
            with suppress(sqlite3.Error):  # it was closed just now
                raw.interrupt()

    def close(self) -> None:
        with self.held:
            self._gone = True
            self._release()

    def discard(self) -> None:
        """Close without waiting for the thread, which closes what it is opening itself."""
        self._gone = True
        if self.held.acquire(blocking=False):
            self._release()
            self.held.release()

    def _ends(self) -> bool:
        return self.thread is None or self.thread.is_alive()

    async def ended(self) -> None:
        """After a failed opening: the thread still answers to aiosqlite's futures, whose loop may not be closed yet."""
        give_up = monotonic() + _GRACE
        while self._ends() and monotonic() < give_up:  # noqa: ASYNC110 - the end of a thread is no event
            await asyncio.sleep(_AGAIN / 10)

    def stop(self) -> None:
        """Close and end the thread after all that is queued, without waiting. Call it where no loop runs."""
        driver = self.driver()
        if driver is not None:
            driver._tx.put_nowait((None, self.close))
            driver.stop()

    def _release(self) -> None:
        raw, self._raw = self._raw, None
        if raw is not None:
            raw.close()

    def freeze(self) -> None:
        """Close and hold the connection until after a fork; the next work opens it again."""
        if not self.held.acquire(timeout=_FORK_PATIENCE):
            while not self.held.acquire(timeout=_AGAIN):
                self.interrupt()
        with suppress(sqlite3.Error):
            self._release()


class _Alarm:
    """Interrupts a piece of work at its deadline, again and again until it ends."""

    def __init__(self, loop: asyncio.AbstractEventLoop, handle: _Handle, token: object, delay: float) -> None:
        self._loop = loop
        self._handle = handle
        self._token = token
        self._timer = loop.call_later(delay, self.ring)

    def ring(self) -> None:
        self.cancel()
        self._handle.interrupt(self._token)
        self._timer = self._loop.call_later(_AGAIN, self.ring)

    def cancel(self) -> None:
        self._timer.cancel()


class Connection:
    """An aiosqlite connection whose thread runs whole functions.

    aiosqlite's public methods wake the loop for each statement, which costs more than the statement. So functions are
    put into the queue of its thread (``_tx``, the one private name that is used here). Answers go to a future of our
    own, which, unlike aiosqlite's, may come after the loop has closed.
    """

    def __init__(self, path: Path, driver: aiosqlite.Connection, handle: _Handle, *, limit: float, stops: bool) -> None:
        self._path = path
        self._driver = driver
        self._handle = handle
        self._limit = limit
        self._stops = stops
        self._closed = False
        self._ended: asyncio.Future[None] | None = None

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        mode: str,
        limit: float,
        stops: bool,
        prepare: Callable[[], None],
        setup: Callable[[Raw], None],
    ) -> Connection:
        """``mode`` is SQLite's: ro, rw. ``limit`` bounds each piece of work, in seconds. ``stops``: what runs is
        stopped when its caller is cancelled; that is for reads, and for what is one transaction.

        In the connection's thread ``prepare`` is called before the file is opened, ``setup`` with each connection to
        it: a second one after a fork.
        """
        handle = _Handle(path, mode, prepare, setup)
        driver = aiosqlite.Connection(handle.open, 64)
        handle.driver = weakref.ref(driver)
        try:
            await driver
        except BaseException:
            # A cancelled caller: the connection may be open by now, or be about to be.
            handle.discard()
            await handle.ended()
            raise
        _stop_at_exit()
        return cls(path, driver, handle, limit=limit, stops=stops)

    async def run(self, work: Callable[[Raw], Result]) -> Result:
        """The result of ``work``, done in the connection's thread.

        If the caller is cancelled, what has not begun never will. What has begun is stopped, if the connection is one
        that ``stops``, or goes on to its end.
        """
        if self._closed:
            raise StorageUnavailableError(f"{self._path} was closed while this call waited for it; call again")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        alarm = _Alarm(loop, self._handle, answer, self._limit)

        def settle(result: Any, error: BaseException | None) -> None:
            alarm.cancel()
            if not answer.done():
                answer.set_exception(error) if error else answer.set_result(result)

        def call() -> None:
            result = error = None
            try:
                if not answer.cancelled():
                    result = self._handle.use(work, answer)
            except BaseException as caught:  # noqa: BLE001 - all of them are the caller's
                error = caught
            with suppress(RuntimeError):  # The loop has closed; nobody waits.
                loop.call_soon_threadsafe(settle, result, error)
            del result, error  # An error holds its frames, and this frame would hold it.

        self._driver._tx.put_nowait((None, call))
        try:
            return await answer  # type: ignore[no-any-return]
        except asyncio.CancelledError:
            if self._stops:
                alarm.ring()
            raise

    async def close(self) -> None:
        """After all that is queued. May be called again, by who was cancelled."""
        self._closed = True
        if self._ended is None:
            self._ended = self._end()
        await asyncio.shield(self._ended)

    def _end(self) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()

        def call() -> None:
            self._handle.close()
            with suppress(RuntimeError):  # The loop has closed; nobody waits.
                loop.call_soon_threadsafe(ended.set_result, None)

        self._driver._tx.put_nowait((None, call))
        # Not by aiosqlite's `close`, whose thread fails if the loop ends first.
        _in_thread(self._handle.stop)
        return ended

    def disown(self) -> _Handle:
        self._closed = True
        return self._handle


def stop_all(connections: Sequence[Connection]) -> None:
    """Close from outside the loop: after all that is queued, but what takes long is interrupted."""
    handles = [connection.disown() for connection in connections]
    if handles:
        _in_thread(lambda: _stop(handles))


def _stop(handles: Sequence[_Handle]) -> None:
    """Where no loop runs: aiosqlite's ``stop`` would make a future, which a closed loop would not like."""
    for handle in handles:
        handle.stop()
    patience, give_up = monotonic() + _GRACE, monotonic() + 2 * _GRACE
    for thread, handle in [(handle.thread, handle) for handle in handles]:
        if thread is not None:
            thread.join(max(0, patience - monotonic()))
            while thread.is_alive() and monotonic() < give_up:
                handle.interrupt()
                thread.join(_AGAIN)


def _in_thread(work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join()


# --- the end of the interpreter ---------------------------------------------------------------------------------------

# aiosqlite's threads are no daemons, and the interpreter joins them before `atexit` runs: without this, a program that
# forgets shutdown() never ends. A daemon waits for all the other threads and then stops them; the files close in order.
_handles: weakref.WeakSet[_Handle] = weakref.WeakSet()
_registry = threading.Lock()
_watchers: list[threading.Thread] = []


def _stop_at_exit() -> None:
    with _registry:
        if not _watchers:
            _watchers.append(threading.Thread(target=_watch, name="flujo_sqlite exit", daemon=True))
            _watchers[0].start()


def _watch() -> None:
    main = threading.main_thread()
    main.join()
    # A program may go on in other threads after its main one.
    while others := [thread for thread in _foreign_threads() if thread is not main]:
        others[0].join(0.05)
    _stop(_open_handles())


def _foreign_threads() -> list[threading.Thread]:
    ours = {handle.thread for handle in _open_handles()}
    return [thread for thread in threading.enumerate() if not thread.daemon and thread not in ours]


def _open_handles() -> list[_Handle]:
    with _registry:
        return list(_handles)


# --- forks ------------------------------------------------------------------------------------------------------------

# SQLite keeps in memory which locks its process holds on a file. A child would inherit that belief without the locks:
# others don't see it, and the last of them to close removes the log under it. So no connection is open in a fork.
_frozen: list[_Handle] = []


def _before_fork() -> None:
    _registry.acquire()
    _frozen.extend(_handles)
    for handle in _frozen:
        handle.freeze()


def _after_fork() -> None:
    for handle in _frozen:
        handle.held.release()
    _frozen.clear()
    _registry.release()


def _after_fork_in_child() -> None:
    _handles.clear()
    _watchers.clear()
    _after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
