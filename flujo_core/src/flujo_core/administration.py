"""How are runs watched, judged and cleaned up? Part A of the contract."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from .codec import decode_document, normalize
from .errors import InvalidStateError, StateConflictError
from .lifecycle import Lifecycle
from .model import Evaluation, RunInfo, State, SystemState, WorkflowStats
from .queries import run_query
from .runs import Draft
from .store import EvaluationRecord, RunQuery
from .timestamps import ago, instant, text_of
from .validation import (
    RunData,
    duration,
    free_text,
    identifier,
    number,
    optional_identifier,
    optional_natural,
    run_statuses,
)

_PAGE: Final = 100
"""Runs that a cleanup looks at in one go …"""
_AT_ONCE: Final = 4
"""… and that it removes in one go: a save that comes meanwhile waits for so many."""


class Administration(Lifecycle):
    # --- lists for operators -----------------------------------------------------------------------------------

    async def list_workflows(
        self, status: str | None = None, pipeline_id: str | None = None, limit: int | None = None, offset: int = 0
    ) -> list[RunInfo]:
        """`StateBackend.list_runs` by status and pipeline_id."""
        return await self._rows(run_query(status, None, None, {"pipeline_id": pipeline_id}, limit=limit, offset=offset))

    async def list_background_tasks(
        self, parent_run_id: str | None = None, status: str | None = None, limit: int | None = None, offset: int = 0
    ) -> list[RunInfo]:
        """Background tasks, by the field or the metadata key ``is_background_task`` (A5), in pages as `list_runs`."""
        filters = {"parent_run_id": parent_run_id, "is_background_task": True}
        return await self._rows(run_query(status, None, None, filters, limit=limit, offset=offset))  # type: ignore[arg-type]

    async def get_failed_workflows(self, hours_back: float = 24) -> list[RunInfo]:
        """Runs that failed and were last updated in the last ``hours_back`` hours, last updated first (A2)."""
        return await self._failed(RunQuery(), hours_back)

    async def get_failed_background_tasks(
        self, parent_run_id: str | None = None, hours_back: float = 24
    ) -> list[RunInfo]:
        """Background tasks that failed, with the window and order of `get_failed_workflows` (A5)."""
        parent_run_id = optional_identifier(parent_run_id, "parent_run_id")
        return await self._failed(RunQuery(is_background_task=True, parent_run_id=parent_run_id), hours_back)

    async def _failed(self, query: RunQuery, hours_back: float) -> list[RunInfo]:
        since = ago(self.clock(), hours=duration(hours_back, "hours_back"))
        return await self._rows(replace(query, statuses=("failed",), updated_from=since, order="updated_at"))

    async def get_workflow_stats(self) -> WorkflowStats:
        """Totals over all runs (A1)."""
        groups = await (await self._store()).run_statistics(ago(self.clock(), hours=24))
        groups.sort(key=lambda group: (group.status, group.is_background_task))
        stats = WorkflowStats(
            total_workflows=sum(group.count for group in groups),
            status_counts={},
            recent_workflows_24h=sum(group.recent for group in groups),
            average_execution_time_ms=0.0,
            background_status_counts={},
        )
        timed = sum(group.timed for group in groups)
        if timed:
            stats["average_execution_time_ms"] = sum(group.total_ms for group in groups) / timed
        for group in groups:
            for counts in (stats["status_counts"], *([stats["background_status_counts"]] * group.is_background_task)):
                counts[group.status] = counts.get(group.status, 0) + group.count
        return stats

    # --- cleaning up -------------------------------------------------------------------------------------------

    async def cleanup_old_workflows(self, days_old: float = 30, *, statuses: Collection[str] | None = None) -> int:
        """Remove all of the runs that were created *and* last updated more than ``days_old`` days ago; how many (A3).

        ``statuses`` limits it to runs of these. A run that is updated meanwhile stays: each is looked at again in the
        transaction that removes it. Fractions of a day count.
        """
        cutoff = ago(self.clock(), days=duration(days_old, "days_old"))
        chosen = run_statuses(statuses)

        def remove_if_old(draft: Draft) -> bool:
            run = draft.run
            old = run is not None and run.created_at < cutoff and run.updated_at < cutoff
            return old and (chosen is None or draft.run.status in chosen) and draft.delete()  # type: ignore[union-attr]

        query = RunQuery(
            statuses=None if chosen is None else tuple(sorted(chosen)),
            created_before=cutoff,
            updated_before=cutoff,
            placeholders=True,
        )
        removed = 0
        async for page in self._pages(query, _PAGE):
            for first in range(0, len(page), _AT_ONCE):
                runs = page[first : first + _AT_ONCE]
                removed += sum(await asyncio.gather(*(self._write(run.run_id, remove_if_old) for run in runs)))
        return removed

    async def cleanup_stale_background_tasks(self, stale_hours: float = 24) -> int:
        """Mark background tasks as failed that still run and were not updated for ``stale_hours`` hours; how many (A5).

        Of a run with a snapshot this is a save of its own: its revision rises by one.
        """
        now = self.clock()
        cutoff = ago(now, hours=duration(stale_hours, "stale_hours"))
        reason = f"no update for {stale_hours:g} hours or more: marked as failed"
        query = RunQuery(statuses=("running",), is_background_task=True, updated_before=cutoff)
        marked = 0
        async for page in self._pages(query, _PAGE):
            for run in page:
                marked += await self._mark_stale(run.run_id, cutoff, reason, now)
        return marked

    async def _mark_stale(self, run_id: str, cutoff: datetime, reason: str, now: datetime) -> bool:
        """Whether it was still stale when it was to be marked."""
        failed = {"status": "failed", "background_error": reason, "updated_at": now}
        while True:
            mark, size = self._marking(run_id, await self.load_state(run_id), failed, now)
            try:
                return await self._write(run_id, partial(_if_stale, cutoff, mark), size=size)  # type: ignore[no-any-return]
            except StateConflictError:
                continue  # It was saved meanwhile: look again.

    def _marking(
        self, run_id: str, state: State | None, failed: dict[str, Any], now: datetime
    ) -> tuple[Callable[[Draft], object], int]:
        if state is not None:
            # What could be saved can be marked.
            save, size = self._save_any_size(run_id, {**state, **failed}, state["revision"])

            def mark(draft: Draft) -> None:
                row = dict(draft.run.saved) if draft.run else {}
                save(draft)
                # Of the row only what marking says changes: the loaded state repeats older words, and says defaults.
                if draft.run:
                    draft.run.saved = {**row, "background_error": failed["background_error"]}

            return mark, size
        data = RunData(run_id, failed, "end_data")

        def end(draft: Draft) -> None:
            if draft.revision:
                raise StateConflictError(run_id, expected=0, actual=draft.revision)
            draft.record_end(data, {}, now)

        return end, 0

    if TYPE_CHECKING:  # StateBackend has them

        async def load_state(self, run_id: str) -> State | None: ...

        def _save_any_size(
            self, run_id: str, state: State, expected: int | None
        ) -> tuple[Callable[[Draft], int], int]: ...

    # --- evaluations and system state ----------------------------------------------------------------------------

    async def persist_evaluation(
        self,
        run_id: str,
        score: float,
        feedback: str | None = None,
        step_name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Append an evaluation of a run, or of one of its steps (A4). ``score`` is a finite number."""
        run_id = identifier(run_id, "run_id")
        value = number(score, "score")
        if value is None:
            raise InvalidStateError("score is None, not a number", path="$.score")
        step_name, now = optional_identifier(step_name, "step_name"), self.clock()
        plain = normalize({} if metadata is None else metadata, root="metadata")
        if not isinstance(plain, dict):
            raise InvalidStateError(f"metadata is a {type(metadata).__name__}, not a dict", path="$.metadata")
        evaluation = Evaluation(
            run_id=run_id,
            step_name=step_name,
            score=value,
            feedback=free_text(feedback, "feedback"),
            metadata=plain,
            created_at=now,
        )
        document = self._document({**evaluation, "created_at": text_of(now)})
        record = EvaluationRecord(0, value, step_name, now, document)
        await self._write(run_id, lambda draft: draft.add_evaluation(record, now), size=len(document))

    async def list_evaluations(self, limit: int | None = 20, run_id: str | None = None) -> list[Evaluation]:
        """Evaluations, newest first (A4)."""
        limit = optional_natural(limit, "limit")
        run_id = optional_identifier(run_id, "run_id")
        found = []
        for document in await (await self._store()).evaluations(run_id, limit):
            evaluation = decode_document(document)
            evaluation["created_at"] = instant(evaluation["created_at"], "created_at")
            found.append(evaluation)
        return found

    async def set_system_state(self, key: str, value: Any) -> None:
        """Keep a JSON value, None included, under a key (A4)."""
        key, document = identifier(key, "key"), self._system_document(value)
        await (await self._store()).put_system_state(key, document)

    def _system_document(self, value: Any) -> str:
        return self._document({"value": normalize(value), "updated_at": text_of(self.clock())})

    async def get_system_state(self, key: str) -> SystemState | None:
        """The value under a key and when it was set; None for an unknown key (A4)."""
        key = identifier(key, "key")
        document = await (await self._store()).get_system_state(key)
        if document is None:
            return None
        kept = decode_document(document)
        return SystemState(key=key, value=kept["value"], updated_at=instant(kept["updated_at"], "updated_at"))


def _if_stale(cutoff: datetime, mark: Callable[[Draft], object], draft: Draft) -> bool:
    run = draft.run
    if run is None or run.status != "running" or run.updated_at >= cutoff:
        return False
    mark(draft)
    return True
