"""What did a test find out besides passing? Figures and declared limits, for the report of `flujo-conformance run`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

Figure = int | float | str
UNSUPPORTED: Final = "unsupported"

_current: ContextVar[list[tuple[str, object]] | None] = ContextVar("observations", default=None)


@contextmanager
def observing(found: list[tuple[str, object]]) -> Iterator[None]:
    """What is observed inside is put into a list, such as the ``user_properties`` of a test of pytest."""
    token = _current.set(found)
    try:
        yield
    finally:
        _current.reset(token)


def observe(name: str, figure: Figure) -> None:
    """A figure that the report shows beside the test; the last one of a name counts."""
    found = _current.get()
    if found is not None:
        found[:] = [one for one in found if one[0] != name] + [(name, figure)]


def unsupported(limit: str) -> None:
    """The backend declares that it can't do what the rest of this test is about, and the test has just seen that it
    refuses, or keeps to itself, as a declared limit should. ``limit`` says so in words."""
    observe(UNSUPPORTED, limit)
