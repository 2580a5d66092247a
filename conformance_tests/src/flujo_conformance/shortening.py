"""Which few calls does a difference need? A trace without the steps and the parts of arguments that it shows without.

Every attempt is one replay. Shrinking the draws of the state machine instead takes thousands of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from .answers import Call
from .call_trace import Ask, SetClock, Step, Trace
from .harness import Harness
from .panel import ORACLE
from .replay import play, replay

REPLAYS: Final = 500
"""The most that are tried: a number, as a limit in seconds would give another trace on each computer."""

Steps = tuple[Step, ...]


def shortest(trace: Trace, harnesses: Mapping[str, Harness], *, reference: str = ORACLE) -> Trace:
    """The trace up to its first difference, without what the difference doesn't need.

    A trace that shows none when it is replayed stays as it is.
    """
    differing = next((one.number for one in replay(trace, harnesses, reference=reference) if one.first), None)
    if differing is None:
        return trace

    def differs_at_its_end(steps: Steps) -> bool:
        for number, _, answered in play(steps, harnesses):
            if any(one.first_difference(reference) for one in answered):
                return number == len(steps) - 1
        return False

    return replace(trace, steps=_Attempts(trace.steps[: differing + 1], differs_at_its_end).made())


class _Attempts:
    def __init__(self, steps: Steps, still: Callable[[Steps], bool]) -> None:
        self._steps = steps
        self._still = still
        self._left = REPLAYS

    def made(self) -> Steps:
        before: Steps = ()
        # Replays with one handle of each backend take less time, and read better.
        self._try(tuple(step if isinstance(step, SetClock) else replace(step, handle=0) for step in self._steps))
        while before != self._steps and self._left > 0:
            before = self._steps
            self._remove_steps()
            for place in range(len(self._steps) - 1, -1, -1):
                self._simplify(place)
        return self._steps

    def _try(self, steps: Steps) -> bool:
        if self._left <= 0:
            return False
        self._left -= 1
        if self._still(steps):
            self._steps = steps
            return True
        return False

    def _remove_steps(self) -> None:
        # The clock's first setting stays: what comes after it would mean something else at another time.
        first = 1 if isinstance(self._steps[0], SetClock) else 0
        size = max(1, (len(self._steps) - first) // 2)
        while size:
            end = len(self._steps) - 1  # the last step shows the difference
            while end > first:
                begin = max(first, end - size)
                self._try(self._steps[:begin] + self._steps[end:])
                end = begin
            size //= 2

    def _simplify(self, place: int) -> None:
        """The first simpler form of a step that still differs, and then of that one, until there is none."""
        while any(
            self._try((*self._steps[:place], simpler, *self._steps[place + 1 :]))
            for simpler in _simpler_steps(self._steps[place])
        ):
            pass


def _simpler_steps(step: Step) -> Iterator[Step]:
    if not isinstance(step, Ask):
        return
    calls = step.calls
    if len(calls) > 1:
        yield from (Ask(step.handle, (call,)) for call in calls)
        yield from (Ask(step.handle, calls[:number] + calls[number + 1 :]) for number in range(len(calls)))
    if step.handle:
        yield Ask(0, calls)
    for number, call in enumerate(calls):
        for simpler in _simpler_calls(call):
            yield Ask(step.handle, (*calls[:number], simpler, *calls[number + 1 :]))


def _simpler_calls(call: Call) -> Iterator[Call]:
    method, args, kwargs = call
    for fewer in _simpler(kwargs):
        yield method, args, fewer
    for number, arg in enumerate(args):
        for simpler in _simpler(arg):
            yield method, (*args[:number], simpler, *args[number + 1 :]), kwargs


def _simpler(value: Any) -> Iterator[Any]:
    """Values of the same type that say less."""
    if isinstance(value, dict):
        for key in value:
            yield {other: member for other, member in value.items() if other != key}
        for key, member in value.items():
            yield from ({**value, key: simpler} for simpler in _simpler(member))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield value[:number] + value[number + 1 :]
            yield from ([*value[:number], simpler, *value[number + 1 :]] for simpler in _simpler(item))
    elif type(value) is int and abs(value) > 2**63:
        yield 2**63
