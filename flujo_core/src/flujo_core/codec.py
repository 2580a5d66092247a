"""How does a Python value become JSON text and come back exactly?

Two steps. `normalize` turns the caller's value into ``dict``/``list``/scalars (G3), or refuses it with its path (G4); a
value that is made of nothing else stays as it is. `encode_document` writes the result as strict JSON that every
database accepts, wrapping where it occurs what strict JSON can't say, and `decode_document` undoes it.

The wrapper is an object with the single key ``$flujo``::

    {"$flujo": "nan"}  {"$flujo": "inf"}  {"$flujo": "-inf"}
    {"$flujo": ["text", "a\\u0000b"]}       a string with NUL or surrogates, its characters as in a Python literal
    {"$flujo": ["object", [["key", value], …]]}   an object with such a key, or one that itself looks like a wrapper
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import partial
from math import isfinite, isnan
from typing import Any, Final
from uuid import UUID

from pydantic_core import from_json, to_json

from .errors import InvalidStateError, SchemaTooNewError

FORMAT: Final = 1
"""The format number that every document carries (D6)."""
MAX_DEPTH: Final = 200
MAX_INT_DIGITS: Final = 4300
_INT_LIMIT: Final = 10**MAX_INT_DIGITS
_SAFE_INT: Final = 10**600
"""Below the lowest limit that an interpreter can be set to (640 digits), ``str(int)`` always works."""
_MARK: Final = "$flujo"
_UNSAFE: Final = re.compile("[\x00\ud800-\udfff]")
_IDENTIFIER_KEY: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")

type_str, type_int, type_float, type_bool, type_none = str, int, float, bool, type(None)


# --- step one: a value becomes plain JSON types -----------------------------------------------------------------


def _text_is_safe(text: str) -> bool:
    """Whether strict JSON, and jsonb, can say the text."""
    if text.isascii():
        return "\x00" not in text
    return _UNSAFE.search(text) is None


_STRICT_LEAVES: Final = frozenset({type_bool, type_none})
_LEAVES: Final = _STRICT_LEAVES | {type_str, type_float}
_PLAIN: Final = _LEAVES | {type_int, dict, list}
_ONLY_TEXT: Final = frozenset({type_str})


def _is_plain(value: Any, levels: int) -> bool:
    """Whether a container, at most so many levels deep, is its own JSON form. It looks at the types of all its items at
    once, which takes a fraction of the time of a walk from item to item."""
    if levels < 1:
        return False
    if type(value) is dict:
        if not _ONLY_TEXT.issuperset(map(type, value)):
            return False
        value = value.values()
    kinds = set(map(type, value))
    if kinds <= _LEAVES:
        return True
    if not kinds <= _PLAIN:
        return False
    for item in value:
        kind = type(item)
        if kind is dict or kind is list:
            if not _is_plain(item, levels - 1):
                return False
        elif kind is type_int and not -_SAFE_INT < item < _SAFE_INT:
            return False
    return True


def keys_as_text(value: dict[Any, Any]) -> dict[str, Any]:
    """A copy with the keys as JSON has them."""
    if _ONLY_TEXT.issuperset(map(type, value)):
        return dict(value)
    return {key if type(key) is type_str else key_text(key): item for key, item in value.items()}


class _Walk:
    """One walk over one argument. ``strict`` also refuses what metadata may not hold (M3)."""

    __slots__ = ("leaves", "max_depth", "strict")

    def __init__(self, strict: bool, max_depth: int) -> None:
        self.strict = strict
        self.max_depth = max_depth
        # Kinds of which every value is good as it is: they are most of a document, and take no call each.
        self.leaves = _STRICT_LEAVES if strict else _LEAVES

    def value(self, value: Any, path: _Path, depth: int) -> Any:
        kind = type(value)
        if kind is type_str:
            if self.strict and not _text_is_safe(value):
                raise _refused(path, "text with NUL or a lone surrogate, which metadata can't hold")
            return value
        if kind in self.leaves:
            return value
        if kind is type_int:
            if -_SAFE_INT < value < _SAFE_INT or -_INT_LIMIT < value < _INT_LIMIT:
                return value
            raise _refused(path, f"an integer of more than {MAX_INT_DIGITS} digits")
        if kind is type_float:
            if self.strict and not isfinite(value):
                raise _refused(path, f"{value}, which metadata can't hold")
            return value
        if kind is dict:
            return self.mapping(value, path, depth + 1)
        if kind is list:
            return self.sequence(value, path, depth + 1)
        return self.other(value, path, depth)

    def mapping(self, value: dict[Any, Any], path: _Path, depth: int) -> dict[str, Any]:
        if depth > self.max_depth:
            raise _too_deep(value, path, self.max_depth)
        result: dict[str, Any] = {}
        # Containers are entered from here and not through `value`: one frame for each level of the document.
        leaves = self.leaves
        for key, item in value.items():
            name = key if type(key) is type_str else key_text(key, path)
            if self.strict and not _text_is_safe(name):
                raise _refused((path, name), "a key with NUL or a lone surrogate, which metadata can't hold")
            if name in result:
                raise _refused((path, name), "two keys that both become this key")
            kind = type(item)
            if kind in leaves:
                result[name] = item
            elif kind is dict:
                result[name] = self.mapping(item, (path, name), depth + 1)
            elif kind is list:
                result[name] = self.sequence(item, (path, name), depth + 1)
            else:
                result[name] = self.value(item, (path, name), depth)
        return result

    def sequence(self, value: Any, path: _Path, depth: int) -> list[Any]:
        if depth > self.max_depth:
            raise _too_deep(value, path, self.max_depth)
        result: list[Any] = []
        leaves = self.leaves
        for index, item in enumerate(value):
            kind = type(item)
            if kind in leaves:
                result.append(item)
            elif kind is dict:
                result.append(self.mapping(item, (path, index), depth + 1))
            elif kind is list:
                result.append(self.sequence(item, (path, index), depth + 1))
            else:
                result.append(self.value(item, (path, index), depth))
        return result

    def other(self, value: Any, path: _Path, depth: int) -> Any:
        """The kinds that JSON has no word for, in the order in which they are decided."""
        if isinstance(value, Enum):
            return self.value(value.value, path, depth)
        for kind, plain in _SCALARS:
            if isinstance(value, kind):
                return self.value(plain(value), path, depth)
        if isinstance(value, dict):
            return self.mapping(value, path, depth + 1)
        if isinstance(value, (list, tuple)):
            return self.sequence(value, path, depth + 1)
        if isinstance(value, (set, frozenset)):
            return sorted(self.sequence(value, path, depth + 1), key=_sort_key)
        if isinstance(value, (bytes, bytearray)):
            return self.value(_decode_utf8(value, path), path, depth)
        fields = fields_of(value, path)
        if fields is not None:
            return self.value(fields, path, depth)
        raise _refused(path, f"a {type(value).__name__}, which has no JSON form")


# A path is built as nested pairs, so that a walk that refuses nothing formats nothing.
_Path = Any


def _path_text(path: _Path) -> str:
    parts: list[str] = []
    while path is not None:
        path, part = path
        if isinstance(part, int):
            parts.append(f"[{part}]")
        elif _IDENTIFIER_KEY.match(part):
            parts.append(f".{part}")
        else:
            parts.append(f"[{part!a}]")
    return "$" + "".join(reversed(parts))


def _refused(path: _Path, what: str) -> InvalidStateError:
    where = _path_text(path)
    return InvalidStateError(f"{where} is {what}", path=where)


def _too_deep(value: Any, path: _Path, limit: int) -> InvalidStateError:
    where = _path_text(path)
    shown = where if len(where) <= 80 else f"{where[:60]}…"
    return InvalidStateError(f"{shown} is nested deeper than {limit} levels, or holds itself", path=where)


def key_text(key: Any, path: _Path = None) -> str:
    """A key that is no plain str, as json.dumps writes it."""
    if isinstance(key, Enum):
        key = key.value
    if isinstance(key, str):
        return str.__str__(key)
    if key is None:
        return "null"
    if isinstance(key, bool):
        return "true" if key else "false"
    if isinstance(key, int):
        if -_INT_LIMIT < key < _INT_LIMIT:
            return _int_text(int.__int__(key))
        raise _refused(path, f"an object with an integer key of more than {MAX_INT_DIGITS} digits")
    if isinstance(key, float):
        return json.dumps(float.__float__(key))
    raise _refused(path, f"an object with a key of type {type(key).__name__}; keys are str, int, float, bool or None")


def _decode_utf8(value: bytes | bytearray, path: _Path) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise _refused(path, "bytes that are not UTF-8; encode them, as base64 for example") from None


def fields_of(value: Any, path: _Path = None) -> Any:
    """The fields of a dict, a pydantic model (python mode) or a dataclass by name; None for anything else.

    Of a pydantic root model it is what the root is.
    """
    if isinstance(value, dict):
        return value
    if "pydantic" in sys.modules:
        from pydantic import BaseModel

        if isinstance(value, BaseModel):
            try:
                return value.model_dump()
            except (ValueError, RecursionError) as error:
                raise _refused(path, f"a {type(value).__name__} that can't be dumped: {error}") from None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return None


def duration_text(value: timedelta) -> str:
    """ISO 8601: ``P1DT2H3M4.5S``, ``-PT1S``, ``PT0S``."""
    micros = (value.days * 86_400 + value.seconds) * 1_000_000 + value.microseconds
    sign, micros = ("-", -micros) if micros < 0 else ("", micros)
    seconds, micros = divmod(micros, 1_000_000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    fraction = f".{micros:06d}".rstrip("0") if micros else ""
    clock = (f"{hours}H" if hours else "") + (f"{minutes}M" if minutes else "")
    clock += f"{seconds}{fraction}S" if seconds or micros else ""
    day = f"{days}D" if days else ""
    return f"{sign}P{day}{'T' + clock if clock else ''}" if day or clock else "PT0S"


_SCALARS: Final[tuple[tuple[type, Callable[[Any], Any]], ...]] = (
    (str, str.__str__),
    (int, int.__int__),
    (float, float.__float__),
    (datetime, datetime.isoformat),
    (date, date.isoformat),
    (time, time.isoformat),
    (timedelta, duration_text),
    (UUID, str),
    (Decimal, str),
)


def _sort_key(value: Any) -> str:
    return _dumps(value)


def normalize(value: Any, *, strict: bool = False, max_depth: int = MAX_DEPTH, root: str | None = None) -> Any:
    """The JSON form of a value; `InvalidStateError` with the path for what has none.

    ``strict`` also refuses what metadata may not hold (M3), and always makes fresh containers; else a value that has
    its JSON form comes back as it is.
    """
    try:
        if not strict and type(value) in (dict, list) and _is_plain(value, max_depth):
            return value
        return _Walk(strict, max_depth).value(value, None if root is None else (None, root), 0)
    except RecursionError:
        raise InvalidStateError("$ is nested too deeply, or holds itself", path="$") from None


# --- step two: plain JSON types become strict JSON text ---------------------------------------------------------


def _int_text(value: int) -> str:
    """``str(int)`` whatever the interpreter's limit on digits: Decimal has none."""
    if -_SAFE_INT < value < _SAFE_INT:
        return str(value)
    return format(Decimal(value), "f")


