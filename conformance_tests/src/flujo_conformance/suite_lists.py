"""Are runs listed, iterated and counted as the rules R6 to R8 say?"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from flujo_core import StateBackend

from . import strategies as make
from .harness import Harness
from .machine import START
from .profile import examples
from .strategies import NOON, plain_state
from .suite_runs import NEW_ROW
from .suite_support import Handles, beside_the_oracle, collect, fill, ids, on_fresh_data, row_of, same


async def _save(backend: StateBackend, run_id: str, minutes: float = 0, **changes: Any) -> None:
    at = START + timedelta(minutes=minutes)
    await backend.save_state(run_id, plain_state(**{"created_at": at, "updated_at": at} | changes))


class ListsPart:
    @on_fresh_data
    async def test_r6_newest_first_and_ties_by_run_id_descending(self, here: Handles) -> None:
        for run_id, minutes in (
            ("b", 1),
            ("c", 0),
            ("a", 1),
            ("d", 2),
            ("B", 1),
            ("e", -1e6),
            ("é", 1),
            ("\U0001f600", 1),
            ("\uffff", 1),
        ):
            await _save(here.one, run_id, minutes)
        # Ids are compared by their UTF-8 bytes.
        wanted = ["d", "\U0001f600", "\uffff", "é", "b", "a", "B", "c", "e"]
        assert await ids(here.two) == wanted
        assert [row["run_id"] for row in await collect(here.two.iter_runs(page_size=2))] == wanted
        assert [row["run_id"] for row in await here.two.list_workflows()] == wanted
        assert await ids(here.two, metadata_filter={}) == wanted

    @on_fresh_data
    async def test_r6_the_order_holds_with_a_metadata_filter_and_in_pages(self, here: Handles) -> None:
        for number in range(12):
            await _save(here.one, f"r{number:02}", number % 4, metadata={"a": 1, "n": number})
        wanted = await ids(here.two)
        assert wanted == sorted(wanted, key=lambda run_id: (int(run_id[1:]) % 4, run_id), reverse=True)
        assert await ids(here.two, metadata_filter={"a": 1}) == wanted
        pages = [await ids(here.two, metadata_filter={"a": 1}, limit=5, offset=start) for start in (0, 5, 10, 15)]
        assert [run_id for page in pages for run_id in page] == wanted
        assert [
            row["run_id"] for row in await collect(here.two.iter_runs(metadata_filter={"a": 1}, page_size=5))
        ] == wanted

    @on_fresh_data
    async def test_r6_later_saves_do_not_move_a_run(self, here: Handles) -> None:
        for run_id in ("a", "b", "c"):
            await here.one.save_state(run_id, plain_state())
            here.clock.now += timedelta(seconds=1)
        await here.one.save_state("a", plain_state(status="completed"))
        await here.one.save_run_end("b", {})
        assert await ids(here.two) == ["c", "b", "a"]

    @on_fresh_data
    async def test_r6_a_run_is_listed_as_soon_as_it_is_saved_or_started(self, here: Handles) -> None:
        await here.one.save_state("saved", plain_state())
        assert await ids(here.two) == ["saved"]
        await here.one.save_run_start({"run_id": "started"})
        assert await ids(here.two) == ["started", "saved"]

    @on_fresh_data
    async def test_r6_every_row_has_the_same_keys_in_every_method(self, here: Handles) -> None:
        await fill(here.one)
        failed = {"status": "failed", "is_background_task": True}
        await here.one.save_run_start({"run_id": "bare"})
        await here.one.save_state("failed", plain_state(**failed))
        rows = [
            *await here.two.list_runs(),
            *await collect(here.two.iter_runs()),
            *await here.two.list_workflows(),
            *await here.two.get_failed_workflows(),
            *await here.two.list_background_tasks(),
            *await here.two.get_failed_background_tasks(),
        ]
        assert len(rows) == 12
        for row in rows:
            assert row.keys() == NEW_ROW.keys()
            details = await row_of(here.two, row["run_id"])
            same(dict(row), {key: details[key] for key in row})

    @on_fresh_data
    async def test_r6_each_filter_selects(self, here: Handles) -> None:
        mine = {
            "status": "paused", "pipeline_id": "i", "pipeline_name": "n", "parent_run_id": "parent",
            "is_background_task": True,
            "metadata": {"a": 1},
        }  # fmt: skip
        await _save(here.one, "mine", 10, **mine)
        for key, other in (("status", "failed"), ("pipeline_id", "I"), ("pipeline_name", "N"), ("parent_run_id", None)):
            await _save(here.one, f"not {key}", 10, **(mine | {key: other}))
        await _save(here.one, "not background", 10, **(mine | {"is_background_task": False}))
        await _save(here.one, "not metadata", 10, **(mine | {"metadata": {"a": 2}}))
        for minutes in (9, 11):
            await _save(here.one, f"at {minutes}", minutes, **mine)
        at, tick = START + timedelta(minutes=10), timedelta(microseconds=1)
        filters: dict[str, Any] = {
            **{key: value for key, value in mine.items() if key != "metadata"},
            "metadata_filter": {"a": 1},
            "created_after": at - tick,
            "created_before": at + tick,
        }
        assert await ids(here.two, **filters) == ["mine"]
        for key in filters:
            fewer = {name: value for name, value in filters.items() if name != key}
            found = set(await ids(here.two, **fewer)) - {"mine"}
            short = {"metadata_filter": "not metadata", "is_background_task": "not background"}.get(key, f"not {key}")
            assert found == {{"created_after": "at 9", "created_before": "at 11"}.get(key, short)}, key
            assert await here.two.count_runs(**fewer) == 2
        assert await ids(here.two, is_background_task=False) == ["not background"]

    @on_fresh_data
    async def test_r6_filters_come_before_limit_and_offset(self, here: Handles) -> None:
        for number in range(12):
            odd = ("even", "odd")[number % 2]
            state = {
                "status": ("running", "failed")[number % 2], "metadata": {odd: 1}, "parent_run_id": odd,
                "is_background_task": number % 2 == 1, "pipeline_id": odd, "pipeline_name": odd,
                "updated_at": START + timedelta(days=number % 2),
            }  # fmt: skip
            await _save(here.one, f"r{number:02}", number, **state)
        wanted = ["r11", "r09", "r07", "r05", "r03", "r01"]
        each: list[dict[str, Any]] = [
            {"status": "failed"},
            {"metadata_filter": {"odd": 1}},
            {"parent_run_id": "odd"},
            {"is_background_task": True},
            {"pipeline_id": "odd"},
            {"pipeline_name": "odd"},
            {"updated_after": START + timedelta(hours=1)},
        ]
        for filters in each:
            assert await ids(here.two, limit=2, **filters) == wanted[:2], filters
            assert await ids(here.two, limit=3, offset=2, **filters) == wanted[2:5], filters
            assert await ids(here.two, offset=4, **filters) == wanted[4:], filters
        for status, pipeline_id in (("failed", None), (None, "odd")):
            rows = await here.two.list_workflows(status, pipeline_id, limit=2, offset=1)
            assert [row["run_id"] for row in rows] == wanted[1:3]

    @on_fresh_data
    async def test_r6_time_bounds_are_strict(self, here: Handles) -> None:
        await here.one.save_state("r", plain_state(created_at=NOON, updated_at=START))
        tick = timedelta(microseconds=1)
        for field, at in (("created", NOON), ("updated", START)):
            assert await ids(here.two, **{f"{field}_after": at}) == await ids(here.two, **{f"{field}_before": at}) == []
            assert await ids(here.two, **{f"{field}_after": at - tick, f"{field}_before": at + tick}) == ["r"]

    @on_fresh_data
    async def test_r6_list_workflows_filters_by_status_and_pipeline_id(self, here: Handles) -> None:
        for run_id, status, pipeline in (("a", "failed", "p"), ("b", "running", "p"), ("c", "failed", "q")):
            await here.one.save_state(run_id, plain_state(status=status, pipeline_id=pipeline))
        assert [row["run_id"] for row in await here.two.list_workflows("failed")] == ["c", "a"]
        assert [row["run_id"] for row in await here.two.list_workflows(pipeline_id="p")] == ["b", "a"]
        assert [row["run_id"] for row in await here.two.list_workflows("failed", "p")] == ["a"]

    def test_r6_any_filters_select_what_the_model_selects(self, state_harness: Harness) -> None:
        with beside_the_oracle(state_harness) as machine:

            @examples(30)
            @given(
                st.lists(st.tuples(make.run_ids(), make.states()), max_size=2),
                st.lists(st.tuples(make.run_filters(), make.pages()), min_size=1, max_size=4),
                st.integers(1, 4),
            )
            def holds(saves: list[Any], queries: list[Any], page_size: int) -> None:
                for run_id, state in saves:
                    machine.check(0, "save_state", run_id, state)
                for filters, page in queries:
                    machine.check(1, "list_runs", **filters, **page)
                    machine.check(1, "count_runs", **filters)
                    machine.check(1, "iter_runs", **filters, page_size=page_size)

            holds()

    @on_fresh_data
    async def test_r7_every_page_size_yields_every_run_once(self, here: Handles) -> None:
        for number in range(7):
            await _save(here.one, f"r{number}", number // 3)
        wanted = await ids(here.two)
        for page_size in (1, 2, 3, 6, 7, 8, 500):
            rows = await collect(here.two.iter_runs(page_size=page_size))
            assert [row["run_id"] for row in rows] == wanted
            same(await here.two.list_runs(), rows)

    @on_fresh_data
    async def test_r7_a_run_that_exists_throughout_is_yielded_once_whatever_comes_and_goes(self, here: Handles) -> None:
        for number in range(12):
            await _save(here.one, f"stays{number:02}", number % 3, metadata={"a": 1})
            await _save(here.one, f"goes{number:02}", number % 3, metadata={"a": 1})
        each: list[dict[str, Any]] = [{}, {"metadata_filter": {"a": 1}}, {"status": "running"}]
        for filters in each:
            seen, number = [], 0
            async for row in here.two.iter_runs(page_size=2, **filters):
                seen.append(row["run_id"])
                assert seen.count(row["run_id"]) == 1
                await here.one.delete_run(f"goes{number:02}")
                await _save(here.one, f"new{number}", number % 5 - 1, metadata={"a": 1})
                await _save(here.one, f"stays{number % 12:02}", 99, metadata={"a": 1})
                number += 1
            stays = [run_id for run_id in seen if run_id.startswith("stays")]
            assert sorted(stays) == [f"stays{n:02}" for n in range(12)]

    @on_fresh_data
    async def test_r7_between_pages_nothing_is_held(self, here: Handles) -> None:
        for number in range(6):
            await _save(here.one, f"r{number}")
        iterations = [here.two.iter_runs(page_size=2) for _ in range(30)]
        for rows in iterations:
            await anext(rows)
        # More are open than a pool has connections, and none hinders a writer or its own handle.
        await asyncio.wait_for(here.one.delete_run("r0"), 10)
        await asyncio.wait_for(here.two.save_state("r1", plain_state()), 10)
        await asyncio.wait_for(here.two.shutdown(), 15)
        assert len(await collect(iterations[0])) == 4

    @on_fresh_data
    async def test_r8_counts_are_the_lengths_of_lists(self, here: Handles) -> None:
        assert await here.one.count_runs() == 0
        for number in range(6):
            status = ("running", "failed")[number % 2]
            await here.one.save_state(
                f"r{number}", plain_state(status=status, metadata={"n": number % 3}, pipeline_id="p")
            )
        await here.one.save_step_result({"run_id": "placeholder", "step_name": "s", "step_index": 0})
        counts: list[tuple[dict[str, Any], int]] = [
            ({}, 6),
            ({"status": "failed"}, 3),
            ({"metadata_filter": {"n": 1}}, 2),
            ({"status": "failed", "metadata_filter": {"n": 1}}, 1),
            ({"metadata_filter": {"n": 7}}, 0),
            ({"pipeline_id": "p", "created_before": START}, 0),
        ]
        for filters, count in counts:
            assert await here.two.count_runs(**filters) == len(await here.two.list_runs(**filters)) == count
