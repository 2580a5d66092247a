"""What is measured: a workload is one function. It gets an open system and says what came of one repetition.

Figures are seconds for one operation unless their name says otherwise. A workload names the method that a system must
have for it; the parent process calls it again and again, system after system in turn.
"""

from __future__ import annotations

import asyncio
import gc
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from importlib.resources import files
from itertools import count
from typing import Any, Final

from benchmarks.samples import HITS, PIPELINES, STATUSES, STEPS, history_entry, listed, state

Figures = dict[str, float]
Workload = Callable[[Any, int], Awaitable[Figures]]
_fresh = count()
RUNS: Final = 200
"""So many runs are saved again and again."""
CALLERS: Final = 64
PATIENCE: Final = 20.0
"""Seconds for one list; a peer that scans all runs isn't asked a hundred times."""


@dataclass(frozen=True)
class Task:
    """A workload and how it is called."""

    run: Workload
    needs: str
    """A method or attribute of the systems that it can be done with."""
    size: int
    """Operations in one repetition."""
    full_size: int = 0
    """In a full run; 0: the same."""
    least: int = 1
    """However small a run is wanted."""
    peers: bool = True
    """A full run asks the peers too."""
    quick: bool = True
    """Not only a full run has it."""
    database: str = ""
    """Tasks with the same name here share a database of each system."""
    after: str = ""
    """The task that made what this one needs."""


async def save(system: Any, size: int) -> Figures:
    """Saves one at a time, of runs that are there: what a workflow does after each step."""
    save = getattr(system, "save_alone", system.save)
    given = _states(size)
    return await _alone(size, lambda n: save(f"run {n % RUNS}", given[n]))


async def save_new(system: Any, size: int) -> Figures:
    """First saves one at a time, which also index the metadata."""
    save = getattr(system, "save_alone", system.save)
    given = _states(size)
    return await _alone(size, lambda n: save(f"new {next(_fresh)}", given[n], fresh=True))


async def save_64(system: Any, size: int) -> Figures:
    """Saves of 64 callers at once, each after its last one has returned."""
    given = _states(size)
    return await _together(size, lambda n: system.save(f"run {n % RUNS}", given[n]))


async def save_new_64(system: Any, size: int) -> Figures:
    given = _states(size)
    return await _together(size, lambda n: system.save(f"new {next(_fresh)}", given[n], fresh=True))


async def load(system: Any, size: int) -> Figures:
    load = getattr(system, "load_alone", system.load)
    await _saved(system)
    return await _alone(size, lambda n: load(f"run {n % RUNS}"))


async def load_64(system: Any, size: int) -> Figures:
    await _saved(system)
    return await _together(size, lambda n: system.load(f"run {n % RUNS}"))


async def lifecycle(system: Any, size: int) -> Figures:
    """Whole runs, 16 at once: begun, ten steps each recorded and saved, ended."""
    given = [[state(number, step) for step in range(STEPS + 1)] for number in range(PIPELINES)]
    return await _together(size, lambda n: system.lifecycle(f"life {next(_fresh)}", given[n % PIPELINES]), callers=16)


async def history(system: Any, size: int) -> Figures:
    """A run whose history grows by 1 KiB with each of ``size`` saves. A save can't do without encoding it once."""
    run_id = f"history {next(_fresh)}"
    given = {**state(0), "step_history": []}
    seconds, before = [], await system.size()
    for number in range(size):
        given["step_history"].append(history_entry(number))
        began = time.perf_counter()
        await system.save(run_id, given)
        seconds.append(time.perf_counter() - began)
    encoding = (await _alone(9, lambda _: _encoded(given["step_history"])))[""]
    appended = len(json.dumps(given["step_history"]))
    found = await system.load(run_id)
    assert found["step_history"] == given["step_history"]
    # A save also writes the rest of the run: a version of its row, which a vacuum or a checkpoint frees later.
    grown = await system.size() - before
    heads = size * (len(json.dumps(state(0))) + 1024)
    first, last = statistics.median(seconds[:20]), statistics.median(seconds[-20:])
    return {
        "first 20": first,
        "last 20": last,
        "encoding": encoding,
        "last / (1.5 × first + encoding)": last / (1.5 * first + encoding),
        "bytes stored / appended": grown / appended,
        "less heads / appended": max(0, grown - heads) / appended,
    }


async def _encoded(value: object) -> None:
    json.dumps(value)


