"""Do the parts of the oracle (JSON, timestamps, containment, traces, comparison) do what the contract says?"""

from __future__ import annotations

import dataclasses
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from math import inf, nan
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr

from flujo_conformance import fields, strategies
from flujo_conformance.compare import difference, identical
from flujo_conformance.containment import contains
from flujo_conformance.json_values import normalise
from flujo_conformance.model import ModelBackend
from flujo_conformance.strategies import BAD_JSON, BAD_TIMESTAMPS, INSTANTS, NOON, nested, plain_state
from flujo_core.errors import InvalidStateError


class Colour(Enum):
    RED = (1, "red")


class Level(IntEnum):
    HIGH = 3


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "another text"


@dataclasses.dataclass
class Point:
    x: int
    y: Any = None


class Model(BaseModel):
    point: Any
    secret: SecretStr | None = None


@pytest.fixture
def backend() -> ModelBackend:
    return ModelBackend(lambda: NOON)


@pytest.mark.parametrize(
    ("value", "form"),
    [
        ((1, [2.0, True]), [1, [2.0, True]]),
        (Colour.RED, [1, "red"]),
        (Level.HIGH, 3),
        (Text("a"), "a"),
        (Point(1, Point(-0)), {"x": 1, "y": {"x": 0, "y": None}}),
        (Model(point=Point(1)), {"point": {"x": 1, "y": None}, "secret": None}),
        (b"\xc3\xa9", "é"),
        (bytearray(b"a"), "a"),
        ({10, 9, "a", None}, ["a", 10, 9, None]),
        (frozenset({(2,), (10,)}), [[10], [2]]),
        (Decimal("1.10"), "1.10"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (date(2024, 2, 29), "2024-02-29"),
        (time(1, 2, 3, 4), "01:02:03.000004"),
        (datetime(2024, 2, 29, 1, tzinfo=UTC), "2024-02-29T01:00:00+00:00"),
        (timedelta(days=1, hours=2, minutes=3, seconds=4.5), "P1DT2H3M4.5S"),
        (timedelta(0), "PT0S"),
        (timedelta(days=2), "P2D"),
        (timedelta(seconds=10), "PT10S"),
        (timedelta(hours=-1, microseconds=-20), "-PT1H0.00002S"),
        ({1: 1, -1.5: 2, None: 3, nan: 4, inf: 5}, {"1": 1, "-1.5": 2, "null": 3, "NaN": 4, "Infinity": 5}),
        ({False: 1, Level.HIGH: 2, 1e300: 3}, {"false": 1, "3": 2, "1e+300": 3}),
        ("\ud83d\ude00\x00", "\ud83d\ude00\x00"),
        (10**4300 - 1, 10**4300 - 1),
    ],
    # A set has another order in each process.
    ids=lambda value: ascii(sorted(value, key=str) if isinstance(value, (set, frozenset)) else value)[:40],
)
def test_model_json_forms(value: Any, form: Any) -> None:
    assert difference(normalise(value), form) is None


@pytest.mark.parametrize("way", BAD_JSON)
def test_model_refused_json_names_its_path(backend: ModelBackend, way: str) -> None:
    with pytest.raises(InvalidStateError) as caught:
        backend.set_system_state("k", {"a.b": [0, BAD_JSON[way]()]})
    assert str(caught.value.path).startswith('$["a.b"][1]')
    assert backend.get_system_state("k") is None


def test_model_refuses_secrets_and_cyclic_models() -> None:
    with pytest.raises(InvalidStateError, match="SecretStr"):
        normalise(Model(point=1, secret=SecretStr("x")))
    ring = Model(point=None)
    ring.point = ring
    with pytest.raises(InvalidStateError):
        normalise(ring)
    point = Point(1)
    point.y = [point]
    with pytest.raises(InvalidStateError, match="contains itself"):
        normalise(point)
    shared = [1]
    assert normalise([shared, shared]) == [[1], [1]]


def test_model_depth_counts_the_root() -> None:
    assert normalise(nested(200))
    with pytest.raises(InvalidStateError):
        normalise(nested(201))
    backend = ModelBackend(lambda: NOON)
    backend.save_state("r", plain_state(last_step_output=nested(199), metadata={"a": nested(198)}))
    for deeper in ({"last_step_output": nested(200)}, {"metadata": {"a": nested(199)}}):
        with pytest.raises(InvalidStateError):
            backend.save_state("r", plain_state(**deeper))


def test_model_size_is_that_of_compact_utf8() -> None:
    backend = ModelBackend(lambda: NOON, max_document_bytes=10)
    backend.set_system_state("k", ["éé", 1])
    for over in (["éé", 12], "123456789", "\ud800\ud800\ud800"):
        with pytest.raises(InvalidStateError, match="max_document_bytes"):
            backend.set_system_state("k", over)


@pytest.mark.parametrize("key", ["n", "s", "k", "v"])
def test_model_metadata_is_stricter(backend: ModelBackend, key: str) -> None:
    bad: dict[str, Any] = {"n": nan, "s": "\ud800", "k": {"\x00": 1}, "v": "\x00"}
    for call in (
        lambda: backend.save_state("r", plain_state(metadata={"a": [bad[key]]})),
        lambda: backend.save_run_start({"run_id": "r", "metadata": {"a": [bad[key]]}}),
        lambda: backend.list_runs(metadata_filter={"a": [bad[key]]}),
    ):
        with pytest.raises(InvalidStateError):
            call()
    backend.save_state("r", plain_state(pipeline_context={"a": [bad[key]]}))


# Timestamps


@pytest.mark.parametrize("value", INSTANTS[:5], ids=str)
def test_model_one_instant_in_many_words(value: Any) -> None:
    assert difference(fields.timestamp(value, "$"), datetime(2024, 2, 29, 12, tzinfo=UTC)) is None


@pytest.mark.parametrize(
    ("value", "instant"),
    [
        ("2024-02-29T12:00:00.1", datetime(2024, 2, 29, 12, 0, 0, 100000, UTC)),
        ("2024-02-29 12:00-23:59", datetime(2024, 3, 1, 11, 59, tzinfo=UTC)),
        ("0001-01-02T00:00-00", datetime(1, 1, 2, tzinfo=UTC)),
        ("0001-01-01T23:59-00:01", datetime(1, 1, 2, tzinfo=UTC)),
        (
            datetime(2024, 2, 29, 12, tzinfo=timezone(timedelta(hours=1, seconds=1))),
            datetime(2024, 2, 29, 10, 59, 59, tzinfo=UTC),
        ),
    ],
)
def test_model_timestamps(value: Any, instant: datetime) -> None:
    assert difference(fields.timestamp(value, "$"), instant) is None


@pytest.mark.parametrize("value", BAD_TIMESTAMPS, ids=str)
def test_model_refused_timestamps(value: Any) -> None:
    with pytest.raises(InvalidStateError):
        fields.timestamp(value, "$")


# Containment


@pytest.mark.parametrize(
    ("document", "pattern", "holds"),
    [
        ({}, {}, True),
        ({"a": 1, "b": 2}, {"a": 1}, True),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ({"a": 1}, {"a": 1.0}, True),
        ({"a": 1}, {"a": True}, False),
        ({"a": 0}, {"a": False}, False),
        ({"a": 0.0}, {"a": -0.0}, True),
        ({"a": 2**53 + 1}, {"a": float(2**53)}, False),
        ({"a": 1e22}, {"a": 10**22}, True),
        ({"a": 0.1}, {"a": 0.1}, True),
        ({"a": 1}, {"a": "1"}, False),
        ({"a": None}, {"a": None}, True),
        ({}, {"a": None}, False),
        ({"a": [1, 2, 3]}, {"a": [3, 1]}, True),
        ({"a": [1, 2]}, {"a": [1, 1, 1]}, True),
        ({"a": [1, 2]}, {"a": [1, 4]}, False),
        ({"a": [1, 2]}, {"a": []}, True),
        ({"a": [1, 2, [1, 3]]}, {"a": [1, 3]}, False),
        ({"a": [1, 2, [1, 3]]}, {"a": [[1, 3]]}, True),
        ({"a": [[1, 2], [3]]}, {"a": [[2], [3], [1]]}, True),
        ({"a": [{"b": 1, "c": 2}]}, {"a": [{"b": 1}, {"c": 2}]}, True),
        ({"a": [{"b": 1}, {"c": 2}]}, {"a": [{"b": 1, "c": 2}]}, False),
        ({"a": ["x"]}, {"a": "x"}, False),
        ({"a": {}}, {"a": []}, False),
        ({"a": {"b": {"c": 1}}}, {"a": {"b": {}}}, True),
        ({"a": {"b": {"c": 1}}}, {"b": {"c": 1}}, False),
        ({"a": {"b": 1}}, {"a.b": 1}, False),
        ({"a.b": 1, "$": 2, "'\"": 3}, {"a.b": 1, "$": 2, "'\"": 3}, True),
        ({"a": "caf\u00e9"}, {"a": "cafe\u0301"}, False),
    ],
)
def test_model_containment(document: dict[str, Any], pattern: dict[str, Any], holds: bool) -> None:
    assert contains(document, pattern) is holds


@given(st.data())
def test_model_metadata_contains_its_parts(data: st.DataObject) -> None:
    whole = data.draw(strategies.metadata())
    assert contains(whole, data.draw(strategies.parts_of(whole)))


# Traces and spans


TREE = {
    "span_id": "a",
    "name": "root",
    "start_time": 5,
    "children": [
        {"note": "no span", "children": [{"span_id": "b", "name": "inner", "start_time": 2, "end_time": 4}]},
        {"span_id": "c", "name": "inner", "parent_span_id": "x", "start_time": 2, "end_time": 3, "children": None},
    ],
}


def test_model_trace_gives_spans_in_document_order(backend: ModelBackend) -> None:
    backend.save_trace("r", TREE)
    assert difference(backend.get_trace("r"), TREE) is None
    parents = [(span["span_id"], span["parent_span_id"], span["start_time"]) for span in backend.get_spans("r")]
    assert difference(parents, [("b", "a", 2.0), ("c", "x", 2.0), ("a", None, 5.0)]) is None
    assert [span["span_id"] for span in backend.get_spans("r", name="inner", status="running")] == ["b", "c"]
    assert backend.list_runs() == []


def test_model_trace_replaces_what_a_trace_wrote_last(backend: ModelBackend) -> None:
    backend.save_spans("r", [{"span_id": "mine"}, {"span_id": "c", "start_time": 1}])
    backend.save_trace("r", TREE)
    backend.save_spans("r", [{"span_id": "b", "status": "completed"}])
    backend.save_trace("r", {"span_id": "d", "name": "new"})
    # a and c went with the first trace; b was last written by save_spans.
    assert [span["span_id"] for span in backend.get_spans("r")] == ["mine", "b", "d"]
    assert backend.get_trace("r") == {"span_id": "d", "name": "new"}


def test_model_span_has_all_keys(backend: ModelBackend) -> None:
    backend.save_spans("r", [{"mine": 1, "span_id": "s"}])
    expected: dict[str, Any] = {
        "span_id": "s", "parent_span_id": None, "name": "span", "start_time": 0.0, "end_time": None,
        "status": "running", "attributes": {}, "created_at": NOON, "mine": 1,
    }  # fmt: skip
    assert difference(backend.get_spans("r"), [expected]) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "no id"},
        {"span_id": ""},
        {"span_id": "s", "start_time": nan},
        {"span_id": "s", "end_time": "1"},
        {"span_id": "s", "start_time": True},
        {"span_id": "s", "attributes": []},
        {"span_id": "s", "name": ""},
        [],
    ],
)
def test_model_one_bad_span_refuses_the_list(backend: ModelBackend, wrong: Any) -> None:
    with pytest.raises(InvalidStateError):
        backend.save_spans("r", [{"span_id": "good"}, wrong])
    assert backend.get_run_details("r") is None


