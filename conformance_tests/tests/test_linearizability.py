"""Does the search find an order exactly where there is one, and say so where there is none?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flujo_conformance.answers import Call
from flujo_conformance.linearizability import (
    UNKNOWN,
    Operation,
    by_run,
    explain,
    linearize,
    most_overlapping,
    timeline,
)
from flujo_conformance.model import ModelBackend
from flujo_conformance.strategies import plain_state
from flujo_core.errors import RunNotFoundError, StateConflictError

NOW = datetime(2024, 3, 1, tzinfo=UTC)


def oracle() -> ModelBackend:
    return ModelBackend(_now)


def _now() -> datetime:
    return NOW


class Register:
    """An integer for each run, 0 at first."""

    def __init__(self) -> None:
        self.values: dict[str, int] = {}

    def get(self, run_id: str) -> int:
        return self.values.get(run_id, 0)

    def write(self, run_id: str, value: int) -> None:
        self.values[run_id] = value

    def swap(self, run_id: str, expected: int, value: int) -> None:
        if self.get(run_id) != expected:
            raise StateConflictError(run_id, expected=expected, actual=self.get(run_id))
        self.values[run_id] = value


def op(interval: str, method: str, *args: Any, answer: Any = None, run: Any = "r") -> Operation:
    """An interval is drawn, such as ``"  [--]"``; without an end the call is pending."""
    pending = "]" not in interval
    returned = len(interval) if pending else interval.index("]")
    call: Call = (method, (run, *args), {})
    return Operation("c", call, interval.index("["), returned, UNKNOWN if pending else answer)


def calls(order: list[Operation] | None) -> list[tuple[Any, ...]] | None:
    return None if order is None else [(one.call[0], *one.call[1][1:]) for one in order]


def test_an_empty_history_has_an_order() -> None:
    assert linearize([], Register) == []
    assert explain([], Register) == ""


def test_calls_one_after_another_keep_their_order() -> None:
    history = [op("[]", "write", 1), op("  []", "get", answer=1), op("    []", "write", 2)]
    assert linearize(history[::-1], Register) == history


def test_an_overlapping_read_is_before_or_after_the_write() -> None:
    write = op("[--]", "write", 1)
    assert calls(linearize([write, op(" [] ", "get", answer=0)], Register)) == [("get",), ("write", 1)]
    assert calls(linearize([write, op(" [] ", "get", answer=1)], Register)) == [("write", 1), ("get",)]
    assert linearize([write, op(" [] ", "get", answer=2)], Register) is None


def test_a_call_that_returns_as_another_is_invoked_overlaps_it() -> None:
    assert linearize([op("[]", "write", 1), op(" [-]", "get", answer=0)], Register) is not None
    assert linearize([op("[]", "write", 1), op("  [-]", "get", answer=0)], Register) is None


def test_a_stale_read_has_no_order() -> None:
    history = [op("[]", "write", 1), op("  []", "write", 2), op("     []", "get", answer=1)]
    assert linearize(history, Register) is None


def test_reads_that_go_back_have_no_order() -> None:
    write = op("[------]", "write", 1)
    forth = [write, op(" []", "get", answer=0), op("    []", "get", answer=1)]
    back = [write, op(" []", "get", answer=1), op("    []", "get", answer=0)]
    assert linearize(forth, Register) is not None
    assert linearize(back, Register) is None


def test_two_readers_that_see_two_writes_in_two_orders_have_no_order() -> None:
    writes = [op("[]", "write", 1), op("[]", "write", 2)]
    one = [op("   []", "get", answer=1), op("     []", "get", answer=1)]
    other = [op("   []", "get", answer=2)]
    assert linearize(writes + one, Register) is not None
    assert linearize(writes + other, Register) is not None
    assert linearize(writes + one + other, Register) is None


def test_two_winners_of_one_compare_and_set_have_no_order() -> None:
    one, two = op("[--]", "swap", 0, 1), op(" [--]", "swap", 0, 2)
    lost = op(" [--]", "swap", 0, 2, answer=StateConflictError("r", expected=0, actual=1))
    assert linearize([one, two], Register) is None
    assert linearize([one, lost], Register) == [one, lost]


def test_the_numbers_of_a_conflict_count() -> None:
    wrong = op(" [--]", "swap", 0, 2, answer=StateConflictError("r", expected=0, actual=7))
    assert linearize([op("[--]", "swap", 0, 1), wrong], Register) is None


def test_what_changes_nothing_now_may_change_something_later() -> None:
    history = [
        op("[------]", "write", 1),
        op(" []", "write", 1),
        op("    []", "write", 2),
        op("          []", "get", answer=1),
    ]
    order = linearize(history, Register)
    assert order is not None
    assert _agrees(order, Register)


def test_a_lost_update_has_no_order() -> None:
    history = [
        op("[---]", "swap", 0, 1),
        op(" [---]", "swap", 1, 2),
        op("       []", "get", answer=1),
    ]
    assert linearize(history, Register) is None


def test_a_pending_call_has_happened_or_not() -> None:
    pending = op("[", "write", 1)
    before, after = op("  []", "get", answer=0), op("     []", "get", answer=1)
    assert linearize([pending], Register) == []
    assert linearize([pending, before], Register) == [before]
    assert linearize([pending, before, after], Register) == [before, pending, after]
    again = op("        []", "get", answer=0)
    assert linearize([pending, before, after, again], Register) is None


def test_a_pending_call_is_not_before_it_was_invoked_and_happens_once() -> None:
    assert linearize([op("[]", "get", answer=1), op("   [", "write", 1)], Register) is None
    history = [op("[", "write", 1), op("  []", "get", answer=1), op("    []", "write", 2)]
    assert linearize([*history, op("      []", "get", answer=1)], Register) is None


def test_runs_are_searched_apart_and_their_orders_make_one() -> None:
    history = [
        op("[-]", "write", 1, run="a"),
        op(" [----]", "get", answer=1, run="a"),
        op("    [-]", "write", 1, run="b"),
        op("        [-]", "get", answer=1, run="b"),
        op("           [-]", "write", 2, run="a"),
    ]
    order = linearize(history, Register)
    assert order is not None
    assert _agrees(order, Register)
    assert {run: len(found) for run, found in by_run(history).items()} == {"a": 3, "b": 2}
    assert linearize([*history, op("             []", "get", answer=0, run="b")], Register) is None


def test_the_run_of_a_record_is_in_it() -> None:
    history = [
        op("[-]", "save_step_result", run={"run_id": "r", "step_name": "s", "step_index": 0}),
        op(" [-]", "list_run_steps", answer=[]),
        op("[]", "save_run_end", {}, answer=RunNotFoundError("x"), run="x"),
    ]
    assert set(by_run(history)) == {"r", "x"}
    assert linearize(history, oracle) is not None


def test_answers_are_compared_to_the_type() -> None:
    for answer, fits in ((1, True), (1.0, False), (True, False), (RunNotFoundError("r"), False)):
        assert (linearize([op("[]", "save_state", plain_state(), answer=answer)], oracle) is not None) is fits


def test_how_many_overlap() -> None:
    assert most_overlapping([]) == 0
    assert most_overlapping([op("[]", "get"), op("  []", "get")]) == 1
    assert most_overlapping([op("[-]", "get"), op("  []", "get"), op("[--]", "get", run="x")]) == 2
    assert most_overlapping([op("[---]", "get"), op(" []", "get"), op("  []", "get"), op("   []", "get")]) == 3
    assert most_overlapping([op("[", "get"), op("      []", "get")]) == 2


def test_a_failure_shows_the_timeline_and_the_longest_prefix() -> None:
    history = [
        op("[-]", "write", 1),
        op("   [-]", "write", 2),
        op("    [", "write", 3),
        op("      []", "get", answer=1),
    ]
    lines = explain(history, Register).splitlines()
    assert lines[0] == "in no order of these calls on run 'r' does the oracle give each its answer:"
    assert lines[2:6] == [
        "    c []       write('r', 1) -> None",
        "    c   [-]    write('r', 2) -> None",
        "    c    [---> write('r', 3) -> ?",
        "    c      []  get('r') -> 1",
    ]
    assert lines[7].startswith("this much can be ordered, ")
    assert "   1. c: write('r', 1) -> None" in lines
    assert any(line.endswith("against 1") for line in lines)
    assert all(line.rstrip() == line for line in lines)


def test_an_interval_of_one_instant_is_drawn() -> None:
    assert list(timeline([Operation("a", ("get", ("r",), {}), 3, 3, 0)])) == ["    a |  get('r') -> 0"]


# --- against brute force --------------------------------------------------------------------------------------------


def _agrees(order: Sequence[Operation], model_factory: Any) -> bool:
    model = model_factory()
    for one in order:
        method, args, kwargs = one.call
        try:
            wanted = getattr(model, method)(*args, **kwargs)
        except StateConflictError as error:
            wanted = error
        if not one.pending and (type(wanted), str(wanted)) != (type(one.answer), str(one.answer)):
            return False
    places = {one: place for place, one in enumerate(order)}
    return not any(places[one] > places[other] for one in order for other in order if one.settled < other.invoked)


def _orders(history: list[Operation]) -> Iterator[tuple[Operation, ...]]:
    """All orders of all answered calls and any pending ones."""
    pending = [one for one in history if one.pending]
    answered = [one for one in history if not one.pending]
    for chosen in range(2 ** len(pending)):
        yield from permutations(answered + [one for number, one in enumerate(pending) if chosen >> number & 1])


@st.composite
def histories(draw: st.DrawFn) -> list[Operation]:
    """Answers are what some order gives, or near it, so that about half of the histories have an order."""
    history = []
    for _ in range(draw(st.integers(1, 5))):
        method, args = draw(
            st.sampled_from((("get", ()), ("get", ()), ("write", (1,)), ("write", (2,)), ("swap", (1, 2))))
        )
        answers: st.SearchStrategy[Any] = st.none()
        if method == "get":
            answers = st.sampled_from((0, 1, 2))
        elif method == "swap":
            conflicts = [StateConflictError("r", expected=1, actual=actual) for actual in (0, 2)]
            answers = st.sampled_from([None, *conflicts])
        invoked = draw(st.integers(0, 8))
        returned = invoked + draw(st.integers(0, 6))
        answer = UNKNOWN if draw(st.integers(0, 5)) == 0 else draw(answers)
        run = draw(st.sampled_from(("r", "r", "r", "x")))
        if isinstance(answer, StateConflictError):
            answer = StateConflictError(run, expected=1, actual=answer.actual)
        history.append(Operation("c", (method, (run, *args), {}), invoked, returned, answer))
    return history


@settings(max_examples=600, derandomize=True, deadline=None, database=None)
@given(histories())
def test_it_agrees_with_all_permutations(history: list[Operation]) -> None:
    order = linearize(history, Register)
    if order is None:
        assert not any(_agrees(each, Register) for each in _orders(history))
        assert explain(history, Register)
    else:
        assert _agrees(order, Register)
        assert {one for one in history if not one.pending} <= set(order) <= set(history)
        assert explain(history, Register) == ""


# --- many overlapping -----------------------------------------------------------------------------------------------

SAVES = [op("[-]", "save_state", plain_state(mine=number), answer=13 - number) for number in range(1, 13)]
STARTS = [op("[-]", "save_run_start", run={"run_id": "r", "mine": number}) for number in range(12)]


@pytest.mark.parametrize("history", [SAVES, STARTS], ids=["saves", "starts"])
def test_twelve_calls_that_all_overlap_are_ordered(history: list[Operation]) -> None:
    assert linearize(history, oracle) is not None


def test_twelve_calls_that_all_overlap_are_seen_to_have_no_order() -> None:
    model = oracle()
    model.save_run_start({"run_id": "r", "mine": 12})
    impossible = op("   []", "get_run_details", answer=model.get_run_details("r"))
    assert linearize([*STARTS, impossible], oracle) is None
    assert linearize([*SAVES, op("   []", "load_state", answer=None)], oracle) is None