def _int_value(text: str) -> int:
    return int(text) if len(text) <= 600 else int(Decimal(text))


_encode_strict = json.JSONEncoder(
    ensure_ascii=False, check_circular=False, allow_nan=False, separators=(",", ":")
).encode
_encode_raw = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":")).encode
_decode_big = json.JSONDecoder(parse_int=_int_value).decode


def _dumps(value: Any) -> str:
    """JSON text that may hold NaN and surrogates: for sorting and measuring only."""
    try:
        return _encode_raw(value)
    except ValueError:
        return _encode_slowly(value)


# Several times as fast as the json module. It refuses surrogates, escapes NUL, and writes NaN.
_to_json: Final = partial(to_json, inf_nan_mode="constants")
# Twice as fast as the json module, with the same values. Only keys repeat often enough to be looked up.
_from_json: Final = partial(from_json, cache_strings="keys")


def _is_unsayable(text: bytes) -> bool:
    """Whether the text may hold what strict JSON can't say. A rare letter of each mark is looked for first: one letter
    is found, or missed, ten times as fast."""
    return (
        (b"\\" in text and b"\\u0000" in text)
        or (b"N" in text and b"NaN" in text)
        or (b"I" in text and b"Infinity" in text)
    )


def _is_wrapper_like(text: bytes) -> bool:
    return b"$" in text and b'"$flujo"' in text


