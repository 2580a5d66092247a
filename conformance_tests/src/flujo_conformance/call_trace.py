"""Which calls were made, in which order? A trace says it in one JSON document that can be read back to the last bit.

    {"format": 1, "contract": 1, "calls": [
    {"clock": "2024-03-01T12:00:00+00:00"},
    {"handle": 0, "method": "save_state", "args": ["r", {"pipeline_id": "p"}], "kwargs": {"expected_revision": 0}},
    {"together": [{"handle": 1, "method": "load_state", "args": ["r"], "kwargs": {}}]},
    {"reopen": 0, "new": true}
    ]}

What JSON can't say is an object with one key that begins with ``$``; a dict of the user's that looks like one is
written as ``{"$dict": [[key, value]]}``.
"""

from __future__ import annotations

import inspect
import json
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from math import isfinite, isnan
from typing import Any, Final
from uuid import UUID

from flujo_core import StateBackend
from flujo_core.contract import CONTRACT_VERSION
from flujo_core.queries import Filters

from .answers import Call
from .model import ModelBackend
from .strategies import INVALID_STATES

FORMAT: Final = 1
METHODS: Final = frozenset(
    name for name in dir(StateBackend) if name[0] != "_" and callable(getattr(ModelBackend, name, 0))
)
"""What a trace may call: the public methods whose answers the contract fixes."""


@dataclass(frozen=True, slots=True)
class InvalidState:
    """Stands for a new state from `INVALID_STATES`, as some of them can't be written."""

    name: str

    def __post_init__(self) -> None:
        if self.name not in INVALID_STATES:
            raise ValueError(f"there is no invalid state {self.name!a}")

    def make(self) -> Any:
        return INVALID_STATES[self.name]()


@dataclass(frozen=True, slots=True)
class Ask:
    """Calls that one handle gets at the same time; writes of one run take effect in the order of the calls."""

    handle: int
    calls: tuple[Call, ...]


@dataclass(frozen=True, slots=True)
class SetClock:
    now: datetime


@dataclass(frozen=True, slots=True)
class Reopen:
    """A handle is shut down; what comes next opens it again, or a ``new`` one in its place."""

    handle: int
    new: bool


Step = Ask | SetClock | Reopen


@dataclass(frozen=True, slots=True)
class Trace:
    steps: tuple[Step, ...]
    contract: int = CONTRACT_VERSION


def dumps(trace: Trace) -> str:
    """The trace as strict JSON in ASCII, one step on each line."""
    lines = ",\n".join(json.dumps(step_to_json(step), allow_nan=False) for step in trace.steps)
    return f'{{"format": {FORMAT}, "contract": {trace.contract}, "calls": [\n{lines}\n]}}\n'


def loads(text: str) -> Trace:
    """The trace that `dumps` wrote. ValueError says what is wrong with any other text."""
    try:
        document = json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"this is no trace, or a part of one only: it is not JSON: {error}") from None
    except RecursionError:
        raise ValueError("this is no trace: it is nested too deeply") from None
    return from_json(document)


def to_json(trace: Trace) -> dict[str, Any]:
    return {"format": FORMAT, "contract": trace.contract, "calls": [step_to_json(step) for step in trace.steps]}


def from_json(document: Any) -> Trace:
    if not isinstance(document, dict) or document.keys() != {"format", "contract", "calls"}:
        raise ValueError('this is no trace: it has to be an object with "format", "contract" and "calls"')
    number, contract, calls = document["format"], document["contract"], document["calls"]
    if type(number) is not int or number < 1 or type(contract) is not int or not isinstance(calls, list):
        raise ValueError("this is no trace: format and contract are whole numbers, calls is a list")
    if contract != CONTRACT_VERSION:
        raise ValueError(f"the trace is about version {contract} of the contract, this kit about {CONTRACT_VERSION}")
    if number > FORMAT:
        raise ValueError(f"the trace has format {number}, this version reads up to {FORMAT}: update flujo-conformance")
    return Trace(tuple(_step(step, f"calls[{place}]") for place, step in enumerate(calls)), contract)


