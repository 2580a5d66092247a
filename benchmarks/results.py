"""What came of a run: the record that is written as JSON, and how its figures are read and shown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Self

from pydantic import BaseModel

from benchmarks.systems import SIDES, SYSTEMS


class Figure(BaseModel):
    """Of the rounds."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, rounds: Sequence[float]) -> Self:
        return cls(median=statistics.median(rounds), min=min(rounds), max=max(rounds))


class Measured(BaseModel):
    """A task with a system."""

    size: int
    rounds: int
    figures: dict[str, Figure]
    """The figure without a name is the seconds of one operation."""


class SystemAbout(BaseModel):
    durability: str
    versions: dict[str, str]
    settings: dict[str, str]
    statements: dict[str, str]


class NotRun(BaseModel):
    task: str
    system: str
    reason: str


class Results(BaseModel):
    about: dict[str, str]
    command: str
    full: bool
    rounds: int
    scale: float
    interrupted: bool = False
    systems: dict[str, SystemAbout] = {}
    tasks: dict[str, dict[str, Measured]] = {}
    """By task and system."""
    not_run: list[NotRun] = []

    def median(self, task: str, system: str, figure: str = "") -> float:
        """KeyError: it was not measured."""
        return self.tasks[task][system].figures[figure].median


def written(figure: str, value: float) -> str:
    """With the unit that the figure's name tells."""
    if not figure:
        return f"{_digits(1 / value)}/s"
    if figure.endswith("/s"):
        return f"{_digits(value)}/s"
    if " / " in figure:
        return f"{value:.2f} ×"
    if figure.endswith("MiB"):
        return f"{_digits(value)} MiB"
    return f"{value:.2f} s" if value >= 1 else f"{_digits(value * 1000)} ms"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def reasons(not_run: Sequence[NotRun]) -> dict[tuple[str, str], list[str]]:
    """By system and reason, the tasks."""
    found: dict[tuple[str, str], list[str]] = {}
    for one in not_run:
        found.setdefault((one.system, one.reason), []).append(one.task)
    return found


def systems_on(results: Results, database: str) -> list[str]:
    """Those of a database that were measured, in the order of `SYSTEMS`."""
    measured = {name for found in results.tasks.values() for name in found}
    return [name for name in SYSTEMS if name in measured and SYSTEMS[name].database == database]


def rows(results: Results, systems: list[str]) -> list[tuple[str, str]]:
    """The tasks and figures that one of the systems has; of lists not the first and the last calls."""
    found = {
        (task, figure): None
        for task, measured in results.tasks.items()
        for name in systems
        if name in measured
        for figure in measured[name].figures
        if ", first call" not in figure and ", last of 100" not in figure
    }
    return list(found)


def short(name: str) -> str:
    """Where the database is known."""
    return name.partition(" on ")[0]


def beside_raw(results: Results, task: str, name: str) -> str:
    """A system's speed, the driver's = 1."""
    raw = SIDES[SYSTEMS[name].database].raw
    if name == raw:
        return ""
    try:
        return f"{results.median(task, raw) / results.median(task, name):.2f} ×"
    except KeyError:
        return ""
