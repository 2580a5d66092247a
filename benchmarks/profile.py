"""Where does the time of an operation go? Flujo beside the driver, the thread of the event loop looked at all the time.

    python -m benchmarks.profile "save, one at a time"
    python -m benchmarks.profile "load, one at a time" --database PostgreSQL --seconds 20

A thousand times a second it notes which module is at work: the innermost frame counts, and what C code does counts for
the module that called it. *Waiting* is the loop without work: the database, its driver's thread or the network has it.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import statistics
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from types import FrameType
from typing import Any, Final

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from benchmarks.measuring import Places
from benchmarks.systems import SIDES, SYSTEMS
from benchmarks.workloads import TASKS
from flujo_conformance.postgres_server import PostgresServer

INTERVAL: Final = 0.001
WAITING: Final = "waiting"
_NAMES: Final = {"selectors": WAITING, "concurrent": "threads", "threading": "threads", "queue": "threads"}


class Sampler:
    """Counts which part is at work, while it is entered."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def _note(self, _: int, frame: FrameType | None) -> None:
        self.counts[_part(frame)] += 1

    def __enter__(self) -> None:
        signal.signal(signal.SIGALRM, self._note)
        signal.setitimer(signal.ITIMER_REAL, INTERVAL, INTERVAL)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _part(frame: FrameType | None) -> str:
    """The module of Flujo, or the package of others."""
    module = str(frame.f_globals.get("__name__")) if frame else "?"
    package, *rest = module.split(".")
    if package == "flujo_core" and rest:
        return f"{package}.{rest[0]}"
    return _NAMES.get(package, package)


async def measured(task: str, name: str, place: str, seconds: float) -> dict[str, float]:
    """Seconds of one operation by part, the whole under an empty name."""
    system = SYSTEMS[name].load()()
    await system.open(place)
    try:
        return await _sampled(task, system, seconds)
    finally:
        await system.close()


async def _sampled(task: str, system: Any, seconds: float) -> dict[str, float]:
    wanted, sampler = TASKS[task], Sampler()
    await wanted.run(system, wanted.size)  # statements are prepared, and the runs are there
    found, ending = [], time.perf_counter() + seconds
    while time.perf_counter() < ending:
        with sampler:
            found.append((await wanted.run(system, wanted.size))[""])
    # What the benchmark itself does, it does before the clock.
    del sampler.counts["benchmarks"]
    one, whole = statistics.median(found), sampler.counts.total()
    return {"": one, **{part: one * n / whole for part, n in sampler.counts.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=[task for task in TASKS if task.startswith(("save", "first", "load", "life"))])
    parser.add_argument("--database", choices=[*SIDES], help="only this one")
    parser.add_argument("--seconds", type=float, default=10, help="of each system; 10")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="flujo-profile-"))
        server = None if options.database == "SQLite" else stack.enter_context(PostgresServer())
        places = Places(folder, server)
        for database in [options.database] if options.database else SIDES:
            side = SIDES[database]
            found = {
                name: asyncio.run(measured(options.task, name, places.of(name, ""), options.seconds))
                for name in (side.ours, side.raw)
            }
            Console().print(_table(options.task, found))


def _table(task: str, found: dict[str, dict[str, float]]) -> Table:
    table = Table(title=f"{task}: microseconds of one operation", box=SIMPLE)
    table.add_column("")
    for name in found:
        table.add_column(name, justify="right")
    ours = next(iter(found.values()))
    parts = sorted({part for shares in found.values() for part in shares}, key=lambda part: -ours.get(part, 0))
    for part in parts:
        values = [shares.get(part, 0) * 1e6 for shares in found.values()]
        if max(values) >= 1:
            table.add_row(part or "all", *(f"{value:,.0f}" if value else "" for value in values))
    return table


if __name__ == "__main__":
    main()
