"""Which open store serves this call? One for each process and event loop (G2), opened on first use (G1)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from .batching import Batcher
from .errors import StorageTimeoutError, StorageUnavailableError
from .migrating import Migrator
from .store import Store

if TYPE_CHECKING:
    # Importing the library defines no pydantic model; opening a backend does.
    from .settings import BackendSettings


class Session:
    """A store that one event loop uses, and its writes."""

    __slots__ = ("batcher", "loop", "opening", "pid", "store", "waiting")

    def __init__(self, store: Store, settings: BackendSettings) -> None:
        self.store = store
        self.batcher = Batcher(store, deadline=settings.lock_timeout)
        self.pid = os.getpid()
        self.loop = asyncio.get_running_loop()
        self.opening: asyncio.Task[None] | None = None
        self.waiting = 0
        """How many calls wait for the opening."""


async def to_its_end(closing: Coroutine[Any, Any, None], store: Store) -> None:
    """Closes a store also if the caller stops waiting: to stop in the middle would leave connections open that nobody
    knows of any more."""
    task = asyncio.get_running_loop().create_task(closing, name="flujo closing")
    task.add_done_callback(lambda task: store.abandon() if task.cancelled() else task.exception())
    await asyncio.shield(task)


class Sessions:
    def __init__(self, make_store: Callable[[], Store], settings: BackendSettings) -> None:
        self._make_store = make_store
        self._settings = settings
        # A loop touches only its own entry, so no lock is needed, which a fork could catch in the wrong state.
        self._sessions: dict[tuple[int, int], Session] = {}

    async def current(self) -> Session:
        """The session of the running loop, open."""
        loop = asyncio.get_running_loop()
        key = (os.getpid(), id(loop))
        session = self._sessions.get(key)
        if session is None or session.loop is not loop:
            self._abandon_dead()
            session = Session(self._make_store(), self._settings)
            session.opening = loop.create_task(self._open(key, session), name="flujo opening")
            # A failure that nobody waits for any more is told to the next caller, who opens anew; so does the one after
            # an opening that was cancelled, which may not have begun.
            session.opening.add_done_callback(
                lambda task: self._forget(key, session) if task.cancelled() else task.exception()
            )
            self._sessions[key] = session
        if session.opening is not None:
            await self._opened(session, session.opening)
        return session

    async def _opened(self, session: Session, opening: asyncio.Task[None]) -> None:
        session.waiting += 1
        try:
            await asyncio.shield(opening)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if opening.cancelled() and task is not None and not task.cancelling():
                raise StorageUnavailableError("the backend was shut down while it opened; call again") from None
            raise
        finally:
            session.waiting -= 1

    async def _open(self, key: tuple[int, int], session: Session) -> None:
        store, touched = session.store, False
        try:
            # Its files are read before anything is made.
            migrator = Migrator(store, self._settings)
            touched = True
            await store.open(create=self._settings.auto_migrate)
            await migrator.prepare()
            session.opening = None
        except BaseException:
            self._forget(key, session)
            if touched:
                await store.close()
            raise

    def _forget(self, key: tuple[int, int], session: Session) -> None:
        if self._sessions.get(key) is session:
            del self._sessions[key]

    def _abandon_dead(self) -> None:
        """Let go of stores whose loop is closed. Those of a parent process are left alone: closing them here would pull
        connections and locks from under the parent."""
        pid = os.getpid()
        for key, session in list(self._sessions.items()):
            # Of two threads only one gets it.
            if session.pid == pid and session.loop.is_closed() and self._sessions.pop(key, None) is not None:
                session.store.abandon()

    async def close(self) -> None:
        """Settle and close the running loop's session, within close_timeout, also if the caller stops waiting."""
        self._abandon_dead()
        key = (os.getpid(), id(asyncio.get_running_loop()))
        session = self._sessions.get(key)
        if session is None or session.loop is not asyncio.get_running_loop():
            return
        self._forget(key, session)
        await to_its_end(self._close(session), session.store)

    async def _close(self, session: Session) -> None:
        limit = self._settings.close_timeout
        try:
            async with asyncio.timeout(limit):
                if session.opening is not None:
                    await asyncio.wait([session.opening])
                # Calls that wait for the opening are under way too.
                while session.waiting:  # noqa: ASYNC110 - it takes a turn of the loop or two
                    await asyncio.sleep(0)
                await session.batcher.drain()
                await session.store.close()
        except TimeoutError:
            if session.opening is not None:
                session.opening.cancel()
            session.store.abandon()
            raise StorageTimeoutError(
                f"shutdown did not end within {limit:g} s (close_timeout); what was under way was cut off"
            ) from None
