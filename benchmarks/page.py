"""What do the docs say about speed? Writes the page and its plots, of the results of a run.

    python -m benchmarks.page docs/benchmarks/results.json [--to docs/benchmarks.md]

The plots go into the folder that is named as the page. They need matplotlib: pip install -r benchmarks/requirements.txt
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from benchmarks.bars import FEW, MANY, judge
from benchmarks.results import Results, beside_raw, reasons, rows, short, systems_on, written
from benchmarks.systems import SIDES, SYSTEMS

PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
METHOD: Final = """\
Each system runs in a process of its own, on databases of its own, and is asked in turn with the others, round after
round; a figure is the median of {rounds} rounds, and what takes long is done once. A state is 2 KiB of JSON with 200
bytes of metadata. Flujo is used through its public API with its defaults: validation, exact JSON, the index of the
metadata and durability are on. The *driver alone* writes the same columns and the same indexes. PostgreSQL is one
server on this machine, reached by TCP, with the settings that it comes with.
"""
REMARKS: Final = """\
- **The driver alone** validates nothing, encodes with `json.dumps`, and writes a row with one upsert that commits by
  itself. On SQLite a first save also writes the twelve terms of the metadata's index. asyncpg has a connection of its
  own and a prepared statement for what is done one at a time, and a pool of 10 for the rest.
- **Encoding**: what a save of a long history can't do without is to encode it once; `json.dumps` says how long that
  takes. The *heads* are the versions of the run's row, of which each save writes one; they are freed later.
- **Memory** is what the process grows by at most, beyond what it had before.
- **Lists of the peers** are measured at 10,000 runs: to save 1,000,000 of them would take the slower ones hours, and
  what scans all runs gets slower as they become more. A list that a peer doesn't have is left out.
- **LangGraph** keeps every version of a state, and lists checkpoints, not runs. Status and pipeline are in its
  metadata. On SQLite its filter compares an object or an array as a whole.
- **DBOS** can't write a workflow again that has ended. A save is therefore a new workflow of one step, which keeps
  the state twice: as what the step returned, and as the workflow's result. It filters by attributes on PostgreSQL
  only.
- **The original Flujo** lists only runs that were begun by a call of their own, which its first save here makes. Its
  `cleanup_old_workflows` is not measured: on SQLite it errs by up to a day.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--to", type=Path, default=PAGE)
    options = parser.parse_args()
    try:
        from benchmarks.plots import draw
    except ModuleNotFoundError as error:
        raise SystemExit(f"{error}; pip install -r benchmarks/requirements.txt") from None
    results = Results.model_validate_json(options.results.read_text(encoding="utf-8"))
    folder = options.to.with_suffix("")
    plots = [f"{folder.name}/{name}" for name in draw(results, folder)]
    options.to.write_text(text(results, plots), encoding="utf-8")


def text(results: Results, plots: Iterable[str]) -> str:
    return "\n".join(_lines(results, {Path(path).stem: path for path in plots}))


def _lines(results: Results, plots: dict[str, str]) -> Iterator[str]:
    """The lines of the page, sections in their order."""
    yield "<!-- made by python -m benchmarks.page -->\n\n# Benchmarks\n"
    yield f"Made with `{results.command}`:\n"
    yield from _table(["", ""], results.about.items())
    if results.scale != 1:
        yield f"\n**Sizes × {results.scale:g}**: a quick look."
    if results.interrupted:
        yield "\n**Interrupted**: what was measured until then."
    yield f"\n{METHOD.format(rounds=results.rounds)}"
    yield "## Bars\n\nWhat is to hold, and whether it does here; of several lists the worst counts.\n"
    yield from _table(
        ["", "", "", "bound", "measured", ""],
        (
            (one.bar.goal, one.bar.database, one.bar.compared, one.bar.bound, one.value, _loud(one.verdict))
            for one in judge(results)
        ),
    )
    for database in SIDES:
        if systems := systems_on(results, database):
            yield f"\n## {database}\n"
            yield from _speeds(results, database, systems)
            yield from _plot(plots, f"speed-{database.lower()}", f"Operations in a second on {database}")
            yield "\nAll other figures, times unless another unit stands there:\n"
            yield from _figures(results, systems)
    yield from _plot(plots, "history", "Seconds of the first and the last saves of a growing history")
    if MANY in results.tasks:
        yield "\n## Lists\n\nOf Flujo, the newest 50 of each: the middle of 100 calls, the first one, the last ten.\n"
        yield from _lists(results)
    yield from _plot(plots, "lists", "Milliseconds of the lists at 10,000 and 1,000,000 runs")
    if results.not_run:
        yield "\n## Not run\n"
        for (name, reason), tasks in reasons(results.not_run).items():
            yield f"- {name}: {', '.join(tasks)}: {reason}"
    yield f"\n## Remarks\n\n{REMARKS}"
    yield "## What was measured\n"
    for name in (name for name in SYSTEMS if name in results.systems):
        yield from _system(results, name)


def _speeds(results: Results, database: str, systems: list[str]) -> Iterator[str]:
    yield f"Operations in a second, and as a multiple of those of {SIDES[database].raw}, the driver alone.\n"
    yield from _table(
        ["", *map(short, systems)],
        (
            (task, *(_speed(results, task, name) for name in systems))
            for task, figure in rows(results, systems)
            if not figure
        ),
    )


def _speed(results: Results, task: str, name: str) -> str:
    shown = _cell(results, task, name, "")
    ratio = beside_raw(results, task, name)
    return f"{shown} ({ratio})" if ratio else shown


def _figures(results: Results, systems: list[str]) -> Iterator[str]:
    """All that is not a speed, but the lists of many runs, which have a table of their own."""
    yield from _table(
        ["", "", *map(short, systems)],
        (
            (task, figure, *(_cell(results, task, name, figure) for name in systems))
            for task, figure in rows(results, systems)
            if figure and task != MANY
        ),
    )


def _lists(results: Results) -> Iterator[str]:
    ours = [side.ours for side in SIDES.values() if side.ours in results.tasks[MANY]]
    columns = [(FEW, ""), (MANY, ""), (MANY, ", first call"), (MANY, ", last of 100")]
    yield from _table(
        ["", "", *(task.removeprefix("lists of ") + end for task, end in columns)],
        (
            (name, figure, *(_cell(results, task, name, figure + end) for task, end in columns))
            for name in ours
            for task, figure in rows(results, [name])
            if task == MANY
        ),
    )


def _system(results: Results, name: str) -> Iterator[str]:
    about = results.systems[name]
    yield f"**{name}**: {about.durability}"
    yield f"  {', '.join(f'{key} {value}' for key, value in (*about.versions.items(), *about.settings.items()))}\n"
    if about.statements:
        yield f"<details><summary>SQL of {name}</summary>\n"
        for work, statement in about.statements.items():
            yield f"{work}:\n\n```sql\n{statement}\n```\n"
        yield "</details>\n"


def _cell(results: Results, task: str, name: str, figure: str) -> str:
    try:
        return written(figure, results.median(task, name, figure))
    except KeyError:
        return ""


def _loud(verdict: str) -> str:
    return f"**{verdict}**" if verdict == "NOT MET" else verdict


def _plot(plots: dict[str, str], name: str, words: str) -> Iterator[str]:
    if name in plots:
        yield f"\n![{words}]({plots[name]})"


def _table(head: list[str], lines: Iterable[Iterable[str]]) -> Iterator[str]:
    """What stands in the first column is not said again on the next line."""
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    last = ""
    for first, *rest in lines:
        yield f"| {' | '.join(['' if first == last else first, *rest])} |"
        last = first


if __name__ == "__main__":
    main()
