"""Are traces and spans kept, rebuilt and measured as the rules T1 to T3 say?"""

from __future__ import annotations

from math import inf, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flujo_core.errors import InvalidStateError

from . import strategies as make
from .harness import Harness
from .machine import START
from .profile import examples
from .strategies import NOON, nested, plain_state
from .suite_support import Handles, beside_the_oracle, everything, on_fresh_data, refused, same

SPAN: dict[str, Any] = {
    "span_id": "s", "parent_span_id": None, "name": "span", "start_time": 0.0, "end_time": None, "status": "running",
    "attributes": {}, "created_at": START,
}  # fmt: skip


def _deep(levels: int) -> dict[str, Any]:
    """A trace of that many levels of nodes."""
    node: dict[str, Any] = {"span_id": f"s{levels}", "name": "leaf"}
    for level in range(levels - 1, 0, -1):
        node = {"span_id": f"s{level}", "name": "node", "children": [node]}
    return node


def _node(span_id: str, *children: Any, parent: str | None = None, start: float = 0.0) -> dict[str, Any]:
    """A node of a tree that is rebuilt from spans."""
    span = {key: value for key, value in SPAN.items() if key != "created_at"}
    return span | {"span_id": span_id, "parent_span_id": parent, "start_time": start, "children": list(children)}


