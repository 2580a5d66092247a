"""The reference store: everything in the memory of one process, under one lock."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from .backend import StateBackend
from .codec import decode_plain
from .containment import contains, document_terms, filter_terms
from .errors import ConfigurationError, MigrationError
from .migrations import AppliedMigration, Migration
from .settings import BackendSettings
from .store import (
    APPLIED,
    Change,
    EvaluationRecord,
    HistoryEntry,
    Keep,
    Migrated,
    Outcome,
    RunQuery,
    RunRow,
    RunStatistic,
    Snapshot,
    SpanRecord,
    SpanStatistic,
    StepRecord,
    Store,
    StoredRun,
)
from .uri import parse_uri


@dataclass(slots=True)
class _StoredState:
    """Everything of one run."""

    row: RunRow
    snapshot: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    terms: set[int] = field(default_factory=set)
    history: list[HistoryEntry] = field(default_factory=list)
    steps: list[StepRecord] = field(default_factory=list)
    spans: dict[str, SpanRecord] = field(default_factory=dict)
    trace: str | None = None
    details: dict[str, str] = field(default_factory=dict)
    evaluations: list[EvaluationRecord] = field(default_factory=list)


class _Data:
    """What several handles share."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.runs: dict[str, _StoredState] = {}
        self.holders: defaultdict[int, set[str]] = defaultdict(set)
        """Which runs hold a metadata term."""
        self.system: dict[str, str] = {}


_NAMED: Final[defaultdict[str, _Data]] = defaultdict(_Data)


class MemoryStore(Store):
    def __init__(self, data: _Data) -> None:
        self._data = data

    async def open(self, *, create: bool) -> None:
        pass

    async def close(self) -> None:
        pass

    def abandon(self) -> None:
        pass

    # --- schema: there is none ---

    @property
    def database(self) -> str:
        return "memory://"

    async def applied_migrations(self) -> list[AppliedMigration]:
        return []

    async def migrate(self, step: Migration, expected: Sequence[AppliedMigration]) -> Migrated:
        raise MigrationError(f"{self.database} has no schema to migrate")

    def migration_script(self, step: Migration) -> list[str]:
        return []

    # --- writing ---

    async def commit(self, changes: Sequence[Change]) -> list[Outcome]:
        with self._data.lock:
            return [self._apply(change) for change in changes]

    def _apply(self, change: Change) -> Outcome:
        run = self._data.runs.get(change.run_id)
        if (run.row.operation_id if run else None) != change.expected:
            return _stored(run) if run else None
        if run is not None and change.wipe:
            self._index(run, set())
            del self._data.runs[change.run_id]
            run = None
        if change.row is None:
            return APPLIED
        if run is None:
            run = self._data.runs[change.run_id] = _StoredState(change.row)
        run.row = change.row
        if not isinstance(change.snapshot, Keep):
            run.snapshot = change.snapshot
        if not isinstance(change.metadata, Keep):
            run.metadata = decode_plain(change.metadata)
            self._index(run, document_terms(run.metadata))
        if change.history_length is not None:
            del run.history[change.history_length :]
        for entry in change.history:
            run.history[entry.position : entry.position + 1] = [entry]
        for step in change.steps:
            _put_step(run.steps, step)
        if change.drop_trace_spans:
            run.spans = {span_id: span for span_id, span in run.spans.items() if not span.from_trace}
        for span in change.spans:
            known = run.spans.get(span.span_id)
            run.spans[span.span_id] = span._replace(sequence=known.sequence) if known else span
        run.trace = run.trace if change.trace is None else change.trace
        run.details.update(change.details)
        run.evaluations.extend(change.evaluations)
        return APPLIED

    def _index(self, run: _StoredState, terms: set[int]) -> None:
        holders, run_id = self._data.holders, run.row.run_id
        for term in run.terms - terms:
            holders[term].discard(run_id)
            if not holders[term]:
                del holders[term]
        for term in terms - run.terms:
            holders[term].add(run_id)
        run.terms = terms

    async def put_system_state(self, key: str, document: str) -> None:
        self._data.system[key] = document

    # --- reading ---

    async def stored_runs(self, run_ids: Sequence[str]) -> dict[str, StoredRun]:
        with self._data.lock:
            return {run_id: _stored(run) for run_id in run_ids if (run := self._data.runs.get(run_id))}

    async def load(self, run_id: str) -> Snapshot | None:
        with self._data.lock:
            run = self._data.runs.get(run_id)
            if run is None or run.snapshot is None:
                return None
            history = ",".join(entry.entry for entry in run.history)
            return Snapshot(run.row.revision, run.row.created_at, run.snapshot, history)

    def _select(self, query: RunQuery) -> list[RunRow]:
        with self._data.lock:
            return [run.row for run in self._candidates(query) if _matches(run, query)]

    def _candidates(self, query: RunQuery) -> Iterable[_StoredState]:
        """All runs, or those that hold the rarest term of the filter."""
        terms = filter_terms(dict(query.metadata_filter)) if query.metadata_filter else ()
        if not terms:
            return self._data.runs.values()
        rarest = min((self._data.holders.get(term, set()) for term in terms), key=len)
        return [self._data.runs[run_id] for run_id in rarest]

    async def list_runs(self, query: RunQuery) -> list[str]:
        def place(row: RunRow) -> tuple[datetime, str]:
            return (row.updated_at if query.order == "updated_at" else row.created_at, row.run_id)

        rows = sorted(self._select(query), key=place, reverse=True)
        if query.after is not None:
            rows = [row for row in rows if place(row) < query.after]
        end = None if query.limit is None else query.offset + query.limit
        return [row.run for row in rows[query.offset : end]]

    async def count_runs(self, query: RunQuery) -> int:
        return len(self._select(query))

    async def run_details(self, run_id: str) -> tuple[str, dict[str, str]] | None:
        with self._data.lock:
            run = self._data.runs.get(run_id)
            return (run.row.run, dict(sorted(run.details.items()))) if run else None

    def _run(self, run_id: str) -> _StoredState | None:
        return self._data.runs.get(run_id)

    async def step_cost(self, run_id: str, record_id: str) -> float | None:
        run = self._run(run_id)
        costs = [step.cost_usd for step in run.steps if step.record_id == record_id] if run else []
        return costs[0] if costs else None

    async def list_steps(self, run_id: str) -> list[str]:
        run = self._run(run_id)
        steps = sorted(run.steps, key=lambda step: (step.step_index, step.sequence)) if run else []
        return [step.document for step in steps]

    async def trace(self, run_id: str) -> str | None:
        run = self._run(run_id)
        return run.trace if run else None

    async def spans(self, run_id: str, status: str | None, name: str | None) -> list[str]:
        run = self._run(run_id)
        spans = sorted(run.spans.values(), key=lambda span: (span.start_time, span.sequence)) if run else []
        return [span.document for span in spans if status in (None, span.status) and name in (None, span.name)]

    async def span_statistics(
        self, pipeline_name: str | None, start: float | None, end: float | None
    ) -> list[SpanStatistic]:
        groups: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
        with self._data.lock:
            for run in self._data.runs.values():
                if pipeline_name is not None and (not run.row.listed or run.row.pipeline_name != pipeline_name):
                    continue
                for span in run.spans.values():
                    after = start is None or span.start_time >= start
                    before = end is None or span.start_time <= end
                    if span.end_time is not None and after and before:
                        groups[span.name, span.status].append(span.end_time - span.start_time)
        return [SpanStatistic(name, status, len(times), sum(times)) for (name, status), times in groups.items()]

    async def run_statistics(self, recent_from: datetime) -> list[RunStatistic]:
        groups: defaultdict[tuple[str, bool], list[RunRow]] = defaultdict(list)
        for row in self._select(RunQuery()):
            groups[row.status, row.is_background_task].append(row)
        result = []
        for (status, background), rows in groups.items():
            times = [row.execution_time_ms for row in rows if row.execution_time_ms is not None]
            recent = sum(row.created_at >= recent_from for row in rows)
            result.append(RunStatistic(status, background, len(rows), recent, len(times), sum(times)))
        return result

    async def evaluations(self, run_id: str | None, limit: int | None) -> list[str]:
        with self._data.lock:
            found = [
                (evaluation.created_at, run.row.run_id, evaluation.sequence, evaluation.document)
                for run in self._data.runs.values()
                if run_id in (None, run.row.run_id)
                for evaluation in run.evaluations
            ]
        return [document for *_, document in sorted(found, reverse=True)[:limit]]

    async def get_system_state(self, key: str) -> str | None:
        return self._data.system.get(key)


