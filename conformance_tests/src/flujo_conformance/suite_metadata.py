"""Do metadata filters find what PostgreSQL's containment would (M1 to M4)?"""

from __future__ import annotations

from datetime import timedelta
from math import inf, nan
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from . import strategies as make
from .answers import Call
from .containment import contains
from .harness import Harness
from .profile import examples
from .strategies import plain_state
from .suite_support import (
    Handles,
    beside_the_oracle,
    collect,
    everything,
    fill,
    ids,
    on_fresh_data,
    refused,
    same,
)

CONTAINED: tuple[tuple[Any, Any], ...] = (
    ({"a": 1, "b": 2}, {"a": 1}),
    ({"a": 1}, {"a": 1.0}),
    ({"a": 1e2}, {"a": 100}),
    ({"a": 0}, {"a": -0.0}),
    ({"a": 0.1}, {"a": 0.1}),
    ({"a": 10**300}, {"a": 1e300}),
    ({"a": True}, {"a": True}),
    ({"a": None}, {"a": None}),
    ({"a": [1, 2, 3]}, {"a": [3, 1]}),
    ({"a": [1]}, {"a": [1, 1]}),
    ({"a": [1]}, {"a": []}),
    ({"a": {"b": 1}}, {"a": {}}),
    ({"a": [{"b": 1, "c": 2}]}, {"a": [{"c": 2}]}),
    ({"a": [[1, 2], [3]]}, {"a": [[2]]}),
    ({"a": [{"b": 1}]}, {"a": [{}]}),
    ({"a": {"b": {"c": [1, {"d": None}]}}}, {"a": {"b": {"c": [{"d": None}]}}}),
    ({"a.b": 1}, {"a.b": 1}),
    ({"": {"": ""}}, {"": {"": ""}}),
    ({"a": [1, 2.0]}, {"a": [2, 1.0, 2]}),
)
NOT_CONTAINED: tuple[tuple[Any, Any], ...] = (
    ({"a": 1}, {"a": True}),
    ({"a": True}, {"a": 1}),
    ({"a": 0}, {"a": False}),
    ({"a": 1}, {"a": "1"}),
    ({"a": None}, {"a": False}),
    ({}, {"a": None}),
    ({"a": None}, {"a": "null"}),
    ({"a": 2**53}, {"a": 2**53 + 1}),
    ({"a": 0.1}, {"a": 0.10000000000000002}),
    ({"a": "x"}, {"a": "X"}),
    ({"a": "caf\u00e9"}, {"a": "cafe\u0301"}),
    ({"a": "abc"}, {"a": "b"}),
    ({"a": [1]}, {"a": 1}),
    ({"a": 1}, {"a": [1]}),
    ({"a": [1]}, {"a": {}}),
    ({"a": {}}, {"a": []}),
    ({"a": [[1, 2]]}, {"a": [1]}),
    ({"a": [[1], [2]]}, {"a": [[1, 2]]}),
    ({"a": [{"b": 1}, {"c": 2}]}, {"a": [{"b": 1, "c": 2}]}),
    ({"a": [{"b": 1, "c": 2}, {"b": 2, "c": 1}]}, {"a": [{"b": 1, "c": 1}]}),
    ({"a": [{"b": 1, "c": True}, {"b": True, "c": 1}]}, {"a": [{"b": 1, "c": 1}]}),
    ({"a": {"b": 1}}, {"a.b": 1}),
    ({"a.b": 1}, {"a": {"b": 1}}),
    ({"a": "0"}, {"a": 0}),
    ({"a": ["b"]}, {"a": ["b", "c"]}),
    ({"A": 1}, {"a": 1}),
    ({"a": [1, 2]}, {"a": {"0": 1}}),
)