def encode(value: Any) -> str:
    """Strict JSON text of a normalized value."""
    text = _safe_text(value)
    if text is None or _is_wrapper_like(text):
        return _encode_slowly(_wrap(value))
    return text.decode()


def encode_each(values: list[Any]) -> list[bytes]:
    """The strict JSON text of each of several normalized values, in UTF-8."""
    if not values:
        return []
    try:
        texts = [_to_json(value) for value in values]
    except ValueError:
        texts = []
    # Looked through all at once, which is quicker than one by one.
    together = b",".join(texts)
    if len(texts) == len(values) and not _is_unsayable(together) and not _is_wrapper_like(together):
        return texts
    return [encode(value).encode() for value in values]


def _safe_text(value: Any) -> bytes | None:
    """The JSON text, in UTF-8, of a normalized value that strict JSON can say, as far as that is quickly told."""
    try:
        text = _to_json(value)
    except ValueError:
        # Or it was nested deeper than it goes, some 250 levels.
        try:
            text = _encode_strict(value).encode()
        except ValueError:
            return None
    return None if _is_unsayable(text) else text


def encode_plain(value: Any) -> str:
    """The JSON text of a value that was normalized as ``strict``: nothing in it needs a wrapper."""
    text = _safe_text(value)
    return _encode_slowly(value) if text is None else text.decode()


