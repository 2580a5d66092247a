"""Is this argument what the contract asks for? Public arguments become checked, fresh data here, before any await.

Each function returns its value in the form that is kept and raises `InvalidStateError` naming the field.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from enum import Enum
from math import isfinite
from typing import Any, Final

from .codec import MAX_DEPTH, fields_of, keys_as_text, normalize
from .errors import InvalidStateError
from .model import RunStatus
from .timestamps import instant

STATUSES: Final = ("running", "paused", "completed", "failed", "cancelled")
FINISHED: Final = frozenset({"completed", "failed", "cancelled"})
MAX_IDENTIFIER: Final = 255
_INT64: Final = 2**63


def _invalid(name: str, value: Any, wanted: str) -> InvalidStateError:
    return InvalidStateError(f"{name} is {value!r:.120}, not {wanted}", path=f"$.{name}")


def identifier(value: Any, name: str) -> str:
    """G5: a non-empty str of at most 255 characters without NUL and surrogates."""
    if not isinstance(value, str):
        raise _invalid(name, value, "a str")
    text = value if type(value) is str else str.__str__(value.value if isinstance(value, Enum) else value)
    if not text:
        raise _invalid(name, text, "a non-empty str")
    if len(text) > MAX_IDENTIFIER:
        raise InvalidStateError(
            f"{name} has {len(text)} characters, over the limit of {MAX_IDENTIFIER}", path=f"$.{name}"
        )
    if "\x00" in text or not (text.isascii() or _is_unicode(text)):
        raise _invalid(name, text, "a str without NUL and lone surrogates")
    return text


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def optional_identifier(value: Any, name: str) -> str | None:
    return None if value is None else identifier(value, name)


def run_status(value: Any, name: str = "status") -> RunStatus:
    text = value.value if isinstance(value, Enum) else value
    if not isinstance(text, str) or text not in STATUSES:
        raise _invalid(name, value, f"one of {', '.join(STATUSES)}")
    return str.__str__(text)  # type: ignore[return-value]


def any_status(value: Any, name: str = "status") -> str:
    """The status of a step or span: any identifier."""
    return identifier(value.value if isinstance(value, Enum) else value, name)


def free_text(value: Any, name: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise _invalid(name, value, "a str or None")
    return value


def number(value: Any, name: str) -> float | None:
    """G7: a finite int or float, or None; returned as the float that rows show."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _invalid(name, value, "a number")
    try:
        shown = float(value)
    except OverflowError:
        raise InvalidStateError(f"{name} is an integer too large for a float", path=f"$.{name}") from None
    if not isfinite(shown):
        raise _invalid(name, value, "a finite number")
    return shown


def counter(value: Any, name: str) -> int:
    """G7: a whole number of 64 bits."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise _invalid(name, value, "a whole number")
    if not -_INT64 <= value < _INT64:
        raise InvalidStateError(f"{name} is outside the range of 64-bit integers", path=f"$.{name}")
    return int.__int__(value)


def flag(value: Any, name: str) -> bool | None:
    if value is not None and not isinstance(value, bool):
        raise _invalid(name, value, "True, False or None")
    return value


def natural(value: Any, name: str) -> int:
    """A whole number from 0, no bool: limits, offsets, revisions."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _invalid(name, value, "a whole number from 0 upwards")
    return min(int.__int__(value), _INT64 - 1)


def optional_natural(value: Any, name: str) -> int | None:
    return None if value is None else natural(value, name)


def positive(value: Any, name: str) -> int:
    if natural(value, name) == 0:
        raise _invalid(name, value, "a whole number from 1 upwards")
    return int(value)


def duration(value: Any, name: str) -> float:
    """A finite number from 0."""
    shown = number(value, name)
    if shown is None or shown < 0:
        raise _invalid(name, value, "a number from 0 upwards")
    return shown


def metadata(value: Any, name: str = "metadata") -> dict[str, Any]:
    """M3: an object that jsonb holds exactly; None means ``{}``."""
    if value is None:
        return {}
    plain = normalize(value, strict=True, root=name)
    if not isinstance(plain, dict):
        raise _invalid(name, value, "a dict")
    return plain


def run_statuses(values: Any, name: str = "statuses") -> frozenset[str] | None:
    if values is None:
        return None
    if isinstance(values, str) or not isinstance(values, Collection):
        raise _invalid(name, values, "a collection of statuses")
    return frozenset(run_status(value, name) for value in values)


Check = Callable[[Any, str], Any]


def synonyms(plain: dict[str, Any], given: dict[str, Any], pairs: Mapping[str, str]) -> None:
    """Moves each second name to its first; both given and different is an error."""
    for first, second in pairs.items():
        if second not in plain:
            continue
        value, raw = plain.pop(second), given.pop(second)
        known = plain.get(first)
        if known is None:
            plain[first], given[first] = value, raw
        elif value is not None and (type(value) is not type(known) or repr(value) != repr(known)):
            raise InvalidStateError(f"{first} and {second} mean the same and differ; give one", path=f"$.{second}")