async def cold_start(system: Any, size: int) -> Figures:
    """Fresh processes from their start to their end; the programs are those of `benchmarks.cold_start`."""
    migrations = str(files("flujo_sqlite") / "migrations")
    seconds: dict[str, list[float]] = {name: [] for name in system.programs}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(size):
            for name, program in system.programs.items():
                began = time.perf_counter()
                arguments = ("-c", program, f"{folder}/{number} {name}.db", migrations)
                process = await asyncio.create_subprocess_exec(sys.executable, *arguments)
                assert await process.wait() == 0, f"{name}: exit code {process.returncode}"
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


async def _saved(system: Any) -> None:
    """The runs are there."""
    if await system.load(f"run {RUNS - 1}") is None:
        for number in range(RUNS):
            await system.save(f"run {number}", state(number))


def _states(size: int) -> list[dict[str, Any]]:
    """What will be saved, run after run. Left out of garbage collections: to look through it is no system's work."""
    gc.unfreeze()
    states = [state(number, number % STEPS) for number in range(min(size, RUNS))]
    gc.collect()
    gc.freeze()
    return [states[number % RUNS] for number in range(size)]


async def _alone(size: int, work: Callable[[int], Awaitable[object]]) -> Figures:
    seconds = []
    for number in range(size):
        began = time.perf_counter()
        await work(number)
        seconds.append(time.perf_counter() - began)
    return {"": statistics.median(seconds)}


async def _together(size: int, work: Callable[[int], Awaitable[object]], callers: int = CALLERS) -> Figures:
    numbers = iter(range(size))

    async def caller() -> None:
        for number in numbers:
            await work(number)

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return {"": (time.perf_counter() - began) / size}


# --- many runs ------------------------------------------------------------------------------------------------------


async def fill(system: Any, size: int) -> Figures:
    """Makes the runs that the lists go through, 64 at once, oldest first."""
    found = await _together(size, lambda n: system.save(f"listed {n:07}", listed(n, size), fresh=True))
    return {"runs/s": 1 / found[""]}


def filters(size: int) -> dict[str, dict[str, Any]]:
    """What an operator asks for, of so many runs: the newest 50 of each."""
    value = size // HITS // 3
    whole = {"limit": 50}
    return {
        "newest": whole,
        "by status": {**whole, "status": "failed"},
        "by pipeline": {**whole, "pipeline_name": "Pipeline 7"},
        "metadata, 10 hits": {**whole, "metadata_filter": {"batch": f"batch-{value}"}},
        "metadata, nested": {**whole, "metadata_filter": {"customer": {"id": value}}},
        "metadata, array": {**whole, "metadata_filter": {"tags": [f"tag-{value}"]}},
        "metadata and status": {**whole, "metadata_filter": {"batch": f"batch-{value}"}, "status": "completed"},
        "metadata, a miss": {**whole, "metadata_filter": {"batch": "none"}},
        "metadata of half of the runs": {**whole, "metadata_filter": {"half": 1}},
        "metadata of all, a rare status": {**whole, "metadata_filter": {"priority": 5}, "status": "paused"},
    }


async def lists(system: Any, size: int) -> Figures:
    """Seconds in the middle of 100 calls, at the first one and in the middle of the last ten; a page of `iter_runs`."""
    figures: Figures = {}
    for name, chosen in filters(size).items():
        seconds: list[float] = []
        try:
            while len(seconds) < 100 and sum(seconds) < PATIENCE:
                began = time.perf_counter()
                rows = await system.find(**chosen)
                seconds.append(time.perf_counter() - began)
        except NotImplementedError:  # a peer that has no such filter
            continue
        figures[name] = statistics.median(seconds)
        figures[f"{name}, first call"] = seconds[0]
        figures[f"{name}, last of 100"] = statistics.median(seconds[-10:])
        assert len(rows) == _expected(name, size), (name, len(rows))
    if hasattr(system, "pages"):
        figures |= await _pages(system, size)
    if hasattr(system, "count"):
        for status in ("failed", "completed"):
            figures[f"count of {status}"] = (await _alone(5, lambda _, of=status: system.count(status=of)))[""]  # type: ignore[misc]
    return figures


def _expected(name: str, size: int) -> int:
    if "miss" in name:
        return 0
    if "10 hits" in name or "nested" in name or "array" in name:
        return HITS
    if name == "metadata and status":
        value, every = size // HITS // 3, size // HITS
        return sum(listed(n, size)["status"] == "completed" for n in range(value, size, every))
    return 50