def test_model_rebuilds_trees(backend: ModelBackend) -> None:
    assert backend.get_trace("r") is None
    backend.save_spans("r", [])
    assert backend.get_run_details("r") is None
    one = {"span_id": "a", "start_time": 1, "end_time": 9, "mine": [1]}
    two = {"span_id": "b", "parent_span_id": "a", "start_time": 2, "attributes": {"k": 1}}
    backend.save_spans("r", [two, one])
    named = {"name": "span", "status": "running"}
    inner = {**two, **named, "start_time": 2.0, "end_time": None, "children": []}
    outer = {**one, **named, "parent_span_id": None, "start_time": 1.0, "end_time": 9.0, "attributes": {}}
    assert difference(backend.get_trace("r"), {**outer, "children": [inner]}, ordered=False) is None

    backend.save_spans("r", [{"span_id": "c", "parent_span_id": "gone", "start_time": 0.5, "end_time": 10}])
    tree = backend.get_trace("r")
    assert tree is not None
    assert [root["span_id"] for root in tree.pop("children")] == ["c", "a"]
    expected: dict[str, Any] = {"span_id": "__root__", "parent_span_id": None, "name": "root", "start_time": 0.5}
    expected |= {"end_time": 10.0, "status": "synthetic", "attributes": {}}
    assert difference(tree, expected) is None

    backend.save_spans("r", [{"span_id": "x", "parent_span_id": "y"}, {"span_id": "y", "parent_span_id": "x"}])
    with pytest.raises(InvalidStateError):
        backend.get_trace("r")