def check_calls(trace: Trace) -> None:
    """Raises `ValueError` for a call that no backend can be asked: with arguments that its method doesn't have."""
    for place, step in enumerate(trace.steps):
        for method, args, kwargs in step.calls if isinstance(step, Ask) else ():
            try:
                bound = inspect.signature(getattr(StateBackend, method)).bind(None, *args, **kwargs)
            except TypeError as error:
                raise ValueError(f"calls[{place}]: {method} can't be called so: {error}") from None
            if unknown := set(bound.arguments.get("filters", {})) - Filters.__annotations__.keys():
                raise ValueError(f"calls[{place}]: {method} can't be called so: there is no filter {min(unknown)!a}")


# --- steps ------------------------------------------------------------------------------------------------------------


def step_to_json(step: Step) -> dict[str, Any]:
    if isinstance(step, SetClock):
        return {"clock": step.now.isoformat()}
    if isinstance(step, Reopen):
        return {"reopen": step.handle, "new": step.new}
    calls = [_call_to_json(step.handle, call) for call in step.calls]
    return calls[0] if len(calls) == 1 else {"together": calls}


def step_from_json(document: Any) -> Step:
    return _step(document, "the step")


def _call_to_json(handle: int, call: Call) -> dict[str, Any]:
    method, args, kwargs = call
    written = {name: value_to_json(value) for name, value in kwargs.items()}
    return {"handle": handle, "method": method, "args": [value_to_json(value) for value in args], "kwargs": written}


def _step(document: Any, place: str) -> Step:
    keys = document.keys() if isinstance(document, dict) else set()
    if keys == {"clock"}:
        return SetClock(_instant(document["clock"], place))
    if keys == {"reopen", "new"} and isinstance(document["new"], bool):
        return Reopen(_handle(document["reopen"], place), document["new"])
    if keys == {"together"} and isinstance(document["together"], list) and document["together"]:
        asked = [_ask(one, f"{place}.together[{number}]") for number, one in enumerate(document["together"])]
        if len({one.handle for one in asked}) > 1:
            raise ValueError(f"{place}: calls that are made together go to one handle; two have no order")
        return Ask(asked[0].handle, tuple(call for one in asked for call in one.calls))
    return _ask(document, place)


def _ask(document: Any, place: str) -> Ask:
    if not isinstance(document, dict) or document.keys() != {"handle", "method", "args", "kwargs"}:
        raise ValueError(f'{place} is no step of a trace: give "handle", "method", "args", "kwargs", or "clock", …')
    method, args, kwargs = document["method"], document["args"], document["kwargs"]
    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(f"{place}: {method!a} is no method of a backend; there are {', '.join(sorted(METHODS))}")
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise ValueError(f"{place}: args is a list, kwargs an object")
    call = method, tuple(_value(one, place) for one in args), {name: _value(kwargs[name], place) for name in kwargs}
    return Ask(_handle(document["handle"], place), (call,))


def _handle(value: Any, place: str) -> int:
    if type(value) is not int or not 0 <= value < 100:
        raise ValueError(f"{place}: a handle is a number from 0 to 99, not {value!a}")
    return value


def _instant(value: Any, place: str) -> datetime:
    try:
        now = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise ValueError(f"{place}: {value!a} is no instant") from None
    if now.tzinfo is None:
        raise ValueError(f"{place}: {value} says no zone")
    if not 2 <= now.year <= 9997:
        raise ValueError(f"{place}: no clock shows {value}")
    return now


# --- values -----------------------------------------------------------------------------------------------------------

_SURROGATE = re.compile("[\ud800-\udfff]")
_EXACT_IN_JSON = 2**53
"""Readers of JSON other than Python's take numbers for doubles."""


def _text(written: str) -> str:
    return written.encode("ascii").decode("unicode_escape")


def _datetime_to_json(value: datetime) -> str:
    zone = value.tzinfo
    plain = zone is None or (type(zone) is timezone and str(zone) == str(timezone(zone.utcoffset(None))))
    if value.fold or not plain:
        raise TypeError(f"a trace can't say the zone of {value!r}")
    return value.isoformat()


def _timedelta_to_json(value: timedelta) -> list[int]:
    return [value.days, value.seconds, value.microseconds]


