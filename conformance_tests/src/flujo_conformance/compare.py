"""Are two answers the same, to the type and the last bit, and if not, where do they first differ?"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import datetime
from math import copysign, isclose, isnan
from typing import Any

Place = tuple[str | int, ...]


def identical(a: Any, b: Any) -> bool:
    """Whether nothing tells the two values apart, key order included."""
    return difference(a, b) is None


def difference(
    a: Any,
    b: Any,
    path: str = "$",
    *,
    ordered: bool = True,
    approx: Collection[str] = (),
    ignore: Collection[str] = (),
) -> str | None:
    """The first difference in words, beginning with its path; None if the values are identical.

    1, 1.0 and True differ, as do 0.0 and -0.0, a list and a tuple, two zones of one instant; NaN equals NaN.
    ``ordered=False`` lets the keys of dicts come in any order. Places in ``approx`` hold floats that agree within 1e-9
    relative, those in ``ignore`` are not looked at; both are written ``$.stats.*.average``, where ``*`` is any one key
    or index.
    """
    roughly, unseen = _patterns(approx), _patterns(ignore)
    waiting: list[tuple[Any, Any, Place]] = [(a, b, ())]
    while waiting:  # no recursion: rebuilt traces are as deep as the caller's chain of spans
        left, right, place = waiting.pop()
        if _matches(place, unseen):
            continue
        why = _differ(left, right, ordered, _matches(place, roughly))
        if why is not None:
            return f"{_written(path, place)}: {why}"
        waiting.extend(reversed(list(_pairs(left, right, place))))
    return None


def _pairs(left: Any, right: Any, place: Place) -> Iterator[tuple[Any, Any, Place]]:
    if isinstance(left, dict):
        for key in left:
            yield left[key], right[key], (*place, key)
    elif isinstance(left, (list, tuple)):
        for index, (one, other) in enumerate(zip(left, right, strict=True)):
            yield one, other, (*place, index)


def _differ(left: Any, right: Any, ordered: bool, roughly: bool) -> str | None:
    """How two values differ, members of containers left aside."""
    if type(left) is not type(right):
        return f"{_brief(left)} is {type(left).__name__}, {_brief(right)} is {type(right).__name__}"
    if isinstance(left, dict):
        return _keys_differ(left, right, ordered)
    if isinstance(left, (list, tuple)):
        return None if len(left) == len(right) else f"{len(left)} items against {len(right)}"
    if isinstance(left, float):
        same = isclose(left, right, rel_tol=1e-9) if roughly else _same_float(left, right)
    elif isinstance(left, datetime):
        same = left.replace(tzinfo=None) == right.replace(tzinfo=None) and left.utcoffset() == right.utcoffset()
    else:
        same = left == right
    return None if same else f"{_brief(left)} against {_brief(right)}"


def _keys_differ(left: dict[Any, Any], right: dict[Any, Any], ordered: bool) -> str | None:
    kinds = {key: type(key) for key in right}
    missing = [key for key in left if kinds.get(key) is not type(key)]
    if missing:
        return f"only the first has {_brief(missing[0])}"
    if len(left) != len(right):
        return f"only the second has {_brief(next(key for key in right if key not in left))}"
    if ordered and list(left) != list(right):
        return f"keys in the order {_brief(list(left))} against {_brief(list(right))}"
    return None


def _same_float(left: float, right: float) -> bool:
    if isnan(left) or isnan(right):
        return isnan(left) and isnan(right)
    return left == right and copysign(1.0, left) == copysign(1.0, right)


def _brief(value: Any) -> str:
    if isinstance(value, int) and value.bit_length() > 400:
        return f"an int of {value.bit_length()} bits"
    try:
        shown = ascii(value)
    except (RecursionError, ValueError):  # too deep; a huge int inside
        return f"a {type(value).__name__}"
    return shown if len(shown) <= 200 else f"{shown[:150]}… ({len(shown)} characters)"


def _patterns(written: Collection[str]) -> list[list[str]]:
    return [pattern.split(".")[1:] for pattern in written]


def _matches(place: Place, patterns: list[list[str]]) -> bool:
    return any(
        len(pattern) == len(place)
        and all(wanted in ("*", str(step)) for wanted, step in zip(pattern, place, strict=True))
        for pattern in patterns
    )


def _written(path: str, place: Place) -> str:
    for step in place:
        path += f".{step}" if isinstance(step, str) and step.isidentifier() else f"[{step!r}]"
    return path