# --- the records ------------------------------------------------------------------------------------------------

IDENTITY: Final = ("pipeline_id", "pipeline_name", "pipeline_version")
ROW_FIELDS: Final[Mapping[str, Check]] = {
    "current_step_index": counter,
    "total_steps": counter,
    "error_message": free_text,
    "execution_time_ms": number,
    "memory_usage_mb": number,
    "is_background_task": flag,
    "parent_run_id": optional_identifier,
    "task_id": optional_identifier,
    "background_error": free_text,
}
"""Fields that both a snapshot and a record may give to a run's row; ``metadata`` is one more."""
RECORD_FIELDS: Final[Mapping[str, Check]] = {**ROW_FIELDS, "total_cost": number}
RUN_SYNONYMS: Final = {"execution_time_ms": "duration_ms"}
END_SYNONYMS: Final = {"total_cost": "cost_usd", "execution_time_ms": "duration_ms"}
STEP_SYNONYMS: Final = {"cost_usd": "cost", "token_counts": "tokens", "execution_time_ms": "duration_ms"}
_RUN_KEYS: Final = frozenset(
    {*RECORD_FIELDS, *IDENTITY, "metadata", "status", "created_at", "start_time", "updated_at", "end_time", "run_id",
     "revision"}
)  # fmt: skip


