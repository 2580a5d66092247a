"""What becomes of the unusual: huge, many, nearly equal, long ago, and changed later?"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from flujo_core import StateBackend

from .machine import START
from .strategies import plain_state
from .suite_support import Handles, collect, ids, loaded, on_fresh_data, row_of, same

LONG: Final = "".join(f"{number:05}" for number in range(20_000))
"""100 kB that repeat nothing."""

FAR: Final = (2**32, 2**32 + 1, 2**63 - 1, 2**64)
"""What has no 32 bits left, and as much as 64 bits hold, and more."""

_FACES: Final = "\U0001f600" * 254
PAIRS: Final = (
    ("a", "a "),
    ("caf\u00e9", "cafe\u0301"),
    ("x", "X"),
    (_FACES + "\U0001f600", _FACES + "\U0001f601"),
)
"""Differing in a space, in the normal form, in case, and in the last of 1,020 bytes."""

LONG_AGO: Final = {
    "c": datetime(1899, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
    "a": datetime(1900, 1, 1, tzinfo=UTC),
    "e": datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
    "b": datetime(1970, 1, 1, tzinfo=UTC),
    "d": datetime(2001, 9, 9, 1, 46, 40, tzinfo=UTC),
}
"""The oldest first, though the ids don't say so."""


def _step(run_id: str = "r", **more: Any) -> dict[str, Any]:
    return {"run_id": run_id, "step_name": "s", "step_index": 0, **more}


async def _fill_old(backend: StateBackend, run_id: str) -> None:
    """Some of everything that a run can have, each part recognisable as old."""
    history = [{"old": number} for number in range(3)]
    await backend.save_state(run_id, plain_state(step_history=history, metadata={"old": True}, mine="old"))
    await backend.save_run_start({"run_id": run_id, "old": "detail"})
    await backend.save_step_result(_step(run_id, record_id="old", cost=1))
    await backend.save_spans(run_id, [{"span_id": "old", "end_time": 1}])
    await backend.save_trace(run_id, {"span_id": "traced", "name": "old", "end_time": 1})
    await backend.persist_evaluation(run_id, 1, "old")


