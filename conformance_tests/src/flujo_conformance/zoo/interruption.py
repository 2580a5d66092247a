"""Which backends break what is promised of calls that are cut off (G9)?"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

from flujo_core.errors import StorageUnavailableError
from flujo_core.memory import MemoryBackend, MemoryStore
from flujo_core.runs import Draft
from flujo_core.store import Change, Outcome, RunQuery, Snapshot

from .registry import breaks


class _Slow(MemoryStore):
    """Base of those whose commit takes a turn of the loop; ``cut_off`` is what they do when it is cancelled."""

    def cut_off(self, changes: Sequence[Change]) -> None:
        raise NotImplementedError

    async def commit(self, changes: Sequence[Change]) -> list[Outcome]:
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.cut_off(changes)
            raise
        return await super().commit(changes)


@breaks("G9")
class TornCommit(_Slow):
    """A commit that is cut off has written the snapshot, but not the history."""

    def cut_off(self, changes: Sequence[Change]) -> None:
        for change in changes:
            self._apply(replace(change, history=[], history_length=None))


@breaks("G9")
class HalfDeleted(_Slow):
    """A deletion that is cut off has removed the records, but not the run."""

    def cut_off(self, changes: Sequence[Change]) -> None:
        for change in changes:
            run = self._data.runs.get(change.run_id)
            if run is not None and change.wipe:
                run.steps.clear()
                run.evaluations.clear()


@breaks("G9")
class IndexedBeforeItIsThere(_Slow):
    """A save that is cut off leaves the run without its metadata in the index."""

    def cut_off(self, changes: Sequence[Change]) -> None:
        for change in changes:
            run = self._data.runs.get(change.run_id)
            if run is not None and isinstance(change.metadata, str):
                self._index(run, set())


@breaks("G9")
class UndoesOneTooMany(_Slow):
    """What is undone when a commit is cut off is the commit before it, too."""

    def __init__(self, data: Any) -> None:
        super().__init__(data)
        self.before: dict[str, Any] = {}

    def cut_off(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if self.before.get(change.run_id) is not None:
                self._data.runs[change.run_id] = self.before[change.run_id]

    async def commit(self, changes: Sequence[Change]) -> list[Outcome]:
        before = {change.run_id: deepcopy(self._data.runs.get(change.run_id)) for change in changes}
        outcomes = await super().commit(changes)
        self.before.update(before)
        return outcomes


@breaks("G9")
class DescriptorForEachCancelledCall(_Slow):
    """A commit that is cut off leaves its connection open."""

    def cut_off(self, changes: Sequence[Change]) -> None:
        os.open(os.devnull, os.O_RDONLY)


@breaks("G9")
class ThreadForEachCancelledCall(_Slow):
    """A commit that is cut off leaves its thread waiting."""

    def cut_off(self, changes: Sequence[Change]) -> None:
        threading.Thread(target=threading.Event().wait, daemon=True).start()


@breaks("G9")
class TaskForEachCancelledCall(_Slow):
    """A commit that is cut off leaves a task that waits for its answer for ever."""

    waiting: set[asyncio.Task[Any]] = set()  # noqa: RUF012 - for ever

    def cut_off(self, changes: Sequence[Change]) -> None:
        self.waiting.add(asyncio.ensure_future(asyncio.Event().wait()))


@breaks("G9")
class LockKeptOnCancel(MemoryStore):
    """A commit that is cut off keeps the lock of the writer."""

    def __init__(self, data: Any) -> None:
        super().__init__(data)
        self.writing = asyncio.Lock()

    async def commit(self, changes: Sequence[Change]) -> list[Outcome]:
        await self.writing.acquire()
        await asyncio.sleep(0)
        outcomes = await super().commit(changes)
        self.writing.release()
        return outcomes


@breaks("G9")
class ReaderKeptOnCancel(MemoryStore):
    """A read that is cut off never gives its reader back."""

    def __init__(self, data: Any) -> None:
        super().__init__(data)
        self.readers = asyncio.Semaphore(4)

    async def load(self, run_id: str) -> Snapshot | None:
        await self.readers.acquire()
        await asyncio.sleep(0)
        self.readers.release()
        return await super().load(run_id)


@breaks("G9")
class AnswersTheReadBefore(MemoryStore):
    """The answer to a read that was cut off is taken for that of the next."""

    def __init__(self, data: Any) -> None:
        super().__init__(data)
        self.answers: list[list[str]] = []

    async def list_runs(self, query: RunQuery) -> list[str]:
        self.answers.append(await super().list_runs(query))
        await asyncio.sleep(0)
        return self.answers.pop(0)


@breaks("G9")
class LockedByACancelledOpening(MemoryStore):
    """An opening that is cut off leaves its mark, and no other handle opens."""

    async def open(self, *, create: bool) -> None:
        if "opening" in self._data.system:
            raise StorageUnavailableError("another process is opening it")
        self._data.system["opening"] = ""
        await asyncio.sleep(0)
        del self._data.system["opening"]


@breaks("G9", "A4")
class DeletesBeforeItPuts(MemoryStore):
    """A system state that is cut off has lost its old value and not got the new one."""

    async def put_system_state(self, key: str, document: str) -> None:
        self._data.system.pop(key, None)
        await asyncio.sleep(0)
        await super().put_system_state(key, document)


@breaks("G9")
class AppliedAgain(MemoryBackend):
    """A write that was cut off is repeated before the next one, whether it happened or not."""

    def __init__(self, name: str = "", **more: Any) -> None:
        super().__init__(name, **more)
        self.unfinished: list[tuple[str, Callable[[Draft], Any]]] = []

    async def _write(self, run_id: str, apply: Callable[[Draft], Any], **more: Any) -> Any:
        while self.unfinished:
            await super()._write(*self.unfinished.pop())
        try:
            return await super()._write(run_id, apply, **more)
        except asyncio.CancelledError:
            self.unfinished.append((run_id, apply))
            raise


@breaks("G9")
class ReturnsWhenItIsCancelled(MemoryBackend):
    """A save that is cancelled returns as though it had been done."""

    async def save_state(self, *args: Any, **kwargs: Any) -> int:
        try:
            return await super().save_state(*args, **kwargs)
        except asyncio.CancelledError:
            return 1


@breaks("G9")
class LosesTheMatesOfTheCancelled(MemoryBackend):
    """Writes that wait together with one that is cancelled return, but nothing of them is kept."""

    def __init__(self, name: str = "", **more: Any) -> None:
        super().__init__(name, **more)
        self.cancelled = 0

    async def _write(self, run_id: str, apply: Callable[[Draft], Any], **more: Any) -> Any:
        submitted = self.cancelled

        def unless_cancelled(draft: Draft) -> Any:
            return apply(draft if self.cancelled == submitted else deepcopy(draft))

        try:
            return await super()._write(run_id, unless_cancelled, **more)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


@breaks("G9", "A3")
class CleansUpInTwoSteps(MemoryStore):
    """A clean-up takes the snapshots first and the runs after them."""

    async def commit(self, changes: Sequence[Change]) -> list[Outcome]:
        wiped = [change for change in changes if change.wipe and change.row is None]
        for change in wiped:
            run = self._data.runs.get(change.run_id)
            if run is not None and run.row.operation_id == change.expected:
                run.snapshot = None
                run.row = run.row._replace(revision=0)
        if wiped:
            await asyncio.sleep(0)
        return await super().commit(changes)