def plain_mapping(
    data: Any, what: str, ids: Collection[str], ignored: Collection[str] = ()
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A record in its JSON form, and as given: what is never cast is checked as it was given."""
    raw = fields_of(data)
    if raw is None and isinstance(data, Mapping):
        raw = dict(data)
    if raw is None:
        raise InvalidStateError(f"{what} is a {type(data).__name__}, not a dict", path="$")
    given = keys_as_text(raw)
    plain = normalize({key: value for key, value in raw.items() if key not in ignored})
    for name in ids:
        if given.get(name) is not None:
            identifier(given[name], name)
    return plain, given


def row_fields(plain: Mapping[str, Any], given: Mapping[str, Any], checks: Mapping[str, Check]) -> dict[str, Any]:
    """The fields of a run's row that ``plain`` contains, as rows show them."""
    fields = {}
    for name, check in checks.items():
        if name in plain:
            # As given: in the JSON form a Decimal or bytes would be text. None means the default.
            fields[name] = None if given[name] is None else check(given[name], name)
    if "metadata" in plain:
        fields["metadata"] = metadata(given["metadata"])
    return fields


def same_run(given: Any, run_id: str) -> None:
    """S5."""
    if given is not None and given != run_id:
        raise InvalidStateError(f"run_id is {given!r:.120} in the data and {run_id!r} in the call", path="$.run_id")


STATE_IDS: Final = ("run_id", *IDENTITY, "parent_run_id", "task_id")


class StateData:
    """The checked argument of S1 (S4, S5): the state in its JSON form and what it says of the run's row."""

    __slots__ = ("created_at", "fields", "identity", "plain", "status", "updated_at")

    def __init__(self, run_id: str, state: Any) -> None:
        plain, given = plain_mapping(state, "state", STATE_IDS, ignored=("revision",))
        same_run(plain.get("run_id"), run_id)
        for name in (*IDENTITY, "current_step_index"):
            if plain.get(name) is None:
                raise InvalidStateError(f"{name} is required and missing or None", path=f"$.{name}")
        for name, kind in _STATE_KINDS:
            if name in plain:
                if plain[name] is None:
                    plain[name] = kind()
                elif type(plain[name]) is not kind and kind in (dict, list):
                    raise _invalid(name, given[name], f"a {kind.__name__}")
        self.plain = plain
        self.identity = tuple(plain[name] for name in IDENTITY)
        self.status = run_status(given.get("status", "running"))
        if "status" in plain:
            plain["status"] = self.status
        fields = row_fields(plain, given, ROW_FIELDS)
        # Only what says something hides what R1 or R2 recorded.
        self.fields = {name: value for name, value in fields.items() if given[name] is not None}
        self.created_at = _instant_of(given, "created_at")
        self.updated_at = _instant_of(given, "updated_at")


_STATE_KINDS: Final = (
    ("pipeline_context", dict), ("metadata", dict), ("step_history", list), ("total_steps", int),
    ("is_background_task", bool),
)  # fmt: skip


def _instant_of(given: Mapping[str, Any], name: str) -> datetime | None:
    return None if given.get(name) is None else instant(given[name], name)


def _none() -> None:
    return None


STATE_DEFAULTS: Final[Mapping[str, Callable[[], Any]]] = {
    "run_id": _none,
    "pipeline_context": dict,
    "last_step_output": _none,
    "step_history": list,
    "status": lambda: "running",
    "created_at": _none,
    "total_steps": int,
    "error_message": _none,
    "execution_time_ms": _none,
    "memory_usage_mb": _none,
    "metadata": dict,
    "is_background_task": bool,
    "parent_run_id": _none,
    "task_id": _none,
    "background_error": _none,
}
"""Known keys of a snapshot in their order, with what stands for an absent one."""


class RunData:
    """The checked argument of R1 or R2: what it says of the row, and its other keys."""

    __slots__ = (
        "created_at",
        "details",
        "end_time",
        "fields",
        "has_end_time",
        "identity",
        "plain",
        "run_id",
        "status",
        "updated_at",
    )

    def __init__(self, run_id: str | None, data: Any, what: str) -> None:
        """``run_id`` None: the data names the run."""
        starts = what == "run_data"
        ignored = ("revision",) if starts else ("revision", "created_at", "start_time")
        plain, given = plain_mapping(data, what, STATE_IDS, ignored)
        synonyms(plain, given, RUN_SYNONYMS if starts else END_SYNONYMS)
        self.run_id = identifier(given.get("run_id"), "run_id") if run_id is None else run_id
        same_run(given.get("run_id"), self.run_id)
        self.identity = tuple(plain.get(name) for name in IDENTITY)
        self.status = run_status(given["status"]) if "status" in plain else None
        self.created_at = _created_at(given) if starts else None
        self.updated_at = _instant_of(given, "updated_at")
        self.has_end_time = "end_time" in given
        self.end_time = _instant_of(given, "end_time")
        self.fields = row_fields(plain, given, RECORD_FIELDS)
        self.plain = plain
        self.details = {key: value for key, value in plain.items() if key not in _RUN_KEYS}


def _created_at(given: Mapping[str, Any]) -> datetime | None:
    created, started = _instant_of(given, "created_at"), _instant_of(given, "start_time")
    if created is not None and started is not None and created != started:
        raise InvalidStateError("created_at and start_time mean the same and differ; give one", path="$.start_time")
    return created or started


STEP_KEYS: Final = (
    "run_id", "step_name", "step_index", "status", "output", "raw_response", "cost_usd", "token_counts",
    "execution_time_ms", "created_at", "step_run_id", "record_id", "start_time", "end_time", "input", "error",
)  # fmt: skip


def checked_step(data: Any, now: datetime) -> dict[str, Any]:
    """R3: the step in its JSON form, with every key; ``created_at``, ``start_time`` and ``end_time`` as datetimes."""
    plain, given = plain_mapping(data, "step_data", ("run_id", "step_name", "step_run_id", "record_id"))
    synonyms(plain, given, STEP_SYNONYMS)
    for name in ("run_id", "step_name", "step_index"):
        if plain.get(name) is None:
            raise InvalidStateError(f"{name} is required and missing or None", path=f"$.{name}")
    if counter(given["step_index"], "step_index") < 0:
        raise _invalid("step_index", given["step_index"], "a whole number from 0 upwards")
    plain["status"] = any_status(given["status"]) if "status" in plain else "completed"
    plain = {**dict.fromkeys(STEP_KEYS), **plain}
    for name, check in (("cost_usd", number), ("token_counts", counter), ("execution_time_ms", number)):
        if plain[name] is not None:
            check(given[name], name)
    for name in ("created_at", "start_time", "end_time"):
        if plain[name] is not None:
            plain[name] = instant(given[name], name)
    if plain["created_at"] is None:
        plain["created_at"] = now
    return plain


def checked_span(
    plain: dict[str, Any], now: datetime, *, given: Mapping[str, Any] | None = None, where: str = "span"
) -> dict[str, Any]:
    """T2, T3: a normalized span with every key, ``created_at`` as a datetime. ``given`` is it before normalization:
    ids and numbers are never cast."""
    given = plain if given is None else given
    attributes = plain.get("attributes")
    if attributes is not None and not isinstance(attributes, dict):
        raise _invalid(f"{where}.attributes", attributes, "a dict")
    start = number(given.get("start_time"), f"{where}.start_time")
    created_at = given.get("created_at")
    span = {
        "span_id": identifier(given.get("span_id"), f"{where}.span_id"),
        "parent_span_id": optional_identifier(given.get("parent_span_id"), f"{where}.parent_span_id"),
        "name": identifier(given.get("name", "span"), f"{where}.name"),
        "start_time": 0.0 if start is None else start,
        "end_time": number(given.get("end_time"), f"{where}.end_time"),
        "status": any_status(given.get("status", "running"), f"{where}.status"),
        "attributes": {} if attributes is None else attributes,
        "created_at": now if created_at is None else instant(created_at, f"{where}.created_at"),
    }
    return {**span, **{key: value for key, value in plain.items() if key not in span}}


TRACE_DEPTH: Final = 2 * MAX_DEPTH
"""A node and its list of children are two levels of JSON."""
