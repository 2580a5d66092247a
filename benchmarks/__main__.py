"""How fast is Flujo, beside the drivers and its peers? Runs the workloads, system after system in turn.

    python -m benchmarks [--full] [--rounds N] [--only TEXT] [--json FILE] [--page FILE]

Each system runs in a process of its own, on a database of its own; PostgreSQL is one temporary server with the settings
that it comes with. A figure is the median of the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flujo_conformance.postgres_server import PostgresServer
from rich.console import Console
from rich.progress import Progress

from .bars import verdicts
from .environments import EnvironmentFailedError, interpreter
from .systems import SYSTEMS
from .workloads import ONCE, TASKS

ROOT = Path(__file__).resolve().parent.parent
Results = dict[str, dict[str, dict[str, float]]]
"""By task and system: its figures."""


class Worker:
    """A system in its process."""

    def __init__(self, name: str, place: str) -> None:
        environment = SYSTEMS[name].environment
        python = interpreter(environment) if environment else sys.executable
        line = [python, "-m", "benchmarks.worker", name, place]
        self._process = subprocess.Popen(line, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.statements: dict[str, str] = self._answer()["statements"]

    def measure(self, task: str, size: int) -> dict[str, float]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"task": task, "size": size}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._process.args!r} ended with exit code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="1,000,000 runs in the lists, longer histories, the peers")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="tasks and systems whose names contain this, as 'load' or 'SQLite'")
    parser.add_argument("--json", type=Path, help="where to write the results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, PostgresServer() as server:
        places = {name: _place(name, folder, server) for name in SYSTEMS}
        results = _measure(places, options)
    if options.json:
        options.json.write_text(json.dumps({"about": about(), "results": results}, indent=1) + "\n", encoding="utf-8")
    show(results)


def _place(name: str, folder: str, server: PostgresServer) -> str:
    return (
        server.create_database()
        if SYSTEMS[name].database == "postgres"
        else f"sqlite:///{folder}/{name.replace(' ', '_')}.db"
    )


def _measure(places: dict[str, str], options: argparse.Namespace) -> Results:
    """All that is chosen; a system that lacks the method is left out."""
    chosen = [
        (task, name)
        for task in (*TASKS, *ONCE)
        for name in SYSTEMS
        if options.only in task or options.only in name
        if hasattr(SYSTEMS[name].load(), {**TASKS, **ONCE}[task].needs)
        if options.full or not SYSTEMS[name].environment
    ]
    missing = _missing({SYSTEMS[name].environment for _, name in chosen} - {""})
    chosen = [(task, name) for task, name in chosen if SYSTEMS[name].environment not in missing]
    rounds: dict[tuple[str, str], list[dict[str, float]]] = {}
    total = sum(options.rounds if task in TASKS else 1 for task, _ in chosen)
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=total)

        def measure(worker: Worker, task: str, name: str) -> None:
            progress.update(bar, description=f"{task}: {name}")
            rounds.setdefault((task, name), []).append(worker.measure(task, _size(task, name, options)))
            progress.advance(bar)

        with ExitStack() as stack:
            workers = {
                name: stack.enter_context(Worker(name, places[name]))
                for name in dict.fromkeys(name for task, name in chosen if task in TASKS)
            }
            for _ in range(options.rounds):
                for task, name in chosen:
                    if task in TASKS:
                        measure(workers[name], task, name)
        for task, name in chosen:
            if task in ONCE:
                with Worker(name, places[name]) as worker:
                    measure(worker, task, name)
    return _medians(rounds)


def _missing(environments: set[str]) -> set[str]:
    """Makes the environments of the peers; those that can't be made, after saying why."""
    missing = set()
    for environment in sorted(environments):
        try:
            interpreter(environment)
        except EnvironmentFailedError as error:
            missing.add(environment)
            for name in (name for name, system in SYSTEMS.items() if system.environment == environment):
                print(f"NOT RUN: {name}: {error}", flush=True)
    return missing


def _size(task: str, name: str, options: argparse.Namespace) -> int:
    """What is done once is smaller for the peers: some save 50 runs a second, or keep every version of a state."""
    full = options.full and not (task in ONCE and SYSTEMS[name].environment)
    chosen = {**TASKS, **ONCE}[task]
    return chosen.full_size if full else chosen.size


def _medians(rounds: dict[tuple[str, str], list[dict[str, float]]]) -> Results:
    results: Results = {}
    for (task, name), figures in rounds.items():
        results.setdefault(task, {})[name] = {
            figure: statistics.median(one[figure] for one in figures) for figure in figures[0]
        }
    return results


def about() -> dict[str, str]:
    """Where the figures were measured."""
    names = ("flujo-core", "flujo-sqlite", "flujo-postgres", "aiosqlite", "asyncpg")
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} processors, {platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{name: version(name) for name in names},
    }


def show(results: Results) -> None:
    for task, found in results.items():
        print(task)
        for name, figures in found.items():
            print(f"  {name:22}", "  ".join(f"{figure} {_shown(figure, value)}" for figure, value in figures.items()))
    for verdict in verdicts(results):
        print(verdict)


def _shown(figure: str, value: float) -> str:
    return (
        f"{value:,.0f}"
        if value >= 100
        else f"{value:.3g}"
        if "/" in figure or "MiB" in figure
        else f"{value * 1e3:.3g} ms"
    )


if __name__ == "__main__":
    main()
