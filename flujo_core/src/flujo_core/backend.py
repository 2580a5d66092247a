"""What does Flujo promise about state? `StateBackend`: the whole contract, once, for every database.

The ids in the docstrings are those of the contract's rules. Methods are coroutines, raise only errors of
`flujo_core.errors`, and may be called from several event loops, threads and tasks (G1, G2, G11).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime
from functools import partial
from typing import Any, Unpack

from .administration import Administration
from .codec import byte_length, check_size, decode, decode_document, encode, encode_each, normalize, seal
from .errors import InvalidStateError
from .model import RunInfo, Span, SpanStatistics, State, Step
from .queries import Filters, run_query
from .runs import Draft, History, Run
from .store import RunQuery, SpanRecord, SpanStatistic, StepRecord
from .timestamps import from_text, instant, text_of
from .traces import spans_of, tree_of
from .validation import (
    STATE_DEFAULTS,
    TRACE_DEPTH,
    RunData,
    StateData,
    any_status,
    checked_span,
    checked_step,
    identifier,
    number,
    optional_identifier,
    optional_natural,
    plain_mapping,
    positive,
)


class StateBackend(Administration):
    """The state of workflow runs in one database.

    Made by `flujo_core.open_backend`, or by a plugin's own class. Making it does no I/O: it opens itself on first use,
    and again after ``shutdown()`` (G1). As an ``async with`` it opens at once and shuts down at the end.
    """

    # --- S: snapshots ------------------------------------------------------------------------------------------

    async def save_state(self, run_id: str, state: State, *, expected_revision: int | None = None) -> int:
        """Replace the run's snapshot as a whole and return its revision: 1 for the first, then one more each time (S1).

        Once it returns, the snapshot is durable (G9). ``state`` is any mapping with the keys of `model.State` and any
        others; what JSON can say comes back exactly (G3, S2, S4). ``created_at`` counts only in the run's first save or
        record; ``updated_at`` is the one given, so leave out the one that was loaded, or set it to None for now (S3).

        Raises `InvalidStateError` for a state that breaks a rule (G4, S4, S5), and `StateConflictError` if the stored
        revision is not ``expected_revision`` (0: no snapshot), with nothing written (S6).
        """
        apply, size = self._save(run_id, state, optional_natural(expected_revision, "expected_revision"))
        return await self._write(run_id, apply, size=size)  # type: ignore[no-any-return]

    def _save(self, run_id: str, state: State, expected: int | None) -> tuple[Callable[[Draft], int], int]:
        """The operation that saves a state within the limit (G4), and its size."""
        apply, size = self._save_any_size(run_id, state, expected)
        check_size(size, self._settings.max_document_bytes)
        return apply, size

    def _save_any_size(self, run_id: str, state: State, expected: int | None) -> tuple[Callable[[Draft], int], int]:
        run_id = identifier(run_id, "run_id")
        data = StateData(run_id, state)
        now = self.clock()
        plain = data.plain
        entries = encode_each(plain.get("step_history", []))
        updated_at = data.updated_at or now
        plain["updated_at"] = text_of(updated_at)
        # The entries have rows of their own (S8); a key keeps its place in the snapshot.
        for name in ("step_history", "created_at"):
            if name in plain:
                plain[name] = None
        text = encode(plain)
        size = byte_length(text) + sum(map(len, entries)) + len(entries)
        snapshot = seal(text)
        apply = partial(
            Draft.save,
            data=data,
            created_at=data.created_at or now,
            updated_at=updated_at,
            snapshot=snapshot,
            history=History(entries),
            expected_revision=expected,
        )
        return apply, size

    async def load_state(self, run_id: str) -> State | None:
        """The snapshot as saved, absent known keys with their defaults, plus ``revision``; None if there is none (S2).

        One consistent view of the latest save (G10). `SchemaTooNewError` for a snapshot in a newer format (D6).
        """
        run_id = identifier(run_id, "run_id")
        found = await (await self._store()).load(run_id)
        if found is None:
            return None
        state: State = decode_document(found.snapshot)
        for name, default in STATE_DEFAULTS.items():
            if name not in state:
                state[name] = default()
        state["run_id"], state["step_history"] = run_id, decode(f"[{found.history}]") if found.history else []
        state["created_at"], state["updated_at"] = found.created_at, from_text(state["updated_at"])
        state["revision"] = found.revision
        return state

    async def delete_state(self, run_id: str, *, expected_revision: int | None = None) -> None:
        """Remove the snapshot; deleting nothing is no error (S7). A run that has more stays listed.

        Raises `StateConflictError` as `save_state` does.
        """
        run_id = identifier(run_id, "run_id")
        expected = optional_natural(expected_revision, "expected_revision")
        await self._write(run_id, lambda draft: draft.delete_snapshot(expected))

    async def delete_run(self, run_id: str) -> bool:
        """Remove all of a run: snapshot, record, steps, traces, spans, evaluations; whether there was anything (S7)."""
        run_id = identifier(run_id, "run_id")
        return await self._write(run_id, lambda draft: draft.delete())  # type: ignore[no-any-return]

    # --- R: runs and steps -------------------------------------------------------------------------------------

    async def save_run_start(self, run_data: Mapping[str, Any]) -> None:
        """Record a run; only ``run_id`` is required (R1). Repeating it changes only the fields it contains.

        pipeline_id, pipeline_name and pipeline_version are each fixed by the first write that gives a value other than
        "unknown" and "latest". Further keys are kept and shown by `get_run_details`.
        """
        data = RunData(None, run_data, "run_data")
        run_id = data.run_id
        details, now = self._details(data), self.clock()
        await self._write(run_id, lambda draft: draft.record_start(data, details, now))

    async def save_run_end(self, run_id: str, end_data: Mapping[str, Any]) -> None:
        """Change the fields of the run's record that ``end_data`` contains (R2).

        While the run has a snapshot, the status that lists show is the snapshot's (R9): save that one too.

        Raises `RunNotFoundError` for a run that neither `save_run_start` nor `save_state` made.
        """
        run_id = identifier(run_id, "run_id")
        data = RunData(run_id, end_data, "end_data")
        details, now = self._details(data), self.clock()
        await self._write(run_id, lambda draft: draft.record_end(data, details, now))

    def _details(self, data: RunData) -> dict[str, str]:
        check_size(byte_length(encode(data.plain)), self._settings.max_document_bytes)
        return {encode(key): self._document(value) for key, value in data.details.items()}

    async def save_step_result(self, step_data: Mapping[str, Any]) -> None:
        """Append one record of a step, exactly as given (R3). run_id, step_name and step_index are required.

        Several records of one step_index stay; with a ``record_id`` that the run already has, that record is replaced,
        so a step that is done again after a crash is recorded once.
        """
        now = self.clock()
        step = checked_step(step_data, now)
        run_id, created_at, cost = step["run_id"], step["created_at"], number(step["cost_usd"], "cost_usd")
        document = self._document({key: _plain_moment(value) for key, value in step.items()})
        record = StepRecord(
            0, step["record_id"], int(step["step_index"]), step["step_name"], step["status"], cost, created_at, document
        )
        await self._write(run_id, lambda draft: draft.add_step(record), size=len(document), record_id=record.record_id)

    async def list_run_steps(self, run_id: str) -> list[Step]:
        """The records of the run's steps by (step_index, order of saving) (R4); [] for an unknown run."""
        run_id = identifier(run_id, "run_id")
        documents = await (await self._store()).list_steps(run_id)
        return [_with_moments(decode_document(document), _STEP_MOMENTS) for document in documents]

    async def get_run_details(self, run_id: str) -> dict[str, Any] | None:
        """The run's row, ``final_context`` and all further keys given to `save_run_start` and `save_run_end`.

        Shows the placeholder of a run of which only steps, traces, spans or evaluations are known (R5). None for an
        unknown run (R4).
        """
        run_id = identifier(run_id, "run_id")
        found = await (await self._store()).run_details(run_id)
        if found is None:
            return None
        document, details = found
        extra = {decode(key): decode_document(value) for key, value in details.items()}
        return {"final_context": None, **extra, **Run.from_document(document).row()}

    async def list_runs(
        self,
        status: str | None = None,
        pipeline_name: str | None = None,
        limit: int | None = None,
        offset: int = 0,
        metadata_filter: Mapping[str, Any] | None = None,
        **filters: Unpack[Filters],
    ) -> list[RunInfo]:
        """Rows of the runs for which all filters hold: newest ``created_at`` first, ties by run_id descending (R6).

        ``metadata_filter`` is JSON containment, as PostgreSQL's ``@>`` on jsonb (M1, M2); ``{}`` matches every run.
        ``created_after`` and the like are strict. ``limit=None`` is all, ``limit=0`` nothing (G8).
        """
        query = run_query(status, pipeline_name, metadata_filter, filters, limit=limit, offset=offset)
        return await self._rows(query)

    def iter_runs(
        self,
        status: str | None = None,
        pipeline_name: str | None = None,
        metadata_filter: Mapping[str, Any] | None = None,
        *,
        page_size: int = 500,
        **filters: Unpack[Filters],
    ) -> AsyncIterator[RunInfo]:
        """The same rows in the same order, read in pages (R7).

        A run that exists during the whole iteration is yielded exactly once, however many others come and go. Between
        pages nothing is held.
        """
        query = run_query(status, pipeline_name, metadata_filter, filters)
        return self._each(query, positive(page_size, "page_size"))

    async def _each(self, query: RunQuery, page_size: int) -> AsyncIterator[RunInfo]:
        async with aclosing(self._pages(query, page_size)) as pages:
            async for page in pages:
                for run in page:
                    yield run.row()

    async def count_runs(
        self,
        status: str | None = None,
        pipeline_name: str | None = None,
        metadata_filter: Mapping[str, Any] | None = None,
        **filters: Unpack[Filters],
    ) -> int:
        """How many runs `list_runs` would list with the same filters (R8)."""
        query = run_query(status, pipeline_name, metadata_filter, filters)
        return await (await self._store()).count_runs(query)

    # --- T: traces and spans -----------------------------------------------------------------------------------

    async def save_trace(self, run_id: str, trace: Mapping[str, Any]) -> None:
        """Keep the run's trace, any JSON object, and its spans: the nodes with ``span_id`` and ``name`` reached through
        ``children`` (T1). Replaces the spans that an earlier `save_trace` wrote and updates its own (T2)."""
        run_id = identifier(run_id, "run_id")
        plain = normalize(dict(trace) if isinstance(trace, Mapping) else trace, max_depth=TRACE_DEPTH)
        if not isinstance(plain, dict):
            raise InvalidStateError(f"trace is a {type(trace).__name__}, not a dict", path="$")
        now = self.clock()
        spans = [self._span_record(span, from_trace=True) for span in spans_of(plain, now)]
        document = self._document(plain)
        await self._write(
            run_id, lambda draft: draft.set_trace(document, spans, now), size=2 * len(document), solo=True
        )

    async def get_trace(self, run_id: str) -> dict[str, Any] | None:
        """The trace as saved; of a run with spans only, the tree that they make; None if there is neither (T1).

        Raises `InvalidStateError` if the spans' parents form a cycle.
        """
        run_id = identifier(run_id, "run_id")
        store = await self._store()
        document = await store.trace(run_id)
        if document is not None:
            return decode_document(document)  # type: ignore[no-any-return]
        return tree_of(await self.get_spans(run_id))

    async def save_spans(self, run_id: str, spans: Sequence[Mapping[str, Any]]) -> None:
        """Insert or update spans by span_id, all of them or none (T2)."""
        run_id = identifier(run_id, "run_id")
        if not isinstance(spans, (list, tuple)):
            raise InvalidStateError(f"spans is a {type(spans).__name__}, not a list", path="$")
        now = self.clock()
        latest: dict[str, dict[str, Any]] = {}
        for place, given in enumerate(spans):
            plain, raw = plain_mapping(given, f"spans[{place}]", ())
            span = checked_span(plain, now, given=raw, where=f"spans[{place}]")
            latest[span["span_id"]] = span
        records = [self._span_record(span, from_trace=False) for span in latest.values()]
        if records:
            size = sum(len(record.document) for record in records)
            await self._write(run_id, lambda draft: draft.add_spans(records, now), size=size, solo=True)

    def _span_record(self, span: dict[str, Any], *, from_trace: bool) -> SpanRecord:
        document = self._document({**span, "created_at": text_of(span["created_at"])})
        return SpanRecord(
            span["span_id"], 0, from_trace, span["name"], span["status"], span["start_time"], span["end_time"], document
        )

    async def get_spans(self, run_id: str, status: str | None = None, name: str | None = None) -> list[Span]:
        """The latest of each span by (start_time, order of saving) (T3)."""
        run_id = identifier(run_id, "run_id")
        status = None if status is None else any_status(status)
        name = optional_identifier(name, "name")
        documents = await (await self._store()).spans(run_id, status, name)
        return [_with_moments(decode_document(document), ("created_at",)) for document in documents]

    async def get_span_statistics(
        self, pipeline_name: str | None = None, time_range: tuple[float | None, float | None] | None = None
    ) -> SpanStatistics:
        """Counts and durations of the finished spans of all runs (T3).

        ``time_range`` bounds ``start_time``, both ends included; either end may be None.
        """
        pipeline_name = optional_identifier(pipeline_name, "pipeline_name")
        if time_range is not None and not (isinstance(time_range, Sequence) and len(time_range) == 2):
            raise InvalidStateError(f"time_range is {time_range!r:.80}, not a pair (start, end)", path="$.time_range")
        start, end = (number(bound, "time_range") for bound in time_range or (None, None))
        groups = await (await self._store()).span_statistics(pipeline_name, start, end)
        return _span_statistics(groups)


_STEP_MOMENTS = ("created_at", "start_time", "end_time")


def _plain_moment(value: Any) -> Any:
    return text_of(value) if isinstance(value, datetime) else value


def _with_moments(record: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    for name in names:
        if record[name] is not None:
            record[name] = instant(record[name], name)
    return record


def _span_statistics(groups: Sequence[SpanStatistic]) -> SpanStatistics:
    result = SpanStatistics(total_spans=0, by_name={}, by_status={}, avg_duration_by_name={})
    for group in sorted(groups, key=lambda group: (group.name, group.status)):
        result["total_spans"] += group.count
        result["by_name"][group.name] = result["by_name"].get(group.name, 0) + group.count
        result["by_status"][group.status] = result["by_status"].get(group.status, 0) + group.count
        durations = result["avg_duration_by_name"].setdefault(group.name, {"total": 0.0, "count": 0, "average": 0.0})
        durations["total"] += group.total
        durations["count"] += group.count
        durations["average"] = durations["total"] / durations["count"]
    return result
