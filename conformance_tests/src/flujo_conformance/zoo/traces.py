"""Which backends keep, rebuild or measure traces and spans wrongly (T1 to T3)?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from flujo_core.errors import InvalidStateError
from flujo_core.memory import MemoryBackend, MemoryStore
from flujo_core.runs import Draft
from flujo_core.store import Change, Outcome, SpanStatistic
from flujo_core.traces import tree_of

from .registry import Meddling, breaks


@breaks("T1")
class TraceNormalised(MemoryBackend):
    """Times of a trace's nodes come back as floats."""

    async def get_trace(self, run_id: str) -> dict[str, Any] | None:
        trace = await super().get_trace(run_id)
        if trace and type(trace.get("start_time")) is int:
            trace["start_time"] = float(trace["start_time"])
        return trace


@breaks("T1")
class TraceRebuilt(MemoryBackend):
    """A trace is rebuilt from its spans."""

    async def get_trace(self, run_id: str) -> dict[str, Any] | None:
        return tree_of(await self.get_spans(run_id)) or await super().get_trace(run_id)


@breaks("T1")
class EmptyTraceIsNone(MemoryBackend):
    """An empty trace comes back as None."""

    async def get_trace(self, run_id: str) -> dict[str, Any] | None:
        return await super().get_trace(run_id) or None


@breaks("T1")
class FirstRootOnly(MemoryBackend):
    """Of several roots one is shown."""

    async def get_trace(self, run_id: str) -> dict[str, Any] | None:
        trace = await super().get_trace(run_id)
        return trace["children"][0] if trace and trace.get("status") == "synthetic" else trace


@breaks("T1")
class OrphansLost(MemoryBackend):
    """A span whose parent is missing is not in the tree."""

    async def get_trace(self, run_id: str) -> dict[str, Any] | None:
        spans = await self.get_spans(run_id)
        ids = {span["span_id"] for span in spans} | {None}
        if all(span["parent_span_id"] in ids for span in spans):
            return await super().get_trace(run_id)
        return tree_of([span for span in spans if span["parent_span_id"] in ids])


@breaks("T1")
class CyclesAreEmpty(MemoryBackend):
    """Spans in a cycle have no trace."""

    async def get_trace(self, run_id: str) -> dict[str, Any] | None:
        try:
            return await super().get_trace(run_id)
        except InvalidStateError:
            return None


@breaks("T1")
class RecursesOverTrees(MemoryBackend):
    """A tree is built by recursion, which a long chain of spans ends."""

    async def get_trace(self, run_id: str) -> dict[str, Any] | None:
        def walk(node: Any) -> Any:
            return {**node, "children": [walk(child) for child in node["children"]]} if "children" in node else node

        trace = await super().get_trace(run_id)
        return trace and (walk(trace) if trace.get("attributes") == {} else trace)


@breaks("T1")
class ShallowTraces(MemoryBackend):
    """A trace may have 100 levels."""

    async def save_trace(self, run_id: str, trace: Mapping[str, Any]) -> None:
        node, depth = trace, 0
        while isinstance(node, dict) and isinstance(node.get("children"), list) and node["children"]:
            node, depth = node["children"][0], depth + 1
        if depth > 100:
            raise InvalidStateError("the trace is too deep")
        await super().save_trace(run_id, trace)


@breaks("T1")
class RootIsTheOnlySpan(Meddling):
    """Nodes below a node that is no span are no spans either."""

    def meddle(self, draft: Draft) -> None:
        if draft.change.trace and '"name":"between"' in draft.change.trace:
            draft.change.spans = [span for span in draft.change.spans if span.span_id != "b"]


@breaks("T2")
class OldTraceSpansStay(MemoryStore):
    """The spans of the trace before stay."""

    def _apply(self, change: Change) -> Outcome:
        return super()._apply(replace(change, drop_trace_spans=False))


@breaks("T2")
class TraceDropsAllSpans(MemoryStore):
    """A trace replaces all spans of the run, those of save_spans too."""

    def _apply(self, change: Change) -> Outcome:
        run = self._data.runs.get(change.run_id)
        if change.drop_trace_spans and run is not None:
            run.spans.clear()
        return super()._apply(change)


@breaks("T2")
class SpansMerged(MemoryBackend):
    """An updated span keeps the keys that the update doesn't have."""

    async def save_spans(self, run_id: str, spans: Sequence[Mapping[str, Any]]) -> None:
        known = {span["span_id"]: span for span in await self.get_spans(run_id)} if isinstance(spans, list) else {}
        if known and all(isinstance(span, dict) and type(span.get("span_id")) is str for span in spans):
            spans = [{**known.get(span["span_id"], {}), **span} for span in spans]
        await super().save_spans(run_id, spans)


@breaks("T2")
class FirstSpanStays(MemoryStore):
    """A span that is there already is left as it is."""

    def _apply(self, change: Change) -> Outcome:
        run = self._data.runs.get(change.run_id)
        known = run.spans if run and not change.wipe and not change.drop_trace_spans else {}
        return super()._apply(replace(change, spans=[span for span in change.spans if span.span_id not in known]))


