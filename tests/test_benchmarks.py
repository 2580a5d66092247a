"""Does the program that measures still run, and does it judge what it has measured rightly?"""

from __future__ import annotations

import os
import subprocess
import sys
from math import isfinite
from pathlib import Path

import pytest

from benchmarks.bars import judge
from benchmarks.measuring import Measurement, Pair, Plan, Worker
from benchmarks.page import text
from benchmarks.results import Figure, Measured, Results
from benchmarks.systems import SYSTEMS, System

ROOT = Path(__file__).parent.parent


def nothing(words: str, through: int) -> None:
    """Nobody is told how far it is."""


def made_up(figures: dict[Pair, dict[str, float]], scale: float = 1) -> Results:
    results = Results(about={}, command="none", full=True, rounds=1, scale=scale)
    for (task, system), found in figures.items():
        named = {name: Figure.of([value]) for name, value in found.items()}
        results.tasks.setdefault(task, {})[system] = Measured(size=1, rounds=1, figures=named)
    return results


def verdicts(results: Results) -> dict[tuple[str, str, str], tuple[str, str]]:
    return {(one.bar.goal, one.bar.database, one.bar.compared): (one.verdict, one.value) for one in judge(results)}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)


def test_it_prints_a_table_and_writes_finite_figures(tmp_path: Path) -> None:
    tasks = ("save, 64 at once", "load, one at a time", "history of 500 steps", "lists of 10,000 runs")
    only = [word for text in ("sqlite", *tasks) for word in ("--only", text)]
    file = tmp_path / "new folder" / "results.json"
    done = run(*only, "--rounds", "2", "--scale", "0.01", "--json", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    assert "NOT RUN" not in done.stdout
    results = Results.model_validate_json(file.read_text(encoding="utf-8"))
    assert set(results.tasks) == {*tasks, "first save, 64 at once", "fill with 10,000 runs"}
    for task, found in results.tasks.items():
        assert task in done.stdout
        for name, measured in found.items():
            assert name.partition(" on ")[0] in done.stdout
            for figure in measured.figures.values():
                assert all(map(isfinite, (figure.min, figure.median, figure.max)))
                assert figure.min <= figure.median <= figure.max
    assert results.tasks["save, 64 at once"]["aiosqlite"].rounds == 2
    about = results.systems["aiosqlite"]
    assert about.settings["synchronous"] == results.systems["Flujo on SQLite"].settings["synchronous"] == "full"
    assert "workflow_state" in about.statements["save"]


@pytest.mark.parametrize(
    "arguments",
    [["--rounds", "0"], ["--scale", "nan"], ["--only", "no such thing"], ["--only", "DBOS"], ["--json", "/"]],
)
def test_a_wrong_argument_is_told_in_one_line(arguments: list[str]) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_a_system_stands_still_while_it_is_not_its_turn(tmp_path: Path) -> None:
    worker = Worker("aiosqlite", f"sqlite:///{tmp_path}/x.db")
    try:
        for _ in range(2):
            worker.measure("load, one at a time", 1)
            _, status = os.waitpid(worker._process.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status)
    finally:
        worker.end(at_once=False)
    assert worker._process.returncode == 0


def test_a_profile_tells_where_the_time_goes() -> None:
    line = [sys.executable, "-m", "benchmarks.profile", "save, 64 at once", "--database", "SQLite", "--seconds", "0.1"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for part in ("all", "waiting", "flujo_core.codec", "aiosqlite"):
        assert f" {part} " in done.stdout


def test_what_fails_is_told_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    # Its worker doesn't know it, and ends.
    monkeypatch.setitem(SYSTEMS, "stranger", System("raw_sqlite:RawSQLite", "SQLite"))
    task = "load, one at a time"
    measurement = Measurement(Plan([(task, "stranger"), (task, "aiosqlite")], 2, False, 0.001), nothing)
    measurement.run()
    measurement.add_to(results := made_up({}))
    assert list(results.tasks[task]) == ["aiosqlite"]
    assert [(one.task, one.system) for one in results.not_run] == [(task, "stranger")]
    assert results.not_run[0].reason == "its process ended with exit code 1: KeyError: 'stranger'"


def test_whoever_interrupts_it_gets_what_was_measured() -> None:
    def interrupting(words: str, through: int) -> None:
        if through == 2:
            raise KeyboardInterrupt

    task = "load, one at a time"
    measurement = Measurement(Plan([(task, "aiosqlite")], 5, False, 0.001), interrupting)
    with pytest.raises(KeyboardInterrupt):
        measurement.run()
    measurement.add_to(results := made_up({}))
    assert results.tasks[task]["aiosqlite"].rounds == 2


def test_a_bar_is_met_or_not_or_not_measured() -> None:
    save, many, few = "save, one at a time", "lists of 1,000,000 runs", "lists of 10,000 runs"
    figures: dict[Pair, dict[str, float]] = {
        (save, "Flujo on SQLite"): {"": 0.001},
        (save, "aiosqlite"): {"": 0.0008},
        (save, "Flujo on PostgreSQL"): {"": 0.001},
        (save, "asyncpg"): {"": 0.0007},
        (many, "Flujo on SQLite"): {
            "newest": 0.004,
            "newest, first call": 0.9,
            "newest, last of 100": 0.006,
            "page": 0.002,
            "metadata of half of the runs": 0.019,
            "count of failed": 0.01,
            "count of completed": 0.09,
        },
        (few, "Flujo on SQLite"): {"newest": 0.003, "page": 0.0005},
        ("huge document", "Flujo on SQLite"): {"MiB": 180},
    }
    found = verdicts(made_up(figures))
    lists = "Lists at 1,000,000 runs"
    expected = {
        ("Save, one at a time", "SQLite", "speed beside aiosqlite"): ("met", "0.80 ×"),
        ("Save, one at a time", "PostgreSQL", "speed beside asyncpg"): ("NOT MET", "0.70 ×"),
        ("Save, 64 at once", "SQLite", "speed beside aiosqlite"): ("not measured", ""),
        (lists, "SQLite", "slowest list or page"): ("met", "4.00 ms (newest)"),
        (lists, "SQLite", "slowest list, last of 100 calls"): ("NOT MET", "6.00 ms (newest)"),
        (lists, "SQLite", "slowest beside 10,000 runs"): ("NOT MET", "4.00 × (page)"),
        (lists, "SQLite", "newest 50 of a filter that half of all runs match"): ("met", "19.0 ms"),
        (lists, "SQLite", "count by status"): ("met", "90.0 ms (count of completed)"),
        (lists, "PostgreSQL", "slowest list or page"): ("not measured", ""),
        ("Memory", "SQLite", "growth by saving and loading a document of 50 MiB"): ("reported", "180 MiB"),
    }
    assert {key: found[key] for key in expected} == expected
    scaled = verdicts(made_up(figures, scale=0.1))
    assert set(scaled.values()) == {("not measured", "")}


def test_the_page_tells_ratios_and_verdicts() -> None:
    save = "save, one at a time"
    results = made_up({(save, "Flujo on SQLite"): {"": 0.001}, (save, "aiosqlite"): {"": 0.0004}})
    page = text(results, ["benchmarks/speed-sqlite.svg"])
    assert "| save, one at a time | 1,000/s (0.40 ×) | 2,500/s |" in page
    assert "| Save, one at a time | SQLite | speed beside aiosqlite | ≥ 0.70 × | 0.40 × | **NOT MET** |" in page
    assert "(benchmarks/speed-sqlite.svg)" in page


def test_the_page_of_the_docs_is_made_of_the_results_beside_it() -> None:
    docs = ROOT / "docs"
    plots = [f"benchmarks/{path.name}" for path in (docs / "benchmarks").glob("*.svg")]
    for file in (docs / "benchmarks").glob("*.json"):
        results = Results.model_validate_json(file.read_text(encoding="utf-8"))
        assert (docs / "benchmarks.md").read_text(encoding="utf-8") == text(results, plots)
