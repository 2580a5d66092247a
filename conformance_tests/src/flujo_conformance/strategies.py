"""Which arguments are worth trying on a backend?

Everything is drawn from small pools, so that runs are overwritten, timestamps tie, filters hit and steps are replaced.
``dated=True`` makes a strategy give every timestamp that would otherwise be "now": then two backends with clocks of
their own have to answer the same.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from functools import partial
from math import inf, nan
from typing import Any

from hypothesis import strategies as st

from flujo_conformance.fields import STATUSES

Strategy = st.SearchStrategy

RUN_IDS = ("r", "R", "caf\u00e9", "cafe\u0301", "r%_'\"; --", "\U0001f600")
"""Two that differ in case, two in Unicode normalisation only, one for LIKE and quotes, one outside the BMP."""

PIPELINES = ("p", "P", "p_", "unknown", "latest", 'O\'Brien "x"')
STEP_NAMES = ("ask", "Ask", "%")
SPAN_IDS = ("s1", "s2", "s3", "S1", "__root__")
SYSTEM_KEYS = ("k", "K", "a.b", "%")
RECORD_IDS = ("first", "second")
TASK_IDS = ("t", "T")

NOON = datetime(2024, 2, 29, 12, tzinfo=UTC)
INSTANTS = (
    NOON,
    NOON.astimezone(timezone(timedelta(hours=5, minutes=30))),
    NOON.replace(tzinfo=None),
    "2024-02-29T12:00:00Z",
    "2024-02-29 07:00-0500",
    NOON + timedelta(microseconds=1),
    "2024-02-29t12:00:00.000001+00",
    NOON - timedelta(days=40),
    "2024-01-20T12:00:00.123",
    datetime(1, 1, 2, tzinfo=UTC),
    "9999-12-30T23:59:59.999999z",
)
"""Five ways to say one instant, two to say the next microsecond, and some far away."""

AWKWARD_STRINGS = (
    "", "a", "1", "true", "null", "\x00", "a\x00b", "\\u0000", "\ud800", "\udfff\ud800", "\ud83d\ude00", "\U0001f600",
    "\u2028", "\ufffd", "caf\u00e9", "cafe\u0301", "'; DROP TABLE workflow_state; --", '"', "\\",
    "2024-02-29T12:00:00Z",
)  # fmt: skip
AWKWARD_KEYS = (
    *AWKWARD_STRINGS, "a.b", "a", "b", "$", "$.a", "[0]", "0", "*", "%", "$flujo", "$nan", "$str", "$$flujo",
    "__type__", "__flujo__", "run_id", "revision", "metadata",
)  # fmt: skip
AWKWARD_NUMBERS = (
    0, 0.0, -0.0, 1, 1.0, -1, 0.1, 1e16, 1e300, -1e300, 5e-324, 2.5e-310, 1.7976931348623157e308, nan, inf, -inf,
    2**53 + 1, 2**63, -(2**63), 2**64, 10**22, 10**400,
)  # fmt: skip
WRAPPER_LOOKALIKES: tuple[dict[str, Any], ...] = (
    {"$flujo": "nan"},
    {"$flujo": {"$flujo": "x"}},
    {"__type__": "datetime", "value": "2024-02-29"},
    {"$nan": None},
    {"$str": "00"},
)


def run_ids() -> Strategy[str]:
    return st.sampled_from(RUN_IDS)


def pipelines() -> Strategy[str]:
    return st.sampled_from(PIPELINES)


def statuses() -> Strategy[str]:
    return st.sampled_from(STATUSES)


def timestamps() -> Strategy[datetime | str]:
    return st.sampled_from(INSTANTS)


def texts() -> Strategy[str]:
    return st.sampled_from(AWKWARD_STRINGS)


def huge_ints() -> Strategy[int]:
    """The largest integers that are accepted; made when drawn, as the pools are printed in reports."""
    return st.sampled_from(("largest", "smallest", "power of ten")).map(_huge)


def _huge(which: str) -> int:
    return {"largest": 10**4300 - 1, "smallest": 1 - 10**4300, "power of ten": 10**4299}[which]


def _nested(scalars: Strategy[Any], keys: Strategy[str], levels: int) -> Strategy[Any]:
    """Scalars and small containers of them, a few levels deep; cheaper to draw than ``recursive``."""
    values = scalars
    for _ in range(levels):
        values = st.one_of(scalars, scalars, st.lists(values, max_size=2), st.dictionaries(keys, values, max_size=2))
    return values


_KEYS = st.sampled_from(AWKWARD_KEYS)
_JSON = _nested(
    st.one_of(
        st.none(),
        st.booleans(),
        st.sampled_from(AWKWARD_NUMBERS),
        texts(),
        huge_ints(),
        st.floats(),
        st.integers(),
        st.sampled_from(WRAPPER_LOOKALIKES).map(dict),
    ),
    _KEYS,
    levels=3,
)
_OBJECTS = st.dictionaries(_KEYS, _JSON, max_size=3)


def json_values() -> Strategy[Any]:
    """Any JSON value; what it is saved as is itself, so that it has to come back identical."""
    return _JSON


def json_objects() -> Strategy[dict[str, Any]]:
    return _OBJECTS


METADATA_KEYS = ("a", "b", "a.b", '"', "$", "", "x' OR 1=1 --", "is_background_task")
METADATA_SCALARS = (
    None, True, False, 0, 1, 1.0, -0.0, 0.1, 100, 1e2, 1e300, 10**300, 5e-324, 2**53 + 1, float(2**53),
    "", "a", "A", "1", "caf\u00e9", "cafe\u0301", "\ufffd",
)  # fmt: skip


_METADATA_KEYS = st.sampled_from(METADATA_KEYS)
_METADATA_LEAVES = st.sampled_from(METADATA_SCALARS) | huge_ints()
_METADATA = st.dictionaries(_METADATA_KEYS, _nested(_METADATA_LEAVES, _METADATA_KEYS, levels=2), max_size=3)
_SHORT_METADATA = st.dictionaries(_METADATA_KEYS, _nested(_METADATA_LEAVES, _METADATA_KEYS, levels=1), max_size=1)


def metadata() -> Strategy[dict[str, Any]]:
    """Metadata from pools so small that one run's is another one's filter."""
    return _METADATA


def metadata_filters() -> Strategy[dict[str, Any]]:
    """Filters that say little, and so are often met; half of them are parts of some metadata."""
    return _SHORT_METADATA | _METADATA.flatmap(parts_of)


def parts_of(value: Any) -> Strategy[Any]:
    """What ``value`` contains: fewer keys, fewer items in another order and repeated."""
    if isinstance(value, dict):
        members = {key: parts_of(member) for key, member in value.items()}
        return st.fixed_dictionaries({}, optional=members)
    if isinstance(value, list):
        return st.lists(st.one_of([parts_of(item) for item in value]), max_size=3) if value else st.just([])
    return st.just(value)


def _some(required: dict[str, Strategy[Any]], optional: dict[str, Strategy[Any]]) -> Strategy[dict[str, Any]]:
    """Dicts with the required keys and a few or all of the optional ones, in any order of these.

    Few, because Hypothesis has a budget of choices for one test, and a state machine draws many of these.
    """
    names = sorted(optional)
    few = st.lists(st.sampled_from(names), max_size=4, unique=True)

    def members(chosen: list[str]) -> Strategy[dict[str, Any]]:
        asked = {name: optional[name] for name in chosen}
        # An odd number puts the caller's optional keys first.
        return st.fixed_dictionaries(asked | required if len(chosen) % 2 else required | asked)

    return st.one_of(few, few, st.just(names)).flatmap(members)


def _dates(names: tuple[str, ...], dated: bool) -> tuple[dict[str, Strategy[Any]], dict[str, Strategy[Any]]]:
    """The timestamps as required keys if ``dated``, else as optional ones that may be None."""
    if dated:
        return dict.fromkeys(names, timestamps()), {}
    return {}, dict.fromkeys(names, st.none() | timestamps())


def _or_none(strategy: Strategy[Any]) -> Strategy[Any]:
    return st.none() | strategy


def _row_fields() -> dict[str, Strategy[Any]]:
    """What a state and a record can both say, None included."""
    counters = st.sampled_from((0, 1, 2.0, -1, 2**63 - 1))
    amounts = st.sampled_from((0, 0.0, -0.0, 12, 0.1, 1e300, 5e-324, -3.5))
    return {
        "total_steps": _or_none(counters),
        "error_message": _or_none(texts()),
        "execution_time_ms": _or_none(amounts),
        "memory_usage_mb": _or_none(amounts),
        "metadata": _or_none(metadata()),
        "is_background_task": _or_none(st.booleans()),
        "parent_run_id": _or_none(run_ids()),
        "task_id": _or_none(st.sampled_from(TASK_IDS)),
        "background_error": _or_none(texts()),
    }


def _own_keys() -> dict[str, Strategy[Any]]:
    return {"my key": json_values(), "$flujo": json_values(), "\ud800": json_values()}


def states(*, dated: bool = False) -> Strategy[dict[str, Any]]:
    """States for save_state, from the four required keys alone to all keys and some of the user's."""
    required_dates, optional_dates = _dates(("created_at", "updated_at"), dated)
    required = {
        "pipeline_id": pipelines(),
        "pipeline_name": pipelines(),
        "pipeline_version": pipelines(),
        "current_step_index": st.sampled_from((0, 1, 2.0, -1, -(2**63))),
    }
    optional = {
        "pipeline_context": _or_none(json_objects()),
        "step_history": _or_none(st.lists(json_values(), max_size=4)),
        "last_step_output": json_values(),
        "status": statuses(),
        "revision": st.sampled_from((0, 7, None, "x")),
    }
    return _some(required | required_dates, _row_fields() | optional | optional_dates | _own_keys())


