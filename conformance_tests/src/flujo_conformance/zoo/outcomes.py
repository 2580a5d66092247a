"""Which backends break what a caller may rely on after a call returned, failed or was cancelled (G9 to G11)?"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

from flujo_core.errors import (
    FlujoStateError,
    InvalidStateError,
    RunNotFoundError,
    StateConflictError,
    StorageUnavailableError,
)
from flujo_core.memory import MemoryBackend, MemoryStore
from flujo_core.model import State
from flujo_core.runs import Draft
from flujo_core.store import Change, Outcome, Snapshot

from .registry import breaks


@breaks("G9")
class LostOnClose(MemoryStore):
    """The last commit before a handle closes is not on the disk yet, and lost."""

    undo: tuple[str, Any] | None = None

    async def commit(self, changes: Sequence[Change]) -> list[Outcome]:
        run_id = changes[-1].run_id
        self.undo = run_id, deepcopy(self._data.runs.get(run_id))
        return await super().commit(changes)

    async def close(self) -> None:
        if self.undo is not None:
            run_id, run = self.undo
            self._data.runs.pop(run_id, None)
            if run is not None:
                self._data.runs[run_id] = run


@breaks("G9")
class TornOnCancel(MemoryBackend):
    """A cancelled save leaves the new snapshot with no history."""

    async def save_state(self, run_id: str, state: State, *, expected_revision: int | None = None) -> int:
        try:
            return await super().save_state(run_id, state, expected_revision=expected_revision)
        except asyncio.CancelledError:
            await super().save_state(run_id, {**state, "step_history": []})
            raise


@breaks("G9")
class AcknowledgedTooEarly(MemoryBackend):
    """save_step_result returns while its write is still under way."""

    async def save_step_result(self, *args: Any, **kwargs: Any) -> None:
        write = asyncio.ensure_future(super().save_step_result(*args, **kwargs))
        await asyncio.sleep(0)
        if write.done():
            write.result()


@breaks("G9")
class FailsTheWholeBatch(MemoryBackend):
    """A write that is refused fails those that came with it."""

    under_way = 0
    failed: FlujoStateError | None = None

    async def _write(self, *args: Any, **kwargs: Any) -> Any:
        self.under_way += 1
        try:
            result = await super()._write(*args, **kwargs)
            if self.failed is not None:
                raise self.failed
        except FlujoStateError as error:
            self.failed = error
            raise
        else:
            return result
        finally:
            self.under_way -= 1
            if not self.under_way:
                self.failed = None


@breaks("G9", "R3")
class WritesTwiceAfterAConflict(MemoryStore):
    """Steps that meet the write of another handle are written, and written again by the retry."""

    def _apply(self, change: Change) -> Outcome:
        outcome = super()._apply(change)
        run = self._data.runs.get(change.run_id)
        if outcome != "applied" and run is not None:
            run.steps.extend(change.steps)
        return outcome


@breaks("G9")
class Overtaking(MemoryBackend):
    """Every second write lets those behind it pass."""

    number = 0

    async def _write(self, *args: Any, **kwargs: Any) -> Any:
        self.number += 1
        if self.number % 2:
            await asyncio.sleep(0)
        return await super()._write(*args, **kwargs)


@breaks("G9")
class GivesUpUnderLoad(MemoryBackend):
    """With 32 writes under way the next one is dropped."""

    under_way = 0

    async def _write(self, *args: Any, **kwargs: Any) -> Any:
        if self.under_way >= 32:
            return 1
        self.under_way += 1
        try:
            return await super()._write(*args, **kwargs)
        finally:
            self.under_way -= 1


@breaks("G9")
class CancelledFirstCallLeavesItShut(MemoryBackend):
    """A handle whose first call was cancelled while it opened never opens."""

    opening = True
    shut = False

    async def _write(self, *args: Any, **kwargs: Any) -> Any:
        if self.shut:
            raise StorageUnavailableError("it was not opened")
        try:
            if self.opening:
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.shut = True
            raise
        self.opening = False
        return await super()._write(*args, **kwargs)


@breaks("G10")
class StaleRead(MemoryBackend):
    """A handle answers from its cache until it writes itself."""

    def __init__(self, name: str = "", **more: Any) -> None:
        super().__init__(name, **more)
        self.cache: dict[str, State | None] = {}

    async def load_state(self, run_id: str) -> State | None:
        if run_id not in self.cache:
            self.cache[run_id] = await super().load_state(run_id)
        return deepcopy(self.cache[run_id])

    async def _write(self, run_id: str, apply: Callable[[Draft], Any], **more: Any) -> Any:
        self.cache.pop(run_id, None)
        return await super()._write(run_id, apply, **more)


@breaks("G10")
class ListsLagBehind(MemoryBackend):
    """Lists are read from a replica that is one list behind."""

    rows: Any = None

    async def _rows(self, query: Any) -> Any:
        rows = await super()._rows(query)
        lagging, self.rows = self.rows, rows
        return rows if lagging is None or len(lagging) != len(rows) else lagging


@breaks("G10")
class TornLoad(MemoryStore):
    """A load reads the snapshot and then its history, and a save may come in between."""

    async def load(self, run_id: str) -> Snapshot | None:
        first = await super().load(run_id)
        await asyncio.sleep(0.0005)
        second = await super().load(run_id)
        return first._replace(history=second.history) if first and second else first


@breaks("G10")
class RemembersTheDeleted(MemoryBackend):
    """After another handle deleted a run, a handle still shows the details that it knew."""

    def __init__(self, name: str = "", **more: Any) -> None:
        super().__init__(name, **more)
        self.known: dict[str, Any] = {}

    async def load_state(self, run_id: str) -> State | None:
        self.known[run_id] = await super().get_run_details(run_id)
        return await super().load_state(run_id)

    async def get_run_details(self, run_id: str) -> dict[str, Any] | None:
        return await super().get_run_details(run_id) or self.known.get(run_id)

    async def delete_run(self, run_id: str) -> bool:
        self.known.pop(run_id, None)
        return await super().delete_run(run_id)


@breaks("G11", "R2")
class ForeignErrors(MemoryBackend):
    """An unknown run is a KeyError."""

    async def save_run_end(self, run_id: str, end_data: Any) -> None:
        try:
            await super().save_run_end(run_id, end_data)
        except RunNotFoundError as error:
            raise KeyError(run_id) from error


@breaks("G11", "S6")
class OneErrorForAll(MemoryBackend):
    """A conflict is an error of the tree, but not of its own class."""

    async def save_state(self, run_id: str, state: State, *, expected_revision: int | None = None) -> int:
        try:
            return await super().save_state(run_id, state, expected_revision=expected_revision)
        except StateConflictError as error:
            raise FlujoStateError(str(error)) from None


class _UnpicklableError(StateConflictError):
    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a connection can't be pickled")


@breaks("G11")
class ErrorsThatCannotBePickled(MemoryBackend):
    """A conflict can't be sent to another process."""

    async def save_state(self, run_id: str, state: State, *, expected_revision: int | None = None) -> int:
        try:
            return await super().save_state(run_id, state, expected_revision=expected_revision)
        except StateConflictError as error:
            raise _UnpicklableError(run_id, expected=error.expected, actual=error.actual) from None


@breaks("G11")
class SilentErrors(MemoryBackend):
    """An error for a wrong state does not say what is wrong."""

    async def save_state(self, run_id: str, state: State, *, expected_revision: int | None = None) -> int:
        try:
            return await super().save_state(run_id, state, expected_revision=expected_revision)
        except InvalidStateError as error:
            raise InvalidStateError("invalid state", path=error.path) from None


@breaks("G11")
class TheDriversErrorAsCause(MemoryBackend):
    """An error carries the driver's own as its cause."""

    async def save_run_end(self, run_id: str, end_data: Any) -> None:
        try:
            await super().save_run_end(run_id, end_data)
        except RunNotFoundError as error:
            raise error from ValueError("driver: password=secret")
