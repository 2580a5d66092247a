"""Are runs watched and cleaned up, and evaluations and system state kept, as the rules A1 to A5 say?"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from math import inf, nan
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from flujo_core import StateBackend

from . import strategies as make
from .harness import Harness
from .machine import START
from .profile import examples
from .strategies import plain_state
from .suite_support import (
    Handles,
    beside_the_oracle,
    everything,
    fill,
    ids,
    loaded,
    on_fresh_data,
    refused,
    row_of,
    same,
)

HOUR, TICK = timedelta(hours=1), timedelta(microseconds=1)
BAD_DURATIONS = (-1, -0.001, nan, inf, True, "1", None, [1])


async def _save(backend: StateBackend, run_id: str, ago: timedelta = timedelta(0), **changes: Any) -> None:
    """A run that was created and last updated so long before the test's clock started."""
    at = START - ago
    await backend.save_state(run_id, plain_state(**{"created_at": at, "updated_at": at} | changes))


def _ids(rows: list[Any]) -> list[str]:
    return [row["run_id"] for row in rows]


class AdministrationPart:
    @on_fresh_data
    async def test_a1_statistics_of_nothing(self, here: Handles) -> None:
        wanted = {
            "total_workflows": 0, "status_counts": {}, "recent_workflows_24h": 0, "average_execution_time_ms": 0.0,
            "background_status_counts": {},
        }  # fmt: skip
        same(wanted, await here.one.get_workflow_stats(), ordered=False)

    @on_fresh_data
    async def test_a1_statistics_count_every_listed_run_by_what_its_row_says(self, here: Handles) -> None:
        await _save(here.one, "a", HOUR * 24, status="completed", execution_time_ms=1)
        await _save(here.one, "b", HOUR * 24 + TICK, status="completed", execution_time_ms=4.0, is_background_task=True)
        await _save(here.one, "c", status="failed", metadata={"is_background_task": True})
        await here.one.save_run_start({"run_id": "d", "metadata": {"is_background_task": 1}, "execution_time_ms": 4})
        await here.one.save_step_result({"run_id": "placeholder", "step_name": "s", "step_index": 0})
        wanted = {
            "total_workflows": 4, "status_counts": {"completed": 2, "failed": 1, "running": 1},
            "recent_workflows_24h": 3,
            "average_execution_time_ms": 3.0, "background_status_counts": {"completed": 1, "failed": 1},
        }  # fmt: skip
        same(wanted, await here.two.get_workflow_stats(), ordered=False)

    @on_fresh_data
    async def test_a2_failed_runs_of_the_window_last_updated_first(self, here: Handles) -> None:
        await _save(here.one, "old", HOUR * 24 + TICK, status="failed")
        await _save(here.one, "edge", HOUR * 24, status="failed")
        await _save(here.one, "tie a", HOUR, status="failed", created_at=START - HOUR * 99)
        await _save(here.one, "tie b", HOUR, status="failed")
        await _save(here.one, "new", status="failed", created_at=START - HOUR * 999)
        await _save(here.one, "well", status="completed")
        assert _ids(await here.two.get_failed_workflows()) == ["new", "tie b", "tie a", "edge"]
        assert _ids(await here.two.get_failed_workflows(1)) == ["new", "tie b", "tie a"]
        assert _ids(await here.two.get_failed_workflows(0.5)) == _ids(await here.two.get_failed_workflows(0)) == ["new"]
        assert len(await here.two.get_failed_workflows(1e300)) == 5
        for bad in BAD_DURATIONS:
            await refused(here.one, ("get_failed_workflows", (bad,), {}), repr(bad))

    @on_fresh_data
    async def test_a2_last_updated_is_the_later_of_snapshot_and_records(self, here: Handles) -> None:
        await _save(here.one, "r", HOUR * 9)
        await here.one.save_run_end("r", {"updated_at": START - HOUR * 5})
        assert (await row_of(here.two))["updated_at"] == START - HOUR * 5
        step = {"run_id": "r", "step_name": "s", "step_index": 0}
        await here.one.save_step_result(step | {"created_at": START - HOUR * 3})
        await here.one.save_step_result(step | {"created_at": START - HOUR * 8})
        assert (await row_of(here.two))["updated_at"] == START - HOUR * 3
        await _save(here.one, "r", HOUR * 2)
        assert (await row_of(here.two))["updated_at"] == START - HOUR * 2
        await _save(here.one, "r", HOUR * 9)
        assert (await row_of(here.two))["updated_at"] == START - HOUR * 3
        for other in (
            here.one.save_spans("r", [{"span_id": "s"}]),
            here.one.save_trace("r", {}),
            here.one.persist_evaluation("r", 1),
        ):
            await other
            assert (await row_of(here.two))["updated_at"] == START - HOUR * 3

    @on_fresh_data
    async def test_a3_whole_runs_go_that_were_created_and_updated_before_the_cutoff(self, here: Handles) -> None:
        for run_id in ("old", "kept"):
            await fill(here.one, run_id)
            await _save(here.one, run_id, HOUR * 24 * 40)
        here.clock.now += HOUR * 24 * 29
        await _save(here.one, "kept", -HOUR)
        here.clock.now += HOUR * 24 + TICK
        await here.one.save_spans("placeholder", [{"span_id": "s"}])
        assert await here.two.cleanup_old_workflows() == 1
        found = await everything(here.one, "old", "placeholder")
        same([None, None, [], [], None], found["run old"])
        assert _ids(found["rows"]) == _ids(found["evaluations"]) == ["kept"]
        assert found["spans"]["total_spans"] == 2
        assert found["run placeholder"][0] is not None
        assert await here.two.cleanup_old_workflows() == 0

    @on_fresh_data
    async def test_a3_the_cutoff_is_exact_and_fractions_of_a_day_count(self, here: Handles) -> None:
        for run_id, ago in (("a", HOUR * 12 + TICK), ("b", HOUR * 12), ("c", HOUR * 12 - TICK)):
            await _save(here.one, run_id, ago)
        await _save(here.one, "created before", HOUR * 99, updated_at=START)
        await _save(here.one, "updated before", created_at=START, updated_at=START - HOUR * 99)
        assert await here.one.cleanup_old_workflows(0.5) == 1
        assert "a" not in await ids(here.two)
        assert await here.one.cleanup_old_workflows(0) == 2
        assert sorted(await ids(here.two)) == ["created before", "updated before"]
        here.clock.now += TICK
        assert await here.one.cleanup_old_workflows(1e300) == 0
        assert await here.one.cleanup_old_workflows(0) == 2

    @on_fresh_data
    async def test_a3_only_runs_of_the_given_statuses_go(self, here: Handles) -> None:
        for status in ("running", "paused", "completed", "failed", "cancelled"):
            await _save(here.one, status, HOUR * 24 * 40, status=status)
        wrong: list[Any] = ["completed", ["done"], [None], 1, [1], {"completed": 1, "x": 2}]
        for bad in wrong:
            await refused(here.one, ("cleanup_old_workflows", (), {"statuses": bad}), repr(bad))
        for days in BAD_DURATIONS:
            await refused(here.one, ("cleanup_old_workflows", (days,), {}), repr(days))
        assert await here.one.cleanup_old_workflows(statuses=[]) == 0
        assert await here.one.cleanup_old_workflows(statuses={"completed", "failed"}) == 2
        assert await here.one.cleanup_old_workflows(statuses=("cancelled",)) == 1
        assert sorted(await ids(here.two)) == ["paused", "running"]

    @on_fresh_data
    async def test_a3_placeholders_go_and_are_counted(self, here: Handles) -> None:
        await here.one.save_spans("spans", [{"span_id": "s", "end_time": 1}])
        await here.one.persist_evaluation("evaluation", 1)
        await here.one.save_step_result({"run_id": "step", "step_name": "s", "step_index": 0})
        here.clock.now += HOUR * 24 * 31
        assert await here.two.cleanup_old_workflows() == 3
        assert await here.one.list_evaluations() == await here.one.list_run_steps("step") == []
        assert (await here.one.get_span_statistics())["total_spans"] == 0

    @on_fresh_data
    async def test_a3_more_runs_than_one_batch_holds(self, here: Handles) -> None:
        await asyncio.gather(*(_save(here.one, f"old{n:03}", HOUR * 24 * 40 + HOUR * (n % 3)) for n in range(230)))
        await asyncio.gather(*(_save(here.one, f"new{n}") for n in range(5)))
        assert await here.two.cleanup_old_workflows() == 230
        assert sorted(await ids(here.one)) == [f"new{n}" for n in range(5)]

    @on_fresh_data
    async def test_a3_a_run_that_is_updated_meanwhile_stays(self, here: Handles) -> None:
        names = [f"r{number:02}" for number in range(20)]

        async def save(backend: StateBackend, run_id: str, pauses: int) -> None:
            for _ in range(pauses):
                await asyncio.sleep(0)
            await backend.save_state(run_id, plain_state(mine="new"))

        for pauses in (0, 1, 2, 3, 4, 6, 9):
            for run_id in names:
                await here.two.delete_run(run_id)
            await asyncio.gather(*(_save(here.two, run_id, HOUR * 24 * 40) for run_id in names))
            saves = [save((here.one, here.two)[place % 2], run_id, pauses) for place, run_id in enumerate(names[::2])]
            cleanup = asyncio.ensure_future(here.two.cleanup_old_workflows())
            await asyncio.gather(cleanup, *saves)
            # Whichever came first: what was saved is there, and nothing is left of what went.
            assert sorted(await ids(here.one)) == names[::2]
            assert 10 <= cleanup.result() <= 20
            for run_id in names[::2]:
                assert (await loaded(here.one, run_id))["mine"] == "new"

    @on_fresh_data
    async def test_a4_system_state_keeps_any_value(self, here: Handles) -> None:
        assert await here.one.get_system_state("k") is None
        values: list[Any] = [None, False, 0, "", [], {"b": nan, "a": "\x00"}, 10**400, -0.0]
        for value in values:
            here.clock.now += HOUR
            await here.one.set_system_state("k", value)
            same({"key": "k", "value": value, "updated_at": here.clock.now}, await here.two.get_system_state("k"))
        assert await here.two.get_system_state("K") is None

    def test_a4_any_system_state_is_kept(self, state_harness: Harness) -> None:
        with beside_the_oracle(state_harness) as machine:

            @examples(25)
            @given(st.sampled_from(make.SYSTEM_KEYS), make.json_values())
            def holds(key: str, value: Any) -> None:
                machine.check(0, "set_system_state", key, value)
                machine.check(1, "get_system_state", key)

            holds()

    @on_fresh_data
    async def test_a4_an_evaluation_is_kept_exactly(self, here: Handles) -> None:
        await here.one.persist_evaluation("r", 1, "a\x00\ud800", "step", {"b": nan, "a": [1.0, "\x00"]})
        await here.one.persist_evaluation("r", -0.0)
        first = {
            "run_id": "r", "step_name": "step", "score": 1.0, "feedback": "a\x00\ud800", "metadata": {"b": nan,
            "a": [1.0, "\x00"]},
            "created_at": START,
        }  # fmt: skip
        second: dict[str, Any] = {
            "run_id": "r",
            "step_name": None,
            "score": -0.0,
            "feedback": None,
            "metadata": {},
            "created_at": START,
        }
        same([second, first], await here.two.list_evaluations(), ordered=True, ignore=[])
        for score in (None, nan, inf, True, "1", 10**400):
            await refused(here.one, ("persist_evaluation", ("r", score), {}), repr(score)[:40])
        no_metadata: list[Any] = [[], "x", 0, {"a": object()}]
        for bad in no_metadata:
            await refused(here.one, ("persist_evaluation", ("r", 1), {"metadata": bad}), repr(bad))
        assert len(await here.two.list_evaluations()) == 2

    @on_fresh_data
    async def test_a4_evaluations_are_listed_newest_first(self, here: Handles) -> None:
        for score, (run_id, later) in enumerate((("b", 0), ("a", 0), ("b", 0), ("a", 1), ("c", 0), ("a", -2))):
            here.clock.now += HOUR * later
            await (here.one, here.two)[score % 2].persist_evaluation(run_id, score)
        assert [found["score"] for found in await here.one.list_evaluations()] == [4, 3, 2, 0, 1, 5]
        assert [found["score"] for found in await here.one.list_evaluations(2)] == [4, 3]
        assert [found["score"] for found in await here.one.list_evaluations(run_id="a")] == [3, 1, 5]
        assert [found["score"] for found in await here.one.list_evaluations(1, "b")] == [2]
        await asyncio.gather(*(here.one.persist_evaluation("many", n) for n in range(25)))
        assert len(await here.two.list_evaluations()) == 20
        assert len(await here.two.list_evaluations(None)) == 31

    @on_fresh_data
    async def test_a5_a_background_task_is_one_by_field_or_metadata(self, here: Handles) -> None:
        await here.one.save_state("field", plain_state(is_background_task=True, parent_run_id="parent"))
        await here.one.save_state("metadata", plain_state(metadata={"is_background_task": True}, status="failed"))
        await here.one.save_run_start({"run_id": "record", "is_background_task": True, "parent_run_id": "parent"})
        for number, value in enumerate((False, 1, "true", None, [True])):
            await here.one.save_state(f"none{number}", plain_state(metadata={"is_background_task": value}))
        assert _ids(await here.two.list_background_tasks()) == ["record", "metadata", "field"]
        assert await ids(here.two, is_background_task=True) == ["record", "metadata", "field"]
        assert all(row["is_background_task"] for row in await here.two.list_background_tasks())
        assert len(await ids(here.two, is_background_task=False)) == 5

    @on_fresh_data
    async def test_a5_filters_come_before_limit_and_offset(self, here: Handles) -> None:
        for number in range(12):
            status, parent = ("running", "failed")[number % 2], ("x", "y")[number % 3 == 0]
            await _save(
                here.one, f"r{number:02}", -TICK * number, status=status, parent_run_id=parent, is_background_task=True
            )
            await _save(here.one, f"other{number:02}", -TICK * number, status=status, parent_run_id=parent)
        wanted = ["r11", "r07", "r05", "r01"]
        assert _ids(await here.two.list_background_tasks("x", "failed")) == wanted
        assert _ids(await here.two.list_background_tasks("x", "failed", 2, 1)) == wanted[1:3]
        assert _ids(await here.two.list_background_tasks("x", "failed", offset=3)) == wanted[3:]
        assert _ids(await here.two.list_background_tasks(limit=1)) == ["r11"]

    @on_fresh_data
    async def test_a5_failed_background_tasks_of_the_window(self, here: Handles) -> None:
        background = {"status": "failed", "is_background_task": True}
        await _save(here.one, "a", HOUR, parent_run_id="x", **background)
        await _save(here.one, "b", HOUR * 30, created_at=START, **background)
        await _save(here.one, "c", HOUR * 2, created_at=START - HOUR * 99, **background)
        await _save(here.one, "d", status="failed")
        await _save(here.one, "e", is_background_task=True)
        assert _ids(await here.two.get_failed_background_tasks()) == ["a", "c"]
        assert _ids(await here.two.get_failed_background_tasks("x")) == ["a"]
        assert _ids(await here.two.get_failed_background_tasks(hours_back=31)) == ["a", "c", "b"]

    @on_fresh_data
    async def test_a5_stale_background_tasks_are_marked_by_a_save_of_their_own(self, here: Handles) -> None:
        stale = {"is_background_task": True, "mine": [1], "step_history": [1], "task_id": "t"}
        await _save(here.one, "saved", HOUR * 24 + TICK, **stale)
        await _save(here.one, "saved", HOUR * 24 + TICK, **stale)
        await here.one.save_run_start(
            {"run_id": "recorded", "is_background_task": True, "updated_at": START - HOUR * 25}
        )
        await _save(here.one, "edge", HOUR * 24, is_background_task=True)
        await _save(here.one, "paused", HOUR * 99, is_background_task=True, status="paused")
        await _save(here.one, "foreground", HOUR * 99)
        before = await loaded(here.two, "saved")
        untouched = [await row_of(here.two, run_id) for run_id in ("edge", "paused", "foreground")]
        assert await here.two.cleanup_stale_background_tasks() == 2
        after = await loaded(here.one, "saved")
        assert after["background_error"]
        changed = {
            "status": "failed",
            "revision": 3,
            "updated_at": START,
            "background_error": after["background_error"],
        }
        same(before | changed, after, ordered=False)
        for run_id in ("saved", "recorded"):
            row = await row_of(here.one, run_id)
            assert (row["status"], row["updated_at"], row["end_time"]) == ("failed", START, START)
            assert row["background_error"]
        assert await here.one.load_state("recorded") is None
        same(untouched, [await row_of(here.one, run_id) for run_id in ("edge", "paused", "foreground")])
        assert await here.two.cleanup_stale_background_tasks() == 0
        for bad in BAD_DURATIONS:
            await refused(here.one, ("cleanup_stale_background_tasks", (bad,), {}), repr(bad))
        here.clock.now += TICK
        assert await here.one.cleanup_stale_background_tasks(24) == 1

    @on_fresh_data
    async def test_a5_marking_a_task_takes_back_nothing_that_was_recorded_since_its_save(self, here: Handles) -> None:
        await _save(here.one, "r", HOUR * 24 + TICK, is_background_task=True, total_steps=5)
        recorded = {"run_id": "r", "total_steps": 7, "execution_time_ms": 3, "updated_at": here.clock.now - HOUR * 25}
        await here.one.save_run_start(recorded | {"parent_run_id": "p"})
        assert await here.two.cleanup_stale_background_tasks(24) == 1
        row = await row_of(here.one)
        assert (row["status"], row["total_steps"], row["execution_time_ms"], row["parent_run_id"]) == (
            "failed", 7, 3.0, "p",
        )  # fmt: skip
        assert (await loaded(here.one))["total_steps"] == 5

    @on_fresh_data
    async def test_a5_a_task_that_is_saved_meanwhile_is_not_lost(self, here: Handles) -> None:
        new = plain_state(is_background_task=True, mine="new")
        tasks = [f"r{number}" for number in reversed(range(10))]

        async def save(pauses: int) -> None:
            for run_id in tasks:
                for _ in range(pauses):
                    await asyncio.sleep(0)
                await here.one.save_state(run_id, new)

        for pauses in (0, 1, 2, 4, 8):
            for run_id in tasks:
                await here.one.delete_run(run_id)
                await _save(here.one, run_id, HOUR * 99, is_background_task=True)
            await asyncio.gather(here.two.cleanup_stale_background_tasks(), save(pauses))
            for run_id in tasks:
                state = await loaded(here.two, run_id)
                # Marked before it was saved, or not at all.
                assert (state["mine"], state["status"]) == ("new", "running")
                assert state["revision"] in (2, 3)