def test_model_rebuilds_a_chain_deeper_than_the_stack(backend: ModelBackend) -> None:
    backend.save_spans("r", [{"span_id": str(number), "parent_span_id": str(number - 1)} for number in range(2000)])
    assert difference(backend.get_trace("r"), backend.get_trace("r")) is None


def _tree(levels: int) -> dict[str, Any]:
    node: dict[str, Any] = {}
    for _ in range(levels - 1):
        node = {"children": [node]}
    return node


def test_model_traces_have_200_levels(backend: ModelBackend) -> None:
    backend.save_trace("r", _tree(200))
    refused: list[Any] = [_tree(201), {"children": {}}, {"children": [1]}, [], {"span_id": 1, "name": "n"}]
    for wrong in refused:
        with pytest.raises(InvalidStateError):
            backend.save_trace("r", wrong)


def test_model_span_statistics(backend: ModelBackend) -> None:
    backend.save_run_start({"run_id": "r", "pipeline_id": "p"})
    backend.save_spans("r", [{"span_id": "1", "name": "n", "start_time": 1, "end_time": 2}, {"span_id": "open"}])
    backend.save_spans("stray", [{"span_id": "1", "name": "n", "start_time": 2, "end_time": 5, "status": "error"}])
    expected = {
        "total_spans": 2,
        "by_name": {"n": 2},
        "by_status": {"running": 1, "error": 1},
        "avg_duration_by_name": {"n": {"total": 4.0, "count": 2, "average": 2.0}},
    }
    assert difference(backend.get_span_statistics(time_range=(1, 2)), expected, ordered=False) is None
    assert backend.get_span_statistics("p", (None, 1.0))["total_spans"] == 1
    assert backend.get_span_statistics("unknown")["total_spans"] == 0
    assert backend.get_span_statistics(time_range=(1.5, None))["total_spans"] == 1
    refused: list[Any] = [1, (1,), (nan, None), ("1", None)]
    for wrong in refused:
        with pytest.raises(InvalidStateError):
            backend.get_span_statistics(time_range=wrong)