class TracesPart:
    @on_fresh_data
    async def test_t1_a_trace_is_returned_exactly(self, here: Handles) -> None:
        traces: list[dict[str, Any]] = [
            {},
            {"b": 1, "a": [1.0, True, nan, "\x00"]},
            {
                "span_id": "root",
                "name": "n",
                "start_time": 1,
                "children": [{"name": "no span"}, {"span_id": "c", "name": "n"}],
            },
            {"children": None, "$flujo": {}},
            {"children": []},
        ]
        for trace in traces:
            await here.one.save_trace("r", trace)
            same(trace, await here.two.get_trace("r"))
        assert await here.two.get_trace("other") is None

    @on_fresh_data
    async def test_t1_what_is_no_tree_is_refused(self, here: Handles) -> None:
        await here.one.save_trace("r", {"span_id": "s", "name": "n"})
        before = await everything(here.two, "r")
        node: dict[str, Any] = {"span_id": "s", "name": "n"}
        wrong: list[Any] = [
            None, [], "trace", [node], {"children": {}}, {"children": "x"}, {"children": [1]}, {"children": [node,
            [node]]},
            {"children": [node | {"start_time": "now"}]}, {"children": [node | {"end_time": inf}]},
            node | {"attributes": [1]},
            {"children": [node, {"span_id": "", "name": "n"}]}, node | {"created_at": "today"}, {"a": nested(400)},
            _deep(201),
        ]  # fmt: skip
        for bad in wrong:
            await refused(here.one, ("save_trace", ("r", bad), {}), repr(bad)[:80])
        same(before, await everything(here.two, "r"))

    @on_fresh_data
    async def test_t1_a_trace_has_up_to_200_levels_of_nodes(self, here: Handles) -> None:
        await here.one.save_trace("r", _deep(200))
        same(_deep(200), await here.two.get_trace("r"))
        spans = await here.two.get_spans("r")
        assert [span["parent_span_id"] for span in spans] == [None, *(f"s{level}" for level in range(1, 200))]

    @on_fresh_data
    async def test_t1_the_spans_of_a_trace_are_its_nodes_with_id_and_name(self, here: Handles) -> None:
        trace = {
            "children": [
                {"span_id": "a", "name": "A", "start_time": 5, "attributes": None, "mine": [1], "children": [
                    {"name": "between", "children": [{"span_id": "b", "name": "B", "start_time": 1}]},
                    {"span_id": "c", "name": "C", "parent_span_id": "elsewhere", "start_time": 2},
                ]},
                {"span_id": "no name"},
                {"span_id": "d", "name": "D", "start_time": 1, "end_time": 9, "status": "error",
                "created_at": NOON.isoformat()},
            ]
        }  # fmt: skip
        await here.one.save_trace("r", trace)
        spans = await here.two.get_spans("r")
        wanted = [
            SPAN | {"span_id": "b", "name": "B", "parent_span_id": "a", "start_time": 1.0},
            SPAN
            | {"span_id": "d", "name": "D", "start_time": 1.0, "end_time": 9.0, "status": "error", "created_at": NOON},
            SPAN | {"span_id": "c", "name": "C", "parent_span_id": "elsewhere", "start_time": 2.0},
            SPAN | {"span_id": "a", "name": "A", "start_time": 5.0, "mine": [1]},
        ]
        same(wanted, spans, ordered=False)

    @on_fresh_data
    async def test_t1_a_tree_is_rebuilt_from_spans(self, here: Handles) -> None:
        spans: list[dict[str, Any]] = [
            {"span_id": "c2", "parent_span_id": "root", "start_time": 2},
            {"span_id": "c1", "parent_span_id": "root", "start_time": 1},
            {"span_id": "root"},
            {"span_id": "g", "parent_span_id": "c1", "start_time": 1},
        ]
        await here.one.save_spans("r", spans)
        inner = _node("c1", _node("g", parent="c1", start=1.0), parent="root", start=1.0)
        same(_node("root", inner, _node("c2", parent="root", start=2.0)), await here.two.get_trace("r"), ordered=False)

    @on_fresh_data
    async def test_t1_missing_parents_make_roots_and_several_roots_a_synthetic_one(self, here: Handles) -> None:
        await here.one.save_spans("one", [{"span_id": "a", "parent_span_id": "missing", "mine": 1}])
        same(_node("a", parent="missing") | {"mine": 1}, await here.two.get_trace("one"), ordered=False)
        await here.one.save_spans("two", [{"span_id": "a", "start_time": 3, "end_time": 4}])
        await here.one.save_spans(
            "two", [{"span_id": "b", "start_time": 1, "end_time": 9, "parent_span_id": "missing"}]
        )
        a, b = _node("a", start=3.0) | {"end_time": 4.0}, _node("b", parent="missing", start=1.0) | {"end_time": 9.0}
        root = _node("__root__", b, a, start=1.0) | {"name": "root", "end_time": 9.0, "status": "synthetic"}
        same(root, await here.two.get_trace("two"), ordered=False)
        await here.one.save_spans("two", [{"span_id": "c", "start_time": 3}])
        found = await here.two.get_trace("two")
        assert found is not None
        assert (found["end_time"], [child["span_id"] for child in found["children"]]) == (None, ["b", "a", "c"])

    @on_fresh_data
    async def test_t1_a_cycle_is_an_error(self, here: Handles) -> None:
        await here.one.save_spans("self", [{"span_id": "a", "parent_span_id": "a"}])
        ring = [("a", "c"), ("b", "a"), ("c", "b"), ("outside", None)]
        await here.one.save_spans("ring", [{"span_id": one, "parent_span_id": parent} for one, parent in ring])
        for run_id in ("self", "ring"):
            with pytest.raises(InvalidStateError, match="cycle"):
                await here.two.get_trace(run_id)
        await here.one.save_spans("ring", [{"span_id": "a"}])
        found = await here.two.get_trace("ring")
        assert found is not None
        assert found["span_id"] == "__root__"

    @on_fresh_data
    async def test_t1_a_long_chain_of_spans_is_no_recursion(self, here: Handles) -> None:
        chain = [
            {"span_id": f"s{n}", "parent_span_id": f"s{n - 1}" if n else None, "start_time": n} for n in range(3000)
        ]
        await here.one.save_spans("r", chain)
        node, depth = await here.two.get_trace("r"), 0
        while node is not None:
            depth, node = depth + 1, next(iter(node["children"]), None)
        assert depth == 3000

    @on_fresh_data
    async def test_t2_spans_are_updated_by_their_id(self, here: Handles) -> None:
        await here.one.save_spans("r", [{"span_id": "a", "name": "x", "mine": 1}, {"span_id": "b"}, {"span_id": "A"}])
        await here.two.save_spans("r", [{"span_id": "a", "end_time": 1, "status": "completed"}])
        await here.two.save_spans("other", [{"span_id": "b", "name": "other"}])
        wanted = [
            SPAN | {"span_id": "a", "end_time": 1.0, "status": "completed"},
            SPAN | {"span_id": "b"},
            SPAN | {"span_id": "A"},
        ]
        same(wanted, await here.one.get_spans("r"), ordered=False)

    @on_fresh_data
    async def test_t2_of_one_id_twice_in_a_call_the_last_counts(self, here: Handles) -> None:
        await here.one.save_spans(
            "r", [{"span_id": "a", "name": "first"}, {"span_id": "b"}, {"span_id": "a", "name": "last"}]
        )
        assert [(span["span_id"], span["name"]) for span in await here.two.get_spans("r")] == [
            ("a", "last"),
            ("b", "span"),
        ]
        twice = {"children": [{"span_id": "x", "name": "1"}, {"span_id": "x", "name": "2"}]}
        await here.one.save_trace("traced", twice)
        assert [span["name"] for span in await here.two.get_spans("traced")] == ["2"]

    @on_fresh_data
    async def test_t2_one_bad_span_and_none_is_saved(self, here: Handles) -> None:
        await here.one.save_spans("r", [{"span_id": "a"}])
        wrong: list[Any] = [
            {}, {"span_id": None}, {"span_id": "b", "name": None}, {"span_id": "b", "start_time": nan}, None, "span",
            {"span_id": "b", "attributes": [1]}, {"span_id": "b", "status": None}, {"span_id": "b", "end_time": "1"},
        ]  # fmt: skip
        for bad in wrong:
            await refused(
                here.one, ("save_spans", ("r", [{"span_id": "new"}, bad, {"span_id": "newer"}]), {}), repr(bad)
            )
        for no_list in (None, {}, "spans", {"span_id": "a"}, 1):
            await refused(here.one, ("save_spans", ("r", no_list), {}), repr(no_list))
        assert [span["span_id"] for span in await here.two.get_spans("r")] == ["a"]

    @on_fresh_data
    async def test_t2_a_trace_replaces_the_spans_of_the_trace_before_it_only(self, here: Handles) -> None:
        async def names() -> dict[str, str]:
            return {span["span_id"]: span["name"] for span in await here.two.get_spans("r")}

        def trace(*spans: tuple[str, str]) -> dict[str, Any]:
            return {"children": [{"span_id": span_id, "name": name} for span_id, name in spans]}

        await here.one.save_spans("r", [{"span_id": "own"}, {"span_id": "both", "name": "span"}])
        await here.one.save_trace("r", trace(("a", "1"), ("b", "1"), ("both", "1")))
        assert await names() == {"own": "span", "both": "1", "a": "1", "b": "1"}
        await here.two.save_trace("r", trace(("b", "2"), ("c", "2")))
        assert await names() == {"own": "span", "b": "2", "c": "2"}
        await here.one.save_spans("r", [{"span_id": "c", "name": "updated"}])
        same(trace(("b", "2"), ("c", "2")), await here.two.get_trace("r"))
        await here.two.save_trace("r", {})
        assert await names() == {"own": "span", "c": "updated"}
        same({}, await here.one.get_trace("r"))

    def test_t2_any_traces_and_spans_are_those_of_the_model(self, state_harness: Harness) -> None:
        with beside_the_oracle(state_harness) as machine:

            @examples(40)
            @given(
                st.lists(make.traces() | make.span_lists(), min_size=1, max_size=3),
                st.integers(0, 1),
                st.integers(0, 19),
            )
            def holds(saves: list[Any], handle: int, forget: int) -> None:
                if forget == 0:
                    machine.check(handle, "delete_run", "r")
                for saved in saves:
                    machine.check(handle, "save_spans" if isinstance(saved, list) else "save_trace", "r", saved)
                    machine.check(1 - handle, "get_spans", "r")
                    machine.check(1 - handle, "get_trace", "r")
                machine.check(handle, "get_span_statistics")

            holds()

    @on_fresh_data
    async def test_t3_spans_are_in_the_order_of_start_then_of_saving(self, here: Handles) -> None:
        # In the order of neither the ids nor their reverse.
        starts = {"c": 2, "b": -1.5, "a": 2.0, "e": 0.0, "g": -0.0, "f": 1e300, "d": 0}
        for span_id, start in starts.items():
            await here.one.save_spans("r", [{"span_id": span_id, "start_time": start}])
        assert "".join(span["span_id"] for span in await here.two.get_spans("r")) == "begdcaf"
        await here.two.save_spans("r", [{"span_id": "e", "start_time": 2}])
        await here.two.save_spans("r", [{"span_id": "g", "name": "updated", "start_time": 0}])
        assert "".join(span["span_id"] for span in await here.one.get_spans("r")) == "bgdcaef"

    @on_fresh_data
    async def test_t3_spans_are_filtered_by_status_and_name(self, here: Handles) -> None:
        for span_id, status, name in (("a", "ok", "x"), ("b", "OK", "x"), ("c", "ok", "X"), ("d", "any thing", "y")):
            await here.one.save_spans("r", [{"span_id": span_id, "status": status, "name": name}])

        async def found(**filters: str) -> str:
            return "".join(span["span_id"] for span in await here.two.get_spans("r", **filters))

        assert [await found(status="ok"), await found(name="x"), await found(status="ok", name="x")] == [
            "ac",
            "ab",
            "a",
        ]
        assert [await found(status="any thing"), await found(status="none")] == ["d", ""]

    @on_fresh_data
    async def test_t3_statistics_count_and_time_finished_spans(self, here: Handles) -> None:
        same(
            {"total_spans": 0, "by_name": {}, "by_status": {}, "avg_duration_by_name": {}},
            await here.one.get_span_statistics(), ordered=False,
        )  # fmt: skip
        await here.one.save_state("r", plain_state(pipeline_name="p"))
        spans = [
            ("a", "x", "ok", 1, 3),
            ("b", "x", "ok", 2, 2),
            ("c", "x", "error", 3, 9),
            ("d", "y", "ok", 4, 3),
            ("e", "y", "ok", 1, None),
        ]
        await here.one.save_spans(
            "r",
            [dict(zip(("span_id", "name", "status", "start_time", "end_time"), span, strict=True)) for span in spans],
        )
        wanted = {
            "total_spans": 4,
            "by_name": {"x": 3, "y": 1},
            "by_status": {"ok": 3, "error": 1},
            "avg_duration_by_name": {
                "x": {"total": 8.0, "count": 3, "average": 8 / 3}, "y": {"total": -1.0, "count": 1, "average": -1.0},
            },
        }  # fmt: skip
        same(wanted, await here.two.get_span_statistics(), ordered=False, approx=["$.avg_duration_by_name.*.average"])

    @on_fresh_data
    async def test_t3_a_time_range_includes_both_ends(self, here: Handles) -> None:
        await here.one.save_spans("r", [{"span_id": f"s{n}", "start_time": n, "end_time": 99} for n in range(5)])
        ranges: list[tuple[Any, int]] = [
            (None, 5), ((None, None), 5), ((1, 3), 3), ((1.0, None), 4), ((None, 1), 2), ((3, 1), 0), ([2, 2], 1),
            ((1.5, 1.6), 0),
        ]  # fmt: skip
        for bounds, count in ranges:
            found = await here.two.get_span_statistics(None, bounds)
            assert found["total_spans"] == count, bounds
        for bad in (1, "12", (1,), (1, 2, 3), {1, 2}, (1, "2"), (True, 2), (nan, 2)):
            await refused(here.one, ("get_span_statistics", (None, bad), {}), repr(bad))

    @on_fresh_data
    async def test_t3_statistics_of_a_pipeline_are_those_of_its_runs(self, here: Handles) -> None:
        for run_id, pipeline in (("one", "p"), ("two", "p"), ("three", "P")):
            await here.one.save_state(run_id, plain_state(pipeline_name=pipeline))
            await here.one.save_spans(run_id, [{"span_id": "s", "end_time": 1}])
        await here.one.save_spans("placeholder", [{"span_id": "s", "end_time": 1}])
        counts = {None: 4, "p": 2, "P": 1, "unknown": 0, "q": 0}
        for name, count in counts.items():
            assert (await here.two.get_span_statistics(name))["total_spans"] == count, name
        await here.one.delete_run("one")
        assert (await here.two.get_span_statistics("p"))["total_spans"] == 1
