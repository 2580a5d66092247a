"""How fast is fast enough? The ratios and times that are to hold, and whether they do in a run's results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Any, Final, Literal

from benchmarks.results import Results, short, written
from benchmarks.systems import SIDES

GOALS = SAVE, SAVE_64, LOAD, LIFECYCLE, HISTORY, LISTS, COLD_START, CLEANUP, MEMORY = (
    "Save, one at a time", "Save, 64 at once", "Load", "Lifecycle of a run", "Growing history",
    "Lists at 1,000,000 runs", "Cold start", "Cleanup", "Memory",
)  # fmt: skip
MANY: Final = "lists of 1,000,000 runs"
FEW: Final = "lists of 10,000 runs"
REMOVE: Final = "cleanup of half of 1,000,000 runs"
HALF: Final = "metadata of half of the runs"
COUNTS: Final = ("count of failed", "count of completed")

Found = dict[str, float]
"""What is held against a bound, by what it is of; the worst one counts."""
Verdict = Literal["met", "NOT MET", "not measured", "reported"]


@dataclass(frozen=True)
class Bar:
    goal: str
    database: str
    compared: str
    """What the value is, in words."""
    value: Callable[[Results], Found]
    """KeyError: a figure that it needs was not measured."""
    least: float | None = None
    most: float | None = None
    """With neither, the value is only reported."""
    unit: str = " / "
    """As the name of a figure tells it: ``" / "`` a ratio, ``"seconds"``, ``"MiB"``."""

    @property
    def bound(self) -> str:
        if self.least is not None:
            return f"≥ {written(self.unit, self.least)}"
        return "" if self.most is None else f"≤ {written(self.unit, self.most)}"


@dataclass(frozen=True)
class Judged:
    bar: Bar
    verdict: Verdict
    value: str = ""


def judge(results: Results) -> list[Judged]:
    return [_judged(bar, results) for bar in BARS]


def _judged(bar: Bar, results: Results) -> Judged:
    try:
        found = bar.value(results)
    except KeyError:
        found = {}
    # Of a scaled run the figures are those of other sizes.
    if not found or results.scale != 1:
        return Judged(bar, "not measured")
    worst = (min if bar.least is not None else max)(found, key=found.__getitem__)
    value = found[worst]
    shown = written(bar.unit, value) + (f" ({worst})" if worst else "")
    if bar.least is None and bar.most is None:
        return Judged(bar, "reported", shown)
    met = value >= bar.least if bar.least is not None else value <= (bar.most or 0)
    return Judged(bar, "met" if met else "NOT MET", shown)


def speed(task: str, ours: str, theirs: str, their_task: str = "") -> Callable[[Results], Found]:
    """How many times as fast: the medians of the seconds of one operation, theirs through ours."""
    return lambda results: {"": results.median(their_task or task, theirs) / results.median(task, ours)}


def figure(task: str, system: str, name: str) -> Callable[[Results], Found]:
    return lambda results: {"": results.median(task, system, name)}


def duration(task: str, ours: str, theirs: str, name: str) -> Callable[[Results], Found]:
    """How many times as long."""
    return lambda results: {"": results.median(task, ours, name) / results.median(task, theirs, name)}


def lists(system: str, *, last: bool = False) -> Callable[[Results], Found]:
    """Of each list and page: seconds in the middle of its calls, or at the last of them."""

    def value(results: Results) -> Found:
        end = ", last of 100" if last else ""
        return {name: results.median(MANY, system, name + end) for name in selective(results, system, end)}

    return value


def growth(system: str) -> Callable[[Results], Found]:
    return lambda results: {
        name: results.median(MANY, system, name) / results.median(FEW, system, name)
        for name in selective(results, system)
    }


def selective(results: Results, system: str, end: str = "") -> list[str]:
    """The names of the lists and pages, without what has a bar of its own."""
    figures = results.tasks[MANY][system].figures
    names = [name for name in figures if ", first call" not in name and ", last of 100" not in name]
    return [name for name in names if name != HALF and name not in COUNTS and name + end in figures]


def counts(system: str) -> Callable[[Results], Found]:
    return lambda results: {name: results.median(MANY, system, name) for name in COUNTS}


def _of(database: str, *, save: float, save_64: float, original_64: float, lifecycle: float) -> list[Bar]:
    """What holds on one database."""
    ours, raw, original = astuple(SIDES[database])
    at_once, load, life = "save, 64 at once", "load, one at a time", "lifecycle of a run"

    def bar(goal: str, compared: str, value: Callable[[Results], Found], **bound: Any) -> Bar:
        return Bar(goal, database, compared, value, **bound)

    def faster(goal: str, task: str, other: str, least: float) -> Bar:
        return bar(goal, f"speed beside {short(other)}", speed(task, ours, other), least=least)

    def quick(compared: str, value: Callable[[Results], Found], most: float) -> Bar:
        return bar(LISTS, compared, value, most=most, unit="seconds")

    def reported(compared: str, task: str, name: str, unit: str) -> Bar:
        return bar(MEMORY, compared, figure(task, ours, name), unit=unit)

    bars = [
        faster(SAVE, "save, one at a time", raw, save),
        faster(SAVE_64, at_once, raw, save_64),
        faster(SAVE_64, at_once, original, original_64),
        faster(LOAD, load, raw, 0.8),
        bar(LOAD, "speed of 64 at once beside one at a time", speed("load, 64 at once", ours, ours, load), least=1),
        faster(LIFECYCLE, life, original, lifecycle),
        quick("slowest list or page", lists(ours), 0.005),
        quick("slowest list, last of 100 calls", lists(ours, last=True), 0.005),
        bar(LISTS, "slowest beside 10,000 runs", growth(ours), most=3),
        quick("newest 50 of a filter that half of all runs match", figure(MANY, ours, HALF), 0.020),
        quick("count by status", counts(ours), 0.100),
        bar(CLEANUP, "p99 of saves meanwhile beside idle", figure(REMOVE, ours, "p99 beside / idle"), most=5),
        reported("growth by iterating over 1,000,000 runs", "iterate over 1,000,000 runs", "MiB", "MiB"),
        reported("growth by saving and loading a document of 50 MiB", "huge document", "MiB", "MiB"),
        reported("longest block of the loop by saving it", "huge document", "save, longest block", "seconds"),
        reported("longest block of the loop by loading it", "huge document", "load, longest block", "seconds"),
    ]
    for steps in ("500", "5,000"):
        for compared, name, most in (
            ("last saves beside 1.5 × the first + encoding once", "last / (1.5 × first + encoding)", 1),
            ("bytes stored, less the heads, beside those appended", "less heads / appended", 3),
        ):
            bars.append(
                bar(HISTORY, f"{steps} steps: {compared}", figure(f"history of {steps} steps", ours, name), most=most)
            )
    return bars


def _of_cold_start(name: str, most: float) -> Bar:
    side = SIDES["SQLite"]
    value = duration("cold start", side.ours, side.raw, name)
    return Bar(COLD_START, "SQLite", f"{name} beside the bare program", value, most=most)


BARS: Final = sorted(
    (
        *_of("SQLite", save=0.70, save_64=2.5, original_64=40, lifecycle=10),
        *_of("PostgreSQL", save=0.75, save_64=2, original_64=5, lifecycle=5),
        _of_cold_start("import", 1.3),
        _of_cold_start("first save", 1.5),
    ),
    key=lambda bar: GOALS.index(bar.goal),
)