class ExtremesPart:
    @on_fresh_data
    async def test_g8_a_limit_or_an_offset_may_be_larger_than_any_list(self, here: Handles) -> None:
        for number in range(3):
            await here.one.save_state(f"r{number}", plain_state())
            await here.one.persist_evaluation("r0", number)
        everyone = ["r2", "r1", "r0"]
        for far in FAR:
            assert await ids(here.two, limit=far) == everyone, far
            assert await ids(here.two, offset=far) == [], far
            assert await ids(here.two, limit=1, offset=far) == [], far
            assert await ids(here.two, limit=far, offset=1) == everyone[1:], far
            assert await ids(here.two, limit=far, offset=far) == [], far
            for run_id in (None, "r0"):
                found = await here.two.list_evaluations(far, run_id)
                assert [evaluation["score"] for evaluation in found] == [2, 1, 0], far

    @on_fresh_data
    async def test_g5_what_is_nearly_the_same_is_not_the_same(self, here: Handles) -> None:
        for one, other in PAIRS:
            run_id = f"run of {one[:5]}"
            for value, name in enumerate((one, other)):
                await here.one.save_spans(run_id, [{"span_id": name, "name": name, "start_time": value, "end_time": 9}])
                await here.one.save_step_result(_step(run_id, record_id=name, output=value))
                await here.one.save_run_start({"run_id": run_id, name: value})
                await here.one.set_system_state(name, value)
            assert [span["span_id"] for span in await here.two.get_spans(run_id)] == [one, other]
            assert [step["output"] for step in await here.two.list_run_steps(run_id)] == [0, 1]
            details, statistics = await row_of(here.two, run_id), await here.two.get_span_statistics()
            for value, name in enumerate((one, other)):
                assert details[name] == value
                assert statistics["by_name"][name] == 1
                assert [span["name"] for span in await here.two.get_spans(run_id, name=name)] == [name]
                kept = await here.two.get_system_state(name)
                assert kept is not None
                assert kept["value"] == value

    @on_fresh_data
    async def test_g3_g4_a_document_is_as_long_as_it_is_wherever_it_stands(self, here: Handles) -> None:
        history, metadata = [1, LONG, 2], {"long": LONG}
        state = plain_state(step_history=history, metadata=metadata, last_step_output=LONG, mine={LONG: [LONG]})
        await here.one.save_state("r", state)
        await here.one.save_run_start({"run_id": "r", "mine": [LONG]})
        await here.one.save_run_end("r", {"final_context": {"a": LONG}, "error_message": LONG})
        await here.one.save_step_result(_step(output={"a": [LONG]}))
        trace = {"a": LONG, "children": [{"span_id": "t", "name": "n", "attributes": {"b": LONG}}]}
        await here.one.save_trace("r", trace)
        await here.one.save_spans("r", [{"span_id": "s", "attributes": {"a": LONG}}])
        await here.one.persist_evaluation("r", 1, LONG, metadata={"a": LONG})
        await here.one.set_system_state("k", [LONG])
        got = await loaded(here.two)
        same(state, {name: got[name] for name in state})
        details = await row_of(here.two)
        said = [details["mine"], details["final_context"], details["error_message"], details["metadata"]]
        same([[LONG], {"a": LONG}, LONG, metadata], said)
        same({"a": [LONG]}, (await here.two.list_run_steps("r"))[0]["output"])
        same(trace, await here.two.get_trace("r"))
        spans = await here.two.get_spans("r")
        same([{"b": LONG}, {"a": LONG}], [span["attributes"] for span in spans])
        evaluations = await here.two.list_evaluations()
        same([(LONG, {"a": LONG})], [(one["feedback"], one["metadata"]) for one in evaluations])
        kept = await here.two.get_system_state("k")
        assert kept is not None
        same([LONG], kept["value"])
        assert [await ids(here.two, metadata_filter={"long": text}) for text in (LONG, LONG[:-1])] == [["r"], []]

    @on_fresh_data
    async def test_s8_g9_a_history_of_many_entries_is_saved_at_once(self, here: Handles) -> None:
        history = [{"entry": number} for number in range(1500)]
        await here.one.save_state("r", plain_state(step_history=history))
        same(history, (await loaded(here.two))["step_history"])
        history[1200:] = [{"another": number} for number in range(1200)]
        await here.two.save_state("r", plain_state(step_history=history))
        same(history, (await loaded(here.one))["step_history"])

    @on_fresh_data
    async def test_g9_of_many_records_of_a_run_at_once_none_is_lost(self, here: Handles) -> None:
        records = [_step(step_index=number, output=number, cost=1) for number in range(300)]
        await asyncio.gather(*map(here.one.save_step_result, records))
        assert [step["output"] for step in await here.two.list_run_steps("r")] == list(range(300))
        same(300.0, (await row_of(here.two))["total_cost"])

    @on_fresh_data
    async def test_g9_of_many_runs_at_once_none_is_lost(self, here: Handles) -> None:
        names = [f"r{number:03}" for number in range(300)]
        assert await asyncio.gather(*(here.one.save_state(name, plain_state(mine=name)) for name in names)) == [1] * 300
        # The other handle knows none of them yet, and has to ask.
        assert await asyncio.gather(*(here.two.save_state(name, plain_state(mine=name)) for name in names)) == [2] * 300
        assert await ids(here.one) == names[::-1]
        third = here.open()
        await asyncio.gather(*(third.save_run_end(name, {"mine": name}) for name in names[::2]))
        for name in names[::30]:
            assert ((await loaded(here.one, name))["mine"], (await row_of(here.one, name))["mine"]) == (name, name)
        assert all(await asyncio.gather(*map(here.open().delete_run, names[::3])))
        assert await ids(here.one) == [name for name in names[::-1] if name not in names[::3]]

    @on_fresh_data
    async def test_g6_r6_r7_time_goes_back_beyond_1970(self, here: Handles) -> None:
        names = list(LONG_AGO)
        for name in "abcde":
            at = LONG_AGO[name]
            await here.one.save_state(name, plain_state(created_at=at, updated_at=at))
        newest = names[::-1]
        assert await ids(here.two) == newest
        for size in (1, 2, 3):
            rows = await collect(here.two.iter_runs(page_size=size))
            assert [(row["run_id"], row["created_at"]) for row in rows] == [(name, LONG_AGO[name]) for name in newest]
        for place, at in enumerate(LONG_AGO.values()):
            for field in ("created", "updated"):
                assert await ids(here.two, **{f"{field}_before": at}) == names[:place][::-1], at
                assert await ids(here.two, **{f"{field}_after": at}) == names[place + 1 :][::-1], at
            assert await here.two.count_runs(created_after=at - timedelta(microseconds=1)) == len(names) - place

    @on_fresh_data
    async def test_t3_zero_is_a_time(self, here: Handles) -> None:
        starts = (-1, 0, 1)
        await here.one.save_spans("r", [{"span_id": f"s{at}", "start_time": at, "end_time": 2} for at in starts])
        ranges: list[tuple[Any, int]] = [
            ((0, None), 2), ((None, 0), 2), ((0, 0), 1), ((0.0, -0.0), 1), ((0, 9), 2), ((-9, 0), 2), ((-9, -0.0), 2),
            ((1, 0), 0),
        ]  # fmt: skip
        for bounds, count in ranges:
            assert (await here.two.get_span_statistics(None, bounds))["total_spans"] == count, bounds

    @on_fresh_data
    async def test_t3_spans_a_microsecond_apart_keep_their_order(self, here: Handles) -> None:
        starts = {f"s{number}": 1_700_000_000 + number / 1_000_000 for number in range(5)}
        # Neither as they began nor the reverse of it.
        for name in ("s3", "s0", "s4", "s1", "s2"):
            span = {"span_id": name, "name": name, "start_time": starts[name], "end_time": starts[name]}
            await here.one.save_spans("r", [span])
        assert [(span["span_id"], span["start_time"]) for span in await here.two.get_spans("r")] == [*starts.items()]
        for name, at in starts.items():
            assert (await here.two.get_span_statistics(None, (at, at)))["by_name"] == {name: 1}
        found = await here.two.get_span_statistics(None, (starts["s1"], starts["s3"]))
        assert sorted(found["by_name"]) == ["s1", "s2", "s3"]

    @on_fresh_data
    async def test_a1_statistics_are_of_what_was_said_last(self, here: Handles) -> None:
        old = START - timedelta(days=2)
        await here.one.save_run_start({"run_id": "a", "execution_time_ms": 10, "created_at": old, "updated_at": old})
        await here.one.save_run_start({"run_id": "b", "execution_time_ms": 20})
        await here.two.save_run_end("a", {"execution_time_ms": 40, "status": "completed"})
        wanted = {
            "total_workflows": 2, "status_counts": {"completed": 1, "running": 1}, "recent_workflows_24h": 1,
            "average_execution_time_ms": 30.0, "background_status_counts": {},
        }  # fmt: skip
        same(wanted, await here.one.get_workflow_stats(), ordered=False)

    @on_fresh_data
    async def test_a5_r6_a_run_that_becomes_a_background_task_is_one(self, here: Handles) -> None:
        await here.one.save_run_start({"run_id": "by record", "parent_run_id": "first"})
        await here.one.save_state("by state", plain_state(parent_run_id="first"))
        assert await here.two.list_background_tasks() == []
        change = {"is_background_task": True, "parent_run_id": "second"}
        await here.two.save_run_end("by record", change)
        await here.two.save_state("by state", plain_state(**change))
        both = ["by state", "by record"]
        assert [row["run_id"] for row in await here.one.list_background_tasks("second")] == both
        assert await ids(here.one, is_background_task=True) == await ids(here.one, parent_run_id="second") == both
        assert await ids(here.one, is_background_task=False) == await ids(here.one, parent_run_id="first") == []
        assert (await here.one.get_workflow_stats())["background_status_counts"] == {"running": 2}

    @on_fresh_data
    async def test_r5_r6_a_completed_run_has_the_place_of_its_own_creation(self, here: Handles) -> None:
        await here.one.save_step_result(_step("was a placeholder", created_at=START))
        await here.one.save_state("between", plain_state(created_at=START - timedelta(hours=1)))
        early = START - timedelta(hours=2)
        await here.two.save_state("was a placeholder", plain_state(created_at=early))
        assert (await row_of(here.one, "was a placeholder"))["created_at"] == early
        assert await ids(here.one) == ["between", "was a placeholder"]
        assert await ids(here.one, created_before=early + timedelta(minutes=1)) == ["was a placeholder"]
        rows = await collect(here.one.iter_runs(page_size=1))
        assert [row["run_id"] for row in rows] == ["between", "was a placeholder"]

    @on_fresh_data
    async def test_m4_m1_each_of_many_keys_finds_the_run(self, here: Handles) -> None:
        metadata = {f"key {number}": f"value {number}" for number in range(200)}
        await here.one.save_state("r", plain_state(metadata=metadata))
        await here.one.save_state("other", plain_state(metadata={"key 0": "another"}))
        for number in range(0, 200, 7):
            key = f"key {number}"
            assert await ids(here.two, metadata_filter={key: metadata[key]}) == ["r"], key
            assert await ids(here.two, metadata_filter={key: "value"}) == [], key
        assert await ids(here.two, metadata_filter=metadata) == ["r"]

    @on_fresh_data
    async def test_s7_a4_a_run_that_is_deleted_and_saved_at_once_has_nothing_of_the_old_one(
        self, here: Handles
    ) -> None:
        ways: list[Callable[[StateBackend, str], Awaitable[Any]]] = [
            lambda backend, run_id: backend.save_state(run_id, plain_state()),
            lambda backend, run_id: backend.save_run_start({"run_id": run_id}),
        ]
        for number in range(8):
            run_id, begin = f"r{number}", ways[number % 2]
            await _fill_old(here.one, run_id)
            # Of one handle they are in one batch; two of them come in an order that is not known.
            deleting = (here.one, here.two)[number // 2 % 2]
            saving = deleting if number < 4 else here.two if deleting is here.one else here.one
            await asyncio.gather(deleting.delete_run(run_id), begin(saving, run_id))
            row = await here.two.get_run_details(run_id)
            assert row is not None or number >= 4
            state = await here.two.load_state(run_id)
            if state is not None:
                assert (state["revision"], state["step_history"], state["metadata"]) == (1, [], {})
                assert "mine" not in state
            if row is not None:
                assert (row["metadata"], row["total_cost"], "old" in row) == ({}, None, False)
            left = [
                await here.two.list_run_steps(run_id),
                await here.two.get_spans(run_id),
                await here.two.get_trace(run_id),
                await here.two.list_evaluations(None, run_id),
            ]
            assert left == [[], [], None, []], number
        assert await here.one.list_evaluations(None) == []
        assert (await here.one.get_span_statistics())["total_spans"] == 0
        assert await ids(here.one, metadata_filter={"old": True}) == []