@breaks("T2")
class SpansOfAllRuns(MemoryBackend):
    """A span_id that another run has is taken from it."""

    async def save_spans(self, run_id: str, spans: Sequence[Mapping[str, Any]]) -> None:
        await super().save_spans(run_id, spans)
        store = self._make_store()
        assert isinstance(store, MemoryStore)
        for other in store._data.runs.values():
            for span in spans if other.row.run_id != run_id else ():
                other.spans.pop(span["span_id"], None)


@breaks("T2")
class GoodSpansFirst(MemoryBackend):
    """Of spans of which one is wrong those before it are saved."""

    async def save_spans(self, run_id: str, spans: Sequence[Mapping[str, Any]]) -> None:
        try:
            await super().save_spans(run_id, spans)
        except InvalidStateError:
            if isinstance(spans, list) and spans and isinstance(spans[0], dict):
                await super().save_spans(run_id, spans[:1])
            raise


@breaks("T3", "T2")
class UpdatedSpansMove(MemoryStore):
    """An updated span loses its place among those of its start_time."""

    def _apply(self, change: Change) -> Outcome:
        run = self._data.runs.get(change.run_id)
        for span in change.spans if run else ():
            run.spans.pop(span.span_id, None)  # type: ignore[union-attr]
        return super()._apply(change)


@breaks("T3")
class SpansAsSaved(MemoryStore):
    """Spans are in the order of saving."""

    async def spans(self, run_id: str, status: str | None, name: str | None) -> list[str]:
        run = self._run(run_id)
        spans = sorted(run.spans.values(), key=lambda span: span.sequence) if run else []
        return [span.document for span in spans if status in (None, span.status) and name in (None, span.name)]


@breaks("T3")
class SpansById(MemoryStore):
    """Spans of one start_time are in the order of their ids."""

    async def spans(self, run_id: str, status: str | None, name: str | None) -> list[str]:
        run = self._run(run_id)
        spans = sorted(run.spans.values(), key=lambda span: (span.start_time, span.span_id)) if run else []
        return [span.document for span in spans if status in (None, span.status) and name in (None, span.name)]


@breaks("T3")
class SpanNameIgnored(MemoryStore):
    """get_spans ignores the name when a status is given."""

    async def spans(self, run_id: str, status: str | None, name: str | None) -> list[str]:
        return await super().spans(run_id, status, None if status else name)


class _Counting(MemoryStore):
    """Base of those that count spans wrongly."""

    async def span_statistics(
        self, pipeline_name: str | None, start: float | None, end: float | None
    ) -> list[SpanStatistic]:
        return await super().span_statistics(pipeline_name, start, end)


@breaks("T3")
class CountsUnfinishedSpans(_Counting):
    """Statistics count spans that have not ended."""

    async def span_statistics(
        self, pipeline_name: str | None, start: float | None, end: float | None
    ) -> list[SpanStatistic]:
        found = await super().span_statistics(pipeline_name, start, end)
        open_ones = [
            SpanStatistic(span.name, span.status, 1, 0.0)
            for run in self._data.runs.values()
            for span in run.spans.values()
            if span.end_time is None
        ]
        return found + open_ones


@breaks("T3")
class RangeWithoutItsEnd(_Counting):
    """The end of a time range is not in it."""

    async def span_statistics(
        self, pipeline_name: str | None, start: float | None, end: float | None
    ) -> list[SpanStatistic]:
        return await super().span_statistics(pipeline_name, start, end if end is None else end - 1e-6)


@breaks("T3")
class RangeBoundsTheEnd(_Counting):
    """A time range without a start has none of the spans that started at or before 0."""

    async def span_statistics(
        self, pipeline_name: str | None, start: float | None, end: float | None
    ) -> list[SpanStatistic]:
        return await super().span_statistics(pipeline_name, 1e-6 if start is None and end is not None else start, end)


@breaks("T3")
class StatisticsOfAllPipelines(_Counting):
    """Statistics ignore the pipeline's name."""

    async def span_statistics(
        self, pipeline_name: str | None, start: float | None, end: float | None
    ) -> list[SpanStatistic]:
        return await super().span_statistics(None, start, end)


@breaks("T3")
class StatisticsOfPlaceholders(_Counting):
    """The spans of a placeholder are those of the pipeline "unknown"."""

    async def span_statistics(
        self, pipeline_name: str | None, start: float | None, end: float | None
    ) -> list[SpanStatistic]:
        found = await super().span_statistics(pipeline_name, start, end)
        hidden = [run for run in self._data.runs.values() if not run.row.listed and run.spans]
        return found + [SpanStatistic("span", "running", len(hidden), 0.0)] * (
            pipeline_name == "unknown" and bool(hidden)
        )


@breaks("T3")
class NegativeDurationsDropped(_Counting):
    """A span that ended before it started adds nothing to the total."""

    async def span_statistics(
        self, pipeline_name: str | None, start: float | None, end: float | None
    ) -> list[SpanStatistic]:
        found = await super().span_statistics(pipeline_name, start, end)
        return [replace(group, total=max(group.total, 0.0)) for group in found]