def run_starts(run_id: Strategy[str] | None = None, *, dated: bool = False) -> Strategy[dict[str, Any]]:
    """Data for save_run_start."""
    required_dates, optional_dates = _dates(("created_at", "updated_at"), dated)
    optional = _records() | {"pipeline_id": pipelines(), "pipeline_name": pipelines(), "pipeline_version": pipelines()}
    return _some({"run_id": run_ids() if run_id is None else run_id} | required_dates, optional | optional_dates)


def run_ends(*, dated: bool = False) -> Strategy[dict[str, Any]]:
    """Data for save_run_end; the cost under one of its two names."""
    required_dates, optional_dates = _dates(("updated_at",), dated)
    return _some(required_dates, _records() | optional_dates).flatmap(
        lambda made: st.sampled_from((made, {"cost_usd" if key == "total_cost" else key: made[key] for key in made}))
    )


def _records() -> dict[str, Strategy[Any]]:
    amounts = st.sampled_from((0, 0.25, 1e-9, 3))
    return {
        **_row_fields(),
        **_own_keys(),
        "status": statuses(),
        "current_step_index": _or_none(st.sampled_from((0, 1, 2.0))),
        "end_time": _or_none(timestamps()),
        "total_cost": _or_none(amounts),
        "final_context": json_values(),
    }