def _items(value: Any) -> list[Any]:
    return [value_to_json(one) for one in value]


def _values(written: list[Any]) -> list[Any]:
    return [value_from_json(one) for one in written]


# By tag: the type, how it is written as JSON, and how it is read.
_TAGS: dict[str, tuple[type, Callable[[Any], Any], Callable[[Any], Any]]] = {
    "$text": (str, lambda value: value.encode("unicode_escape").decode("ascii"), _text),
    "$int": (int, hex, lambda written: int(written, 16)),
    "$float": (float, repr, {"inf": float("inf"), "-inf": float("-inf")}.__getitem__),
    "$nan": (
        float,
        lambda value: struct.pack(">d", value).hex(),
        lambda written: struct.unpack(">d", bytes.fromhex(written))[0],
    ),
    "$dict": (
        dict,
        lambda value: [_items(pair) for pair in value.items()],
        lambda written: {value_from_json(key): value_from_json(value) for key, value in written},
    ),
    "$tuple": (tuple, _items, lambda written: tuple(_values(written))),
    "$set": (set, _items, lambda written: set(_values(written))),
    "$frozenset": (frozenset, _items, lambda written: frozenset(_values(written))),
    "$bytes": (bytes, bytes.hex, bytes.fromhex),
    "$decimal": (Decimal, str, Decimal),
    "$datetime": (datetime, _datetime_to_json, datetime.fromisoformat),
    "$date": (date, date.isoformat, date.fromisoformat),
    "$time": (time, time.isoformat, time.fromisoformat),
    "$timedelta": (timedelta, _timedelta_to_json, lambda written: timedelta(*written)),
    "$uuid": (UUID, str, UUID),
    "$invalid": (InvalidState, lambda value: value.name, InvalidState),
}
_BY_TYPE = {kind: tag for tag, (kind, _, _) in _TAGS.items() if kind is not float}


def value_to_json(value: Any) -> Any:
    """A value as strict JSON; TypeError for one that a trace can't say."""
    tag = _tag(value)
    if tag is not None:
        return {tag: _TAGS[tag][1](value)}
    if isinstance(value, list):
        return _items(value)
    return {key: value_to_json(member) for key, member in value.items()} if isinstance(value, dict) else value


def _tag(value: Any) -> str | None:
    """The tag of a value that JSON can't say."""
    kind = type(value)
    if value is None or kind is bool or kind is list:
        plain = True
    elif kind is str:
        plain = not _SURROGATE.search(value)
    elif kind is int:
        plain = abs(value) < _EXACT_IN_JSON
    elif kind is float:
        return None if isfinite(value) else "$nan" if isnan(value) else "$float"
    elif kind is dict:
        tagged = (
            len(value) == 1 and next(iter(value), "")[:1] == "$" if all(type(key) is str for key in value) else True
        )
        plain = not tagged and not any(_SURROGATE.search(key) for key in value)
    else:
        plain = False
    if not plain and kind not in _BY_TYPE:
        raise TypeError(f"a trace can't say a {kind.__name__}: {value!r:.100}")
    return None if plain else _BY_TYPE[kind]


def value_from_json(written: Any) -> Any:
    """What `value_to_json` wrote, to the type and the last bit."""
    if isinstance(written, list):
        return _values(written)
    if isinstance(written, float) and not isfinite(written):
        raise ValueError("a number is too large for a double")
    if not isinstance(written, dict):
        return written
    tag = next(iter(written), "")
    if len(written) == 1 and tag.startswith("$"):
        if tag not in _TAGS:
            raise ValueError(f"unknown kind of value {tag!a}")
        return _TAGS[tag][2](written[tag])
    return {key: value_from_json(member) for key, member in written.items()}


def _value(written: Any, place: str) -> Any:
    try:
        return value_from_json(written)
    except RecursionError:
        raise ValueError(f"{place}: a value is nested too deeply") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, struct.error) as error:
        raise ValueError(f"{place}: a value can't be read: {error!r}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("this is no trace: an object has one key twice")
    return made


def _no_constant(name: str) -> None:
    raise ValueError(f"this is no trace: {name} is not JSON")