# Comparison


UTC_NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("a", "b", "path"),
    [
        (1, 1.0, "$"),
        (1, True, "$"),
        ([0.0], [-0.0], "$[0]"),
        ([1], (1,), "$"),
        ({"a": {"b": [1, 2]}}, {"a": {"b": [1, 3]}}, "$.a.b[1]"),
        ({"x y": 1}, {"x y": 2}, "$['x y']"),
        ({"a": 1}, {"a": 1, "b": 2}, "$"),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, "$"),
        ({1: 0}, {True: 0}, "$"),
        (UTC_NOON, UTC_NOON.astimezone(timezone(timedelta(hours=1))), "$"),
        (UTC_NOON, UTC_NOON.replace(tzinfo=None), "$"),
        (10**4000, 10**4000 + 1, "$"),
        (nan, 1.0, "$"),
        ([1, 2], [1], "$"),
    ],
)
def test_model_comparison_names_the_first_difference(a: Any, b: Any, path: str) -> None:
    found = difference(a, b)
    assert found is not None
    assert found.startswith(f"{path}: ")
    assert not identical(b, a)


def test_model_comparison_options() -> None:
    assert identical([nan, -0.0, UTC_NOON, {"a": None}], [nan, -0.0, UTC_NOON, {"a": None}])
    assert difference({"a": 1, "b": 2}, {"b": 2, "a": 1}, ordered=False) is None
    a, b = {"x": {"n": {"average": 0.3}}}, {"x": {"n": {"average": 0.1 + 0.2}}}
    assert difference(a, b, path="row") == "row.x.n.average: 0.3 against 0.30000000000000004"
    assert difference(a, b, approx=["$.x.*.average"]) is None
    assert difference(a, {"x": {"n": {"average": 0.31}}}, approx=["$.x.*.average"]) is not None
    assert difference([{"t": 1}], [{"t": "x"}], ignore=["$.*.t"]) is None


