"""What does a backend answer to a call, and do two answers agree as the contract means it?"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from flujo_core import StateBackend
from flujo_core.errors import FlujoStateError

from .compare import difference
from .model import STALE_ERROR

Call = tuple[str, tuple[Any, ...], dict[str, Any]]
"""Method, arguments, keyword arguments."""

# Statistics: averages of which the contract bounds the error, and counts by names in no order.
APPROXIMATE = {
    "get_workflow_stats": ("$.average_execution_time_ms",),
    "get_span_statistics": ("$.avg_duration_by_name.*.total", "$.avg_duration_by_name.*.average"),
}


async def ask(backend: StateBackend, call: Call) -> Any:
    """The answer, or the `FlujoStateError` that is one; rows of `iter_runs` as a list. Other exceptions are raised."""
    method, args, kwargs = call
    try:
        if method == "iter_runs":
            return [row async for row in backend.iter_runs(*args, **kwargs)]
        answer: Coroutine[Any, Any, Any] = getattr(backend, method)(*args, **kwargs)
        return await answer
    except FlujoStateError as error:
        return error


def disagreement(call: Call, wanted: Any, got: Any) -> str | None:
    """Where and how two answers to one call differ, in words; None if they agree.

    Errors of the contract agree if they are of one class, any other exception agrees with nothing. The keys of records
    may come in any order, averages agree roughly, and how a backend says that a task is stale is its own affair where
    ``wanted`` is the oracle's answer.
    """
    for answer in (wanted, got):
        if isinstance(answer, BaseException) and not isinstance(answer, FlujoStateError):
            return f"an exception that is no FlujoStateError: {answer!r}"
    if isinstance(wanted, FlujoStateError) or isinstance(got, FlujoStateError):
        return None if type(got) is type(wanted) else f"{brief(wanted)} against {brief(got)}"
    wanted = _in_order_of(with_stale_words_of(wanted, got), got)
    approximate = APPROXIMATE.get(call[0])
    return difference(wanted, got, approx=approximate or (), ordered=approximate is None)


def with_stale_words_of(wanted: Any, got: Any) -> Any:
    """The oracle's answer, saying that a task is stale in the words of another answer."""
    if isinstance(wanted, dict) and isinstance(got, dict):
        return {key: with_stale_words_of(value, got.get(key)) for key, value in wanted.items()}
    if isinstance(wanted, list) and isinstance(got, list) and len(wanted) == len(got):
        return [with_stale_words_of(one, other) for one, other in zip(wanted, got, strict=True)]
    return got if isinstance(wanted, str) and wanted == STALE_ERROR and isinstance(got, str) and got else wanted


def stale_words_aside(oracle: Any, answer: Any) -> Any:
    """An answer that says that a task is stale in the oracle's words, wherever the oracle says so."""
    if isinstance(oracle, dict) and isinstance(answer, dict):
        return {key: stale_words_aside(oracle.get(key), value) for key, value in answer.items()}
    if isinstance(oracle, list) and isinstance(answer, list) and len(oracle) == len(answer):
        return [stale_words_aside(one, other) for one, other in zip(oracle, answer, strict=True)]
    said = isinstance(oracle, str) and oracle == STALE_ERROR and isinstance(answer, str) and answer
    return STALE_ERROR if said else answer


def _in_order_of(wanted: Any, got: Any) -> Any:
    """The keys of a record, or of each record of a list, may come in any order; those within its values may not."""
    if isinstance(wanted, list) and isinstance(got, list) and len(wanted) == len(got):
        return [_in_order_of(one, other) for one, other in zip(wanted, got, strict=True)]
    if isinstance(wanted, dict) and isinstance(got, dict) and wanted.keys() == got.keys():
        return {key: wanted[key] for key in got}
    return wanted


def brief(value: Any, most: int = 200) -> str:
    """A value as one line of ASCII, cut where it gets too long to read."""
    try:
        shown = ascii(value)
    except (RecursionError, ValueError):  # too deep; a huge int inside
        return f"a {type(value).__name__}"
    return shown if len(shown) <= most else f"{shown[: most - 25]}... ({len(shown)} characters)"


def written(call: Call) -> str:
    """A call as one would type it."""
    method, args, kwargs = call
    words = [brief(value) for value in args] + [f"{name}={brief(value)}" for name, value in kwargs.items()]
    return f"{method}({', '.join(words)})"
