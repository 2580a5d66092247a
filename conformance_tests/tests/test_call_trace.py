"""Is a trace read as it was written, to the type and the last bit, and is anything else refused in words?"""

from __future__ import annotations

import json
import struct
from datetime import UTC, date, datetime, timedelta, timezone
from datetime import time as time_of_day
from decimal import Decimal
from math import copysign, inf, nan
from typing import Any
from uuid import UUID

import hypothesis
import pytest
from hypothesis import strategies as st

from flujo_conformance import strategies as make
from flujo_conformance.answers import Call
from flujo_conformance.call_trace import (
    METHODS,
    Ask,
    InvalidState,
    Reopen,
    SetClock,
    Step,
    Trace,
    check_calls,
    dumps,
    from_json,
    loads,
    to_json,
    value_from_json,
    value_to_json,
)
from flujo_conformance.compare import identical
from flujo_conformance.profile import examples

NOW = datetime(2024, 2, 29, 12, 0, 0, 1, tzinfo=UTC)
DOCUMENT = {"format": 1, "contract": 1, "calls": [{"handle": 0, "method": "load_state", "args": ["r"], "kwargs": {}}]}


def strict(text: str) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    assert text.isascii()
    return json.loads(text, parse_constant=refuse)


def again(value: Any) -> Any:
    """A value after its way through JSON text that any reader takes."""
    return value_from_json(strict(json.dumps(value_to_json(value), allow_nan=False)))


def arguments() -> st.SearchStrategy[Any]:
    return st.one_of(
        make.states(),
        make.run_starts(),
        make.run_ends(),
        make.steps(),
        make.span_lists(),
        make.traces(),
        make.json_values(),
        make.run_filters(),
        make.pages(),
        make.texts(),
        make.timestamps(),
        st.floats(),
        st.text(),
        st.binary(),
        st.integers(),
        st.dictionaries(st.none() | st.booleans() | st.floats(allow_nan=False) | st.text() | st.integers(), st.text()),
        st.sets(make.statuses()),
        st.tuples(st.floats(), st.none()),
        make.invalid_states().map(InvalidState),
    )


@examples(40)
@hypothesis.given(st.data())
def test_any_argument_that_is_drawn_comes_back_identical(data: st.DataObject) -> None:
    value = data.draw(arguments())
    assert identical(value, again(value))


@examples(20)
@hypothesis.given(st.data())
def test_any_steps_come_back_as_they_were(data: st.DataObject) -> None:
    calls = st.builds(
        lambda method, args, kwargs: (method, tuple(args), kwargs),
        st.sampled_from(sorted(METHODS)),
        st.lists(arguments(), max_size=2),
        st.dictionaries(st.sampled_from(("limit", "expected_revision", "metadata_filter")), arguments(), max_size=2),
    )
    handles = st.integers(0, 3)
    step: st.SearchStrategy[Step] = st.one_of(
        st.builds(lambda handle, call: Ask(handle, (call,)), handles, calls),
        st.builds(lambda handle, some: Ask(handle, tuple(some)), handles, st.lists(calls, min_size=2, max_size=3)),
        st.builds(SetClock, st.datetimes(timezones=st.sampled_from((UTC, timezone(timedelta(hours=-3)))))),
        st.builds(Reopen, handles, st.booleans()),
    )
    trace = Trace(tuple(data.draw(st.lists(step, max_size=3))))
    text = dumps(trace)
    assert strict(text) == to_json(trace)
    read = loads(text)
    assert dumps(read) == text
    for one, other in zip(trace.steps, read.steps, strict=True):
        assert type(one) is type(other)
        if isinstance(one, Ask) and isinstance(other, Ask):
            assert one.handle == other.handle
            assert identical(one.calls, other.calls)
        else:
            assert one == other


