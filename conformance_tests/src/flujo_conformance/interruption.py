"""Where can a call be cancelled? Steps through calls and cancels them at one point after another.

A *point* is a moment at which the loop may go on with something else: a task of the call suspends, or it has made a new
task that has not begun. Its tasks are the callers' own and all that they start, in callbacks too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, Literal

Whom = Literal["caller", "any"]
"""Whose task is cancelled: a caller's, or the very one that is at the point, as when a loop is shut down."""
When = Literal["at once", "late"]
"""Before anything else happens, or when what the task waits for is there, but has not been taken yet."""

MOST: Final = 500
"""A call that has more points than these has no end."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """At which point, counted from 0, whom and when."""

    point: int
    whom: Whom = "caller"
    when: When = "at once"

    def __str__(self) -> str:
        return f"cancelled at point {self.point} ({self.whom}, {self.when})"


class Stepping:
    """The calls that are stepped through."""

    def __init__(self, cancel: Cancel | None, victim: int) -> None:
        self.points = 0
        """How many there were so far."""
        self.done = False
        """Whether the point was reached at which to cancel."""
        self.callers: list[asyncio.Task[Any]] = []
        self._cancel = cancel
        self._victim = victim

    def reached(self, task: asyncio.Task[Any], awaited: Any) -> None:
        """A point: of the task, which waits for a future or (None) for its next turn."""
        cancel, self.points = self._cancel, self.points + 1
        if cancel is None or cancel.point != self.points - 1:
            return
        self.done = True
        victim = task if cancel.whom == "any" else self.callers[self._victim]
        if cancel.when == "at once":
            victim.cancel()
        elif awaited is None:
            task.get_loop().call_soon(victim.cancel)
        else:
            # The task adds its own callback after this one, so it wakes up cancelled, its answer in the future.
            awaited.add_done_callback(lambda _: victim.cancel())


_current: ContextVar[Stepping | None] = ContextVar("stepping", default=None)


class _Stepped(Coroutine[Any, Any, Any]):
    """The coroutine of a task, of which each suspension is a point."""

    def __init__(self, inner: Coroutine[Any, Any, Any], stepping: Stepping) -> None:
        self._inner = inner
        self._stepping = stepping
        self.__name__ = getattr(inner, "__name__", type(inner).__name__)
        self.__qualname__ = getattr(inner, "__qualname__", self.__name__)

    def send(self, value: Any) -> Any:
        return self._suspended(self._inner.send(value))

    def throw(self, *error: Any) -> Any:
        return self._suspended(self._inner.throw(*error))

    def _suspended(self, awaited: Any) -> Any:
        task = asyncio.current_task()
        assert task is not None
        self._stepping.reached(task, awaited)
        return awaited

    def close(self) -> None:
        self._inner.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return (yield from self._inner.__await__())


def _make_task(loop: asyncio.AbstractEventLoop, coroutine: Any, **how: Any) -> asyncio.Task[Any]:
    stepping = _current.get()
    if stepping is None:
        return asyncio.Task(coroutine, loop=loop, **how)
    task: asyncio.Task[Any] = asyncio.Task(_Stepped(coroutine, stepping), loop=loop, **how)
    if stepping.callers:
        stepping.reached(task, None)
    return task


async def step(
    calls: Sequence[Coroutine[Any, Any, Any]], cancel: Cancel | None, *, victim: int = 0, limit: float = 10
) -> tuple[Stepping, list[Any]]:
    """Make the calls at the same time and cancel at a point, ``victim`` being the caller's place among them.

    Returns what became of each: its answer, or the error that it raised. Calls that don't end within ``limit`` seconds
    are a `TimeoutError`.
    """
    loop = asyncio.get_running_loop()
    stepping, factory = Stepping(cancel, victim), loop.get_task_factory()
    loop.set_task_factory(_make_task)
    token = _current.set(stepping)
    try:
        # All of them before the first begins.
        callers = [loop.create_task(call) for call in calls]
        stepping.callers = callers
        _current.reset(token)
        _, late = await asyncio.wait(callers, timeout=limit)
    finally:
        loop.set_task_factory(factory)
    if late:
        for caller in late:
            caller.cancel()
        raise TimeoutError(f"{len(late)} of {len(callers)} calls had no end within {limit:g} s, {cancel}")
    return stepping, [_outcome(caller) for caller in callers]


def _outcome(caller: asyncio.Task[Any]) -> Any:
    if caller.cancelled():
        return asyncio.CancelledError()
    return caller.exception() or caller.result()


async def at_every_point(
    trial: Callable[[Cancel], Awaitable[Stepping]], whom: Whom = "caller", when: When = "at once", *, stride: int = 1
) -> int:
    """Repeat a trial with a cancellation at its first point, its second … until it ends before; how many points.

    Beyond the first eight only every so many, if ``stride`` says so. Threads and servers answer in their own time, so
    the number of points may vary a little from one to the next.
    """
    point = 0
    while True:
        stepping = await trial(Cancel(point, whom, when))
        if not stepping.done:
            return stepping.points
        if point >= MOST:
            raise AssertionError(f"there is no end after {MOST} points")
        point += 1 if point < 8 else stride
