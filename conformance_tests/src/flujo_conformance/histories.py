"""What did clients that called at the same time get? They are in one event loop, in threads or in processes."""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import IO, Any, Self

from flujo_core import StateBackend
from flujo_core.errors import OutcomeUnknownError, StateConflictError

from .answers import Call, ask
from .harness import Harness
from .linearizability import UNKNOWN, Operation


@dataclass(frozen=True, slots=True)
class Turn:
    """What a client does next: let others go first so often, then call."""

    pauses: int
    call: Call
    cancelled_after: int | None = None
    """Let others go first so often while the call is under way, and then cancel it."""


@dataclass(frozen=True, slots=True)
class Client:
    name: str
    turns: tuple[Turn, ...]
    handle: int = 0
    """Which of several handles it uses, where there are several."""


async def play(backend: StateBackend, clients: Sequence[Client], now: Callable[[], int]) -> list[Operation]:
    """All clients at once on one handle; what each of them called, and when by the clock ``now``."""
    history: list[Operation] = []
    await asyncio.gather(*(_play(backend, client, now, history) for client in clients))
    return history


async def _play(backend: StateBackend, client: Client, now: Callable[[], int], history: list[Operation]) -> None:
    for turn in client.turns:
        await _pause(turn.pauses)
        invoked = now()
        answer = await _take(backend, turn)
        history.append(Operation(client.name, turn.call, invoked, now(), answer))


async def _pause(turns: int) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


async def _take(backend: StateBackend, turn: Turn) -> Any:
    if turn.cancelled_after is None:
        answer = await ask(backend, turn.call)
    else:
        asked = asyncio.ensure_future(ask(backend, turn.call))
        await _pause(turn.cancelled_after)
        asked.cancel()
        await asyncio.wait([asked])
        answer = UNKNOWN if asked.cancelled() else asked.result()
    return UNKNOWN if isinstance(answer, OutcomeUnknownError) else answer


async def play_timed(backend: StateBackend, clients: Sequence[Client]) -> list[Operation]:
    """The same, by a clock that all threads and processes of a machine share."""
    return await play(backend, clients, time.monotonic_ns)


async def count(backend: StateBackend, run_id: str, times: int) -> int:
    """Adds 1 to the snapshot's ``mine`` so often, as a careful caller does; how often another one came in between."""
    conflicts = 0
    for _ in range(times):
        while True:
            state = await backend.load_state(run_id)
            assert state is not None
            try:
                more = {**state, "mine": state["mine"] + 1}
                await backend.save_state(run_id, more, expected_revision=state["revision"])
                break
            except StateConflictError:
                conflicts += 1
    return conflicts


Work = tuple[Callable[..., Coroutine[Any, Any, Any]], tuple[Any, ...]]
"""A coroutine function whose first argument is a backend, and its other arguments."""


class Threads:
    """Event loops in threads of their own, each of which uses one of the backends."""

    def __init__(self, backends: Iterable[StateBackend]) -> None:
        self._backends = list(backends)
        self._loops = [asyncio.new_event_loop() for _ in self._backends]
        self._threads = [threading.Thread(target=loop.run_forever, daemon=True) for loop in self._loops]

    def __enter__(self) -> Self:
        self._interval = sys.getswitchinterval()
        # Threads take turns so often that they meet in the middle of a call.
        sys.setswitchinterval(1e-5)
        for thread in self._threads:
            thread.start()
        return self

    def together(self, works: Sequence[Work]) -> list[Any]:
        """What the works return, one in each thread, begun at the same time."""
        barrier = threading.Barrier(len(works))

        async def begin(backend: StateBackend, work: Work) -> Any:
            barrier.wait(20)
            function, args = work
            return await function(backend, *args)

        places = zip(self._loops, self._backends, works, strict=False)
        begun = [asyncio.run_coroutine_threadsafe(begin(backend, work), loop) for loop, backend, work in places]
        return [one.result(60) for one in begun]

    def __exit__(self, *error: object) -> None:
        sys.setswitchinterval(self._interval)
        for loop, backend in zip(self._loops, self._backends, strict=True):
            asyncio.run_coroutine_threadsafe(backend.shutdown(), loop).result(20)
        for loop, thread in zip(self._loops, self._threads, strict=True):
            loop.call_soon_threadsafe(loop.stop)
            thread.join(20)
            loop.close()


_CHILD = """
import pickle, sys
sys.path[:] = pickle.load(sys.stdin.buffer)
from flujo_conformance.histories import serve
serve(sys.stdin.buffer, sys.stdout.buffer)
"""


def serve(orders: IO[bytes], answers: IO[bytes]) -> None:
    """The life of a child of `Processes`: a handle, on which it does what it is told at the moment it is told."""
    harness, namespace, at = pickle.load(orders)
    backend = harness.open(namespace)
    backend.clock = lambda: at

    def tell(answer: Any) -> None:
        pickle.dump(answer, answers)
        answers.flush()

    with asyncio.Runner() as runner:
        runner.run(backend.count_runs())
        tell("ready")
        while (order := pickle.load(orders)) is not None:
            begin, (function, args) = order
            time.sleep(max(0, begin - time.monotonic_ns()) / 1e9)
            tell(runner.run(function(backend, *args)))
        runner.run(backend.shutdown())


class Processes:
    """Other processes, each with a handle of its own whose clock stands still at ``at``."""

    def __init__(self, harness: Harness, namespace: str, at: datetime, *, number: int = 2, seconds: float = 90) -> None:
        self._task = (harness, namespace, at)
        self._number = number
        self._deadline = threading.Timer(seconds, self._kill)
        self._deadline.daemon = True
        self._children: list[subprocess.Popen[bytes]] = []
        self._said: list[IO[bytes]] = []

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        for _ in range(self._number):
            said = self._stack.enter_context(tempfile.TemporaryFile())
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": said}
            child = subprocess.Popen([sys.executable, "-c", _CHILD], **pipes)  # type: ignore[call-overload]
            self._said.append(said)
            self._children.append(child)
            self._stack.enter_context(child)
        self._deadline.start()
        try:
            self._tell([sys.path] * self._number)
            self._tell([self._task] * self._number)
            assert self._answers() == ["ready"] * self._number
        except BaseException:
            self._close(kill=True)
            raise
        return self

    def together(self, works: Sequence[Work]) -> list[Any]:
        """What the works return, one in each process, begun at the same time."""
        begin = time.monotonic_ns() + 10_000_000
        self._tell([(begin, work) for work in works])
        return self._answers()

    def _tell(self, orders: Sequence[Any]) -> None:
        for child, order in zip(self._children, orders, strict=True):
            assert child.stdin is not None
            pickle.dump(order, child.stdin)
            child.stdin.flush()

    def _answers(self) -> list[Any]:
        found = []
        for child, said in zip(self._children, self._said, strict=True):
            assert child.stdout is not None
            try:
                found.append(pickle.load(child.stdout))
            except EOFError:
                child.wait()
                said.seek(0)
                raise AssertionError(f"a process ended with {child.returncode}: {said.read().decode()}") from None
        return found

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._tell([None] * self._number)
        self._close(kill=kind is not None)

    def _close(self, *, kill: bool) -> None:
        if kill:
            self._kill()
        with self._stack:
            for child in self._children:
                child.wait()
        self._deadline.cancel()

    def _kill(self) -> None:
        for child in self._children:
            child.kill()