def steps(run_id: Strategy[str] | None = None, *, dated: bool = False) -> Strategy[dict[str, Any]]:
    """Data for save_step_result; numbers under either of their names."""
    required_dates, optional_dates = _dates(("created_at",), dated)
    costs = _or_none(st.sampled_from((0, 0.1, 0.2, 0.7, 1e-12, 1e16, 3)))
    counts = _or_none(st.sampled_from((0, 7, 7.0, 2**63 - 1)))
    required = {
        "run_id": run_ids() if run_id is None else run_id,
        "step_name": st.sampled_from(STEP_NAMES),
        "step_index": st.sampled_from((0, 1, 2)),
    }
    optional = {
        "status": st.sampled_from(("completed", "failed", "skipped")),
        "output": json_values(),
        "raw_response": json_values(),
        "input": json_values(),
        "error": json_values(),
        **_own_keys(),
        "step_run_id": _or_none(st.sampled_from(TASK_IDS)),
        "record_id": _or_none(st.sampled_from(RECORD_IDS)),
        "start_time": _or_none(timestamps()),
        "end_time": _or_none(timestamps()),
    }
    named = st.sampled_from((("cost_usd", "token_counts", "execution_time_ms"), ("cost", "tokens", "duration_ms")))
    return named.flatmap(
        lambda names: _some(
            required | required_dates,
            optional | optional_dates | dict(zip(names, (costs, counts, costs), strict=True)),
        )
    )


def _span_fields(dated: bool) -> tuple[dict[str, Strategy[Any]], dict[str, Strategy[Any]]]:
    times = st.sampled_from((0, 0.0, -0.0, 1.5, 1.5, -2, 1e9))
    required_dates, optional_dates = _dates(("created_at",), dated)
    optional = {
        "parent_span_id": _or_none(st.sampled_from((*SPAN_IDS, "elsewhere"))),
        "start_time": times,
        "end_time": _or_none(times),
        "status": st.sampled_from(("running", "completed", "error")),
        "attributes": json_objects(),
        **_own_keys(),
    }
    return {"span_id": st.sampled_from(SPAN_IDS)} | required_dates, optional | optional_dates


