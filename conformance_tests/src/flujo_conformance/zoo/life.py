"""Which backends open, close or live wrongly (G1, G2, D5)?"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flujo_core.errors import StorageUnavailableError
from flujo_core.memory import MemoryBackend, MemoryStore
from flujo_core.migrations import MigrationReport, SchemaStatus
from flujo_core.model import RunInfo
from flujo_core.store import Change, Outcome, Store

from .registry import breaks


@breaks("G1")
class WritesWhenMade(MemoryBackend):
    """The constructor does I/O: it opens a file for writing."""

    def __init__(self, name: str = "", **more: Any) -> None:
        super().__init__(name, **more)
        with Path(os.devnull).open("a"):
            pass


@breaks("G1")
class StartsAThreadWhenMade(MemoryBackend):
    """The constructor starts a thread."""

    def __init__(self, name: str = "", **more: Any) -> None:
        super().__init__(name, **more)
        threading.Thread(target=time.sleep, args=(1,), daemon=True).start()


@breaks("G1")
class SecondShutdownFails(MemoryBackend):
    """shutdown() raises when there is nothing to shut down any more."""

    down = False

    async def _store(self) -> Store:
        self.down = False
        return await super()._store()

    async def shutdown(self) -> None:
        if self.down:
            raise StorageUnavailableError("it is closed already")
        self.down = True
        await super().shutdown()


@breaks("G1")
class StaysShut(MemoryBackend):
    """A call after shutdown() does not open again."""

    down = False

    async def shutdown(self) -> None:
        self.down = True
        await super().shutdown()

    async def _write(self, *args: Any, **kwargs: Any) -> Any:
        if self.down:
            raise StorageUnavailableError("it was shut down")
        return await super()._write(*args, **kwargs)


@breaks("G1")
class EntersAsAnother(MemoryBackend):
    """``async with backend as b`` gives a handle of its own, which stays open after the block."""

    async def __aenter__(self) -> EntersAsAnother:
        return EntersAsAnother("elsewhere")


@breaks("G1")
class ShutdownCutsOff(MemoryBackend):
    """shutdown() cancels the writes that are under way."""

    def __init__(self, name: str = "", **more: Any) -> None:
        super().__init__(name, **more)
        self.calls: set[asyncio.Task[Any]] = set()

    async def _write(self, *args: Any, **kwargs: Any) -> Any:
        task = asyncio.current_task()
        assert task is not None
        self.calls.add(task)
        try:
            return await super()._write(*args, **kwargs)
        finally:
            self.calls.discard(task)

    async def shutdown(self) -> None:
        for task in self.calls:
            task.cancel()
        await super().shutdown()


@breaks("G1")
class KeepsTheProcess(MemoryStore):
    """A thread that is no daemon keeps a process that does not shut down for seconds."""

    async def open(self, *, create: bool) -> None:
        threading.Thread(target=time.sleep, args=(2.5,)).start()


@breaks("G1")
class NoCoroutine(MemoryBackend):
    """One method is a plain function that returns an awaitable."""

    def count_runs(self, *args: Any, **kwargs: Any) -> Any:
        return super().count_runs(*args, **kwargs)


@breaks("G2")
class BoundToItsFirstLoop(MemoryBackend):
    """It can only be used from the event loop that used it first."""

    loop: asyncio.AbstractEventLoop | None = None

    async def _write(self, *args: Any, **kwargs: Any) -> Any:
        self.loop = self.loop or asyncio.get_running_loop()
        if self.loop is not asyncio.get_running_loop():
            raise RuntimeError("bound to a different event loop")
        return await super()._write(*args, **kwargs)


@breaks("G2", "S6", "G10")
class ChecksThenActs(MemoryStore):
    """Between the check of what is expected and the write another thread may write, and its write is lost."""

    async def commit(self, changes: Sequence[Change]) -> list[Outcome]:
        outcomes = []
        for change in changes:
            before = await self.stored_runs([change.run_id])
            stored = before.get(change.run_id)
            as_expected = (stored.operation_id if stored else None) == change.expected
            time.sleep(0.0005)
            now = (await self.stored_runs([change.run_id])).get(change.run_id)
            if as_expected:
                change = replace(change, expected=now.operation_id if now else None)  # noqa: PLW2901
            outcomes.extend(await super().commit([change]))
        return outcomes


@breaks("G2")
class ForkedChildFails(MemoryBackend):
    """A child of a fork can't use the backend that its parent used."""

    pid: int | None = None

    async def _write(self, *args: Any, **kwargs: Any) -> Any:
        self.pid = self.pid or os.getpid()
        if self.pid != os.getpid():
            raise StorageUnavailableError("the connection is the parent's")
        return await super()._write(*args, **kwargs)


@breaks("G2")
class OneStoreForAllLoops(MemoryBackend):
    """A lock of the first event loop that has to wait for it hinders all others."""

    def __init__(self, name: str = "", **more: Any) -> None:
        super().__init__(name, **more)
        self.lock = asyncio.Lock()

    async def _write(self, *args: Any, **kwargs: Any) -> Any:
        await asyncio.wait_for(self.lock.acquire(), 1)
        try:
            await asyncio.sleep(0.0005)
            return await super()._write(*args, **kwargs)
        finally:
            self.lock.release()


@breaks("D5")
class DryRunsMigrate(MemoryBackend):
    """A dry run says that it was none."""

    async def migrate(self, target_version: int | None = None, dry_run: bool = False, **more: Any) -> MigrationReport:
        return replace(await super().migrate(target_version, dry_run, **more), dry_run=False)


@breaks("D5")
class SchemaMovesWhenLookedAt(MemoryBackend):
    """Each look at the schema finds another one."""

    async def schema_status(self) -> SchemaStatus:
        return replace(await super().schema_status(), database=f"memory://{time.perf_counter_ns()}")


@breaks("R7")
class IterationsHoldConnections(MemoryBackend):
    """An open iteration holds one of ten connections."""

    def __init__(self, name: str = "", **more: Any) -> None:
        super().__init__(name, **more)
        self.open = 0

    async def _each(self, *args: Any) -> AsyncIterator[RunInfo]:
        if self.open == 10:
            raise StorageUnavailableError("the pool is exhausted")
        self.open += 1
        try:
            async for row in super()._each(*args):
                yield row
        finally:
            self.open -= 1
