"""Which value does a field or argument take, and what is kept of it? (G5, G6, G7, G8)

Every function takes what the caller gave and its path; it returns what is kept or raises InvalidStateError.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime, timedelta
from enum import Enum
from math import isfinite
from typing import Any

from flujo_conformance.compare import identical
from flujo_conformance.json_values import UNSTORABLE, as_object, check_size, child_path, normalise, refuse

Check = Callable[[Any, str], Any]

STATUSES = ("running", "paused", "completed", "failed", "cancelled")
FINISHED = ("completed", "failed", "cancelled")
EARLIEST = datetime(1, 1, 2, tzinfo=UTC)
LATEST = datetime(9999, 12, 30, 23, 59, 59, 999999, tzinfo=UTC)
START_OF_CALENDAR = datetime.min.replace(tzinfo=UTC)

_TIMESTAMP = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt ]([0-9]{2}):([0-9]{2})(?::([0-9]{2})(?:\.([0-9]{1,6}))?)?"
    r"(?:[Zz]|([+-])([0-9]{2})(?::?([0-9]{2}))?)?"
)


def identifier(value: Any, path: str) -> str:
    """A non-empty str of at most 255 characters without NUL and surrogates."""
    if not isinstance(value, str):
        refuse(path, f"an identifier is a str, not {type(value).__name__}")
    text = str.__str__(value)
    if not 1 <= len(text) <= 255:
        refuse(path, f"an identifier has 1 to 255 characters, not {len(text)}")
    if UNSTORABLE.search(text):
        refuse(path, "an identifier has no NUL and no surrogates")
    return text


def label(value: Any, path: str) -> str:
    """The status of a step or span: any identifier, or an Enum of one."""
    return identifier(value.value if isinstance(value, Enum) else value, path)


def status(value: Any, path: str) -> str:
    """The status of a run: one of the five."""
    text = value.value if isinstance(value, Enum) else value
    if not isinstance(text, str) or text not in STATUSES:
        refuse(path, f"a run's status is one of {', '.join(STATUSES)}")
    return str.__str__(text)


def text(value: Any, path: str) -> str:
    """Free text: any str."""
    if not isinstance(value, str):
        refuse(path, f"give a str, not {type(value).__name__}")
    return str.__str__(value)


def flag(value: Any, path: str) -> bool:
    """A bool, nothing that is merely true or false."""
    if not isinstance(value, bool):
        refuse(path, f"give a bool, not {type(value).__name__}")
    return value


def number(value: Any, path: str) -> int | float:
    """A finite int or float that fits a double, as it was given."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        refuse(path, f"give an int or a float, not {type(value).__name__}")
    try:
        finite = isfinite(float(value))
    except OverflowError:
        finite = False
    if not finite:
        refuse(path, "a number is finite and fits a double")
    return int.__index__(value) if isinstance(value, int) else float.__pos__(value)


def counter(value: Any, path: str) -> int | float:
    """An integral number of 64 bits, as it was given."""
    given = number(value, path)
    if given != int(given) or not -(2**63) <= int(given) < 2**63:
        refuse(path, "a counter is a whole number of 64 bits")
    return given


def index(value: Any, path: str) -> int | float:
    """The index of a step: a counter that is not negative."""
    given = counter(value, path)
    if given < 0:
        refuse(path, "a step_index is not negative")
    return given


def timestamp(value: Any, path: str) -> datetime:
    """An instant as aware UTC datetime, to the microsecond."""
    if isinstance(value, str):
        local, offset = _parse(value, path)
    elif isinstance(value, datetime):
        day, clock = value.date(), value.time()  # without what a subclass may add, such as nanoseconds
        local = datetime.combine(day, clock.replace(fold=0), tzinfo=UTC)
        offset = value.utcoffset() or timedelta(0)
    else:
        refuse(path, f"a timestamp is a datetime or an ISO 8601 str, not {type(value).__name__}")
    try:
        instant = local - offset
    except OverflowError:
        refuse(path, "the timestamp is outside the calendar")
    if not EARLIEST <= instant <= LATEST:
        refuse(path, "a timestamp lies between 0001-01-02 and 9999-12-30 UTC")
    return instant