@pytest.mark.parametrize(
    "value",
    [
        10**4300 - 1, -(10**4300), 2**53, -(2**53), 2**53 - 1, True, 1, 1.0, -0.0, inf, -inf, 5e-324, 1e300,
        "\ud83d\ude00", "\U0001f600", ["\ude00\ud83d"], "a\x00\\u0000\\", "\xe9\n", {"\ud800": 1},
        {"$text": "a"}, {"$dict": []}, {"$flujo": "nan"}, {"$": 1}, {"a": 1, "$int": "0x1"},
        {1: "a", "1": "b", None: 2, 0.5: 3},
        {True: 1}, {"b": 1, "a": 2}, {}, {"": {}}, [], (), ((), [()]), {1, "a"}, frozenset((1,)), b"", b"\xff\x00",
        Decimal("1.10"), Decimal("-0"), Decimal("sNaN12"), Decimal("1E+400"), NOW, NOW.replace(tzinfo=None),
        NOW.astimezone(timezone(timedelta(hours=5, minutes=30, seconds=15))), NOW.replace(year=1, day=2),
        date(2024, 2, 29), time_of_day(12, 0, 0, 1), timedelta(-1, 2, 3), UUID(int=7), InvalidState("metadata: cycle"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_awkward_values_come_back_identical(value: Any) -> None:
    if isinstance(value, Decimal):
        assert again(value).as_tuple() == value.as_tuple()
        return
    assert identical(value, again(value))
    assert identical([{"a": value}], again([{"a": value}]))


def test_every_bit_of_a_nan_is_kept() -> None:
    odd = struct.unpack(">d", bytes.fromhex("fff4000000000001"))[0]
    for value in (nan, copysign(nan, -1), odd):
        assert struct.pack(">d", again(value)) == struct.pack(">d", value)


def test_what_a_trace_cannot_say_is_refused_when_it_is_written() -> None:
    class Text(str):
        __slots__ = ()

    zone = timezone(timedelta(hours=1), "somewhere")
    for value in (object(), 1j, Text("a"), NOW.replace(tzinfo=zone), NOW.replace(fold=1), [iter(())]):
        with pytest.raises(TypeError, match="a trace can't say"):
            value_to_json(value)
    with pytest.raises(ValueError, match="no invalid state 'of no kind'"):
        InvalidState("of no kind")


def test_an_invalid_state_is_made_anew_each_time_it_is_asked_for() -> None:
    cycle = InvalidState("metadata: cycle")
    assert cycle.make() is not cycle.make()
    assert again([cycle]) == [cycle]


def test_a_trace_may_call_what_the_contract_answers() -> None:
    assert {"save_state", "load_state", "iter_runs", "cleanup_old_workflows", "get_system_state"} <= METHODS
    assert not {"shutdown", "close", "migrate", "clock", "schema_status", "__init__"} & METHODS
    assert len(METHODS) == 28


def one_call(**changes: Any) -> dict[str, Any]:
    return DOCUMENT | {"calls": [DOCUMENT["calls"][0] | changes]}  # type: ignore[index]


@pytest.mark.parametrize(
    ("document", "why"),
    [
        ([], "this is no trace"),
        ({"calls": []}, '"format", "contract" and "calls"'),
        (DOCUMENT | {"format": 2}, "has format 2, this version reads up to 1: update"),
        (DOCUMENT | {"format": True}, "whole numbers"),
        (DOCUMENT | {"calls": {}}, "calls is a list"),
        (one_call(method="_save"), "calls\\[0\\]: '_save' is no method.*load_state"),
        (one_call(method="shutdown"), "'shutdown' is no method"),
        (one_call(method=["load_state"]), "is no method"),
        (one_call(handle=-1), "a handle is a number from 0 to 99"),
        (one_call(handle=True), "a handle is a number"),
        (one_call(args="r"), "args is a list"),
        (one_call(more=1), "calls\\[0\\] is no step"),
        (one_call(args=[{"$unknown": 1}]), "unknown kind of value '\\$unknown'"),
        (one_call(args=[{"$int": "many"}]), "calls\\[0\\]: a value can't be read"),
        (one_call(args=[{"$int": 1}]), "a value can't be read"),
        (one_call(args=[{"$dict": [1]}]), "a value can't be read"),
        (one_call(args=[{"$dict": [[["a"], 1]]}]), "a value can't be read"),
        (one_call(args=[{"$float": "big"}]), "a value can't be read"),
        (one_call(args=[{"$datetime": "noon"}]), "a value can't be read"),
        (one_call(args=[{"$decimal": "x"}]), "a value can't be read"),
        (one_call(args=[{"$timedelta": [10**10, 0, 0]}]), "a value can't be read"),
        (one_call(args=[{"$invalid": "of no kind"}]), "no invalid state"),
        (DOCUMENT | {"calls": [{"clock": "2024-02-29T12:00:00"}]}, "says no zone"),
        (DOCUMENT | {"calls": [{"clock": 5}]}, "5 is no instant"),
        (DOCUMENT | {"calls": [{"reopen": 0, "new": 1}]}, "no step of a trace"),
        (DOCUMENT | {"calls": [{"together": []}]}, "no step of a trace"),
        (DOCUMENT | {"calls": [{"together": [one_call()["calls"][0], one_call(handle=1)["calls"][0]]}]}, "one handle"),
    ],
)  # fmt: skip
def test_a_document_that_is_no_trace_is_refused_in_words(document: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        from_json(document)
    with pytest.raises(ValueError, match=why):
        loads(json.dumps(document))


def test_a_text_that_is_no_trace_is_refused_in_words() -> None:
    text = dumps(from_json(DOCUMENT))
    assert loads(text) == from_json(DOCUMENT)
    for end in range(len(text) - 2):
        with pytest.raises(ValueError, match="it is not JSON"):
            loads(text[:end])
    for bad, why in (
        ('{"a": 1, "a": 2}', "one key twice"),
        ("[NaN]", "NaN is not JSON"),
        ("[" * 100_000, "nested too deeply"),
        (text.replace('"r"', "1e999"), "too large for a double"),
        (text.replace('"r"', "[" * 5000 + "]" * 5000), "nested too deeply"),
    ):
        with pytest.raises(ValueError, match=why):
            loads(bad)


def test_a_call_with_arguments_that_its_method_does_not_have_is_refused() -> None:
    check_calls(Trace((Ask(0, (("load_state", ("r",), {}),)),)))
    wrongs: list[Call] = [("load_state", (), {}), ("count_runs", (), {"limit": 1}), ("delete_run", ("r", "s"), {})]
    for wrong in wrongs:
        with pytest.raises(ValueError, match=rf"calls\[0\]: {wrong[0]} can't be called so"):
            check_calls(Trace((Ask(0, (wrong,)),)))
