"""What does a state backend answer, call by call? The oracle of the conformance kit: plain dicts, one process, no I/O.

It is written from the contract alone and imports nothing of the core but the errors, so that it shares no mistake with
the backends that are compared with it. Methods are those of a backend, without ``await``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any

from flujo_conformance import fields
from flujo_conformance.containment import contains
from flujo_conformance.fields import optional
from flujo_conformance.json_values import (
    MAX_DOCUMENT_BYTES,
    MAX_TRACE_DEPTH,
    check_size,
    fresh,
    normalise,
    refuse,
)
from flujo_conformance.run_record import IDENTITY, ROW_FIELDS, Run
from flujo_conformance.span_trees import (
    SPAN_CHECKS,
    Span,
    complete_span,
    in_order,
    rebuild_trace,
    spans_in_trace,
    statistics,
)
from flujo_core.errors import RunNotFoundError, StateConflictError

Row = dict[str, Any]

STALE_ERROR = "not updated for too long"
"""What the model says in ``background_error``; the contract leaves the words to the backend."""

STATE_CHECKS: dict[str, fields.Check] = {
    **{key: optional(check) for key, check in ROW_FIELDS.items()},
    **dict.fromkeys(("run_id", *IDENTITY), fields.identifier),
    "current_step_index": fields.counter,
    "pipeline_context": optional(fields.json_object),
    "step_history": optional(fields.json_array),
    "status": fields.status,
    "created_at": optional(fields.timestamp),
    "updated_at": optional(fields.timestamp),
}

START_CHECKS: dict[str, fields.Check] = {
    **{key: optional(check) for key, check in ROW_FIELDS.items()},
    **dict.fromkeys(IDENTITY, optional(fields.identifier)),
    **dict.fromkeys(("created_at", "start_time", "updated_at", "end_time"), optional(fields.timestamp)),
    **dict.fromkeys(("total_cost", "duration_ms"), optional(fields.number)),
    "run_id": fields.identifier,
    "status": fields.status,
}

END_CHECKS = START_CHECKS | {"cost_usd": optional(fields.number)}

STEP_CHECKS: dict[str, fields.Check] = {
    **dict.fromkeys(("run_id", "step_name"), fields.identifier),
    **dict.fromkeys(("step_run_id", "record_id"), optional(fields.identifier)),
    **dict.fromkeys(("created_at", "start_time", "end_time"), optional(fields.timestamp)),
    **dict.fromkeys(("cost_usd", "cost", "execution_time_ms", "duration_ms"), optional(fields.number)),
    **dict.fromkeys(("token_counts", "tokens"), optional(fields.counter)),
    "step_index": fields.index,
    "status": fields.label,
}


class ModelBackend:
    """The whole public API of a backend over one dict of runs; ``clock`` returns an aware datetime."""

    def __init__(self, clock: Callable[[], datetime], *, max_document_bytes: int = MAX_DOCUMENT_BYTES) -> None:
        self._clock = clock
        self._max_bytes = max_document_bytes
        self._runs: dict[str, Run] = {}
        self._evaluations: list[dict[str, Any]] = []
        self._system: dict[str, dict[str, Any]] = {}

    def _now(self) -> datetime:
        return self._clock().astimezone(UTC)

    # Snapshots

    def save_state(self, run_id: str, state: dict[str, Any], *, expected_revision: int | None = None) -> int:
        fields.identifier(run_id, "run_id")
        expected = fields.revision(expected_revision)
        document = fields.read_object(state, STATE_CHECKS, self._max_bytes, ignore=("revision",))
        fields.require(document, *IDENTITY, "current_step_index")
        if document.get("run_id", run_id) != run_id:
            refuse("$.run_id", f"this is the state of another run than {run_id!r}")
        self._check_revision(run_id, expected)
        now = self._now()
        run = self._complete(run_id, document.get("created_at") or now)
        return run.take_snapshot(document, document.get("updated_at") or now)

    def load_state(self, run_id: str) -> dict[str, Any] | None:
        run = self._find(run_id)
        return run.load(run_id) if run else None

    def delete_state(self, run_id: str, *, expected_revision: int | None = None) -> None:
        run = self._find(run_id)
        self._check_revision(run_id, fields.revision(expected_revision))
        if run is None or run.snapshot is None:
            return
        if run.has_more:
            run.forget_snapshot()
        else:
            del self._runs[run_id]

    def delete_run(self, run_id: str) -> bool:
        existed = self._find(run_id) is not None
        self._runs.pop(run_id, None)
        self._evaluations = [each for each in self._evaluations if each["run_id"] != run_id]
        return existed

    def _find(self, run_id: str) -> Run | None:
        return self._runs.get(fields.identifier(run_id, "run_id"))

    def _check_revision(self, run_id: str, expected: int | None) -> None:
        actual = self._runs[run_id].revision if run_id in self._runs else 0
        if expected is not None and expected != actual:
            raise StateConflictError(run_id, expected=expected, actual=actual)

    def _complete(self, run_id: str, created_at: datetime) -> Run:
        """The run, listed from now on; its ``created_at`` is fixed by the first call."""
        run = self._runs.setdefault(run_id, Run(created_at))
        if run.placeholder:
            run.placeholder, run.created_at = False, created_at
        return run

    def _with_more(self, run_id: str, at: datetime) -> Run:
        """The run that a record belongs to, a placeholder if it is unknown (R5)."""
        run = self._runs.setdefault(run_id, Run(at, placeholder=True))
        run.has_more = True
        return run

    # Runs and steps

    def save_run_start(self, run_data: dict[str, Any]) -> None:
        said = fields.read_object(run_data, START_CHECKS, self._max_bytes, ignore=("revision",))
        fields.require(said, "run_id")
        fields.merge_synonyms(said, "created_at", "start_time")
        fields.merge_synonyms(said, "execution_time_ms", "duration_ms")
        now = self._now()
        run = self._complete(said["run_id"], said.get("created_at") or now)
        if not run.started:
            said.setdefault("status", "running")
        run.started = run.has_more = True
        run.take_record(said, now)

    def save_run_end(self, run_id: str, end_data: dict[str, Any]) -> None:
        fields.identifier(run_id, "run_id")
        ignored = ("revision", "created_at", "start_time")
        said = fields.read_object(end_data, END_CHECKS, self._max_bytes, ignore=ignored)
        if said.get("run_id", run_id) != run_id:
            refuse("$.run_id", f"this is the end of another run than {run_id!r}")
        fields.merge_synonyms(said, "total_cost", "cost_usd")
        fields.merge_synonyms(said, "execution_time_ms", "duration_ms")
        run = self._runs.get(run_id)
        if run is None or run.placeholder:
            raise RunNotFoundError(run_id)
        run.has_more = True
        run.take_record(said, self._now())

    def save_step_result(self, step_data: dict[str, Any]) -> None:
        step = fields.read_object(step_data, STEP_CHECKS, self._max_bytes)
        fields.require(step, "run_id", "step_name", "step_index")
        for first, second in (("cost_usd", "cost"), ("token_counts", "tokens"), ("execution_time_ms", "duration_ms")):
            fields.merge_synonyms(step, first, second)
        step.setdefault("status", "completed")
        step["created_at"] = step.get("created_at") or self._now()
        self._with_more(step["run_id"], step["created_at"]).take_step(step)

    def get_run_details(self, run_id: str) -> Row | None:
        run = self._find(run_id)
        return run.details(run_id) if run else None

    def list_run_steps(self, run_id: str) -> list[dict[str, Any]]:
        run = self._find(run_id)
        return run.list_steps(run_id) if run else []

    def list_runs(
        self,
        status: str | None = None,
        pipeline_name: str | None = None,
        limit: int | None = None,
        offset: int = 0,
        metadata_filter: dict[str, Any] | None = None,
        **filters: Any,
    ) -> list[Row]:
        most, passed = fields.limit(limit), fields.offset(offset)
        rows = self._select(status, pipeline_name, metadata_filter, **filters)
        return rows[passed:][:most]

    def iter_runs(
        self,
        status: str | None = None,
        pipeline_name: str | None = None,
        metadata_filter: dict[str, Any] | None = None,
        *,
        page_size: int = 500,
        **filters: Any,
    ) -> list[Row]:
        if fields.offset(page_size, "page_size") == 0:
            refuse("page_size", "a page holds at least one run")
        return self._select(status, pipeline_name, metadata_filter, **filters)

    def count_runs(
        self,
        status: str | None = None,
        pipeline_name: str | None = None,
        metadata_filter: dict[str, Any] | None = None,
        **filters: Any,
    ) -> int:
        return len(self._select(status, pipeline_name, metadata_filter, **filters))

    def _select(
        self,
        status: str | None = None,
        pipeline_name: str | None = None,
        metadata_filter: dict[str, Any] | None = None,
        *,
        pipeline_id: str | None = None,
        parent_run_id: str | None = None,
        is_background_task: bool | None = None,
        created_after: datetime | str | None = None,
        created_before: datetime | str | None = None,
        updated_after: datetime | str | None = None,
        updated_before: datetime | str | None = None,
    ) -> list[Row]:
        """The rows that all given filters let through, newest first."""
        equal = {
            "status": optional(fields.status)(status, "status"),
            "pipeline_name": optional(fields.identifier)(pipeline_name, "pipeline_name"),
            "pipeline_id": optional(fields.identifier)(pipeline_id, "pipeline_id"),
            "parent_run_id": optional(fields.identifier)(parent_run_id, "parent_run_id"),
            "is_background_task": optional(fields.flag)(is_background_task, "is_background_task"),
        }
        after = {
            "created_at": optional(fields.timestamp)(created_after, "created_after"),
            "updated_at": optional(fields.timestamp)(updated_after, "updated_after"),
        }
        before = {
            "created_at": optional(fields.timestamp)(created_before, "created_before"),
            "updated_at": optional(fields.timestamp)(updated_before, "updated_before"),
        }
        held = self._metadata_filter(metadata_filter)
        return [
            row
            for row in self._listed()
            if all(row[key] == wanted for key, wanted in equal.items() if wanted is not None)
            and all(row[key] > bound for key, bound in after.items() if bound is not None)
            and all(row[key] < bound for key, bound in before.items() if bound is not None)
            and contains(row["metadata"], held)
        ]

    def _metadata_filter(self, given: Any) -> dict[str, Any]:
        plain = {} if given is None else normalise(given, "metadata_filter", strict=True)
        held = fields.checked_dict(plain, "metadata_filter")
        check_size(held, self._max_bytes, "metadata_filter")
        return held

    def _listed(self, by: str = "created_at") -> list[Row]:
        rows = [run.row(run_id) for run_id, run in self._runs.items() if not run.placeholder]
        return sorted(rows, key=lambda row: (row[by], row["run_id"]), reverse=True)

    def list_workflows(
        self, status: str | None = None, pipeline_id: str | None = None, limit: int | None = None, offset: int = 0
    ) -> list[Row]:
        return self.list_runs(status, limit=limit, offset=offset, pipeline_id=pipeline_id)

    def list_background_tasks(
        self, parent_run_id: str | None = None, status: str | None = None, limit: int | None = None, offset: int = 0
    ) -> list[Row]:
        return self.list_runs(status, limit=limit, offset=offset, parent_run_id=parent_run_id, is_background_task=True)

    # Traces and spans

    def save_trace(self, run_id: str, trace: dict[str, Any]) -> None:
        fields.identifier(run_id, "run_id")
        tree = fields.checked_dict(normalise(trace, max_depth=MAX_TRACE_DEPTH), "$")
        check_size(tree, self._max_bytes)
        now = self._now()
        spans = list(spans_in_trace(tree, now))
        run = self._with_more(run_id, now)
        run.trace = tree
        for span_id in run.traced_spans:
            del run.spans[span_id]
        run.spans.update((span["span_id"], span) for span in spans)
        run.traced_spans = {span["span_id"] for span in spans}

    def get_trace(self, run_id: str) -> dict[str, Any] | None:
        run = self._find(run_id)
        if run is None:
            return None
        if run.trace is not None:
            tree: dict[str, Any] = fresh(run.trace)
            return tree
        return rebuild_trace(run.spans)

    def save_spans(self, run_id: str, spans: list[dict[str, Any]]) -> None:
        fields.identifier(run_id, "run_id")
        if not isinstance(spans, (list, tuple)):
            refuse("spans", "give a list of spans")
        now = self._now()
        complete = []
        for place, span in enumerate(spans):
            given = fields.read_object(span, SPAN_CHECKS, self._max_bytes, path=f"$[{place}]")
            fields.require(given, "span_id")
            complete.append(complete_span(given, now))
        if not complete:
            return
        run = self._with_more(run_id, now)
        run.spans.update((span["span_id"], span) for span in complete)
        run.traced_spans -= {span["span_id"] for span in complete}

    def get_spans(self, run_id: str, status: str | None = None, name: str | None = None) -> list[Span]:
        run = self._find(run_id)
        wanted = {
            "status": optional(fields.label)(status, "status"),
            "name": optional(fields.identifier)(name, "name"),
        }
        return [
            fresh(span)
            for span in in_order(run.spans if run else {})
            if all(span[key] == value for key, value in wanted.items() if value is not None)
        ]

    def get_span_statistics(
        self, pipeline_name: str | None = None, time_range: tuple[float | None, float | None] | None = None
    ) -> dict[str, Any]:
        wanted = optional(fields.identifier)(pipeline_name, "pipeline_name")
        if time_range is not None and not (isinstance(time_range, (list, tuple)) and len(time_range) == 2):
            refuse("time_range", "give (start, end), each a number or None")
        start, end = (optional(fields.number)(bound, "time_range") for bound in time_range or (None, None))
        return statistics(
            [
                span
                for run_id, run in self._runs.items()
                if wanted is None or (not run.placeholder and run.row(run_id)["pipeline_name"] == wanted)
                for span in run.spans.values()
                if span["end_time"] is not None
                and (start is None or span["start_time"] >= start)
                and (end is None or span["start_time"] <= end)
            ]
        )

    # Administration

    def get_workflow_stats(self) -> dict[str, Any]:
        rows = self._listed()
        since = self._now() - timedelta(hours=24)
        times = [Fraction(row["execution_time_ms"]) for row in rows if row["execution_time_ms"] is not None]
        return {
            "total_workflows": len(rows),
            "status_counts": dict(Counter(row["status"] for row in rows)),
            "recent_workflows_24h": sum(row["created_at"] >= since for row in rows),
            "average_execution_time_ms": float(sum(times) / len(times)) if times else 0.0,
            "background_status_counts": dict(Counter(row["status"] for row in rows if row["is_background_task"])),
        }

    def get_failed_workflows(self, hours_back: float = 24) -> list[Row]:
        since = fields.cutoff(self._now(), hours_back, "hours", "hours_back")
        rows = self._listed(by="updated_at")
        return [row for row in rows if row["status"] == "failed" and row["updated_at"] >= since]

    def get_failed_background_tasks(self, parent_run_id: str | None = None, hours_back: float = 24) -> list[Row]:
        parent = optional(fields.identifier)(parent_run_id, "parent_run_id")
        return [
            row
            for row in self.get_failed_workflows(hours_back)
            if row["is_background_task"] and parent in (None, row["parent_run_id"])
        ]

    def cleanup_old_workflows(self, days_old: float = 30, *, statuses: Any = None) -> int:
        before = fields.cutoff(self._now(), days_old, "days", "days_old")
        chosen = fields.statuses(statuses)
        old = [
            run_id
            for run_id, run in self._runs.items()
            if run.created_at < before and run.updated_at < before and (chosen is None or run.status in chosen)
        ]
        for run_id in old:
            self.delete_run(run_id)
        return len(old)

    def cleanup_stale_background_tasks(self, stale_hours: float = 24) -> int:
        now = self._now()
        before = fields.cutoff(now, stale_hours, "hours", "stale_hours")
        rows = self._select("running", is_background_task=True)
        stale = [row["run_id"] for row in rows if row["updated_at"] < before]
        for run_id in stale:
            run = self._runs[run_id]
            said = {"status": "failed", "background_error": STALE_ERROR, "updated_at": now}
            if run.snapshot is not None:
                layer = run.snapshot_layer | {"background_error": STALE_ERROR}
                run.take_snapshot(run.snapshot | said, now)
                run.snapshot_layer = layer  # of the row only what marking says changes
            else:
                run.take_record(said, now)
        return len(stale)

    def persist_evaluation(
        self,
        run_id: str,
        score: float,
        feedback: str | None = None,
        step_name: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        fields.identifier(run_id, "run_id")
        kept = fields.checked_dict(normalise({} if metadata is None else metadata, "metadata"), "metadata")
        check_size(kept, self._max_bytes, "metadata")
        now = self._now()
        evaluation = {
            "run_id": run_id,
            "step_name": optional(fields.identifier)(step_name, "step_name"),
            "score": float(fields.number(score, "score")),
            "feedback": optional(fields.text)(feedback, "feedback"),
            "metadata": kept,
            "created_at": now,
        }
        self._with_more(run_id, now)
        self._evaluations.append(evaluation)

    def list_evaluations(self, limit: int | None = 20, run_id: str | None = None) -> list[dict[str, Any]]:
        most = fields.limit(limit)
        wanted = optional(fields.identifier)(run_id, "run_id")
        found = [each for each in self._evaluations if wanted in (None, each["run_id"])]
        newest = sorted(
            enumerate(found), key=lambda item: (item[1]["created_at"], item[1]["run_id"], item[0]), reverse=True
        )
        return [fresh(evaluation) for _, evaluation in newest[:most]]

    def set_system_state(self, key: str, value: Any) -> None:
        name = fields.identifier(key, "key")
        kept = normalise(value)
        check_size(kept, self._max_bytes)
        self._system[name] = {"key": name, "value": kept, "updated_at": self._now()}

    def get_system_state(self, key: str) -> dict[str, Any] | None:
        found: dict[str, Any] | None = fresh(self._system.get(fields.identifier(key, "key")))
        return found
