"""Are snapshots saved, loaded, guarded and removed as the rules S1 to S8 say?"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from enum import Enum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flujo_core.errors import InvalidStateError, StateConflictError

from . import strategies as make
from .harness import Harness
from .machine import START
from .profile import examples
from .strategies import NOON, plain_state
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

STATUSES = ("running", "paused", "completed", "failed", "cancelled")
DEFAULTS: dict[str, Any] = {
    "status": "running",
    "pipeline_context": {},
    "last_step_output": None,
    "step_history": [],
    "total_steps": 0,
    "error_message": None,
    "execution_time_ms": None,
    "memory_usage_mb": None,
    "metadata": {},
    "is_background_task": False,
    "parent_run_id": None,
    "task_id": None,
    "background_error": None,
}


class Status(Enum):
    PAUSED = "paused"


class SnapshotsPart:
    @on_fresh_data
    async def test_s1_revisions_count_the_saves(self, here: Handles) -> None:
        assert [await here.one.save_state("r", plain_state()) for _ in range(3)] == [1, 2, 3]
        assert await here.two.save_state("r", plain_state()) == 4
        assert await here.one.save_state("other", plain_state()) == 1
        assert await here.one.save_state("r", plain_state()) == 5
        await here.one.save_run_start({"run_id": "r"})
        assert await here.one.save_state("r", plain_state()) == 6

    @on_fresh_data
    async def test_s1_a_save_replaces_the_snapshot_as_a_whole(self, here: Handles) -> None:
        full = plain_state(mine=1, pipeline_context={"a": 1}, step_history=[1, 2], error_message="e", total_steps=9)
        await here.one.save_state("r", full | {"metadata": {"a": 1}, "parent_run_id": "p", "status": "failed"})
        await here.one.save_state("r", plain_state())
        state = await loaded(here.two)
        assert "mine" not in state
        same(DEFAULTS, {key: state[key] for key in DEFAULTS})
        row = await row_of(here.two)
        assert [row[key] for key in ("error_message", "total_steps", "metadata", "parent_run_id", "status")] == [
            None, 0, {}, None, "running",
        ]  # fmt: skip
        assert await ids(here.two, metadata_filter={"a": 1}) == await ids(here.two, status="failed") == []

    @on_fresh_data
    async def test_s2_a_load_returns_every_key_in_order_and_the_revision(self, here: Handles) -> None:
        state = {
            "zulu": 1,
            **plain_state(step_history=[1], pipeline_context={"b": 1, "a": 2}),
            "$flujo": {},
            "\ud800": "\x00",
        }
        await here.one.save_state("r", state)
        found = await loaded(here.two)
        assert list(found)[: len(state)] == list(state)
        same(state, {key: found[key] for key in state})
        same(["r", 1], [found["run_id"], found["revision"]])

    @on_fresh_data
    async def test_s2_absent_keys_have_defaults_and_unknown_runs_no_snapshot(self, here: Handles) -> None:
        assert await here.one.load_state("r") is None
        await here.one.save_run_start({"run_id": "r"})
        assert await here.one.load_state("r") is None
        await here.one.save_state("r", plain_state())
        wanted = plain_state(**DEFAULTS, run_id="r", revision=1, created_at=START, updated_at=START)
        same(wanted, await loaded(here.two), ordered=False)

    @on_fresh_data
    async def test_s2_a_saved_revision_key_is_ignored_whatever_it_is(self, here: Handles) -> None:
        for number, revision in enumerate((0, 17, None, "x", -1), 1):
            assert await here.one.save_state("r", plain_state(revision=revision)) == number
            assert (await loaded(here.two))["revision"] == number
        state = await loaded(here.one)
        assert await here.one.save_state("r", state, expected_revision=state["revision"]) == 6

    @on_fresh_data
    async def test_s2_a_loaded_state_saved_again_loads_the_same(self, here: Handles) -> None:
        await here.one.save_state("r", plain_state(mine={"b": [1.0, None]}, step_history=[{"x": 1}], created_at=NOON))
        first = await loaded(here.one)
        await here.one.save_state("r", first)
        same(first | {"revision": 2}, await loaded(here.two), ordered=False)

    def test_s2_any_state_loads_as_the_model_says(self, state_harness: Harness) -> None:
        with beside_the_oracle(state_harness) as machine:

            @examples(50)
            @given(st.sampled_from(make.RUN_IDS[:2]), make.states())
            def holds(run_id: str, state: dict[str, Any]) -> None:
                machine.check(0, "save_state", run_id, state)
                machine.check(1, "load_state", run_id)
                machine.check(1, "get_run_details", run_id)

            holds()

    @on_fresh_data
    async def test_s3_created_at_is_fixed_by_the_first_save(self, here: Handles) -> None:
        await here.one.save_state("given", plain_state(created_at=NOON))
        await here.one.save_state("now", plain_state())
        here.clock.now += timedelta(days=1)
        for run_id, wanted in (("given", NOON), ("now", START)):
            for later in (START + timedelta(days=9), None):
                await here.two.save_state(run_id, plain_state(created_at=later))
                await here.two.save_run_start({"run_id": run_id, "created_at": later})
                assert (await loaded(here.one, run_id))["created_at"] == wanted
                row = await row_of(here.one, run_id)
                assert [row["created_at"], row["start_time"]] == [wanted, wanted]

    @on_fresh_data
    async def test_s3_created_at_is_fixed_by_the_first_record(self, here: Handles) -> None:
        await here.one.save_run_start({"run_id": "created", "created_at": NOON})
        await here.one.save_run_start({"run_id": "started", "start_time": NOON})
        await here.one.save_run_start({"run_id": "now"})
        here.clock.now += timedelta(days=1)
        for run_id, wanted in (("created", NOON), ("started", NOON), ("now", START)):
            await here.two.save_state(run_id, plain_state(created_at=here.clock.now))
            assert (await loaded(here.one, run_id))["created_at"] == wanted
            assert (await row_of(here.one, run_id))["created_at"] == wanted

    @on_fresh_data
    async def test_s3_updated_at_is_the_callers_or_now(self, here: Handles) -> None:
        await here.one.save_state("r", plain_state(updated_at=NOON))
        assert (await loaded(here.two))["updated_at"] == (await row_of(here.two))["updated_at"] == NOON
        for none in ({}, {"updated_at": None}):
            here.clock.now += timedelta(hours=1)
            await here.one.save_state("r", plain_state(**none))
            assert (await loaded(here.two))["updated_at"] == (await row_of(here.two))["updated_at"] == here.clock.now
        await here.one.save_state("r", plain_state(updated_at=NOON))
        assert (await loaded(here.two))["updated_at"] == (await row_of(here.two))["updated_at"] == NOON

    @on_fresh_data
    async def test_s4_each_required_key_is_required(self, here: Handles) -> None:
        for key in plain_state():
            for state in (plain_state(**{key: None}), {k: v for k, v in plain_state().items() if k != key}):
                error = await refused(here.one, ("save_state", ("r", state), {}), f"without {key}")
                assert error is not None
                assert key in str(error)
        assert await here.one.list_runs() == []

    @on_fresh_data
    async def test_s4_none_means_the_default_and_no_other_falsy_value_does(self, here: Handles) -> None:
        nones = {key: None for key in DEFAULTS if key != "status"}
        await here.one.save_state("r", plain_state(**nones))
        state = await loaded(here.two)
        same(DEFAULTS, {key: state[key] for key in DEFAULTS})
        falsy: dict[str, Any] = {
            "last_step_output": 0, "error_message": "", "execution_time_ms": 0, "memory_usage_mb": -0.0,
            "total_steps": 0.0,
            "background_error": "", "mine": "", "yours": False, "theirs": [],
        }  # fmt: skip
        await here.one.save_state("r", plain_state(**falsy))
        state = await loaded(here.two)
        same(falsy, {key: state[key] for key in falsy})
        row = await row_of(here.two)
        same(
            ["", 0.0, -0.0, ""],
            [row[k] for k in ("error_message", "execution_time_ms", "memory_usage_mb", "background_error")],
        )

    @on_fresh_data
    async def test_s4_the_five_statuses_are_the_only_ones(self, here: Handles) -> None:
        for status in STATUSES:
            await here.one.save_state(status, plain_state(status=status))
            assert (await loaded(here.two, status))["status"] == status
            assert await ids(here.two, status=status) == [status]
        await here.one.save_state("enum", plain_state(status=Status.PAUSED))
        same("paused", (await loaded(here.two, "enum"))["status"])
        for bad in make.BAD_STATUSES:
            await refused(here.one, ("save_state", ("r", plain_state(status=bad)), {}), f"status {bad!r}")

    @on_fresh_data
    async def test_s5_a_run_id_within_the_state_is_that_of_the_call(self, here: Handles) -> None:
        await here.one.save_state("r", plain_state(run_id="r"))
        for other in ("R", "s", "r ", ""):
            await refused(here.one, ("save_state", ("r", plain_state(run_id=other)), {}), f"run_id {other!r}")
            await refused(here.one, ("save_run_end", ("r", {"run_id": other}), {}), f"run_id {other!r}")
        assert (await loaded(here.two))["revision"] == 1
        assert (await loaded(here.two))["run_id"] == "r"

    @on_fresh_data
    async def test_s6_a_save_that_expects_another_revision_writes_nothing(self, here: Handles) -> None:
        assert await here.one.save_state("r", plain_state(mine=1), expected_revision=0) == 1
        assert await here.one.save_state("r", plain_state(mine=2), expected_revision=1) == 2
        before = await everything(here.two)
        for expected in (0, 1, 3, 2**70):
            for backend in (here.one, here.two, here.open()):
                with pytest.raises(StateConflictError) as caught:
                    await backend.save_state("r", plain_state(mine=3, metadata={"a": 1}), expected_revision=expected)
                assert (caught.value.actual, caught.value.run_id) == (2, "r")
        same(before, await everything(here.two))
        with pytest.raises(StateConflictError) as caught:
            await here.one.save_state("new", plain_state(), expected_revision=1)
        assert (caught.value.expected, caught.value.actual) == (1, 0)
        assert await here.two.get_run_details("new") is None

    @on_fresh_data
    async def test_s6_a_run_without_a_snapshot_is_at_revision_0(self, here: Handles) -> None:
        await here.one.save_run_start({"run_id": "r"})
        assert await here.two.save_state("r", plain_state(), expected_revision=0) == 1
        await here.one.delete_state("r", expected_revision=1)
        assert await here.two.save_state("r", plain_state(), expected_revision=0) == 1

    @on_fresh_data
    async def test_s6_of_concurrent_saves_with_one_expected_revision_exactly_one_wins(self, here: Handles) -> None:
        three = here.open()
        for revision in range(6):
            saves = [
                backend.save_state("r", plain_state(mine=number), expected_revision=revision)
                for number, backend in enumerate((here.one, here.two, three) * 3)
            ]
            answers = await asyncio.gather(*saves, return_exceptions=True)
            winners = [number for number, answer in enumerate(answers) if answer == revision + 1]
            conflicts = [answer for answer in answers if isinstance(answer, StateConflictError)]
            assert (len(winners), len(conflicts)) == (1, 8), answers
            assert {(error.expected, error.actual) for error in conflicts} == {(revision, revision + 1)}
            state = await loaded(here.two)
            assert (state["revision"], state["mine"]) == (revision + 1, winners[0])

    @on_fresh_data
    async def test_s6_counting_with_expected_revisions_loses_nothing(self, here: Handles) -> None:
        async def add_one(number: int) -> None:
            backend = (here.one, here.two)[number % 2]
            while True:
                state = await loaded(backend)
                try:
                    await backend.save_state(
                        "r", state | {"mine": state["mine"] + 1}, expected_revision=state["revision"]
                    )
                    return
                except StateConflictError:
                    pass

        await here.one.save_state("r", plain_state(mine=0))
        await asyncio.gather(*(add_one(number) for number in range(10)))
        state = await loaded(here.one)
        assert (state["mine"], state["revision"]) == (10, 11)

    @on_fresh_data
    async def test_s7_a_run_of_snapshots_only_is_gone_with_its_snapshot(self, here: Handles) -> None:
        await here.one.delete_state("unknown")
        await here.one.save_state("r", plain_state(metadata={"a": 1}, step_history=[1, 2]))
        await here.two.delete_state("r")
        assert await here.one.load_state("r") is None
        assert await here.one.get_run_details("r") is None
        assert await ids(here.one) == await ids(here.one, metadata_filter={"a": 1}) == []
        await here.two.delete_state("r")
        assert await here.one.save_state("r", plain_state()) == 1
        assert (await loaded(here.two))["step_history"] == []

    @on_fresh_data
    async def test_s7_a_run_that_has_more_stays_listed(self, here: Handles) -> None:
        more: dict[str, Any] = {
            "start": lambda: here.one.save_run_start({"run_id": "start"}),
            "end": lambda: here.one.save_run_end("end", {}),
            "step": lambda: here.one.save_step_result({"run_id": "step", "step_name": "s", "step_index": 0}),
            "trace": lambda: here.one.save_trace("trace", {}),
            "spans": lambda: here.one.save_spans("spans", [{"span_id": "s"}]),
            "evaluation": lambda: here.one.persist_evaluation("evaluation", 1),
        }
        for run_id, save in more.items():
            await here.one.save_state(run_id, plain_state(created_at=NOON, total_steps=3, metadata={"a": 1}))
            await save()
            before = await row_of(here.two, run_id)
            await here.two.delete_state(run_id)
            assert await here.one.load_state(run_id) is None
            same(before | {"revision": 0}, await row_of(here.one, run_id), ignore=["$.status"])
        assert sorted(await ids(here.two)) == sorted(await ids(here.two, metadata_filter={"a": 1})) == sorted(more)

    @on_fresh_data
    async def test_s7_after_deletion_revisions_start_again_and_history_too(self, here: Handles) -> None:
        await here.one.save_run_start({"run_id": "r", "created_at": NOON})
        for history in ([1, 2, 3], [1, 2]):
            assert await here.one.save_state("r", plain_state(step_history=history, mine=history)) == 1
            assert await here.two.save_state("r", plain_state(step_history=history)) == 2
            await here.one.delete_state("r")
        assert await here.two.save_state("r", plain_state(step_history=[1])) == 1
        state = await loaded(here.one)
        same([[1], 1, NOON], [state["step_history"], state["revision"], state["created_at"]])

    @on_fresh_data
    async def test_s7_delete_state_guards_the_revision(self, here: Handles) -> None:
        await here.one.save_state("r", plain_state())
        before = await everything(here.two)
        for expected in (0, 2):
            with pytest.raises(StateConflictError) as caught:
                await here.two.delete_state("r", expected_revision=expected)
            assert (caught.value.expected, caught.value.actual) == (expected, 1)
        with pytest.raises(StateConflictError):
            await here.one.delete_state("unknown", expected_revision=1)
        same(before, await everything(here.two))
        await here.one.delete_state("unknown", expected_revision=0)
        await here.two.delete_state("r", expected_revision=1)
        assert await ids(here.one) == []

    @on_fresh_data
    async def test_s7_delete_run_removes_all_of_it_and_nothing_else(self, here: Handles) -> None:
        await fill(here.one, "r")
        await fill(here.one, "R")
        assert await here.two.delete_run("r") is True
        assert await here.two.delete_run("r") is False
        assert await here.one.delete_run("unknown") is False
        found = await everything(here.one, "r")
        same([None, None, [], [], None], found["run r"])
        assert [row["run_id"] for row in found["rows"]] == ["R"]
        assert [kept["run_id"] for kept in found["evaluations"]] == ["R"]
        assert found["spans"]["total_spans"] == 2
        assert all(found["run R"])
        # Nothing comes back when the id is used again.
        await here.one.save_run_start({"run_id": "r"})
        details = await row_of(here.two)
        assert "started" not in details
        assert details["metadata"] == {}
        assert details["total_cost"] is None
        assert await here.two.list_run_steps("r") == await here.two.get_spans("r") == []
        assert await here.two.get_trace("r") is None
        await here.one.save_state("r", plain_state())
        assert (await loaded(here.two))["step_history"] == []

    @on_fresh_data
    async def test_s7_deletions_spare_runs_of_similar_ids(self, here: Handles) -> None:
        similar = ["r", "r1", "rr", "R", "r ", " r", "%", "r%", "_", "r_", "*", "r*", "r/1", "r.1", "1r"]
        for run_id in similar:
            await fill(here.one, run_id)
        for run_id in ("r", "%", "_", "*"):
            await here.two.delete_state(run_id)
            assert [other for other in similar if await here.one.load_state(other) is None] == [run_id]
            await here.two.delete_run(run_id)
            similar.remove(run_id)
            assert sorted(await ids(here.one)) == sorted(similar)
            found = await everything(here.one)
            assert all(all(found[f"run {other}"]) for other in similar)

    @on_fresh_data
    async def test_s7_of_a_deleted_run_nothing_comes_back_to_the_handle_that_deleted_it(self, here: Handles) -> None:
        for backend in (here.one, here.two):
            await fill(here.one)
            await loaded(backend)
            await everything(backend)
            await backend.delete_run("r")
            await backend.save_run_start({"run_id": "r"})
            for reader in (here.one, here.two):
                assert await reader.list_run_steps("r") == await reader.get_spans("r") == []
                assert await reader.list_evaluations(run_id="r") == []
                assert await reader.load_state("r") is await reader.get_trace("r") is None
                assert "started" not in await row_of(reader)

    @on_fresh_data
    async def test_s8_history_loads_exactly_however_it_changed(self, here: Handles) -> None:
        entry = [{"step": number, "text": "x" * 50} for number in range(30)]
        histories: list[list[Any]] = [
            entry, [*entry, "more"], entry[:10], [*entry[:5], "edited", *entry[6:20]], entry[::-1], entry[5:], [],
            entry[:1] * 5, [*entry[:1] * 4, {"step": 0, "text": "y"}], [1, True, 1.0, -0.0, 0, None], [True, 1, 1, 0,
            -0.0, None],
            [{"a": 1, "b": 2}], [{"b": 2, "a": 1}], ["\x00", "\ud800", {"$flujo": "nan"}],
        ]  # fmt: skip
        for number, history in enumerate(histories, 1):
            writer, reader = (here.one, here.two) if number % 3 else (here.two, here.one)
            assert await writer.save_state("r", plain_state(step_history=history)) == number
            same(history, (await loaded(reader))["step_history"])
            same(history, (await loaded(here.open()))["step_history"])

    def test_s8_any_two_histories_after_one_another(self, state_harness: Harness) -> None:
        with beside_the_oracle(state_harness) as machine:
            entries: st.SearchStrategy[Any] = st.sampled_from((0, 1, True, 1.0, "a", {"a": 1}, {"a": True}, [], None))

            @examples(30)
            @given(st.lists(st.tuples(st.integers(0, 1), st.lists(entries, max_size=6)), min_size=2, max_size=4))
            def holds(saves: list[tuple[int, list[Any]]]) -> None:
                for handle, history in saves:
                    machine.check(handle, "save_state", "r", plain_state(step_history=history))
                machine.check(0, "load_state", "r")
                machine.check(1, "load_state", "r")

            holds()

    @on_fresh_data
    async def test_s8_a_failed_save_leaves_the_history(self, here: Handles) -> None:
        await here.one.save_state("r", plain_state(step_history=[1, 2, 3]))
        with pytest.raises(StateConflictError):
            await here.one.save_state("r", plain_state(step_history=[9]), expected_revision=7)
        with pytest.raises(InvalidStateError):
            await here.one.save_state("r", plain_state(step_history=[9, object()]))
        assert (await loaded(here.two))["step_history"] == [1, 2, 3]
        await here.one.save_state("r", plain_state(step_history=[1, 2, 4]))
        assert (await loaded(here.two))["step_history"] == [1, 2, 4]