def _stored(run: _StoredState) -> StoredRun:
    return StoredRun(run.row.operation_id, run.row.run, b"".join(entry.digest for entry in run.history))


def _put_step(steps: list[StepRecord], step: StepRecord) -> None:
    for place, known in enumerate(steps):
        if step.record_id is not None and known.record_id == step.record_id:
            steps[place] = step._replace(sequence=known.sequence)
            return
    steps.append(step)


def _matches(run: _StoredState, query: RunQuery) -> bool:
    row = run.row
    return (
        (row.listed or query.placeholders)
        and (query.statuses is None or row.status in query.statuses)
        and query.pipeline_id in (None, row.pipeline_id)
        and query.pipeline_name in (None, row.pipeline_name)
        and query.parent_run_id in (None, row.parent_run_id)
        and query.is_background_task in (None, row.is_background_task)
        and (query.created_after is None or row.created_at > query.created_after)
        and (query.created_before is None or row.created_at < query.created_before)
        and (query.updated_after is None or row.updated_at > query.updated_after)
        and (query.updated_before is None or row.updated_at < query.updated_before)
        and (query.updated_from is None or row.updated_at >= query.updated_from)
        and (query.metadata_filter is None or contains(run.metadata, query.metadata_filter))
    )


class MemoryBackend(StateBackend):
    """State in the memory of this process: for tests and trials. With a name, handles of that name share it."""

    def __init__(self, name: str = "", *, settings: BackendSettings | None = None) -> None:
        data = _NAMED[name] if name else _Data()
        super().__init__(lambda: MemoryStore(data), settings or BackendSettings())

    @classmethod
    def from_uri(cls, uri: str, settings: BackendSettings) -> MemoryBackend:
        parsed = parse_uri(uri)
        if parsed.path not in ("", "/") or parsed.user or len(parsed.hosts) > 1:
            raise ConfigurationError(f"{parsed} is more than a name; write memory:// or memory://name")
        return cls("".join(parsed.hosts), settings=settings)