def _encode_slowly(value: Any) -> str:
    """As the encoder of the library, for integers past the interpreter's limit on digits too."""
    if type(value) is dict:
        return "{" + ",".join(f"{_encode_raw(key)}:{_encode_slowly(item)}" for key, item in value.items()) + "}"
    if type(value) is list:
        return "[" + ",".join(map(_encode_slowly, value)) + "]"
    return _int_text(value) if type(value) is int else _encode_raw(value)


def _wrap(value: Any) -> Any:
    kind = type(value)
    if kind is type_str:
        return value if _text_is_safe(value) else {_MARK: ["text", _escape(value)]}
    if kind is type_float and not isfinite(value):
        return {_MARK: "nan" if isnan(value) else "inf" if value > 0 else "-inf"}
    if kind is list:
        return list(map(_wrap, value))
    if kind is dict:
        if _MARK not in value and all(map(_text_is_safe, value)):
            return dict(zip(value, map(_wrap, value.values()), strict=True))
        pairs = zip(map(_escape, value), map(_wrap, value.values()), strict=True)
        return {_MARK: ["object", list(map(list, pairs))]}
    return value


def _escape(text: str) -> str:
    """Backslash escapes for NUL, surrogates and the backslash itself."""
    text = text.replace("\\", "\\\\")
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


_ESCAPED: Final = re.compile(r"\\(?:\\|u([0-9a-f]{4}))")


def _unescape(text: str) -> str:
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)) if found[1] else "\\", text)


def _unwrap(value: Any) -> Any:
    kind = type(value)
    if kind is list:
        return list(map(_unwrap, value))
    if kind is dict:
        mark = value.get(_MARK)
        if mark is None:
            return dict(zip(value, map(_unwrap, value.values()), strict=True))
        if type(mark) is str:
            return float(mark)
        what, content = mark
        if what == "text":
            return _unescape(content)
        return {_unescape(key): _unwrap(item) for key, item in content}
    return value


def decode_plain(text: str) -> Any:
    """The value that `encode_plain` was given."""
    try:
        return _from_json(text)
    except ValueError:
        # Nested deeper than it goes, some 200 levels, or an integer past the interpreter's limit on digits.
        return _decode_big(text)


def decode(text: str) -> Any:
    """The value that `encode` was given, in fresh containers."""
    value = decode_plain(text)
    return _unwrap(value) if '"$flujo"' in text else value


# --- documents --------------------------------------------------------------------------------------------------

_HEAD: Final = f'{{"format":{FORMAT},"value":'
_NEWER: Final = re.compile(r'\{\s*"format"\s*:\s*([0-9]+)\s*,\s*"value"\s*:')


def seal(text: str) -> str:
    """The document around the JSON text of its value: ``{"format":1,"value":…}``."""
    return f"{_HEAD}{text}}}"


def unseal(document: str) -> str:
    """The JSON text of a document's value; `SchemaTooNewError` if a newer format wrote it."""
    if document.startswith(_HEAD):
        return document[len(_HEAD) : -1]
    found = _NEWER.match(document)
    if found is None or int(found[1]) > FORMAT:
        version = found[1] if found else "unknown"
        raise SchemaTooNewError(
            f"a stored document has format {version}, this code reads up to {FORMAT}; upgrade flujo-core"
        )
    return document[found.end() : document.rindex("}")]


def encode_document(value: Any, limit: int) -> str:
    """A normalized value as a document of at most ``limit`` bytes of UTF-8."""
    text = encode(value)
    check_size(byte_length(text), limit)
    return seal(text)


def byte_length(text: str) -> int:
    """Of the text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


def decode_document(document: str) -> Any:
    return decode(unseal(document))


def check_size(size: int, limit: int) -> None:
    if size > limit:
        raise InvalidStateError(
            f"$ is {size:,} bytes of JSON, over the limit of {limit:,}; store a reference to large data instead, "
            "or raise max_document_bytes",
            path="$",
        )