def _parse(value: str, path: str) -> tuple[datetime, timedelta]:
    match = _TIMESTAMP.fullmatch(value)
    if match is None:
        refuse(path, "this is no ISO 8601 date and time with at most 6 fraction digits")
    year, month, day, hour, minute, second, fraction, sign, hours, minutes = match.groups()
    if int(hours or 0) > 23 or int(minutes or 0) > 59:
        refuse(path, "the offset of a timestamp is at most 23:59")
    try:
        micros = int((fraction or "0").ljust(6, "0"))
        local = datetime(int(year), int(month), int(day), int(hour), int(minute), int(second or 0), micros, UTC)
    except ValueError as error:
        refuse(path, f"this date or time does not exist: {error}")
    offset = timedelta(hours=int(hours or 0), minutes=int(minutes or 0))
    return local, -offset if sign == "-" else offset


def optional(check: Check) -> Check:
    """The same check for a field that may be None."""
    return lambda value, path: None if value is None else check(value, path)


def json_object(value: Any, path: str) -> dict[str, Any]:
    """Any JSON object, at level 2 of its document."""
    return checked_dict(normalise(value, path, depth=2), path)


def json_array(value: Any, path: str) -> list[Any]:
    """Any JSON array, at level 2 of its document."""
    items = normalise(value, path, depth=2)
    if not isinstance(items, list):
        refuse(path, "give a list")
    return items


def metadata(value: Any, path: str) -> dict[str, Any]:
    """An object that PostgreSQL's jsonb can hold (M3), at level 2 of its document."""
    return checked_dict(normalise(value, path, depth=2, strict=True), path)


def checked_dict(value: Any, path: str) -> dict[str, Any]:
    """A normalised value, which has to be an object."""
    if not isinstance(value, dict):
        refuse(path, f"give an object (dict), not {type(value).__name__}")
    return value


def read_object(
    value: object, checks: Mapping[str, Check], max_bytes: int, *, ignore: Collection[str] = (), path: str = "$"
) -> dict[str, Any]:
    """A document whose known fields are checked and whose other members are any JSON, in the order given.

    ``ignore`` names the members that are dropped unseen.
    """
    document = {}
    for key, member in as_object(value, path).items():
        if key not in ignore:
            where = child_path(path, key)
            document[key] = checks[key](member, where) if key in checks else normalise(member, where, depth=2)
    check_size(document, max_bytes, path)
    return document


def require(document: Mapping[str, Any], *keys: str) -> None:
    """Refuse a document that lacks one of the keys."""
    for key in keys:
        if key not in document:
            refuse(f"$.{key}", "this key is required")


def merge_synonyms(document: dict[str, Any], first: str, second: str) -> None:
    """Leave the value of two names of one field under the first of them; None is no value."""
    if second not in document:
        return
    value = document.pop(second)
    if document.get(first) is None:
        document[first] = value
    elif value is not None and not identical(document[first], value):
        refuse(f"$.{second}", f"{first} and {second} are two names of one field and differ")


def limit(value: Any, path: str = "limit") -> int | None:
    """How many to return at most; None is all."""
    return None if value is None else offset(value, path)


def offset(value: Any, path: str = "offset") -> int:
    """How many to pass over."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        refuse(path, "give an int that is not negative")
    return value


def revision(value: Any, path: str = "expected_revision") -> int | None:
    """The revision that a caller expects; None expects nothing."""
    return limit(value, path)


def cutoff(now: datetime, amount: Any, unit: str, path: str) -> datetime:
    """The instant ``amount`` of a unit of timedelta before now, at the earliest the start of the calendar."""
    if isinstance(amount, bool) or not isinstance(amount, (int, float)) or not amount >= 0 or amount == float("inf"):
        refuse(path, "give a finite number that is not negative")
    try:
        return now - timedelta(**{unit: amount})
    except OverflowError:
        return START_OF_CALENDAR


def statuses(value: Any, path: str = "statuses") -> set[str] | None:
    """A collection of run statuses; None is no choice."""
    if value is None:
        return None
    if isinstance(value, (str, bytes)) or not isinstance(value, Collection):
        refuse(path, "give a collection of statuses")
    return {status(item, f"{path}[{place}]") for place, item in enumerate(value)}
