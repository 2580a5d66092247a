"""Which JSON value does the contract make of a Python value, and which values does it refuse? (G3, G4, M3)

Written from the contract alone, as a second opinion on the codec of the core.
"""

from __future__ import annotations

import dataclasses
import json
import re
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from math import isfinite
from typing import Any, NoReturn
from uuid import UUID

from flujo_core.errors import InvalidStateError

MAX_DEPTH = 200
MAX_TRACE_DEPTH = 400
"""A node of a trace and its list of children are two levels, and 200 levels of nodes are allowed."""

MAX_DOCUMENT_BYTES = 64 * 1024 * 1024
FIRST_TOO_LARGE = 10**4300
UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
"""What PostgreSQL's text and jsonb can't hold: NUL and surrogate code points."""

_PLAIN_KEY = re.compile("[A-Za-z_][A-Za-z0-9_]*")


def refuse(path: str, why: str) -> NoReturn:
    """Raise the error of an argument that breaks a rule."""
    raise InvalidStateError(f"{path}: {why}", path=path)


def child_path(path: str, key: str | int) -> str:
    """The JSON path of one member of the container at ``path``."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    return f"{path}.{key}" if _PLAIN_KEY.fullmatch(key) else f"{path}[{json.dumps(key)}]"


def normalise(
    value: object, path: str = "$", *, strict: bool = False, depth: int = 1, max_depth: int = MAX_DEPTH
) -> Any:
    """The JSON value that ``value`` is saved as: fresh, made of exact built-in types only.

    ``depth`` is the level that ``value`` itself has if it is a container; ``strict`` adds what metadata refuses.
    """
    return _Walk(strict, max_depth).take(value, path, depth)


def as_object(value: object, path: str = "$") -> dict[str, Any]:
    """The members of something that is a JSON object, as the caller gave them, under their JSON keys."""
    form = _json_form(value, path)
    if not isinstance(form, dict):
        refuse(path, f"give an object (dict), not {type(value).__name__}")
    members: dict[str, Any] = {}
    for key, member in form.items():
        text = _json_key(key, path)
        if text in members:
            refuse(child_path(path, text), "two keys become this one in JSON")
        members[text] = member
    return members


def encoded(value: object) -> str:
    """The compact JSON text of a normalised value, timestamps as ISO strings."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=datetime.isoformat)


def check_size(value: object, max_bytes: int, path: str = "$") -> None:
    """Refuse a normalised document over the limit."""
    size = len(encoded(value).encode("utf-8", "surrogatepass"))
    if size > max_bytes:
        refuse(path, f"the document has {size} bytes, more than max_document_bytes={max_bytes}")


def fresh(value: Any) -> Any:
    """A copy that shares no container with a normalised value."""
    if isinstance(value, dict):
        return {key: fresh(member) for key, member in value.items()}
    if isinstance(value, list):
        return [fresh(item) for item in value]
    return value


class _Walk:
    """One walk over one value, with the containers it is inside of."""

    def __init__(self, strict: bool, max_depth: int) -> None:
        self.strict = strict
        self.max_depth = max_depth
        self.parents: set[int] = set()

    def take(self, value: object, path: str, depth: int) -> Any:
        form = _json_form(value, path)
        if not isinstance(form, (dict, list, set, frozenset)):
            _check_scalar(form, path, self.strict)
            return form
        if id(value) in self.parents:
            refuse(path, "the value contains itself")
        if depth > self.max_depth:
            refuse(path, f"the document is deeper than {self.max_depth} levels")
        self.parents.add(id(value))
        result: Any
        if isinstance(form, dict):
            result = {}
            for key, member in as_object(form, path).items():
                where = child_path(path, key)
                _check_scalar(key, where, self.strict)
                result[key] = self.take(member, where, depth + 1)
        else:
            result = []
            for place, item in enumerate(form):
                result.append(self.take(item, child_path(path, place), depth + 1))
            if not isinstance(form, list):
                result.sort(key=encoded)
        self.parents.remove(id(value))
        return result


def _check_scalar(value: object, path: str, strict: bool) -> None:
    if type(value) is int and abs(value) >= FIRST_TOO_LARGE:
        refuse(path, "an integer has at most 4,300 digits")
    if strict and type(value) is float and not isfinite(value):
        refuse(path, "metadata holds finite numbers only")
    if strict and type(value) is str and UNSTORABLE.search(value):
        refuse(path, "metadata holds no NUL and no surrogates, in values or keys")


def _json_form(value: Any, path: str) -> Any:
    """One step of the way: an exact scalar, or a dict, list, set whose members are still as given."""
    while isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, (bool, dict, set, frozenset)):
        return value
    if isinstance(value, (list, tuple)):
        return list(value)
    # Subclasses become the exact type, without asking what their own methods make of them.
    if isinstance(value, int):
        return int.__index__(value)
    if isinstance(value, float):
        return float.__pos__(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, (bytes, bytearray)):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            refuse(path, "these bytes are not UTF-8; encode them yourself, as base64 for example")
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, timedelta):
        return iso_duration(value)
    if isinstance(value, (UUID, Decimal)):
        return str(value)
    return _members(value, path)


def _members(value: Any, path: str) -> dict[str, Any]:
    if isinstance(value, type):
        refuse(path, f"a class ({value.__name__}) has no JSON form")
    if hasattr(value, "model_dump"):  # pydantic, recognised without importing it
        try:
            dumped: dict[str, Any] = value.model_dump(mode="python")
        except Exception as error:
            raise InvalidStateError(f"{path}: pydantic can't dump this model: {error}", path=path) from error
        return dumped
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    refuse(path, f"{type(value).__name__} has no JSON form; convert it first")


def _json_key(key: object, path: str) -> str:
    if isinstance(key, str):
        return str.__str__(key)
    if key is None:
        return "null"
    if isinstance(key, bool):
        return "true" if key else "false"
    if isinstance(key, int):
        _check_scalar(int.__index__(key), path, strict=False)
        return int.__repr__(key)
    if isinstance(key, float):
        return json.dumps(float.__pos__(key))
    refuse(path, f"a key is {type(key).__name__}; keys are str, int, float, bool or None")


def iso_duration(value: timedelta) -> str:
    """The ISO 8601 duration of a timedelta, such as ``P1DT2H3M4.5S``."""
    if not value:
        return "PT0S"
    sign = "-" if value < timedelta(0) else ""
    value = abs(value)
    minutes, seconds = divmod(value.seconds, 60)
    hours, minutes = divmod(minutes, 60)
    fraction = f".{value.microseconds:06d}".rstrip("0").rstrip(".")
    clock = "".join(f"{number}{unit}" for number, unit in ((hours, "H"), (minutes, "M")) if number)
    if seconds or fraction:
        clock += f"{seconds}{fraction}S"
    return f"{sign}P" + (f"{value.days}D" if value.days else "") + (f"T{clock}" if clock else "")
