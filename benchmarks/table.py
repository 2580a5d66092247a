"""What does the terminal show? A table for each database, what was not run, and the bars."""

from __future__ import annotations

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.bars import judge
from benchmarks.results import Results, beside_raw, reasons, rows, short, systems_on, written
from benchmarks.systems import SIDES

COLOURS = {"met": "green", "NOT MET": "bold red", "not measured": "dim", "reported": "default"}


def show(results: Results, console: Console) -> None:
    for database in SIDES:
        if systems := systems_on(results, database):
            console.print(_speeds(results, database, systems))
    for (name, reason), tasks in reasons(results.not_run).items():
        console.print(f"[bold red]NOT RUN[/]: {name}: {escape(', '.join(tasks))}: {escape(reason)}", highlight=False)
    if results.interrupted:
        console.print("[bold red]Interrupted[/]: this is what was measured until then.")
    console.print(_bars(results) if results.scale == 1 else "No bar is judged at other sizes.")


def _speeds(results: Results, database: str, systems: list[str]) -> Table:
    scaled = "" if results.scale == 1 else f", sizes × {results.scale:g}"
    table = Table(
        title=f"{database}: medians, and the speed as a multiple of {SIDES[database].raw}'s{scaled}", box=SIMPLE
    )
    table.add_column("", no_wrap=True)
    for name in systems:
        table.add_column(short(name), justify="right")
    last = ""
    for task, figure in rows(results, systems):
        if figure and task != last:
            table.add_row(task, style="bold")
        table.add_row(f"  {figure}" if figure else task, *(_cell(results, task, figure, name) for name in systems))
        last = task
    return table


def _cell(results: Results, task: str, figure: str, name: str) -> str:
    try:
        shown = written(figure, results.median(task, name, figure))
    except KeyError:
        return ""
    return shown if figure else f"{shown} {beside_raw(results, task, name):>8}"


def _bars(results: Results) -> Table:
    table = Table("bar", "", "", "bound", "measured", "", box=SIMPLE)
    last = ""
    for judged in judge(results):
        bar, colour = judged.bar, COLOURS[judged.verdict]
        goal = "" if bar.goal == last else bar.goal
        table.add_row(goal, bar.database, bar.compared, bar.bound, judged.value, f"[{colour}]{judged.verdict}[/]")
        last = bar.goal
    return table
