"""Is there an order of concurrent calls, consistent with real time, in which the oracle gives every one its answer?

That is linearizability (Herlihy and Wing, "Linearizability: a correctness condition for concurrent objects", 1990).
The search is that of Wing and Gong ("Testing and verifying concurrent objects", 1993) with the memory that Lowe added
to it ("Testing for linearizability", 2017): a set of calls that are done and a state of the oracle are looked at once,
however many orders lead there.

Linearizability is local: a history of several objects is linearizable if and only if its projection on each of them
is. Here the objects are runs, so each run is searched alone. The run of a call is its first argument, or the
``run_id`` in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from graphlib import TopologicalSorter
from itertools import pairwise
from math import inf
from typing import Any, Final

from flujo_core.errors import FlujoStateError, StateConflictError

from .answers import Call, brief, disagreement, written


class Unknown(Enum):
    """The type of `UNKNOWN`; the member of an Enum is itself in another process too."""

    UNKNOWN = "unknown"

    def __repr__(self) -> str:
        return "?"


UNKNOWN: Final = Unknown.UNKNOWN
"""The client died, gave up or was cancelled before the answer: the call happened at any time since, or never."""

READS: Final = ("load", "get", "list", "count", "iter")
"""How the names of methods that change nothing begin."""


@dataclass(frozen=True, eq=False, slots=True)
class Operation:
    """A call and what it answered. Times are of any one clock; a call is before another if it returned earlier than
    that one was invoked."""

    client: str
    call: Call
    invoked: int
    returned: int
    answer: Any = UNKNOWN
    """A value, or the `FlujoStateError` that was raised."""

    @property
    def run_id(self) -> Any:
        first = self.call[1][0]
        return first["run_id"] if isinstance(first, dict) else first

    @property
    def pending(self) -> bool:
        return self.answer is UNKNOWN

    @property
    def idle(self) -> bool:
        """Whether it has changed nothing, whenever it happened: it reads, or it failed."""
        return isinstance(self.answer, FlujoStateError) or self.call[0].startswith(READS)

    @property
    def settled(self) -> float:
        """From when on it has happened for certain."""
        return inf if self.pending else self.returned

    def __str__(self) -> str:
        return f"{self.client}: {written(self.call)} -> {brief(self.answer)}"


ModelFactory = Callable[[], Any]
"""Makes the oracle, empty. It has the methods that are called, raises what they raise, and can be deep-copied; what
tells two of its states apart is the repr of its attributes."""


def linearize(history: Sequence[Operation], model_factory: ModelFactory) -> list[Operation] | None:
    """The calls in an order in which the oracle agrees with all answers, None if there is none.

    Pending calls are in it if they have to have happened.
    """
    orders = []
    for operations in by_run(history).values():
        order = _Search(operations, model_factory).order
        if order is None:
            return None
        orders.append(order)
    return _merged(orders)


def explain(history: Sequence[Operation], model_factory: ModelFactory) -> str:
    """Why there is no order, for a reader; empty if there is one."""
    for run_id, operations in by_run(history).items():
        search = _Search(operations, model_factory)
        if search.order is None:
            return "\n".join(_explained(run_id, search))
    return ""


def by_run(history: Sequence[Operation]) -> dict[Any, list[Operation]]:
    """The projections of a history, each in the order in which its calls were invoked."""
    found: dict[Any, list[Operation]] = {}
    for operation in sorted(history, key=lambda operation: (operation.invoked, operation.settled)):
        found.setdefault(operation.run_id, []).append(operation)
    return found


def most_overlapping(history: Sequence[Operation]) -> int:
    """How many calls on one run were under way at the same time, at most."""
    most = 0
    for operations in by_run(history).values():
        for one in operations:
            most = max(most, sum(other.invoked <= one.invoked <= other.settled for other in operations))
    return most


def _merged(orders: list[list[Operation]]) -> list[Operation]:
    """One order out of those of the runs and of real time; that there is one is why linearizability is local."""
    sorter: TopologicalSorter[Operation] = TopologicalSorter()
    every = [operation for order in orders for operation in order]
    for order in orders:
        for before, after in pairwise(order):
            sorter.add(after, before)
    for operation in every:
        sorter.add(operation, *(other for other in every if other.settled < operation.invoked))
    return list(sorter.static_order())


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the search is: which calls are done, as bits, the oracle's state, and the way here."""

    done: int
    state: int
    order: tuple[int, ...] = ()

    def after(self, number: int, state: int) -> _Place:
        return _Place(self.done | 1 << number, state, (*self.order, number))


