"""Is what is encoded strict JSON, and does it come back exactly? The two encoders, and the seams between them."""

from __future__ import annotations

import json
from math import inf, nan
from typing import Any, NoReturn

from hypothesis import example, given
from hypothesis import strategies as st

from flujo_conformance.compare import difference
from flujo_core.codec import decode, decode_plain, encode, encode_each, encode_plain, is_strict, normalize
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


@given(st.lists(VALUES, max_size=5))
@example([nested(255, 1), 1])
def test_s8_entries_are_encoded_as_one_by_one(values: list[Any]) -> None:
    assert encode_each(values) == [encode(value).encode() for value in values]


@given(st.dictionaries(TEXTS, VALUES, max_size=3))
def test_m3_what_is_told_quickly_is_what_the_walk_tells(value: dict[str, Any]) -> None:
    """`is_strict` may doubt what is fine, and never trusts what is refused."""
    try:
        plain = normalize(value, strict=True)
    except InvalidStateError:
        assert not is_strict(value)
    else:
        assert difference(decode_plain(encode_plain(plain)), plain) is None
