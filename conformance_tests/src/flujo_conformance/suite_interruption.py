"""What is left of a call that was cut off: cancelled at any await, out of time, or killed with its process (G9)?"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import Any, Final

import pytest

from flujo_core import StateBackend
from flujo_core.errors import FlujoStateError

from .answers import Call, disagreement
from .harness import Harness
from .interrupted_calls import (
    REST,
    Case,
    asked,
    check,
    full_run,
    is_open,
    old_runs,
    on_a_full_run,
    save_of,
    several,
    stale_runs,
    step_of,
)
from .interruption import Cancel, Stepping, When, Whom, at_every_point, step
from .killed import KINDS, RUNS, written_until_killed
from .leaks import held, left
from .machine import NAMESPACE
from .model import ModelBackend
from .observations import observe, unsupported
from .profile import chosen_seed, times
from .strategies import plain_state
from .suite_storage import stored, unexpected
from .suite_support import Handles, call, ids, loaded, on_fresh_data, same

LIMIT: Final = 10
"""Seconds after which a call counts as stuck."""
SWEEPS: Final[tuple[tuple[Whom, When], ...]] = (
    ("any", "at once"),
    ("caller", "late"),
    ("any", "late"),
    ("caller", "at once"),
)
"""The manners of cancelling, the most telling first: a quick profile takes the first ones, others all."""


@asynccontextmanager
async def _in_time(what: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(LIMIT):
            yield
    except TimeoutError:
        pytest.fail(f"{what}: no end after {LIMIT} s")


async def _goes_on(case: Case, answers: Sequence[Any], one: StateBackend, two: StateBackend, where: str) -> None:
    """After calls that were cut off: what is there is old or new, and both handles write and read on."""
    if not any(map(is_open, answers)):
        # Whatever returned is there before anybody writes anything else.
        await check(case, answers, [], two, where)
    # A write of the same handle comes after what cancelled calls may still do.
    probes = [step_of(run_id, step_index=9, record_id="probe") for run_id in case.runs]
    async with _in_time(f"{where}: the next write of the handle"):
        await asyncio.gather(*(call(one, probe) for probe in probes))
    async with _in_time(f"{where}: a read of another handle"):
        await check(case, answers, probes, two, where)
    async with _in_time(f"{where}: a write of another handle and a read of the first"):
        for run_id in case.runs:
            assert await two.delete_run(run_id) is True
            assert await one.get_run_details(run_id) is None


# --- stepping through calls ------------------------------------------------------------------------------------------


@asynccontextmanager
async def _nothing_left(here: Handles) -> AsyncIterator[None]:
    """After the block nothing is held, and no row is there, that was not before; the handles are open in it."""
    await call(here.one, REST)
    await here.two.count_runs()
    rows = None if await here.harness.raw(NAMESPACE) is None else await stored(here.harness)
    await here.shutdown()
    before = held()
    await asyncio.gather(here.one.count_runs(), here.two.count_runs())
    yield
    await call(here.one, REST)
    async with _in_time("the shutdown of all handles"):
        await here.shutdown()
    more = await left(before)
    assert not more, f"file descriptors, threads or tasks of cancelled calls are left: {more}"
    if rows is not None:
        assert not unexpected(rows, await stored(here.harness)), "rows of cancelled calls are left"


async def _old_or_new(here: Handles, make: Callable[[str], Case], *, victims: int = 1, manners: int = 1) -> None:
    """A case, cancelled at every point in so many manners: a thorough profile takes all of them."""
    numbers = count()

    async def trial(cancel: Cancel, victim: int, writer: StateBackend) -> Stepping:
        case = make(f"run {next(numbers)}")
        await asyncio.gather(*(call(writer, one) for one in case.before))
        calls = [call(here.one, one) for one in case.calls]
        stepping, answers = await step(calls, cancel, victim=victim, limit=LIMIT)
        await _goes_on(case, answers, here.one, here.two, f"{case.calls[victim][0]}, {cancel}")
        return stepping

    most = 0
    async with _nothing_left(here):
        for number, (whom, when) in enumerate(SWEEPS[: times(manners)]):
            # What the handle knows of the run when it begins: what is there, or nothing.
            writer = (here.one, here.two, here.two, here.one)[number]
            for victim in range(victims if whom == "caller" else 1):

                def each(cancel: Cancel, victim: int = victim, writer: StateBackend = writer) -> Awaitable[Stepping]:
                    return trial(cancel, victim, writer)

                most = max(most, await at_every_point(each, whom, when))
    _points(here.harness, most)


def _points(harness: Harness, number: int) -> None:
    observe("points", number)
    # In memory a call may be done before anybody could cancel it.
    assert number > 0 or not harness.durable, "a call that stores something durably can't be done without waiting"


def _stride() -> int:
    """Opening a pool of connections has many points, and each takes a new one: the quick profile leaves some out."""
    return 3 if times(1) == 1 else 1


class InterruptionPart:
    @on_fresh_data
    async def test_g9_a_first_save_cancelled_at_any_point_is_old_or_new(self, here: Handles) -> None:
        await _old_or_new(here, lambda run_id: Case([], [save_of(run_id, 2)], [run_id]))

    @on_fresh_data
    async def test_g9_a_save_cancelled_at_any_point_is_old_or_new(self, here: Handles) -> None:
        await _old_or_new(here, lambda run_id: Case([save_of(run_id, 1)], [save_of(run_id, 2)], [run_id]), manners=2)

    @on_fresh_data
    async def test_g9_a_shorter_save_cancelled_at_any_point_is_old_or_new(self, here: Handles) -> None:
        await _old_or_new(here, lambda run_id: Case([save_of(run_id, 2)], [save_of(run_id, 1)], [run_id]))

    @on_fresh_data
    async def test_g9_delete_state_cancelled_at_any_point_is_old_or_new(self, here: Handles) -> None:
        await _old_or_new(here, on_a_full_run("delete_state"))

    @on_fresh_data
    async def test_g9_delete_run_cancelled_at_any_point_is_old_or_new(self, here: Handles) -> None:
        await _old_or_new(here, on_a_full_run("delete_run"), manners=2)

    @on_fresh_data
    async def test_g9_save_run_start_cancelled_at_any_point_is_old_or_new(self, here: Handles) -> None:
        def make(run_id: str) -> Case:
            data = {"run_id": run_id, "pipeline_name": "p", "metadata": {"of": run_id, "n": 2}, "mine": 2}
            return Case([step_of(run_id)], [("save_run_start", (data,), {})], [run_id])

        await _old_or_new(here, make)

    @on_fresh_data
    async def test_g9_save_run_end_cancelled_at_any_point_is_old_or_new(self, here: Handles) -> None:
        end = {"status": "failed", "error_message": "2", "total_cost": 2.0, "final_context": {"n": 2}, "mine": 2}
        await _old_or_new(here, on_a_full_run("save_run_end", end))

    @on_fresh_data
    async def test_g9_a_repeated_step_cancelled_at_any_point_is_old_or_new(self, here: Handles) -> None:
        def make(run_id: str) -> Case:
            return Case(
                full_run(run_id), [step_of(run_id, record_id="one", step_index=2, cost=2.0, output=2)], [run_id]
            )

        await _old_or_new(here, make)

    @on_fresh_data
    async def test_g9_save_spans_cancelled_at_any_point_is_old_or_new(self, here: Handles) -> None:
        spans = [{"span_id": name, "start_time": 3.0, "end_time": 4.0, "status": "done"} for name in "tbc"]
        await _old_or_new(here, on_a_full_run("save_spans", spans))

    @on_fresh_data
    async def test_g9_save_trace_cancelled_at_any_point_is_old_or_new(self, here: Handles) -> None:
        trace = {"span_id": "u", "name": "trace", "children": [{"span_id": "a", "name": "child", "end_time": 2}]}
        await _old_or_new(here, on_a_full_run("save_trace", trace))

    @on_fresh_data
    async def test_g9_persist_evaluation_cancelled_at_any_point_is_old_or_new(self, here: Handles) -> None:
        await _old_or_new(here, on_a_full_run("persist_evaluation", 1.0, "better"))

    @on_fresh_data
    async def test_g9_set_system_state_cancelled_at_any_point_is_old_or_new(self, here: Handles) -> None:
        old: Call = ("set_system_state", ("k", {"value": "old"}), {})
        new: Call = ("set_system_state", ("k", {"value": "new"}), {})
        await _old_or_new(here, lambda run_id: Case([old, save_of(run_id, 1)], [new], [run_id]), manners=2)

    @on_fresh_data
    async def test_g9_cleanup_old_workflows_cancelled_at_any_point_leaves_whole_runs(self, here: Handles) -> None:
        await _old_or_new(here, old_runs)

    @on_fresh_data
    async def test_g9_cleanup_stale_background_tasks_cancelled_at_any_point_marks_whole(self, here: Handles) -> None:
        await _old_or_new(here, stale_runs)

    @on_fresh_data
    async def test_g9_one_of_several_writes_cancelled_at_any_point_hinders_no_other(self, here: Handles) -> None:
        await _old_or_new(here, several, victims=2, manners=2)

    @on_fresh_data
    async def test_g9_a_read_cancelled_at_any_point_changes_nothing_and_hinders_no_other(self, here: Handles) -> None:
        model = ModelBackend(here.clock)
        for one in (REST, *full_run("r"), save_of("other", 2)):
            await call(here.one, one)
            asked(model, one)
        status = await here.one.schema_status()
        reads: list[Call] = [
            ("load_state", ("r",), {}),
            ("get_run_details", ("r",), {}),
            ("list_runs", (), {}),
            ("iter_runs", (), {"page_size": 1}),
            ("schema_status", (), {}),
        ]
        after: list[Call] = [("load_state", ("other",), {}), ("list_runs", (), {"limit": 1, "offset": 1}), *reads[:4]]

        async def trial(cancel: Cancel, read: Call) -> Stepping:
            stepping, [answer] = await step([call(here.one, read)], cancel, limit=LIMIT)
            where = f"{read[0]}, {cancel}"
            if not is_open(answer) and not isinstance(answer, FlujoStateError):
                if read[0] == "schema_status":
                    assert answer == status
                else:
                    assert disagreement(read, asked(model, read), answer) is None, where
            async with _in_time(f"{where}: the next read of the handle"):
                for one in after:
                    assert disagreement(one, asked(model, one), await call(here.one, one)) is None, (where, one)
            return stepping

        most = 0
        async with _nothing_left(here):
            for read in reads:
                # To ask for the schema connects anew each time, which is slow.
                for whom, when in SWEEPS[: times(1 if read[0] == "schema_status" else 2)]:
                    points = await at_every_point(lambda cancel, read=read: trial(cancel, read), whom, when)  # type: ignore[misc]
                    most = max(most, points)
                # More often than a pool has connections.
                for pauses in range(12):
                    reading = asyncio.ensure_future(call(here.one, read))
                    for _ in range(1 + pauses % 3):
                        await asyncio.sleep(0)
                    reading.cancel()
                    await asyncio.wait([reading])
                async with _in_time(f"reads after many a cancelled {read[0]}"):
                    for one in after:
                        await call(here.one, one)
            async with _in_time("a write after cancelled reads"):
                await call(here.one, REST)
        _points(here.harness, most)

    @on_fresh_data
    async def test_g9_a_first_call_cancelled_while_it_opens_leaves_the_handle_to_open(self, here: Handles) -> None:
        numbers = count()

        async def trial(cancel: Cancel) -> Stepping:
            backend, run_id = here.open(), f"run {next(numbers)}"
            case = Case([], [save_of(run_id, 2)], [run_id])
            stepping, answers = await step([call(backend, case.calls[0])], cancel, limit=LIMIT)
            await _goes_on(case, answers, backend, here.two, f"the first call, {cancel}")
            async with _in_time(f"shutdown after the first call, {cancel}"):
                await backend.shutdown()
            return stepping

        most = 0
        async with _nothing_left(here):
            for whom, when in SWEEPS[: times(1)]:
                most = max(most, await at_every_point(trial, whom, when, stride=_stride()))
        _points(here.harness, most)

    @on_fresh_data
    async def test_g9_a_first_call_cancelled_while_it_migrates_leaves_it_to_migrate(self, here: Handles) -> None:
        async def trial(cancel: Cancel) -> Stepping:
            namespace = f"unused_{secrets.token_hex(4)}"
            one, two = here.harness.open(namespace), here.harness.open(namespace)
            stepping, [answer] = await step([one.save_state("r", plain_state())], cancel, limit=LIMIT)
            async with _in_time(f"the second call, {cancel}"):
                revision = await one.save_state("r", plain_state())
                assert revision in ((1, 2) if is_open(answer) else (1,) if isinstance(answer, Exception) else (2,))
                assert (await loaded(two))["revision"] == revision
                assert (await two.schema_status()).state == "current"
                await asyncio.gather(one.shutdown(), two.shutdown())
            return stepping

        async with _nothing_left(here):
            most = await at_every_point(trial, "any", "at once", stride=_stride())
        _points(here.harness, most)

    @on_fresh_data
    async def test_g9_a_shutdown_cancelled_at_any_point_leaves_nothing_open(self, here: Handles) -> None:
        numbers = count()

        async def trial(cancel: Cancel) -> Stepping:
            backend, run_id = here.open(), f"run {next(numbers)}"
            case = Case([], [save_of(run_id, 2)], [run_id])
            await asyncio.gather(backend.count_runs(), backend.count_runs())
            stepping, [answer, _] = await step([call(backend, case.calls[0]), backend.shutdown()], cancel, victim=1)
            await _goes_on(case, [answer], backend, here.two, f"shutdown, {cancel}")
            async with _in_time(f"shutdown after one, {cancel}"):
                await backend.shutdown()
            return stepping

        most = 0
        async with _nothing_left(here):
            for whom, when in (SWEEPS[1], SWEEPS[3])[: times(1)]:
                most = max(most, await at_every_point(trial, whom, when, stride=_stride()))
        _points(here.harness, most)

    @on_fresh_data
    async def test_g9_a_call_that_runs_out_of_time_is_old_or_new(self, here: Handles) -> None:
        limits = [0, 1e-6, 1e-4, 3e-4, 1e-3, 2e-3, 4e-3, 8e-3]

        async def bounded(one: Call, limit: float, waiting: bool) -> Any:
            if waiting:
                return await asyncio.wait_for(call(here.one, one), limit)
            async with asyncio.timeout(limit):
                return await call(here.one, one)

        async with _nothing_left(here):
            for number, limit in enumerate(limits * times(2)):
                case = on_a_full_run("delete_state")(f"run {number}") if number % 3 else several(f"run {number}")
                await asyncio.gather(*(call(here.two, one) for one in case.before))
                attempts = (bounded(one, limit, number % 2 == 0) for one in case.calls)
                answers = await asyncio.gather(*attempts, return_exceptions=True)
                await _goes_on(case, answers, here.one, here.two, f"{case.calls[0][0]} within {limit:g} s")

    @on_fresh_data
    async def test_g9_what_returned_is_there_after_a_writer_was_killed(self, here: Handles) -> None:
        drawn = random.Random(chosen_seed() or 0)
        if not here.harness.durable:
            assert await ids(here.one) == []
            unsupported("what was saved is gone with its process")
            return
        returned = 0
        for _ in range(times(3)):
            for run_id in RUNS:
                await here.one.delete_run(run_id)
                await here.two.save_state(run_id, plain_state(mine=0))
            if not here.harness.shared:
                await here.shutdown()
            number, delay = drawn.randrange(1, 150), drawn.choice((0, 0, 0.001, 0.005, 0.02))
            told = written_until_killed(here.harness, NAMESPACE, number, delay)
            returned += told.total()
            reader = here.open()
            async with _in_time("reading and writing after a writer was killed"):
                for run_id in RUNS:
                    await _is_whole(reader, run_id, *(told[f"{kind} {run_id}"] for kind in KINDS))
                    revision = (await loaded(reader, run_id))["revision"]
                    assert await reader.save_state(run_id, plain_state()) == revision + 1
                    if here.harness.shared:
                        # Open all along; what it knows of the run is old.
                        assert await here.one.save_state(run_id, plain_state()) == revision + 2
                await reader.shutdown()
        observe("writes that returned", returned)


async def _is_whole(backend: StateBackend, run_id: str, saves: int, steps: int, spans: int) -> None:
    """The run has what its killed writer was told, and perhaps the one write of each kind that was under way."""
    state = await loaded(backend, run_id)
    number = state["mine"]
    assert saves <= number <= saves + 1, f"{saves} saves returned, there is number {number}"
    same(number + 1, state["revision"])
    if number:
        same([{"entry": place} for place in range(number)], state["step_history"])
        same([{"n": number}, str(number)], [state["metadata"], state["error_message"]])
        assert run_id in await ids(backend, metadata_filter={"n": number})
    there = [step["record_id"] for step in await backend.list_run_steps(run_id)]
    assert steps <= len(there) <= steps + 1
    same([str(place + 1) for place in range(len(there))], there)
    names = [span["span_id"] for span in await backend.get_spans(run_id)]
    assert 2 * spans <= len(names) <= 2 * (spans + 1)
    same([f"{place // 2 + 1} {'ab'[place % 2]}" for place in range(len(names))], names)
    assert len(names) % 2 == 0, "half of a list of spans is there"