async def _pages(system: Any, size: int) -> Figures:
    """The second page of iterations that begin at places all over the runs."""
    figures: Figures = {}
    middle = listed(size // 2, size)["created_at"]
    for name, chosen in (
        ("page", {}),
        ("page by status", {"status": STATUSES[0]}),
        ("page of metadata", {"metadata_filter": {"half": 1}}),
    ):
        seconds = []
        for _ in range(30):
            pages = system.pages(50, created_before=middle, **chosen)
            for _ in range(50):
                await anext(pages)
            began = time.perf_counter()
            await anext(pages)
            seconds.append(time.perf_counter() - began)
            await pages.aclose()
        figures[name] = statistics.median(seconds)
    return figures


async def cleanup(system: Any, size: int) -> Figures:
    """Half of the runs are removed while others are saved; seconds of a save, 99 of 100 are quicker."""
    idle = await _while(system, asyncio.sleep(5))
    began = time.perf_counter()
    # Between two runs: until the days are counted back again some time has gone.
    middle = listed(size // 2, size)["created_at"] - timedelta(seconds=0.5)
    removing = asyncio.ensure_future(system.remove_older(middle))
    busy = await _while(system, removing)
    seconds = time.perf_counter() - began
    removed = removing.result()
    assert removed == size // 2, removed
    return {"p99 idle": idle, "p99 beside": busy, "p99 beside / idle": busy / idle, "removed/s": removed / seconds}


async def _while(system: Any, until: Awaitable[Any]) -> float:
    """The 99th percentile of saves that go on until something else ends."""
    ending = asyncio.ensure_future(until)
    seconds: list[float] = []
    while not ending.done() or len(seconds) < 100:
        began = time.perf_counter()
        await system.save(f"run {len(seconds) % RUNS}", state(len(seconds) % RUNS))
        seconds.append(time.perf_counter() - began)
    return statistics.quantiles(seconds, n=100)[98]


# --- memory, and how long the loop is blocked -----------------------------------------------------------------------


async def iterate(system: Any, size: int) -> Figures:
    """Through all runs; what the process grows by, at most."""
    before, rows, began = _peak_mib(), 0, time.perf_counter()
    async for _ in system.pages(500):
        rows += 1
    assert rows >= size, rows
    return {"rows/s": rows / (time.perf_counter() - began), "MiB": _peak_mib() - before}


async def huge(system: Any, size: int) -> Figures:
    """A document of 50 MiB; the longest time that other tasks of the loop had to wait meanwhile."""
    document = {**state(0), "pipeline_context": {f"{n}": "x" * 1000 for n in range(size * 1024 * 1024 // 1010)}}
    before, figures = _peak_mib(), {}
    began = time.perf_counter()
    json.dumps(document)
    figures["encoding once"] = time.perf_counter() - began
    for name, call in (("save", system.save("huge", document)), ("load", system.load("huge"))):
        began = time.perf_counter()
        figures[f"{name}, longest block"] = await _longest_block(call)
        figures[name] = time.perf_counter() - began
    return {**figures, "MiB": _peak_mib() - before}


async def _longest_block(call: Awaitable[object]) -> float:
    longest, last = 0.0, time.perf_counter()
    ending = asyncio.ensure_future(call)
    while not ending.done():
        await asyncio.sleep(0)
        longest, last = max(longest, (now := time.perf_counter()) - last), now
    await ending
    return longest


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _of_many_runs(size: int, *, quick: bool) -> dict[str, Task]:
    """Each in the same database, whose runs the first one makes."""
    filling = f"fill with {size:,} runs"

    def task(run: Workload, needs: str, after: str = filling) -> Task:
        return Task(run, needs, size, least=1000, peers=quick, quick=quick, database=f"{size:,} runs", after=after)

    return {
        filling: task(fill, "find", ""),
        f"lists of {size:,} runs": task(lists, "find"),
        f"iterate over {size:,} runs": task(iterate, "pages"),
        f"cleanup of half of {size:,} runs": task(cleanup, "remove_older"),
    }


TASKS: Final = {
    "save, one at a time": Task(save, "save", 400, 1000),
    "save, 64 at once": Task(save_64, "save", 3000, 6000),
    "first save, one at a time": Task(save_new, "save", 300, 1000),
    "first save, 64 at once": Task(save_new_64, "save", 2000, 6000),
    "load, one at a time": Task(load, "load", 1000, 2000),
    "load, 64 at once": Task(load_64, "load", 2000, 4000),
    "lifecycle of a run": Task(lifecycle, "lifecycle", 48, 160),
    "history of 500 steps": Task(history, "size", 500),
    "cold start": Task(cold_start, "programs", 3),
}
"""What is repeated, system after system in turn."""
ONCE: Final = {
    "history of 5,000 steps": Task(history, "size", 5000, peers=False),
    **_of_many_runs(10_000, quick=True),
    **_of_many_runs(1_000_000, quick=False),
    "huge document": Task(huge, "size", 50),
}
"""What takes long, or leaves another database behind; in this order, each in a process of its own."""
ALL: Final = {**TASKS, **ONCE}