class _Search:
    """Over the calls of one run."""

    def __init__(self, operations: list[Operation], model_factory: ModelFactory) -> None:
        # The one that returned first is tried first: most often it did happen first.
        self.operations = sorted(operations, key=lambda operation: operation.settled)
        self._before = [
            sum(1 << number for number, other in enumerate(self.operations) if other.settled < operation.invoked)
            for operation in self.operations
        ]
        """For each call the bits of those that are before it."""
        self._answered = sum(1 << number for number, one in enumerate(self.operations) if not one.pending)
        self._models: list[Any] = []
        self._states: dict[str, int] = {}
        self._steps: dict[tuple[int, int], tuple[int, str | None]] = {}
        self.best = _Place(0, self._state(model_factory()))
        """The longest prefix that was found."""

    @cached_property
    def order(self) -> list[Operation] | None:
        waiting, seen = [self.best], set()
        while waiting:
            place = self._settled(waiting.pop())
            if (place.done, place.state) in seen:
                continue
            seen.add((place.done, place.state))
            if len(place.order) > len(self.best.order):
                self.best = place
            if place.done & self._answered == self._answered:
                return [self.operations[number] for number in place.order]
            after = [place.after(number, self._step(place.state, number)[0]) for number in self._agreeing(place)]
            waiting.extend(reversed(after))
        return None

    def candidates(self, place: _Place) -> Iterator[int]:
        """The calls that may come next: all those before them are done."""
        for number, before in enumerate(self._before):
            if not place.done >> number & 1 and before & ~place.done == 0:
                yield number

    def _agreeing(self, place: _Place) -> Iterator[int]:
        for number in self.candidates(place):
            operation = self.operations[number]
            # Whether a pending read happened is all the same.
            if not (operation.pending and operation.idle) and self.why_not(place, number) is None:
                yield number

    def _settled(self, place: _Place) -> _Place:
        """With all idle calls done that agree: an order that has one of them later has a twin that has it now."""
        while True:
            idle = [number for number in self._agreeing(place) if self.operations[number].idle]
            if not idle:
                return place
            for number in idle:
                place = place.after(number, place.state)

    def why_not(self, place: _Place, number: int) -> str | None:
        """How the oracle's answer differs; None if it doesn't."""
        return self._step(place.state, number)[1]

    def _step(self, state: int, number: int) -> tuple[int, str | None]:
        """The state after a call, and how the oracle's answer differs from the one that was given."""
        known = self._steps.get((state, number))
        if known is None:
            model, operation = deepcopy(self._models[state]), self.operations[number]
            wanted = _answer(model, operation.call)
            why = None if operation.pending else _difference(operation.call, wanted, operation.answer)
            known = self._steps[state, number] = (self._state(model), why)
        return known

    def _state(self, model: Any) -> int:
        number = self._states.setdefault(repr(vars(model)), len(self._models))
        if number == len(self._models):
            self._models.append(model)
        return number


def _answer(model: Any, call: Call) -> Any:
    method, args, kwargs = call
    try:
        return getattr(model, method)(*args, **kwargs)
    except FlujoStateError as error:
        return error


def _difference(call: Call, wanted: Any, got: Any) -> str | None:
    found = disagreement(call, wanted, got)
    if found is None and isinstance(wanted, StateConflictError) and str(wanted) != str(got):
        # Which revision was in the way tells when it was.
        return f"{brief(wanted)} against {brief(got)}"
    return found


def _explained(run_id: Any, search: _Search) -> Iterator[str]:
    place, operations = search.best, search.operations
    yield f"in no order of these calls on run {run_id!r} does the oracle give each its answer:"
    yield ""
    yield from timeline(operations)
    yield ""
    yield f"this much can be ordered, {len(place.order)} of {len(operations)} calls:"
    yield from (f"{position:4}. {operations[number]}" for position, number in enumerate(place.order, 1))
    yield "what may come next does not agree, expected against actual:"
    for number in search.candidates(place):
        why = search.why_not(place, number) or "it agrees, but then no order has the others"
        yield f"      {operations[number]}"
        yield f"          {why}"


def timeline(operations: Sequence[Operation]) -> Iterator[str]:
    """A line for each call: its client, from when to when it was under way, its answer. ``>`` is no end."""
    times = sorted({time for one in operations for time in (one.invoked, one.settled) if time != inf})
    column = {time: number for number, time in enumerate(times)} | {inf: len(times)}
    width = max(len(one.client) for one in operations)
    for one in sorted(operations, key=lambda one: (one.invoked, one.settled)):
        begin, end = column[one.invoked], column[one.settled]
        bar = "[" + "-" * (end - begin - 1) + (">" if one.pending else "]") if end > begin else "|"
        drawn = (" " * begin + bar).ljust(len(times) + 1)
        yield f"    {one.client:{width}} {drawn} {written(one.call)} -> {brief(one.answer)}"
