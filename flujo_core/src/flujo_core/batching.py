"""How do many small writes become few commits? Group commit, without a timer.

While one batch is being committed, the next one gathers; a write that finds nothing under way goes at once. A store may
take several batches side by side, of different runs. Operations on one run apply in call order, each on what the one
before it left; a run is named once in a batch. The heads of recently written runs are kept as the *expectation* of the
next commit: if another process wrote meanwhile, the store answers with what is there instead, and the operations are
applied anew to that.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final

from .errors import FlujoStateError, OutcomeUnknownError, StorageError
from .runs import Base, Draft
from .store import APPLIED, BUSY, Change, CommitUnknown, Interrupted, Outcome, Store, StoredRun

MAX_BYTES: Final = 8 * 1024 * 1024
MAX_HEADS: Final = 4096
"""How many runs' heads are kept as expectations …"""
MAX_HEADS_SIZE: Final = 32 * 1024 * 1024
"""… and how many bytes they may take, beyond the runs themselves."""
MAX_CONTRADICTIONS: Final = 5
"""How often in a row a store may answer that what is stored is as expected, and yet not apply the change. It happens
where the run was written and removed again between its compare-and-swap and its look at what is stored."""


@dataclass(slots=True, eq=False)
class Operation:
    """One public write. ``apply`` checks and changes a draft, and may be called again on a newer one."""

    run_id: str
    apply: Callable[[Draft], Any]
    size: int = 0
    """Bytes of documents, to bound a batch."""
    record_id: str | None = None
    """The step record that it replaces, if there is one."""
    solo: bool = False
    """Not together with another operation on the same run."""
    future: asyncio.Future[Any] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class _Work:
    """The operations of one batch on one run, and where they stand."""

    __slots__ = ("base", "change", "contradictions", "draft", "fresh", "operations", "results", "run_id", "sent")

    def __init__(self, run_id: str, operations: list[Operation], base: Base | None) -> None:
        self.run_id = run_id
        self.operations = operations
        self.base = base
        self.fresh = False
        """Whether ``base`` was read for these operations, so that it may be answered from."""
        self.draft: Draft | None = None
        self.change: Change | None = None
        self.results: list[tuple[Operation, Any, BaseException | None]] = []
        self.sent: list[bytes] = []
        """Operation ids of commits whose answer was lost."""
        self.contradictions = 0


class _Heads:
    """The heads of recently written runs, in the order of writing."""

    def __init__(self) -> None:
        self._heads: OrderedDict[str, Base] = OrderedDict()
        self._size = 0

    def get(self, run_id: str) -> Base | None:
        return self._heads.get(run_id)

    def put(self, run_id: str, head: Base | None) -> None:
        """None: forget it."""
        old = self._heads.pop(run_id, None)
        self._size -= old.size if old else 0
        if head is None:
            return
        self._heads[run_id] = head
        self._size += head.size
        while len(self._heads) > MAX_HEADS or self._size > MAX_HEADS_SIZE:
            _, oldest = self._heads.popitem(last=False)
            self._size -= oldest.size


