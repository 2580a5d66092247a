"""Are runs and steps recorded as the rules R1 to R5 and R9 say?"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flujo_core.errors import InvalidStateError, RunNotFoundError

from . import strategies as make
from .answers import Call
from .harness import Harness
from .machine import START
from .profile import examples
from .strategies import NOON, plain_state
from .suite_support import (
    Handles,
    beside_the_oracle,
    collect,
    everything,
    fill,
    ids,
    loaded,
    on_fresh_data,
    refused,
    row_of,
    same,
)

STEP = {"run_id": "r", "step_name": "s", "step_index": 0}
NEW_ROW: dict[str, Any] = {
    "run_id": "r",
    "pipeline_id": "unknown",
    "pipeline_name": "unknown",
    "pipeline_version": "latest",
    "status": "running",
    "created_at": START,
    "updated_at": START,
    "start_time": START,
    "end_time": None,
    "current_step_index": 0,
    "total_steps": 0,
    "error_message": None,
    "execution_time_ms": None,
    "memory_usage_mb": None,
    "total_cost": None,
    "metadata": {},
    "is_background_task": False,
    "parent_run_id": None,
    "task_id": None,
    "background_error": None,
    "revision": 0,
}
"""The row of a run of which nothing is known but that it started at `START`: every key of every row."""
RECORDED: dict[str, Any] = {
    "total_steps": 4,
    "current_step_index": 2,
    "error_message": "e",
    "execution_time_ms": 1.5,
    "memory_usage_mb": 2.5,
    "total_cost": 0.25,
    "metadata": {"a": 1},
    "is_background_task": True,
    "parent_run_id": "parent",
    "task_id": "task",
    "background_error": "b",
}
IDENTITY = ("pipeline_id", "pipeline_name", "pipeline_version")


class RunsPart:
    @on_fresh_data
    async def test_r1_only_the_run_id_is_required(self, here: Handles) -> None:
        await here.one.save_run_start({"run_id": "r"})
        same(NEW_ROW, (await here.two.list_runs())[0], ordered=False)
        same(NEW_ROW | {"final_context": None}, await row_of(here.two), ordered=False)
        await refused(here.one, ("save_run_start", ({"pipeline_id": "p"},), {}), "no run_id")
        await refused(here.one, ("save_run_start", ({"run_id": None},), {}), "run_id None")
        for bad in (None, [("run_id", "r")], "r"):
            await refused(here.one, ("save_run_start", (bad,), {}), repr(bad))

    @on_fresh_data
    async def test_r1_all_that_is_given_is_recorded(self, here: Handles) -> None:
        identity = dict(zip(IDENTITY, ("i", "n", "v"), strict=True))
        times = {"created_at": NOON, "updated_at": NOON, "end_time": NOON}
        await here.one.save_run_start({"run_id": "r", "status": "paused", **identity, **times, **RECORDED})
        wanted = NEW_ROW | identity | times | RECORDED | {"status": "paused", "start_time": NOON}
        same(wanted, (await here.two.list_runs())[0], ordered=False)

    @on_fresh_data
    async def test_r1_repeated_it_changes_only_what_it_contains_and_deletes_nothing(self, here: Handles) -> None:
        await fill(here.one)
        await here.one.save_run_start({"run_id": "r", "mine": [1], **RECORDED})
        before = await everything(here.two)
        for key, value in RECORDED.items():
            await here.two.save_run_start({"run_id": "r", key: value})
            same(before, await everything(here.one))
        await here.two.save_run_start({"run_id": "r", "total_steps": 5, "yours": 2})
        details = before["run r"][0] | {"total_steps": 5, "yours": 2}
        same([details, *before["run r"][1:]], (await everything(here.one))["run r"], ordered=False)

    @on_fresh_data
    async def test_r1_none_records_the_default_of_a_field(self, here: Handles) -> None:
        await here.one.save_run_start({"run_id": "r", **RECORDED})
        await here.one.save_run_start({"run_id": "r", **dict.fromkeys(RECORDED)})
        same(NEW_ROW, (await here.two.list_runs())[0], ordered=False)

    @on_fresh_data
    async def test_r1_the_status_of_a_start_is_running_and_a_repetition_keeps_it(self, here: Handles) -> None:
        await here.one.save_run_start({"run_id": "r"})
        await here.one.save_run_end("r", {"status": "completed"})
        await here.one.save_run_start({"run_id": "r", "total_steps": 1})
        assert (await row_of(here.two))["status"] == "completed"
        await here.one.save_run_start({"run_id": "r", "status": "paused"})
        assert (await row_of(here.two))["status"] == "paused"

    @on_fresh_data
    async def test_r1_each_part_of_the_identity_is_fixed_by_its_first_real_value(self, here: Handles) -> None:
        for fillers in ({}, dict.fromkeys(IDENTITY, "unknown"), dict.fromkeys(IDENTITY, "latest")):
            await here.one.save_run_start({"run_id": "r", **fillers})
            row = await row_of(here.two)
            assert [row[key] for key in IDENTITY] == ["unknown", "unknown", "latest"]
        await here.one.save_state(
            "r", plain_state(pipeline_id="id", pipeline_name="unknown", pipeline_version="latest")
        )
        row = await row_of(here.two)
        assert [row[key] for key in IDENTITY] == ["id", "id", "latest"]
        await here.two.save_run_end("r", {"pipeline_name": "name"})
        await here.one.save_run_start({"run_id": "r", "pipeline_version": "v"})
        await here.one.save_run_start({"run_id": "r", **dict.fromkeys(IDENTITY, "another")})
        await here.one.save_state("r", plain_state(**dict.fromkeys(IDENTITY, "third")))
        row = await row_of(here.two)
        assert [row[key] for key in IDENTITY] == ["id", "name", "v"]
        assert await ids(here.two, pipeline_id="id", pipeline_name="name") == ["r"]
        assert await ids(here.two, pipeline_name="third") == await ids(here.two, pipeline_id="another") == []
        state = await loaded(here.two)
        assert [state[key] for key in IDENTITY] == ["third"] * 3

    @on_fresh_data
    async def test_r1_start_time_is_created_at_under_another_name(self, here: Handles) -> None:
        await here.one.save_run_start({"run_id": "r", "start_time": NOON, "created_at": NOON.isoformat()})
        assert (await row_of(here.two))["created_at"] == NOON
        bad = {"run_id": "other", "start_time": NOON, "created_at": START}
        await refused(here.one, ("save_run_start", (bad,), {}), "two different instants")
        assert await here.two.get_run_details("other") is None

    @on_fresh_data
    async def test_r1_further_keys_are_shown_by_the_details_alone(self, here: Handles) -> None:
        more: dict[str, Any] = {"mine": {"b": 1.0, "a": [None]}, "\ud800": "\x00", "$flujo": 10**400, "x" * 3000: 1}
        await here.one.save_run_start({"run_id": "r", "final_context": {"a": 1}, **more})
        details = await row_of(here.two)
        same(more | {"final_context": {"a": 1}}, {key: details[key] for key in [*more, "final_context"]})
        assert (await here.two.list_runs())[0].keys() == NEW_ROW.keys()
        await here.two.save_run_end("r", {"mine": 2, "revision": 17})
        details = await row_of(here.one)
        assert (details["mine"], details["$flujo"], details["revision"]) == (2, 10**400, 0)

    @on_fresh_data
    async def test_r2_only_the_fields_present_change(self, here: Handles) -> None:
        await here.one.save_run_start({"run_id": "r", "pipeline_id": "p", **RECORDED})
        before = (await here.two.list_runs())[0]
        here.clock.now += timedelta(hours=1)
        await here.two.save_run_end("r", {"status": "completed", "error_message": None})
        changed = {
            "status": "completed",
            "error_message": None,
            "updated_at": here.clock.now,
            "end_time": here.clock.now,
        }
        same({**before, **changed}, (await here.one.list_runs())[0], ordered=False)
        await here.two.save_run_end("r", {"end_time": NOON, "updated_at": START})
        same(
            {**before, **changed, "end_time": NOON, "updated_at": START}, (await here.one.list_runs())[0], ordered=False
        )
        await here.two.save_run_end("r", {"created_at": NOON, "start_time": NOON})
        assert (await row_of(here.one))["created_at"] == START

    @on_fresh_data
    async def test_r2_each_field_changes_alone(self, here: Handles) -> None:
        await here.one.save_run_start({"run_id": "r", "status": "paused", "mine": 1})
        wanted = await row_of(here.two)
        for key, value in {**RECORDED, "end_time": NOON, "status": "failed", "mine": 2}.items():
            await here.one.save_run_end("r", {key: value})
            wanted |= {key: value}
            same(wanted, await row_of(here.two), ordered=False)

    @on_fresh_data
    async def test_r2_an_unknown_run_is_not_found(self, here: Handles) -> None:
        await here.one.save_step_result(STEP | {"run_id": "placeholder"})
        for run_id in ("unknown", "placeholder"):
            before = await here.two.get_run_details(run_id)
            with pytest.raises(RunNotFoundError, match=run_id):
                await here.one.save_run_end(run_id, {"status": "completed"})
            same(before, await here.two.get_run_details(run_id))
        await here.one.save_state("saved", plain_state())
        await here.one.save_run_end("saved", {"total_cost": 2})
        assert (await row_of(here.two, "saved"))["total_cost"] == 2.0

    @on_fresh_data
    async def test_r2_synonyms_are_one_field(self, here: Handles) -> None:
        await here.one.save_run_start({"run_id": "r", "duration_ms": 1})
        await here.one.save_run_end("r", {"cost_usd": 0.5})
        row = await row_of(here.two)
        assert (row["execution_time_ms"], row["total_cost"]) == (1.0, 0.5)
        assert not {"duration_ms", "cost_usd"} & set(row)
        await here.one.save_run_end("r", {"cost_usd": 1, "total_cost": 1, "duration_ms": None, "execution_time_ms": 7})
        for bad in (
            {"cost_usd": 1, "total_cost": 2},
            {"cost_usd": 1, "total_cost": 1.0},
            {"duration_ms": 1, "execution_time_ms": 2},
        ):
            await refused(here.one, ("save_run_end", ("r", bad), {}), repr(bad))
        row = await row_of(here.two)
        assert (row["execution_time_ms"], row["total_cost"]) == (7.0, 1.0)

    @on_fresh_data
    async def test_r2_the_last_word_of_snapshot_and_record_counts(self, here: Handles) -> None:
        await here.one.save_run_start({"run_id": "r", "total_steps": 1, "error_message": "recorded"})
        await here.one.save_state("r", plain_state(total_steps=2))
        row = await row_of(here.two)
        assert (row["total_steps"], row["error_message"]) == (2, "recorded")
        await here.one.save_run_end("r", {"total_steps": 3})
        assert (await row_of(here.two))["total_steps"] == 3
        assert (await loaded(here.two))["total_steps"] == 2
        await here.one.save_state("r", plain_state())
        assert (await row_of(here.two))["total_steps"] == 3
        await here.one.save_run_end("r", {"total_steps": None})
        assert (await row_of(here.two))["total_steps"] == 0

    def test_r2_any_sequence_of_records_makes_the_models_row(self, state_harness: Harness) -> None:
        with beside_the_oracle(state_harness) as machine:
            starts, ends = make.run_starts(st.just("r")), make.run_ends()

            @examples(40)
            @given(starts | ends | make.states(), st.integers(0, 1))
            def holds(data: dict[str, Any], handle: int) -> None:
                if "run_id" in data:
                    machine.check(handle, "save_run_start", data)
                elif "current_step_index" in data and "pipeline_name" in data:
                    machine.check(handle, "save_state", "r", data)
                else:
                    machine.check(handle, "save_run_end", "r", data)
                machine.check(1 - handle, "get_run_details", "r")
                machine.check(handle, "list_runs")

            holds()

    @on_fresh_data
    async def test_r3_a_step_comes_back_exactly_with_every_key(self, here: Handles) -> None:
        await here.one.save_step_result(STEP)
        same(
            {
                **STEP, "status": "completed", "output": None, "raw_response": None, "cost_usd": None,
                "token_counts": None,
                "execution_time_ms": None, "created_at": START, "step_run_id": None, "record_id": None,
                "start_time": None,
                "end_time": None, "input": None, "error": None,
            },
            (await here.two.list_run_steps("r"))[0],
            ordered=False,
        )  # fmt: skip
        full = {
            **STEP, "step_index": 1, "status": "anything", "output": {"b": 1.0}, "raw_response": [None], "cost_usd": 0,
            "token_counts": 7, "execution_time_ms": 3, "created_at": NOON, "step_run_id": "x", "record_id": "y",
            "start_time": NOON, "end_time": NOON, "input": nan_free(), "error": "\x00", "mine": {"$flujo": 1},
            "\ud800": 1,
        }  # fmt: skip
        await here.one.save_step_result(full)
        same(full, (await here.two.list_run_steps("r"))[1], ordered=False)

    @on_fresh_data
    async def test_r3_several_records_of_one_step_stay(self, here: Handles) -> None:
        for output in range(5):
            await (here.one, here.two)[output % 2].save_step_result(STEP | {"output": output})
        assert [step["output"] for step in await here.one.list_run_steps("r")] == [0, 1, 2, 3, 4]

    @on_fresh_data
    async def test_r3_a_record_id_makes_it_repeatable(self, here: Handles) -> None:
        for output, record_id in enumerate(("a", "b", "a", "A")):
            await here.one.save_step_result(STEP | {"record_id": record_id, "output": output, "cost": output + 1})
        await here.one.save_step_result(STEP | {"run_id": "other", "record_id": "a", "output": "other"})
        steps = await here.two.list_run_steps("r")
        assert [(step["record_id"], step["output"]) for step in steps] == [("a", 2), ("b", 1), ("A", 3)]
        assert (await row_of(here.two))["total_cost"] == 3.0 + 2.0 + 4.0
        await here.two.save_step_result(STEP | {"record_id": "a", "step_index": 9})
        assert [step["record_id"] for step in await here.one.list_run_steps("r")] == ["b", "A", "a"]
        assert (await row_of(here.one))["total_cost"] == 6.0
        assert [step["output"] for step in await here.one.list_run_steps("other")] == ["other"]

    @on_fresh_data
    async def test_r3_costs_of_steps_add_up_exactly(self, here: Handles) -> None:
        assert await here.one.get_run_details("r") is None
        await here.one.save_step_result(STEP)
        assert (await row_of(here.two))["total_cost"] is None
        for cost in [0.1] * 10:
            await here.one.save_step_result(STEP | {"cost": cost})
        same(1.0, (await row_of(here.two))["total_cost"])
        await here.one.save_step_result(STEP | {"cost": 1e16, "record_id": "huge"})
        await here.two.save_step_result(STEP | {"cost": None, "record_id": "huge"})
        same(1.0, (await row_of(here.one))["total_cost"])
        await here.one.save_run_start({"run_id": "r", "total_cost": 5})
        same(5.0, (await row_of(here.two))["total_cost"])
        await here.one.save_run_end("r", {"total_cost": None})
        same(1.0, (await row_of(here.two))["total_cost"])

    @on_fresh_data
    async def test_r3_synonyms_come_back_under_the_first_name(self, here: Handles) -> None:
        await here.one.save_step_result(STEP | {"cost": 1, "tokens": 2, "duration_ms": 3.0})
        step = (await here.two.list_run_steps("r"))[0]
        same([1, 2, 3.0], [step[key] for key in ("cost_usd", "token_counts", "execution_time_ms")])
        assert not {"cost", "tokens", "duration_ms"} & set(step)
        await here.one.save_step_result(STEP | {"cost": 1, "cost_usd": 1, "tokens": None, "token_counts": 2})
        for bad in (
            {"cost": 1, "cost_usd": 1.0},
            {"tokens": 1, "token_counts": 2},
            {"duration_ms": 1, "execution_time_ms": 2},
        ):
            await refused(here.one, ("save_step_result", (STEP | bad,), {}), repr(bad))
        assert len(await here.two.list_run_steps("r")) == 2

    @on_fresh_data
    async def test_r3_a_step_needs_its_run_name_and_index(self, here: Handles) -> None:
        for key in STEP:
            for step in ({k: v for k, v in STEP.items() if k != key}, STEP | {key: None}):
                await refused(here.one, ("save_step_result", (step,), {}), f"a step without {key}")
        for bad in (-1, "0", True, None, 0.5):
            await refused(here.one, ("save_step_result", (STEP | {"step_index": bad},), {}), f"step_index {bad!r}")
        assert await here.two.get_run_details("r") is None

    def test_r3_any_steps_are_listed_as_the_model_says(self, state_harness: Harness) -> None:
        with beside_the_oracle(state_harness) as machine:

            @examples(25)
            @given(st.lists(make.steps(st.just("r")), min_size=1, max_size=4), st.booleans())
            def holds(steps: list[Any], together: bool) -> None:
                calls: list[Call] = [("save_step_result", (step,), {}) for step in steps]
                for some in [calls] if together else [[one] for one in calls]:
                    machine.check_together(0, some)
                machine.check(1, "list_run_steps", "r")
                machine.check(1, "get_run_details", "r")

            holds()

    @on_fresh_data
    async def test_r4_steps_are_in_the_order_of_index_then_of_saving(self, here: Handles) -> None:
        order = [2, 0, 10, 1, 2, 0, 2**63 - 1, 2.0]
        for output, index in enumerate(order):
            created = NOON - timedelta(days=output)
            backend = (here.one, here.two)[output % 2]
            await backend.save_step_result(STEP | {"step_index": index, "output": output, "created_at": created})
        assert [step["output"] for step in await here.two.list_run_steps("r")] == [1, 5, 3, 0, 4, 7, 2, 6]
        assert [type(step["step_index"]) for step in await here.two.list_run_steps("r")][5] is float

    @on_fresh_data
    async def test_r4_an_unknown_run_has_no_steps_and_no_details(self, here: Handles) -> None:
        await fill(here.one, "R")
        assert await here.one.list_run_steps("r") == []
        assert await here.one.get_run_details("r") is None
        assert await here.one.get_trace("r") is None
        assert await here.one.get_spans("r") == await here.one.list_evaluations(run_id="r") == []

    @on_fresh_data
    async def test_r5_records_of_an_unknown_run_make_a_placeholder_that_is_not_listed(self, here: Handles) -> None:
        await here.one.save_step_result(STEP | {"run_id": "step", "created_at": NOON, "status": "failed", "cost": 1})
        await here.one.save_trace("trace", {"span_id": "s", "name": "n", "end_time": 1})
        await here.one.save_spans("spans", [{"span_id": "s", "end_time": 1}])
        await here.one.persist_evaluation("evaluation", 1)
        await here.one.save_spans("nothing", [])
        for run_id, born in (("step", NOON), ("trace", START), ("spans", START), ("evaluation", START)):
            row = await row_of(here.two, run_id)
            wanted = {
                "run_id": run_id,
                "created_at": born,
                "updated_at": born,
                "start_time": born,
                "final_context": None,
            }
            cost = 1.0 if run_id == "step" else None
            same(NEW_ROW | wanted | {"total_cost": cost}, row, ordered=False)
            assert await here.two.load_state(run_id) is None
            await here.two.delete_state(run_id)
            assert await here.two.get_run_details(run_id) is not None
        assert await here.two.get_run_details("nothing") is None
        assert await here.two.list_runs() == await here.two.list_runs(metadata_filter={}) == []
        assert await here.two.list_workflows() == await here.two.get_failed_workflows() == []
        assert await collect(here.two.iter_runs()) == await here.two.list_background_tasks() == []
        assert await here.two.count_runs() == (await here.two.get_workflow_stats())["total_workflows"] == 0
        assert len(await here.two.list_run_steps("step")) == len(await here.two.list_evaluations()) == 1

    @on_fresh_data
    async def test_r5_a_save_or_start_completes_the_placeholder(self, here: Handles) -> None:
        for run_id in ("saved", "started", "given"):
            await here.one.save_step_result(STEP | {"run_id": run_id, "created_at": NOON, "cost": 0.5})
        here.clock.now += timedelta(hours=1)
        await here.two.save_state("saved", plain_state(metadata={"a": 1}))
        await here.two.save_run_start({"run_id": "started", "metadata": {"a": 1}})
        await here.two.save_run_start({"run_id": "given", "created_at": NOON, "metadata": {"a": 1}})
        for run_id, born in (("saved", here.clock.now), ("started", here.clock.now), ("given", NOON)):
            row = await row_of(here.one, run_id)
            assert (row["created_at"], row["updated_at"], row["total_cost"]) == (born, here.clock.now, 0.5)
            assert len(await here.one.list_run_steps(run_id)) == 1
        assert await ids(here.one) == await ids(here.one, metadata_filter={"a": 1}) == ["started", "saved", "given"]

    @on_fresh_data
    async def test_r5_a_placeholder_can_be_deleted(self, here: Handles) -> None:
        await here.one.save_step_result(STEP)
        assert await here.two.delete_run("r") is True
        assert await here.one.get_run_details("r") is None
        assert await here.one.list_run_steps("r") == []

    @on_fresh_data
    async def test_r9_a_snapshot_says_the_status_while_there_is_one(self, here: Handles) -> None:
        await here.one.save_run_start({"run_id": "r"})
        await here.one.save_state("r", plain_state(status="paused"))
        await here.one.save_run_end("r", {"status": "completed"})
        for row in (await row_of(here.two), (await here.two.list_runs())[0]):
            assert row["status"] == "paused"
            assert row["end_time"] is None
        assert await ids(here.two, status="paused") == ["r"]
        assert await ids(here.two, status="completed") == []
        await here.one.delete_state("r")
        assert (await row_of(here.two))["status"] == "completed"
        assert (await row_of(here.two))["end_time"] == START
        assert await ids(here.two, status="completed") == ["r"]

    @on_fresh_data
    async def test_r9_without_a_recorded_status_the_last_snapshots_stays(self, here: Handles) -> None:
        await here.one.save_state("r", plain_state(status="failed"))
        await here.one.save_step_result(STEP)
        await here.one.delete_state("r")
        assert (await row_of(here.two))["status"] == "failed"
        await here.one.save_run_end("r", {"status": "cancelled"})
        assert (await row_of(here.two))["status"] == "cancelled"
        await here.one.save_state("r", plain_state())
        assert (await row_of(here.two))["status"] == "running"

    @on_fresh_data
    async def test_r9_only_finished_runs_have_an_end(self, here: Handles) -> None:
        for status in ("running", "paused", "completed", "failed", "cancelled"):
            await here.one.save_state("r", plain_state(status=status, updated_at=NOON))
            ended = NOON if status in ("completed", "failed", "cancelled") else None
            assert (await row_of(here.two))["end_time"] == ended
        with pytest.raises(InvalidStateError):
            await here.one.save_run_end("r", {"status": "done"})
        assert (await row_of(here.two))["status"] == "cancelled"


def nan_free() -> dict[str, Any]:
    return {"a": [1, 1.0, True, None], "deep": {"deeper": [{}]}}