# The strategies


@given(strategies.json_values())
def test_model_json_pool_is_its_own_form(value: Any) -> None:
    assert identical(normalise(value), value)


WRITES = {
    "save_state": (st.just("r"), st.booleans().flatmap(lambda dated: strategies.states(dated=dated))),
    "save_run_start": (st.booleans().flatmap(lambda dated: strategies.run_starts(st.just("r"), dated=dated)),),
    "save_run_end": (st.just("r"), st.booleans().flatmap(lambda dated: strategies.run_ends(dated=dated))),
    "save_step_result": (st.booleans().flatmap(lambda dated: strategies.steps(dated=dated)),),
    "save_spans": (st.just("r"), st.booleans().flatmap(lambda dated: strategies.span_lists(dated=dated))),
    "save_trace": (st.just("r"), st.booleans().flatmap(lambda dated: strategies.traces(dated=dated))),
}


@pytest.mark.parametrize("method", WRITES)
@settings(max_examples=50, deadline=None)
@given(st.data())
def test_model_accepts_what_the_strategies_draw(method: str, data: st.DataObject) -> None:
    backend = ModelBackend(lambda: NOON)
    backend.save_run_start({"run_id": "r"})
    for _ in range(2):
        getattr(backend, method)(*map(data.draw, WRITES[method]))
    backend.list_runs()


@settings(max_examples=50, deadline=None)
@given(strategies.run_filters(), strategies.pages())
def test_model_accepts_the_filters_that_the_strategies_draw(filters: dict[str, Any], page: dict[str, Any]) -> None:
    backend = ModelBackend(lambda: NOON)
    backend.save_state("r", plain_state(metadata={"a": 1}))
    assert len(backend.list_runs(**filters)) == backend.count_runs(**filters) == len(backend.iter_runs(**filters))
    assert len(backend.list_runs(**filters, **page)) <= 1


@settings(max_examples=50, deadline=None)
@given(strategies.states())
def test_model_saves_what_it_loads(state: dict[str, Any]) -> None:
    backend = ModelBackend(lambda: NOON)
    backend.save_state("r", state)
    loaded = backend.load_state("r")
    assert loaded is not None
    assert backend.save_state("r", loaded) == 2
    assert difference(backend.load_state("r"), loaded | {"revision": 2}) is None
