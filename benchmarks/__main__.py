"""How fast is Flujo, beside the drivers and its peers? Runs the workloads, system after system in turn.

    python -m benchmarks                                        Flujo and the drivers, in minutes
    python -m benchmarks --full --json results.json             1,000,000 runs and the peers, in hours
    python -m benchmarks --only load --only sqlite --scale 0.1  a quick look

Each system runs in a process of its own, on databases of its own; PostgreSQL is one temporary server with the settings
that it comes with. A figure is the median of the rounds. The exit code is 1 if Flujo or a driver failed.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from rich.progress import Progress

from benchmarks.machine import about
from benchmarks.measuring import Measurement, Pair, Plan
from benchmarks.results import Results
from benchmarks.systems import SYSTEMS
from benchmarks.table import show
from benchmarks.workloads import ALL


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """In one line."""
        self.exit(2, f"{self.prog}: {message}\n")


def main() -> int:
    parser = Parser("python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="1,000,000 runs in the lists, and the peers")
    parser.add_argument("--rounds", type=count, default=7, help="of each task that is repeated; 7")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="TEXT",
        help="the tasks, or the systems, whose names contain this; may be given several times",
    )
    parser.add_argument("--scale", type=positive, default=1.0, help="of all sizes, as 0.1; then no bar is judged")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the results")
    options = parser.parse_args()
    try:
        plan = Plan(chosen(options.only, full=options.full), options.rounds, options.full, options.scale)
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.open("a").close()
    except (ValueError, OSError) as error:
        parser.error(str(error))
    command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    results = Results(about=about(), command=command, full=plan.full, rounds=plan.rounds, scale=plan.scale)
    results.interrupted = not _measured(plan, results)
    if options.json:
        options.json.write_text(results.model_dump_json(indent=1) + "\n", encoding="utf-8")
    show(results, Console(width=None if sys.stdout.isatty() else 140))
    failed = any(not SYSTEMS[one.system].environment for one in results.not_run)
    return 130 if results.interrupted else int(failed)


def chosen(only: list[str], *, full: bool) -> list[Pair]:
    """Each task with each system that is able to do it. ValueError: there is none."""
    texts = [text.casefold() for text in only]
    tasks, systems = ([name for name in names if _named(name, texts)] or list(names) for names in (ALL, SYSTEMS))
    for text in texts:
        if not any(text in name.casefold() for name in (*ALL, *SYSTEMS)):
            raise ValueError(f"no task and no system has {text!r} in its name")
    tasks += [ALL[task].after for task in tasks]
    pairs = [
        (task, name)
        for task, wanted in ALL.items()
        for name in systems
        if task in tasks
        if full or (wanted.quick and not SYSTEMS[name].environment)
        if wanted.peers or not SYSTEMS[name].environment
        if hasattr(SYSTEMS[name].load(), wanted.needs)
    ]
    if not pairs:
        raise ValueError("nothing to measure: peers and 1,000,000 runs need --full, and not every system can do all")
    return pairs


def _named(name: str, texts: list[str]) -> bool:
    return any(text in name.casefold() for text in texts)


def _measured(plan: Plan, results: Results) -> bool:
    """False: it was interrupted; the results have what was measured until then."""
    # Ending a job ends all that it started, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task("", total=plan.repetitions)

        def report(words: str, through: int) -> None:
            progress.update(bar, description=words, completed=through)

        measurement = Measurement(plan, report)
        try:
            measurement.run()
        except KeyboardInterrupt:
            return False
        finally:
            measurement.add_to(results)
    return True


def positive(text: str) -> float:
    if not 0 < (value := float(text)) < float("inf"):
        raise ValueError
    return value


def count(text: str) -> int:
    if (value := int(text)) < 1:
        raise ValueError
    return value


if __name__ == "__main__":
    sys.exit(main())
