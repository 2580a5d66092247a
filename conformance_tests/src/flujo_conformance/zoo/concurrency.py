"""Which backends are right for one client at a time, and wrong for several at once (G2, G9, G10, S6, R7)?"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

from flujo_core.memory import MemoryBackend, MemoryStore
from flujo_core.model import RunInfo, State, Step
from flujo_core.runs import Draft
from flujo_core.store import Change, Outcome, RunQuery

from .registry import breaks


async def _turns(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


class _Writing(MemoryBackend):
    """Base of those that know which runs are being written, by any handle, and take their time with it."""

    writing: ClassVar[Counter[str]]
    written: ClassVar[Counter[str]]

    def __init_subclass__(cls) -> None:
        cls.writing, cls.written = Counter(), Counter()

    async def _write(self, run_id: str, apply: Callable[[Draft], Any], **more: Any) -> Any:
        self.writing[run_id] += 1
        try:
            await self.begin(run_id)
            return await super()._write(run_id, apply, **more)
        finally:
            self.writing[run_id] -= 1
            self.written[run_id] += 1

    async def begin(self, run_id: str) -> None:
        await _turns(5)


# --- reads ------------------------------------------------------------------------------------------------------------


@breaks("G10")
class CachedWhileItWrites(_Writing):
    """While a run is being written, a handle loads what it loaded last, every other time."""

    known: dict[str, State | None] | None = None

    async def load_state(self, run_id: str) -> State | None:
        known = self.known = self.known or {}
        state = await super().load_state(run_id)
        if self.writing[run_id] and run_id in known:
            return known.pop(run_id)
        known[run_id] = deepcopy(state)
        return state


@breaks("G10")
class ReadsTheViewOfItsWrite(_Writing):
    """While a handle writes a run, it loads what was there when the write began, whatever others have written since."""

    view: tuple[str, State | None] | None = None

    async def begin(self, run_id: str) -> None:
        self.view = run_id, await super().load_state(run_id)
        await _turns(6)

    async def load_state(self, run_id: str) -> State | None:
        state = await super().load_state(run_id)
        if self.view is not None and self.view[0] == run_id and self.writing[run_id]:
            return deepcopy(self.view[1])
        return state


@breaks("G10")
class DetailsInTwoReads(MemoryBackend):
    """get_run_details reads the further keys and then the row, and a write may come in between."""

    async def get_run_details(self, run_id: str) -> dict[str, Any] | None:
        first = await super().get_run_details(run_id)
        await _turns(3)
        second = await super().get_run_details(run_id)
        if first is None or second is None:
            return second
        return {**first, **{key: second[key] for key in ("total_steps", "total_cost", "revision", "status")}}


@breaks("G10")
class StepsBehindAWrite(_Writing):
    """While a run is being written, the list of its steps lacks the last one."""

    async def list_run_steps(self, run_id: str) -> list[Step]:
        steps = await super().list_run_steps(run_id)
        return steps[:-1] if self.writing[run_id] else steps


@breaks("G10")
class VisibleTooEarly(MemoryStore):
    """A write can be read before it is committed, then it is rolled back and made again."""

    async def commit(self, changes: Sequence[Change]) -> list[Outcome]:
        before = {change.run_id: deepcopy(self._data.runs.get(change.run_id)) for change in changes}
        await super().commit(changes)
        await _turns(1)
        for run_id, run in before.items():
            self._data.runs.pop(run_id, None)
            if run is not None:
                self._data.runs[run_id] = run
        await _turns(1)
        return await super().commit(changes)


@breaks("G10", "G2")
class ThreadsShareAnAnswer(MemoryBackend):
    """What is read lies for a moment where another thread that reads puts its own."""

    found: Any = None

    async def load_state(self, run_id: str) -> State | None:
        return self._taken(await super().load_state(run_id))  # type: ignore[no-any-return]

    async def get_run_details(self, run_id: str) -> dict[str, Any] | None:
        return self._taken(await super().get_run_details(run_id))  # type: ignore[no-any-return]

    def _taken(self, found: Any) -> Any:
        self.found = found
        time.sleep(0.002)
        return self.found


# --- writes -----------------------------------------------------------------------------------------------------------


@breaks("G10", "S7")
class DeletionGivesWay(_Writing):
    """A deletion that meets another write of the run is taken for done."""

    async def delete_run(self, run_id: str) -> bool:
        return True if isinstance(run_id, str) and self.writing[run_id] else await super().delete_run(run_id)


@breaks("G10", "S1")
class CountsBeforeItSaves(MemoryBackend):
    """The revision that a save returns is one more than the one that was read before."""

    async def save_state(self, run_id: str, state: State, *, expected_revision: int | None = None) -> int:
        before = await super().load_state(run_id) if isinstance(run_id, str) and run_id else None
        await super().save_state(run_id, state, expected_revision=expected_revision)
        return before["revision"] + 1 if before else 1


@breaks("S6", "G2")
class LocksOutItsOwnLoopOnly(MemoryStore):
    """Check and write are two steps under a lock of the event loop; other threads come in between."""

    locks: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock]] = WeakKeyDictionary()

    async def commit(self, changes: Sequence[Change]) -> list[Outcome]:
        async with self.locks.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
            before = await self._operations(changes)
            await asyncio.sleep(0.001)
            now = await self._operations(changes)
            checked = [
                replace(change, expected=now[change.run_id]) if before[change.run_id] == change.expected else change
                for change in changes
            ]
            return await super().commit(checked)

    async def _operations(self, changes: Sequence[Change]) -> dict[str, bytes | None]:
        stored = await self.stored_runs([change.run_id for change in changes])
        return {
            change.run_id: stored[change.run_id].operation_id if change.run_id in stored else None for change in changes
        }


@breaks("G9")
class CancelledWritesComeBack(MemoryBackend):
    """A save that was cancelled is made again a little later, whether it had been made or not."""

    again: ClassVar[set[asyncio.Task[Any]]] = set()

    async def save_state(self, run_id: str, state: State, *, expected_revision: int | None = None) -> int:
        try:
            return await super().save_state(run_id, state, expected_revision=expected_revision)
        except asyncio.CancelledError:
            task = asyncio.ensure_future(self._later(run_id, dict(state)))
            self.again.add(task)
            task.add_done_callback(self.again.discard)
            raise

    async def _later(self, run_id: str, state: State) -> None:
        await _turns(8)
        await super().save_state(run_id, state)


# --- iterations -------------------------------------------------------------------------------------------------------


@breaks("R7")
class OneCursorForAll(MemoryBackend):
    """All iterations of a handle keep their place in one variable."""

    after: Any = None

    async def _each(self, query: RunQuery, page_size: int) -> AsyncIterator[RunInfo]:
        self.after = None
        while True:
            page = await self._rows(replace(query, limit=page_size, after=self.after))
            if page:
                self.after = page[-1]["created_at"], page[-1]["run_id"]
            for row in page:
                yield row
            if len(page) < page_size:
                return


@breaks("R7")
class LockedRunsSkipped(_Writing):
    """An iteration skips the runs that are being written, which takes a while."""

    async def begin(self, run_id: str) -> None:
        await _turns(100)

    async def _each(self, query: RunQuery, page_size: int) -> AsyncIterator[RunInfo]:
        async for row in super()._each(query, page_size):
            if not self.writing[row["run_id"]]:
                yield row


@breaks("R7")
class DisturbedRowsAgain(_Writing):
    """A row during whose reading something was written is read again, and yielded twice."""

    async def _each(self, query: RunQuery, page_size: int) -> AsyncIterator[RunInfo]:
        async for row in super()._each(query, page_size):
            yield row
            before = self.written.total()
            await _turns(1)
            if self.written.total() > before:
                yield row
