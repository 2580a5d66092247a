"""How do the results look? SVG files for the page, the same bytes for the same results."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import LogLocator

from benchmarks.bars import FEW, MANY
from benchmarks.results import Figure, Results, rows, short, systems_on
from benchmarks.systems import SIDES

STYLE: Final = {
    "svg.hashsalt": "flujo",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
}
OURS, RAW, PEER = "#1b6ca8", "#f0a202", "#a9b4c2"


def draw(results: Results, folder: Path) -> list[str]:
    """Writes a file for each plot that there are figures for; their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    with mpl.rc_context(STYLE):
        for name, canvas in _plots(results):
            canvas.savefig(folder / name, format="svg", metadata={"Date": None}, facecolor="white")
            names.append(name)
    return names


def _plots(results: Results) -> Iterator[tuple[str, Canvas]]:
    for database in SIDES:
        systems = systems_on(results, database)
        if tasks := [task for task, figure in rows(results, systems) if not figure]:
            yield f"speed-{database.lower()}.svg", _speed(results, tasks, systems)
    ours = [side.ours for side in SIDES.values() if side.ours in results.tasks.get(FEW, {})]
    if ours:
        yield "lists.svg", _lists(results, ours)
    if histories := [task for task in results.tasks if task.startswith("history")]:
        yield "history.svg", _history(results, histories)


def _speed(results: Results, tasks: list[str], systems: list[str]) -> Canvas:
    """A panel for each task: operations in a second, and how far the rounds lie apart."""
    lines = -(-len(tasks) // 2)
    canvas = Canvas(figsize=(9, lines * (0.7 + 0.24 * len(systems))), layout="constrained")
    panels = canvas.subplots(lines, 2, squeeze=False).flat
    for task, panel in zip(tasks, panels, strict=False):
        names = [name for name in systems if name in results.tasks[task]]
        rates = [_rate(results.tasks[task][name].figures[""]) for name in names]
        _bars(panel, names, rates)
        panel.set_yticks(range(len(names)), map(short, names))
        panel.set_title(f"{task}, operations/s")
    for panel in panels:  # the last one, of an odd number
        panel.remove()
    return canvas


def _rate(seconds: Figure) -> Figure:
    return Figure(median=1 / seconds.median, min=1 / seconds.max, max=1 / seconds.min)


def _history(results: Results, tasks: list[str]) -> Canvas:
    """A panel for each length: how long the first saves took, and the last ones."""
    heights = [2 * len(results.tasks[task]) for task in tasks]
    canvas = Canvas(figsize=(9, sum(0.6 + 0.2 * height for height in heights)), layout="constrained")
    panels = canvas.subplots(len(tasks), 1, squeeze=False, height_ratios=heights).flat
    for panel, task in zip(panels, tasks, strict=True):
        found = results.tasks[task]
        named = {f"{name}, {part}": found[name].figures[part] for name in found for part in ("first 20", "last 20")}
        _bars(panel, list(named), [_milliseconds(figure) for figure in named.values()])
        panel.set_title(f"{task}, ms of a save")
    return canvas


def _milliseconds(seconds: Figure) -> Figure:
    return Figure(median=seconds.median * 1000, min=seconds.min * 1000, max=seconds.max * 1000)


def _bars(panel: Any, names: list[str], figures: list[Figure]) -> None:
    """Lying ones, the first on top; a line from the worst round to the best."""
    medians = [figure.median for figure in figures]
    spread = ([f.median - f.min for f in figures], [f.max - f.median for f in figures])
    colours = [_colour(name) for name in names]
    panel.barh(names, medians, xerr=spread, color=colours, error_kw={"lw": 0.8, "ecolor": "#444444"})
    panel.invert_yaxis()
    panel.tick_params(left=False)
    panel.xaxis.set_major_formatter("{x:,.0f}" if max(medians) >= 10 else "{x:g}")
    panel.locator_params(axis="x", nbins=5)


def _colour(name: str) -> str:
    system = name.partition(",")[0]
    ours, raw = ([getattr(side, kind) for side in SIDES.values()] for kind in ("ours", "raw"))
    return OURS if system in ours else RAW if system in raw else PEER


def _lists(results: Results, systems: list[str]) -> Canvas:
    """Dots at 10,000 and at 1,000,000 runs, on one line for each list."""
    names = [figure for task, figure in rows(results, systems) if task == FEW]
    canvas = Canvas(figsize=(9, 1 + 0.24 * len(names)), layout="constrained")
    for panel, system in zip(canvas.subplots(1, len(systems), sharey=True, squeeze=False).flat, systems, strict=True):
        for task, colour in ((FEW, PEER), (MANY, OURS)):
            if system in results.tasks.get(task, {}):
                figures = results.tasks[task][system].figures
                found = [name for name in names if name in figures]
                panel.scatter(
                    [figures[name].median * 1000 for name in found], found, color=colour, label=task, zorder=2
                )
        panel.axvline(5, color="#999999", lw=0.8, ls=":")
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter("{x:g}")
        panel.minorticks_off()
        panel.grid(axis="y", color="#eeeeee")
        panel.set_title(f"{system}, ms")
    panel.invert_yaxis()
    panel.legend(loc="upper center", bbox_to_anchor=(0.3, -0.08), frameon=False, ncols=2)
    return canvas