def spans(*, dated: bool = False) -> Strategy[dict[str, Any]]:
    """One span, whose parent may be missing or make a cycle."""
    required, optional = _span_fields(dated)
    return _some(required, optional | {"name": st.sampled_from(STEP_NAMES)})


def span_lists(*, dated: bool = False) -> Strategy[list[dict[str, Any]]]:
    return st.lists(spans(dated=dated), max_size=4)


def traces(*, dated: bool = False) -> Strategy[dict[str, Any]]:
    """Trees of nodes, some of which are spans."""
    required, optional = _span_fields(dated)
    span = _some(required | {"name": st.sampled_from(STEP_NAMES)}, optional)
    node = span | json_objects()
    tree: Strategy[dict[str, Any]] = node
    for _ in range(3):
        children = _or_none(st.lists(tree, max_size=2))
        tree = node | st.tuples(node, children).map(lambda made: {**made[0], "children": made[1]})
    return tree


def run_filters() -> Strategy[dict[str, Any]]:
    """Keyword arguments that list_runs, iter_runs and count_runs take alike."""
    optional: dict[str, Strategy[Any]] = {
        "status": _or_none(statuses()),
        "pipeline_name": _or_none(pipelines()),
        "pipeline_id": _or_none(pipelines()),
        "metadata_filter": _or_none(metadata_filters()),
        "parent_run_id": _or_none(run_ids()),
        "is_background_task": _or_none(st.booleans()),
        **dict.fromkeys(("created_after", "created_before", "updated_after", "updated_before"), timestamps()),
    }
    # Most filters together match nothing: name at most three.
    chosen = st.lists(st.sampled_from(sorted(optional)), max_size=3, unique=True)
    return chosen.flatmap(lambda names: st.fixed_dictionaries({name: optional[name] for name in names}))


def pages() -> Strategy[dict[str, Any]]:
    """limit and offset."""
    return st.fixed_dictionaries(
        {}, optional={"limit": st.sampled_from((None, 0, 1, 2, 100)), "offset": st.integers(0, 3)}
    )


# Bad input: every value below is refused in every field of its kind.

BAD_IDENTIFIERS: tuple[Any, ...] = ("", "x" * 256, "a\x00", "\ud800", "\ud83d\ude00", 1, b"p", ["p"], Decimal(1))
BAD_STATUSES: tuple[Any, ...] = ("", "Running", "done", "running ", None, 1, b"running", ["running"])
BAD_TIMESTAMPS: tuple[Any, ...] = (
    "", "2024-02-29", "12:00", "2024-02-30T12:00", "2024-02-29T24:00", "2024-02-29T12:00:60", "2024-02-29T12:00:00.",
    "2024-02-29T12:00:00.1234567", "2024-02-29T12:00:00,5", "2024-02-29T12", "20240229T120000", "2024-W09-4T12:00",
    "2024-02-29T12:00 Z", " 2024-02-29T12:00", "2024-02-29T12:00\n", "2024-02-29T12:00+24:00", "2024-02-29T12:00+05:60",
    "2024-02-29T12:00+5", "2024-02-29T12:00+05:30:15", "2024-02-29T12:00[UTC]", "+2024-02-29T12:00", "0000-02-29T12:00",
    "\u0662\u0660\u0662\u0664-02-29T12:00", "0001-01-01T23:59:59.999999", "0001-01-02T00:00+00:01",
    "9999-12-31T00:00:00", "9999-12-30T23:59:59.999999-00:01", datetime.min, datetime.max, NOON.date(),  # noqa: DTZ901
    NOON.timetz(), 1709208000, 1709208000.0, True, b"2024-02-29T12:00", timedelta(0),
)  # fmt: skip
BAD_NUMBERS: tuple[Any, ...] = (nan, inf, -inf, True, "1", Decimal(1), 10**309, -(10**309), [1], timedelta(0))
BAD_COUNTERS: tuple[Any, ...] = (*BAD_NUMBERS, 0.5, 2**63, -(2**63) - 1, 2.0**63, 1e300)
BAD_TEXTS: tuple[Any, ...] = (1, True, b"text", ["text"], {})
BAD_FLAGS: tuple[Any, ...] = (0, 1, "true", "", [])
BAD_OBJECTS: tuple[Any, ...] = ([], "", 0, False, "{}", [("a", 1)])
BAD_ARRAYS: tuple[Any, ...] = ({}, "", 0, False, "[]")
BAD_METADATA: tuple[Any, ...] = (
    *BAD_OBJECTS, {"a": nan}, {"a": inf}, {"a": [-inf]}, {"a": "\x00"}, {"a": "x\ud800"}, {"a": "\ud83d\ude00"},
    {"\x00": 1}, {"a": {"\udfff": 1}},
)  # fmt: skip


