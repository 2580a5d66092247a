"""What did a test find out besides passing? Figures and declared limits, for the report of `flujo-conformance run`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Figure = int | float | str
UNSUPPORTED = "unsupported"

_current: ContextVar[dict[str, Figure] | None] = ContextVar("observations", default=None)


@contextmanager
def observing() -> Iterator[dict[str, Figure]]:
    """Collects what is observed inside."""
    found: dict[str, Figure] = {}
    token = _current.set(found)
    try:
        yield found
    finally:
        _current.reset(token)


def observe(name: str, figure: Figure) -> None:
    """A figure that the report shows beside the test."""
    found = _current.get()
    if found is not None:
        found[name] = figure


def unsupported(limit: str) -> None:
    """The backend declares that it can't do what the rest of this test is about, and the test has just seen that it
    refuses, or keeps to itself, as a declared limit should. ``limit`` says so in words."""
    observe(UNSUPPORTED, limit)