class MetadataPart:
    @on_fresh_data
    async def test_m1_what_contains_and_what_does_not(self, here: Handles) -> None:
        for pairs, matches in ((CONTAINED, True), (NOT_CONTAINED, False)):
            for outer, inner in pairs:
                await here.one.save_state("r", plain_state(metadata=outer))
                found = await ids(here.two, metadata_filter=inner)
                assert found == (["r"] if matches else []), f"{outer!r} @> {inner!r}"
                assert await here.two.count_runs(metadata_filter=inner) == len(found)

    def test_m1_any_filter_finds_what_contains_it(self, state_harness: Harness) -> None:
        with beside_the_oracle(state_harness) as machine:

            @examples(40)
            @given(
                st.lists(make.metadata(), min_size=1, max_size=3),
                st.lists(make.metadata_filters(), min_size=1, max_size=8),
            )
            def holds(held: list[dict[str, Any]], filters: list[dict[str, Any]]) -> None:
                for number, metadata in enumerate(held):
                    machine.check(0, "save_state", f"r{number}", plain_state(metadata=metadata))
                rows = {row["run_id"]: row["metadata"] for row in machine.model.list_runs()}
                for wanted in [*filters, *held]:
                    matching = [run_id for run_id, metadata in rows.items() if contains(metadata, wanted)]
                    found = machine.runner.run(ids(machine.backends[1], metadata_filter=wanted))
                    assert found == matching, wanted
                    machine.check(1, "count_runs", metadata_filter=wanted)

            holds()

    @on_fresh_data
    async def test_m1_a_filter_sees_the_metadata_of_now(self, here: Handles) -> None:
        async def found(value: int) -> list[str]:
            return await ids(here.two, metadata_filter={"a": value})

        await here.one.save_state("r", plain_state(metadata={"a": 1}))
        assert (await found(1), await found(2)) == (["r"], [])
        await here.one.save_state("r", plain_state(metadata={"a": 2, "b": 1}))
        assert (await found(1), await found(2)) == ([], ["r"])
        await here.two.save_run_start({"run_id": "r", "metadata": {"a": 3}})
        assert (await found(2), await found(3)) == ([], ["r"])
        await here.one.save_state("r", plain_state())
        assert await found(3) == ["r"]
        await here.one.save_run_end("r", {"metadata": None})
        assert await found(3) == []
        await here.one.save_state("r", plain_state(metadata={"a": 4}))
        await here.one.delete_run("r")
        await here.one.save_state("r", plain_state())
        assert await found(4) == []
        here.clock.now += timedelta(hours=1)
        await here.one.delete_run("r")
        for _ in range(2):
            await here.one.save_state("r", plain_state(metadata={"a": 5}))
            assert (await found(5), await here.two.count_runs(metadata_filter={"a": 5})) == (["r"], 1)
            await here.one.delete_run("r")
            here.clock.now += timedelta(hours=1)

    @on_fresh_data
    async def test_m1_filters_join_all_other_conditions(self, here: Handles) -> None:
        for number in range(6):
            state = plain_state(
                metadata={"a": 1}, status=("running", "failed")[number % 2], pipeline_name=f"p{number // 3}"
            )
            await here.one.save_state(f"r{number}", state)
        both: dict[str, Any] = {"status": "failed", "pipeline_name": "p0", "metadata_filter": {"a": 1}}
        assert await ids(here.two, **both) == ["r1"]
        assert [row["run_id"] for row in await collect(here.two.iter_runs(**both, page_size=1))] == ["r1"]
        assert await here.two.count_runs(**both) == 1

    @on_fresh_data
    async def test_m2_the_empty_filter_matches_every_run(self, here: Handles) -> None:
        await here.one.save_state("a", plain_state())
        await here.one.save_state("b", plain_state(metadata={"a": 1}))
        assert await ids(here.two, metadata_filter={}) == await ids(here.two, metadata_filter=None) == ["b", "a"]
        assert await here.two.count_runs(metadata_filter={}) == 2

    @on_fresh_data
    async def test_m2_keys_mean_themselves(self, here: Handles) -> None:
        keys = (
            "a.b", '"', "'", "$", "$.a", "a[0]", "*", "a'; DROP TABLE workflow_state; --", "%", "?", ":x", "{s}",
            "\\", " ",
            "$flujo", "a\nb", "\U0001f600", "x" * 5000,
        )  # fmt: skip
        for key in keys:
            await here.one.save_state(key[:200], plain_state(metadata={key: {key: [key]}}))
        for key in keys:
            filters: list[dict[str, Any]] = [{key: {key: [key]}}, {key: {}}, {key: {key: []}}]
            for wanted in filters:
                assert await ids(here.two, metadata_filter=wanted) == [key[:200]], key
            assert await ids(here.two, metadata_filter={key: {"other": [key]}}) == []

    @on_fresh_data
    async def test_m2_what_is_no_object_of_metadata_is_refused(self, here: Handles) -> None:
        await fill(here.one)
        for method in ("list_runs", "count_runs", "iter_runs"):
            for bad in (*make.BAD_METADATA, {"a": object()}, {"a": b"\xff"}, {"a": 10**4300}, make.nested(3)):
                await refused(here.one, (method, (), {"metadata_filter": bad}), "a wrong filter")

    @on_fresh_data
    async def test_m3_metadata_that_jsonb_cannot_hold_is_refused_with_its_path(self, here: Handles) -> None:
        await fill(here.one)
        before = await everything(here.two)
        bad_texts = ("a\x00", "\ud800", "\ud83d\ude00")
        for bad in (nan, inf, -inf, *bad_texts):
            calls: list[Call] = [
                ("save_state", ("r", plain_state(metadata={"a": [0, {"b": bad}]})), {}),
                ("save_run_start", ({"run_id": "r", "metadata": {"a": [0, {"b": bad}]}},), {}),
                ("save_run_end", ("r", {"metadata": {"a": [0, {"b": bad}]}}), {}),
            ]
            for one in calls:
                error = await refused(here.one, one, f"{bad!r} in metadata")
                assert error is not None
                assert "metadata.a[1].b" in (error.path or "")
        for key in bad_texts:
            await refused(here.one, ("save_state", ("r", plain_state(metadata={"a": {key: 1}})), {}), "a bad key")
        same(before, await everything(here.two))

    @on_fresh_data
    async def test_m3_all_other_json_is_metadata_and_stays_exact(self, here: Handles) -> None:
        metadata = {
            "b": [1, 1.0, True, None, -0.0, 1e300, 10**4299, "\ufffd", "\U0001f600"],
            "a": {"": {}},
            "$flujo": [],
        }
        await here.one.save_state("r", plain_state(metadata=metadata))
        row = (await here.two.list_runs())[0]
        assert repr(row["metadata"]["b"][:6]) == repr(metadata["b"][:6])  # type: ignore[index]
        assert row["metadata"] == metadata
        assert list(row["metadata"]) == list(metadata)

    @on_fresh_data
    async def test_m4_a_rare_value_among_many_runs_is_found_and_a_common_one_in_full(self, here: Handles) -> None:
        async def save(number: int) -> None:
            metadata = {"common": 1, "tenth": number % 10, "list": [{"n": number}, {"n": -1}]}
            await here.one.save_state(f"r{number:03}", plain_state(metadata=metadata))

        for number in range(200):
            await save(number)
        for repeat in range(3):
            assert await ids(here.two, metadata_filter={"common": 1, "list": [{"n": 17}]}) == ["r017"], repeat
            assert await here.two.count_runs(metadata_filter={"common": 1}) == 200
            assert len(await ids(here.two, metadata_filter={"tenth": 3, "common": 1})) == 20
            assert await ids(here.two, metadata_filter={"common": 1, "tenth": 3}, limit=2, offset=1) == ["r183", "r173"]
            assert await ids(here.two, metadata_filter={"common": 1, "absent": 1}) == []
            assert await ids(here.two, metadata_filter={"list": [{"n": 17}, {"n": 18}]}) == []