def _cycle() -> Any:
    ring: list[Any] = []
    ring.append({"ring": ring})
    return ring


def nested(levels: int) -> Any:
    """``levels`` lists inside each other."""
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


BAD_JSON: dict[str, Callable[[], Any]] = {
    "cycle": _cycle,
    "deeper than any document": lambda: nested(401),
    "4,301 digits": lambda: 10**4300,
    "bytes that are not UTF-8": lambda: b"\xff",
    "unknown object": object,
    "complex": lambda: 1j,
    "class": lambda: dict,
    "generator": lambda: iter(()),
    "key of another type": lambda: {(1, 2): 1},
    "key of bytes": lambda: {b"a": 1},
    "1 and '1'": lambda: {1: "a", "1": "b"},
    "1 and 1.0 as text": lambda: {1.0: "a", "1.0": "b"},
    "None and 'null'": lambda: {None: "a", "null": "b"},
    "True and 'true'": lambda: {"true": "a", True: "b"},
}
"""JSON that is refused wherever any JSON is taken (G4)."""


def plain_state(**changes: Any) -> dict[str, Any]:
    """The smallest valid state, with changes."""
    least = {"pipeline_id": "p", "pipeline_name": "p", "pipeline_version": "1", "current_step_index": 0}
    return least | changes


def _bad_fields() -> dict[str, tuple[Any, ...]]:
    return {
        **dict.fromkeys(("pipeline_id", "pipeline_name", "pipeline_version"), (*BAD_IDENTIFIERS, None)),
        **dict.fromkeys(("run_id", "parent_run_id", "task_id"), BAD_IDENTIFIERS),
        "current_step_index": BAD_COUNTERS,
        "total_steps": BAD_COUNTERS,
        "execution_time_ms": BAD_NUMBERS,
        "memory_usage_mb": BAD_NUMBERS,
        "status": BAD_STATUSES,
        "created_at": BAD_TIMESTAMPS,
        "updated_at": BAD_TIMESTAMPS,
        "is_background_task": BAD_FLAGS,
        "error_message": BAD_TEXTS,
        "background_error": BAD_TEXTS,
        "pipeline_context": BAD_OBJECTS,
        "step_history": BAD_ARRAYS,
        "metadata": BAD_METADATA,
    }


def _without(key: str) -> dict[str, Any]:
    return {known: value for known, value in plain_state().items() if known != key}


def _holding(key: str, bad: Callable[[], Any]) -> dict[str, Any]:
    return plain_state(**{key: {"x": [bad()]}})


def _invalid_states() -> dict[str, Callable[[], Any]]:
    made: dict[str, Callable[[], Any]] = {}
    for key in plain_state():
        made[f"without {key}"] = partial(_without, key)
    for key, values in _bad_fields().items():
        for number, value in enumerate(values):
            made[f"{key} {number}"] = partial(plain_state, **{key: value})
    for name, bad in BAD_JSON.items():
        for key in ("last_step_output", "pipeline_context", "metadata", "my key"):
            made[f"{key}: {name}"] = partial(_holding, key, bad)
    made["deeper than a state"] = lambda: plain_state(last_step_output=nested(200))
    made["of another run"] = lambda: plain_state(run_id="not one of the pool")
    made["two keys that become one"] = lambda: plain_state() | {"1": 1, 1: 1}
    made["None"] = lambda: None
    made["a list"] = lambda: [("pipeline_id", "p")]
    made["text"] = lambda: "{}"
    return made


INVALID_STATES = _invalid_states()
"""Makers of states that are wrong in exactly one way, by the name of the way."""


def invalid_states() -> Strategy[str]:
    """A name in INVALID_STATES: it reads well in a report, and 4,301 digits can't even be printed."""
    return st.sampled_from(sorted(INVALID_STATES))
