"""Is what is encoded strict JSON, and does it come back exactly? The two encoders, and the seams between them."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from enum import StrEnum
from math import inf, nan
from typing import Any, NoReturn

from hypothesis import example, given
from hypothesis import strategies as st

from flujo_conformance.compare import difference
from flujo_core.codec import _Walk, decode, decode_plain, encode, encode_each, encode_plain, normalize
from flujo_core.errors import InvalidStateError

TEXTS = st.sampled_from(
    ["", "a", "NaN", "-Infinity", "\\u0000", "$flujo", "\x00", "\ud800", "é\u2028", "$", "I", "N\\"]
)
NUMBERS = st.sampled_from([0, -1, 1, 2**53 + 1, 2**64, -(10**700), 10**4299, 0.0, -0.0, 1.0, 1e22, 1e-7, 5e-324, 0.1])
LEAVES = st.none() | st.booleans() | NUMBERS | TEXTS | st.sampled_from([nan, inf, -inf]) | st.floats()
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=12
)


def nested(levels: int, innermost: object) -> object:
    value = innermost
    for level in range(levels):
        value = [value] if level % 2 else {"a": value}
    return value


def refuse(word: str) -> NoReturn:
    raise AssertionError(f"{word} is no JSON")


@given(VALUES)
@example(nested(254, 1))
@example(nested(255, "NaN"))
@example(nested(400, nan))
@example(nested(400, 10**4299))
def test_g3_a_value_comes_back_from_strict_json(value: Any) -> None:
    text = encode(value)
    json.loads(text, parse_constant=refuse, parse_int=lambda digits: 0)
    assert "\\u0000" not in text.replace("\\\\", "")
    text.encode()
    assert difference(decode(text), value) is None


@given(st.from_regex(r"-?(0|[1-9][0-9]{0,24})(\.[0-9]{1,24})?([eE][+-]?[0-9]{1,3})?", fullmatch=True))
@example("2.4703282292062328e-324")
@example("9007199254740993.0")
@example("-0")
@example("1e400")
def test_g3_a_number_is_read_as_python_reads_it(text: str) -> None:
    """However it is spelt."""
    assert difference(decode_plain(text), json.loads(text)) is None


@given(st.lists(VALUES, max_size=5))
@example([nested(255, 1), 1])
def test_s8_entries_are_encoded_as_one_by_one(values: list[Any]) -> None:
    assert encode_each(values) == [encode(value).encode() for value in values]


class Word(StrEnum):
    WORD = "word"


ANY = st.recursive(
    LEAVES | st.sampled_from([Word.WORD, (), b"a", Decimal(1), object()]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=2).map(tuple)
        | st.dictionaries(TEXTS | st.sampled_from([1, 1.0, True, None, "1", Word.WORD]), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(ANY, st.integers(1, 4))
@example(nested(4, 1), 4)
@example(nested(5, 1), 4)
@example(nested(5, 10**601), 5)
@example({1: "a", "1": "b"}, 1)
def test_g3_what_is_told_quickly_is_what_the_walk_tells(value: Any, max_depth: int) -> None:
    """A value that stays as it is has its JSON form, and is refused for the same reasons."""

    def outcome(form: Callable[[], Any]) -> Any:
        try:
            return ["fine", form()]
        except InvalidStateError as error:
            return ["refused", str(error)]

    told = outcome(lambda: normalize(value, max_depth=max_depth))
    assert difference(told, outcome(lambda: _Walk(strict=False, max_depth=max_depth).value(value, None, 0))) is None


@given(st.dictionaries(TEXTS, VALUES, max_size=3))
def test_m3_what_metadata_may_hold_comes_back_without_a_wrapper(value: dict[str, Any]) -> None:
    with suppress(InvalidStateError):
        plain = normalize(value, strict=True)
        assert difference(decode_plain(encode_plain(plain)), plain) is None
        assert plain is not value
