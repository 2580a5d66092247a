"""Does one JSON value contain another? The definition of metadata filters (M1), and the terms that index it (M4)."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from hashlib import blake2b
from typing import Any, Final

_NUMBERS: Final = (int, float)


def _decimal(number: int | float) -> Decimal:
    return Decimal(number) if isinstance(number, int) else Decimal(repr(number))


def contains(outer: Any, inner: Any) -> bool:  # noqa: PLR0912 - in one piece: one frame for each of 200 levels
    """``outer @> inner`` as PostgreSQL decides it for nested jsonb: same kind; every key; every element somewhere."""
    if isinstance(inner, dict):
        if not isinstance(outer, dict):
            return False
        for key, item in inner.items():  # noqa: SIM110 - all() of a generator is a frame more
            if key not in outer or not contains(outer[key], item):
                return False
        return True
    if isinstance(inner, list):
        if not isinstance(outer, list):
            return False
        for item in inner:
            for x in outer:
                if contains(x, item):
                    break
            else:
                return False
        return True
    if isinstance(outer, (dict, list)):
        return False
    if isinstance(inner, bool) or isinstance(outer, bool):
        return inner is outer
    if isinstance(inner, _NUMBERS):
        return isinstance(outer, _NUMBERS) and _decimal(outer) == _decimal(inner)
    return type(outer) is type(inner) and bool(outer == inner)


# A term is a 64-bit hash of a path and what stands there: a scalar, or the kind of a container. Array steps are one
# and the same, because containment ignores positions. If ``outer`` contains ``inner``, the terms of ``outer`` include
# those of ``inner``; the reverse doesn't hold (two elements of an array, a collision), so `contains` checks candidates.


def _scalar(value: Any) -> bytes:
    if value is None:
        return b"n"
    if isinstance(value, bool):
        return b"t" if value else b"f"
    if isinstance(value, str):
        return b"s" + value.encode()
    number = _decimal(value)
    if not number:
        return b"0"
    sign, digits, exponent = number.as_tuple()
    text = "".join(map(str, digits)).rstrip("0")
    return f"{'-' if sign else '+'}{text}e{int(exponent) + len(digits)}".encode()


def _term(path: bytes, what: bytes) -> int:
    return int.from_bytes(blake2b(path + b"\x00" + what, digest_size=8).digest(), "big", signed=True)


def _walk(root: dict[str, Any]) -> Iterator[tuple[bytes, Any]]:
    """Every value within, but for the root, with its path."""
    waiting: list[tuple[bytes, Any]] = [(b"", root)]
    while waiting:
        path, value = waiting.pop()
        if path:
            yield path, value
        if isinstance(value, dict):
            names = ((key.encode(), item) for key, item in value.items())
            waiting.extend((b"%s.%d:%s" % (path, len(name), name), item) for name, item in names)
        elif isinstance(value, list):
            waiting.extend((path + b"[]", item) for item in value)


def _kind(value: dict[str, Any] | list[Any]) -> bytes:
    return b"{" if isinstance(value, dict) else b"["


def document_terms(document: dict[str, Any]) -> set[int]:
    """The terms under which metadata is indexed; none for the root itself."""
    return {
        _term(path, _kind(value) if isinstance(value, (dict, list)) else _scalar(value))
        for path, value in _walk(document)
    }


def filter_terms(filter_: dict[str, Any]) -> set[int]:
    """Terms that every match holds: the scalars of the filter and its empty containers. None for ``{}``."""
    return {
        _term(path, _kind(value) if isinstance(value, (dict, list)) else _scalar(value))
        for path, value in _walk(filter_)
        if not (isinstance(value, (dict, list)) and value)
    }
