"""A pipeline that survives kill -9: what the state layer is for.

A worker analyses data/bike_counts.csv in six steps and is killed in the middle.
Another worker finds the unfinished run in the database and does the rest. The
result is, byte for byte, that of a run which nobody disturbed.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import io
import json
import os
import re
import secrets
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from statistics import fmean, median
from typing import Any

from flujo.state import open_backend
from flujo_core import StateBackend
from flujo_core.errors import FlujoStateError, StateConflictError
from flujo_core.uri import mask_uri

DATA, OUTPUT = Path(__file__).parent / "data", Path("quickstart_output")
DEFAULT_URI = f"sqlite:///{OUTPUT}/state.db"
PIPELINE = "Bike counts"
COUNTERS = ("Harbour Bridge", "River Path", "Station Square")

Context = dict[str, Any]
Added = tuple[Context, str]


class RefusedError(ValueError):
    """The input is not worth going on with."""


# --- The state: what a program does so that its runs survive it ------------------------------------------------------


async def submit(backend: StateBackend, batch: str, name: str, source: dict[str, Any], tags: list[str]) -> str:
    """Ask for a run: from here on it is in the database, with no step done. Returns its id."""
    run_id = f"{batch}-{name}"
    state = {
        "pipeline_id": "bike-counts",
        "pipeline_name": PIPELINE,
        "pipeline_version": "1.0.0",
        "status": "running",
        "current_step_index": 0,
        "total_steps": len(STEPS),
        "pipeline_context": {"input": str(DATA / source["file"])},
        "metadata": {"batch_id": batch, "source": source, "owner": {"team": "data"}, "tags": tags},
    }
    await backend.save_state(run_id, state)
    return run_id


async def work(uri: str, batch: str | None, crash_after: str | None) -> None:
    """All that a worker does: find unfinished runs and finish them. To start one is to resume it at its first step."""
    wanted = {"batch_id": batch} if batch else None
    async with open_backend(uri) as backend:
        for run in await backend.list_runs(status="running", pipeline_name=PIPELINE, metadata_filter=wanted):
            try:
                await resume(backend, run["run_id"], crash_after)
                if batch is None:
                    print(f"resumed {run['run_id']}")
            except StateConflictError as conflict:
                print(f"left to the worker that has it: {conflict}", file=sys.stderr)


async def resume(backend: StateBackend, run_id: str, crash_after: str | None) -> None:
    state = await backend.load_state(run_id)
    if state is None:  # deleted since it was listed
        return
    await backend.save_run_start({"run_id": run_id, "last_worker": os.getpid()})
    for index in range(state["current_step_index"], len(STEPS)):
        step, started = STEPS[index], time.perf_counter()
        record = {"run_id": run_id, "step_name": step.__name__, "step_index": index, "worker": os.getpid()}
        record["record_id"] = step.__name__  # done again, because we died before save(), it replaces its first record
        try:
            added, summary = step(state["pipeline_context"])
        except (OSError, ValueError, LookupError) as error:
            await backend.save_step_result({**record, "status": "failed", "error": str(error)})
            await finish(backend, state, "failed", f"{step.__name__}: {error}")
            return
        took = (time.perf_counter() - started) * 1000
        await backend.save_step_result({**record, "output": summary, "execution_time_ms": took})
        state["pipeline_context"] |= added
        state["step_history"].append({"step": step.__name__, "summary": summary})
        state |= {"current_step_index": index + 1, "last_step_output": summary}
        state["execution_time_ms"] = (state["execution_time_ms"] or 0) + took
        await save(backend, state)
        if step.__name__ == crash_after:
            os.kill(os.getpid(), signal.SIGKILL)  # no goodbye, no cleaning up
    await finish(backend, state, "completed", None)


async def finish(backend: StateBackend, state: dict[str, Any], status: str, error: str | None) -> None:
    state |= {"status": status, "error_message": error}
    await save(backend, state)
    await backend.save_run_end(state["run_id"], {"status": status, "error_message": error})


async def save(backend: StateBackend, state: dict[str, Any]) -> None:
    """Durable once it returns. If another worker saved the run since we loaded it, `StateConflictError`."""
    state["updated_at"] = None  # means now
    state["revision"] = await backend.save_state(state["run_id"], state, expected_revision=state["revision"])


# --- The pipeline: six ordinary functions, which know nothing of databases -------------------------------------------
#
# Each gets the context, which is all that the steps before it found, and returns what it adds, and a line about that.
# The context can be any JSON.


def read(context: Context) -> Added:
    with Path(context["input"]).open(encoding="utf-8", newline="") as file:
        rows = [[line, *row] for line, row in enumerate(csv.reader(file), start=1)][1:]
    return {"rows": rows}, f"{len(rows):,} rows of {Path(context['input']).name}"


def clean(context: Context) -> Added:
    """One spelling for dates and names, one unit for temperatures; what was sent twice counts once."""
    rows, seen, mended = [], set(), Counter[str]()
    for line, *row in context["rows"]:
        if tuple(row) in seen:
            continue
        seen.add(tuple(row))
        when = re.sub(r"^(\d\d)\.(\d\d)\.(\d{4}) ", r"\3-\2-\1T", row[0])
        counter = " ".join(row[1].split()).title()
        degrees, _, unit = row[3].replace(",", ".").partition(" ")
        celsius = round((float(degrees) - 32) / 1.8, 1) if unit == "F" else float(degrees) if unit == "C" else None
        rows.append([line, when, counter, row[2], celsius])
        mended += Counter({"dates": when != row[0], "names": counter != row[1], "°F": unit == "F"})
    summary = ", ".join(f"{count} {what}" for what, count in sorted(mended.items()))
    return {"rows": rows}, f"mended {summary}; {len(context['rows']) - len(rows)} repeats"


def validate(context: Context) -> Added:
    """Good rows go on, the others are reported by reason and line. A file that is mostly wrong is refused."""
    good, taken, rejected = [], set(), defaultdict(list)
    for line, when, counter, bikes, celsius in context["rows"]:
        reason = "contradicts an earlier row" if (when, counter) in taken else problem(when, counter, bikes, celsius)
        if reason:
            rejected[reason].append(line)
        else:
            taken.add((when, counter))
            good.append([when, counter, int(bikes), celsius])
    total = len(context["rows"])
    if len(good) < 0.9 * total:
        most = max(rejected, key=lambda reason: len(rejected[reason]))
        raise RefusedError(f"{total - len(good)} of {total} rows are bad, most because: {most}")
    return {"rows": good, "rejected": rejected}, f"{len(good):,} rows are good, {total - len(good)} rejected"


def problem(when: str, counter: str, bikes: str, celsius: float | None) -> str | None:
    try:
        if datetime.fromisoformat(when).year != 2025:
            return "clock not set"
    except ValueError:
        return "no such date"
    if counter not in COUNTERS:
        return "unknown counter"
    if not re.fullmatch(r"-?\d+", bikes):
        return "count missing"
    if not 0 <= int(bikes) <= 2000:
        return "impossible count"
    return "impossible temperature" if celsius is not None and not -30 <= celsius <= 45 else None


def aggregate(context: Context) -> Added:
    days: dict[str, Counter[str]] = {counter: Counter() for counter in COUNTERS}
    hours: dict[str, list[list[int]]] = {kind: [[] for _ in range(24)] for kind in ("workday", "weekend")}
    warmth: dict[str, float] = {}
    for when, counter, bikes, celsius in context["rows"]:
        date = when[:10]
        days[counter][date] += bikes
        hours[kind_of_day(when)][int(when[11:13])].append(bikes)
        warmth[date] = max(warmth.get(date, 0.0), celsius or 0.0)
    means = {kind: [round(fmean(counts), 1) for counts in by_hour] for kind, by_hour in hours.items()}
    bikes = sum(by_day.total() for by_day in days.values())
    added = {"days": days, "hours": means, "warmth": warmth, "bikes": bikes}
    return added, f"{bikes:,} bikes on {len(warmth)} days"


def detect(context: Context) -> Added:
    """Three hours or more of a day that are far from the median of the same counter, hour and kind of day."""
    counts = defaultdict(list)
    for when, counter, bikes, _ in context["rows"]:
        counts[counter, kind_of_day(when), when[11:]].append(bikes)
    events: list[dict[str, Any]] = []
    for when, counter, bikes, _ in sorted(context["rows"], key=lambda row: (row[1], row[0])):
        usual = median(counts[counter, kind_of_day(when), when[11:]])
        if abs(bikes - usual) <= max(20, usual / 2):
            continue
        kind = [counter, "more" if bikes > usual else "less", when[:10]]
        if not events or events[-1]["kind"] != kind:
            events.append({"kind": kind, "from": when, "hours": 0, "bikes": 0, "usual": 0})
        event = events[-1]
        event |= {"hours": event["hours"] + 1, "bikes": event["bikes"] + bikes, "usual": event["usual"] + usual}
    events = sorted((e for e in events if e["hours"] >= 3), key=lambda e: -abs(e["bikes"] - e["usual"]))
    return {"events": events, "rows": []}, f"{len(events)} stretches far from usual"


def report(context: Context) -> Added:
    warmth = context["warmth"]
    dates = sorted(warmth)
    lines = ["# Bikes in May", "", f"{context['bikes']:,} bikes rode past {len(COUNTERS)} counters."]
    lines += ["", f"## {len(dates)} days from {day_name(dates[0])}", ""]
    for counter, by_day in context["days"].items():
        best = max(dates, key=lambda date: by_day[date])
        numbers = f"{sum(by_day.values()):7,}  best {day_name(best)} {by_day[best]:,}"
        lines.append(f"    {counter:14}  {spark([by_day[date] for date in dates])} {numbers}")
    lines.append(f"    warmest hour    {spark([warmth[date] for date in dates])}    up to {max(warmth.values())} °C")
    lines += ["", "## Hours of the day, bikes per counter", ""]
    for kind, means in context["hours"].items():
        lines.append(f"    {kind:14}  {spark(means)}        up to {max(means):.0f}, at {means.index(max(means))}:00")
    lines += ["", "## Far from usual", ""]
    for e in context["events"]:
        share = f"{e['bikes']:,} bikes instead of {e['usual']:,.0f}"
        lines.append(f"    {e['kind'][0]:14}  {day_name(e['from'])} {e['from'][11:]}, {e['hours']:2} hours: {share}")
    lines += ["", "## Rejected rows", ""]
    for reason, places in sorted(context["rejected"].items(), key=lambda item: -len(item[1])):
        lines.append(f"    {reason:26}  {'█' * len(places)} {len(places)}, first in line {places[0]}")
    return {"report": "\n".join(lines) + "\n"}, f"{len(lines)} lines"


def kind_of_day(when: str) -> str:
    return "weekend" if datetime.fromisoformat(when).weekday() >= 5 else "workday"


def day_name(when: str) -> str:
    return datetime.fromisoformat(when).strftime("%a %d %b")


def spark(values: Sequence[float]) -> str:
    return "".join("▁▂▃▄▅▆▇█"[min(7, int(8 * value / max(values)))] for value in values)


STEPS: tuple[Callable[[Context], Added], ...] = (read, clean, validate, aggregate, detect, report)

# --- The demonstration -----------------------------------------------------------------------------------------------


async def demonstrate(uri: str, crash_after: str) -> None:
    sensor, upload = describe("bike_counts.csv", "sensor"), describe("upload.csv", "upload")
    batch = f"q{secrets.token_hex(3)}"
    async with open_backend(uri) as backend:
        print(f"A pipeline that survives kill -9. Its state is in\n{mask_uri(uri)}\n")
        killed = await submit(backend, batch, "killed", sensor, ["bikes", "crash-test"])
        print(f"1. A worker takes up run {killed} and kills itself after '{crash_after}'.")
        pid = await run_worker(uri, batch, crash_after)
        print(f"   Worker {pid} is dead, by signal 9. {await position(backend, killed, 'running')}\n")

        print("2. Another worker looks for running runs, finds this one and goes on with it.")
        pid = await run_worker(uri, batch)
        print(f"   Worker {pid} is done. {await position(backend, killed, 'completed')}")
        for step in await backend.list_run_steps(killed):
            print(f"   {step['step_index'] + 1} {step['step_name']:9}  worker {step['worker']}  {step['output']}")

        print("\n3. A third worker does the same undisturbed, and refuses a file that is broken.")
        undisturbed = await submit(backend, batch, "undisturbed", sensor, ["bikes"])
        refused = await submit(backend, batch, "refused", upload, ["bikes", "by hand"])
        await run_worker(uri, batch)
        await position(backend, undisturbed, "completed")
        states = [await backend.load_state(run_id) or {} for run_id in (killed, undisturbed)]
        result, other = (json.dumps(state["pipeline_context"]) for state in states)
        expect(result == other, f"{killed} and {undisturbed} have different results")
        print(f"   Killed or not: {len(result):,} bytes of context and report, identical.")
        print(f"   {refused}: {await position(backend, refused, 'failed')}\n")

        print("4. What list_runs finds in all quickstarts so far, and the newest two of each:")
        await show(backend, status="completed")
        await show(backend, status="failed")
        await show(backend, metadata_filter={"source": {"kind": "upload"}})
        await show(backend, metadata_filter={"tags": ["crash-test"]})
    text = states[0]["pipeline_context"]["report"]
    print(f"\n5. The report, {write_report(text)}, begins:\n")
    print("\n".join(text.splitlines()[:14]))


def describe(file: str, kind: str) -> dict[str, Any]:
    return {"file": file, "kind": kind, "rows": (DATA / file).read_text(encoding="utf-8").count("\n") - 1}


async def run_worker(uri: str, batch: str, crash_after: str | None = None) -> int:
    """Start this script as a worker, wait until it ends, or dies by signal 9 if it is to crash, and return its pid."""
    crash = ["--crash-after", crash_after] if crash_after else []
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, __file__, "--worker", "--batch", batch, *crash),
        env=os.environ | {"FLUJO_STATE_URI": uri},  # not an argument: others can see those, and it may hold a password
        start_new_session=True,  # Ctrl-C is for us; we end the worker
    )
    try:
        code = await process.wait()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    expect(code == (-signal.SIGKILL if crash_after else 0), f"worker {process.pid} ended with {code}")
    return process.pid


async def position(backend: StateBackend, run_id: str, status: str) -> str:
    """Where the database says that a run is."""
    run = await backend.get_run_details(run_id)
    assert run is not None
    expect(run["status"] == status, f"{run_id} should be {status}, but is {run['status']}: {run['error_message']}")
    text = f"In the database: {status}, {run['current_step_index']} of {run['total_steps']} steps."
    return f"{text}\n   {run['error_message']}" if run["error_message"] else text


async def show(backend: StateBackend, **filters: Any) -> None:
    """How many runs the filters hold for, and the newest two."""
    count = await backend.count_runs(pipeline_name=PIPELINE, **filters)
    print(f"   {', '.join(f'{name}={value!r}' for name, value in filters.items())}: {count}")
    for run in await backend.list_runs(pipeline_name=PIPELINE, limit=2, **filters):
        steps, metadata = f"{run['current_step_index']}/{run['total_steps']}", run["metadata"]
        tags = ", ".join(metadata["tags"])
        print(f"      {run['run_id']:19} {run['status']:9}  {steps}  {metadata['source']['rows']:5,} rows  {tags}")


def write_report(text: str) -> Path:
    OUTPUT.mkdir(exist_ok=True)
    unfinished = OUTPUT / f"report.{os.getpid()}.tmp"
    unfinished.write_text(text, encoding="utf-8")
    return unfinished.replace(OUTPUT / "report.md")  # the old report or the new one, never a half


def expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise SystemExit(f"quickstart: {otherwise}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python examples/quickstart.py --uri postgres://me:secret@localhost/flujo",
    )
    steps = [step.__name__ for step in STEPS]
    parser.add_argument("--uri", help=f"the database; default: {DEFAULT_URI}")
    parser.add_argument("--crash-after", metavar="STEP", choices=steps, help=", ".join(steps) + "; default: validate")
    parser.add_argument("--worker", action="store_true", help="only finish what is unfinished")
    parser.add_argument("--batch", help="with --worker: only the runs of this batch")
    args = parser.parse_args()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace", line_buffering=True)
    try:
        if args.worker:
            uri = args.uri or os.environ.get("FLUJO_STATE_URI", DEFAULT_URI)
            asyncio.run(work(uri, args.batch, args.crash_after))
        else:
            uri = args.uri or DEFAULT_URI
            expect(not uri.startswith("memory:"), "memory:// is for one process, and this example starts several")
            asyncio.run(demonstrate(uri, args.crash_after or "validate"))
    except (FlujoStateError, OSError) as error:
        print(f"quickstart: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted. Every finished step is saved; --worker does the rest.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