class Batcher:
    """The writes of one store, from one event loop."""

    def __init__(self, store: Store, *, deadline: float) -> None:
        self._store = store
        self._deadline = deadline
        self._waiting: deque[Operation] = deque()
        self._heads = _Heads()
        self._lanes: set[asyncio.Task[None]] = set()
        """What commits batch after batch, while there is something to gather."""
        self._beginning = False
        """Whether there is a lane that hasn't gathered its first batch yet."""
        self._writing: set[str] = set()
        """Runs of the batches under way."""
        self._apart: dict[str, asyncio.Task[None]] = {}
        """Runs that another writer held up: each is committed alone, beside the batches."""

    async def submit(self, operation: Operation) -> Any:
        """The operation's result, once it is durable. A cancelled caller's write is not begun, or ends."""
        self._waiting.append(operation)
        self._begin_if_due()
        return await operation.future

    async def drain(self) -> None:
        """Wait until everything submitted is settled."""
        while tasks := [*self._lanes, *self._apart.values()]:
            await asyncio.wait(tasks)

    def _begin_if_due(self) -> None:
        """Begin a lane, if there is none, or if many operations wait and the store takes one more batch."""
        if not self._waiting or self._beginning:
            return
        many = len(self._waiting) >= self._store.batch_size // 2
        if self._lanes and not (many and len(self._lanes) < self._store.commits_at_once):
            return
        self._beginning = True
        lane = asyncio.get_running_loop().create_task(self._run(), name="flujo group commit")
        self._lanes.add(lane)
        lane.add_done_callback(self._ended)

    async def _run(self) -> None:
        lane = asyncio.current_task()
        assert lane is not None
        try:
            while batch := self._gather():
                self._beginning = False
                self._begin_if_due()
                runs = {work.run_id for work in batch}
                self._writing |= runs
                try:
                    await self._settle(batch)
                finally:
                    self._writing -= runs
        finally:
            # At once, for whoever submits next. Operations that are left wait for a run of another lane, which goes on
            # with them, or for one apart, at whose end a lane begins.
            self._lanes.discard(lane)
            self._beginning = False

    def _ended(self, lane: asyncio.Task[None]) -> None:
        """A task that is cancelled before it begins runs no line of its own."""
        if lane in self._lanes:
            self._lanes.discard(lane)
            self._beginning = False
        if not self._lanes and (lane.cancelled() or lane.exception()):
            self._cancel_waiting()

    def _cancel_waiting(self) -> None:
        """The loop is ending."""
        for operation in self._waiting:
            _cancel(operation)
        self._waiting.clear()

    def _gather(self) -> list[_Work]:
        """The next batch, in byte order of run_id (text sorts as its UTF-8); what can't go yet stays in order."""
        by_run: dict[str, list[Operation]] = {}
        left: list[Operation] = []
        blocked = self._writing.union(self._apart)
        count = size = 0
        while self._waiting and count < self._store.batch_size and (size < MAX_BYTES or not count):
            operation = self._waiting.popleft()
            if operation.future.cancelled():
                continue
            group = by_run.get(operation.run_id)
            if operation.run_id in blocked or (group and (operation.solo or group[0].solo)):
                blocked.add(operation.run_id)
                left.append(operation)
                continue
            by_run.setdefault(operation.run_id, []).append(operation)
            count, size = count + 1, size + operation.size
        self._waiting.extendleft(reversed(left))
        return [_Work(run_id, by_run[run_id], self._heads.get(run_id)) for run_id in sorted(by_run)]

    async def _settle(self, batch: list[_Work]) -> None:
        """Commit a batch; no operation is left without an answer, whatever happens."""
        try:
            await self._commit(batch, monotonic() + self._deadline)
        except BaseException as error:
            for work in batch:
                self._heads.put(work.run_id, None)
                if work.sent and isinstance(error, Exception):
                    self._unknown(work)
                else:
                    _fail(work.operations, error)
            if not isinstance(error, Exception):
                raise

    async def _commit(self, batch: list[_Work], give_up: float) -> None:
        attempt = 0
        while batch := await self._prepare(batch):
            changes = [work.change for work in batch if work.change is not None]
            try:
                outcomes = await self._store.commit(changes)
            except Interrupted as signal:
                attempt += 1
                if not await self._pause(attempt, give_up):
                    self._give_up(batch, signal)
                    return
            except CommitUnknown as signal:
                attempt += 1
                if not any(work.sent for work in batch):
                    # However late it is, look.
                    give_up = max(give_up, monotonic() + min(self._deadline, 1.0))
                for work in batch:
                    work.sent.append(_operation_id(work))
                batch = await self._look(batch, signal, attempt, give_up)
            except FlujoStateError:
                if len(batch) == 1:
                    if not batch[0].sent:
                        raise
                    # This try had no effect, but an earlier one may have had.
                    self._unknown(batch[0])
                    return
                # One bad operation fails alone.
                for work in batch:
                    await self._settle([work])
                return
            else:
                batch = self._unsettled(batch, outcomes)

    async def _prepare(self, batch: list[_Work]) -> list[_Work]:
        """Apply the operations of each run to what is expected to be stored; those that have something to write."""
        for work in batch:
            await self._apply(work)
        # Without a write there is no compare-and-swap, so an answer needs what is stored now.
        idle = [work for work in batch if work.change is None and not work.fresh]
        if idle:
            stored = await self._read(idle)
            for work in idle:
                if self._rebase(work, stored.get(work.run_id)):
                    await self._apply(work)
                else:
                    batch = [other for other in batch if other is not work]
        for work in batch:
            if work.change is None:
                self._answer(work)
        return [work for work in batch if work.change is not None]

    async def _read(self, works: Iterable[_Work]) -> dict[str, StoredRun]:
        return await self._store.stored_runs([work.run_id for work in works])

    async def _apply(self, work: _Work) -> None:
        costs = {}
        for operation in work.operations:
            if operation.record_id is not None and work.base is not None and work.base.costs is None:
                costs[operation.record_id] = await self._store.step_cost(work.run_id, operation.record_id)
        draft = Draft(work.run_id, work.base, costs)
        work.results = []
        for operation in work.operations:
            try:
                work.results.append((operation, operation.apply(draft), None))
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the caller's
                work.results.append((operation, None, error))
        work.draft, work.change = draft, draft.finish(os.urandom(16))

    def _unsettled(self, batch: list[_Work], outcomes: list[Outcome]) -> list[_Work]:
        """Answer what a commit settled; those whose operations are to be tried again."""
        if not isinstance(outcomes, list | tuple) or len(outcomes) != len(batch):
            for work in batch:
                self._refuse(work, f"{_kind(outcomes)} instead of a list of {len(batch)}")
            return []
        return [work for work, outcome in zip(batch, outcomes, strict=True) if not self._settled(work, outcome)]

    def _settled(self, work: _Work, outcome: Outcome) -> bool:
        """Answer what was applied; False if the operations are to be tried again on what is stored instead."""
        if outcome == APPLIED:
            self._answer(work)
        elif outcome == BUSY:
            self._set_apart(work)
        elif outcome is not None and not isinstance(outcome, StoredRun):
            self._refuse(work, f"{_kind(outcome)} instead of an outcome")
        elif work.sent:
            self._recognise(work, outcome)
        elif self._is_refuted(work, outcome):
            self._refuse(work, "that what is stored is as expected, and yet did not apply the change,")
        else:
            return not self._rebase(work, outcome)
        return True

    def _is_refuted(self, work: _Work, outcome: StoredRun | None) -> bool:
        """Whether the store has contradicted itself too often; else core would try again for ever."""
        assert work.change is not None
        if work.change.expected == (outcome.operation_id if outcome else None):
            work.contradictions += 1
        else:
            work.contradictions = 0
        return work.contradictions >= MAX_CONTRADICTIONS

    def _refuse(self, work: _Work, answer: str) -> None:
        """The operations fail for an answer that no store may give."""
        if work.sent:
            self._unknown(work)
            return
        self._heads.put(work.run_id, None)
        message = f"the store answered {answer} for run {work.run_id!r}; this is a bug of the backend"
        _fail(work.operations, StorageError(message))

    def _rebase(self, work: _Work, stored: StoredRun | None) -> bool:
        """Expect what is stored. False if this code can't read it (D6): this run's operations fail, no other's."""
        try:
            work.base, work.fresh = Base.of(stored) if stored else None, True
        except FlujoStateError as error:
            self._heads.put(work.run_id, None)
            _fail(work.operations, error)
            return False
        return True

    def _recognise(self, work: _Work, stored: StoredRun | None) -> None:
        """Answer operations of which a commit lost its answer, from what is stored after it."""
        assert work.change is not None
        if stored is not None and stored.operation_id in work.sent:
            self._answer(work, stored.operation_id)
        elif stored is None and work.change.row is None:
            self._answer(work)
        else:
            # Somebody wrote the run since: before our commit or after it, nobody can tell.
            self._unknown(work)

    def _set_apart(self, work: _Work) -> None:
        def ended(task: asyncio.Task[None]) -> None:
            # Locked anew, it has been set apart once more: that task holds the place now.
            if self._apart.get(work.run_id) is task:
                del self._apart[work.run_id]
            if task.cancelled():  # perhaps before it began
                _fail(work.operations, asyncio.CancelledError())
                if not self._lanes:
                    self._cancel_waiting()
            self._begin_if_due()

        task = asyncio.get_running_loop().create_task(self._settle([work]), name="flujo commit of a locked run")
        self._apart[work.run_id] = task
        task.add_done_callback(ended)

    def _answer(self, work: _Work, operation_id: bytes | None = None) -> None:
        assert work.draft is not None
        head = work.draft.result()
        if head is not None and operation_id is not None:
            head.run.operation_id = operation_id
        self._heads.put(work.run_id, head)
        for operation, result, error in work.results:
            if operation.future.done():
                continue
            if error is not None:
                operation.future.set_exception(error)
            else:
                operation.future.set_result(result)

    # --- when a commit gets no answer ---

    async def _pause(self, attempt: int, give_up: float) -> bool:
        """Wait a little, longer each time; whether there is time for another try."""
        wait = random.uniform(0.5, 1.5) * min(0.001 * 2 ** min(attempt, 10), 0.5)
        if monotonic() + wait >= give_up:
            return False
        await asyncio.sleep(wait)
        return True

    async def _look(self, batch: list[_Work], signal: CommitUnknown, attempt: int, give_up: float) -> list[_Work]:
        """After a commit without an answer: settle what can be told, give back what was certainly not applied yet."""
        while True:
            if not await self._pause(attempt, give_up):
                self._give_up(batch, signal)
                return []
            try:
                stored = await self._read(batch)
                break
            except (Interrupted, FlujoStateError):
                attempt += 1
        again = []
        for work in batch:
            found = stored.get(work.run_id)
            assert work.change is not None
            if work.change.expected == (found.operation_id if found else None):
                # Not applied, or not yet: if the first commit still comes through, the compare-and-swap tells.
                again.append(work)
            else:
                self._recognise(work, found)
        return again

    def _give_up(self, batch: list[_Work], signal: Interrupted | CommitUnknown) -> None:
        for work in batch:
            if work.sent:
                self._unknown(work)
            else:
                self._heads.put(work.run_id, None)
                _fail(work.operations, signal.error)

    def _unknown(self, work: _Work) -> None:
        self._heads.put(work.run_id, None)
        error = OutcomeUnknownError(
            f"run {work.run_id!r}: the connection was lost while the write was being committed, and it can't be told "
            "whether it was; load the run before you repeat it"
        )
        _fail(work.operations, error)


def _operation_id(work: _Work) -> bytes:
    row = work.change.row if work.change else None
    return row.operation_id if row else b""


def _kind(answer: object) -> str:
    """In a few words, and with nothing of what is stored."""
    if answer is None or isinstance(answer, bool):
        return repr(answer)
    length = f" of {len(answer)}" if isinstance(answer, list | tuple) else ""
    return f"a {type(answer).__name__}{length}"


def _fail(operations: list[Operation], error: BaseException) -> None:
    """Each waiter gets an exception of its own: one object raised in two tasks mixes their tracebacks."""
    for operation in operations:
        if operation.future.done():
            continue
        if isinstance(error, Exception):
            twin = copy(error)
            twin.__cause__ = error.__cause__
            operation.future.set_exception(twin)
        else:
            _cancel(operation)


def _cancel(operation: Operation) -> None:
    # A loop that was dropped in the middle takes its callers with it.
    if not operation.future.get_loop().is_closed():
        operation.future.cancel()
