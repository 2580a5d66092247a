"""Does one JSON value contain another? (M1)"""

from __future__ import annotations

from decimal import Decimal
from typing import Any


def contains(document: Any, pattern: Any) -> bool:
    """``document @> pattern`` of PostgreSQL's jsonb, for values of one kind; another kind is never contained."""
    if _kind(document) != _kind(pattern):
        return False
    if isinstance(pattern, dict):
        return all(key in document and contains(document[key], wanted) for key, wanted in pattern.items())
    if isinstance(pattern, list):
        return all(any(contains(item, wanted) for item in document) for wanted in pattern)
    if _kind(pattern) == "number":
        return _exact(document) == _exact(pattern)
    return bool(document == pattern)


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (int, float)):
        return "number"
    return {dict: "object", list: "array", str: "string", type(None): "null"}[type(value)]


def _exact(number: int | float) -> Decimal:
    return Decimal(number) if isinstance(number, int) else Decimal(repr(number))
