"""Which backends watch, clean up or keep side records wrongly (A1 to A5)?"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

from flujo_core.memory import MemoryBackend, MemoryStore
from flujo_core.model import Evaluation, RunInfo, SystemState, WorkflowStats
from flujo_core.runs import Draft, Run
from flujo_core.store import Change, Outcome, RunQuery, RunStatistic
from flujo_core.timestamps import ago

from .registry import Meddling, breaks

# --- A1, A2 ---------------------------------------------------------------------------------------------------------


@breaks("A1")
class AverageOverAll(MemoryStore):
    """Runs without an execution time count in the average."""

    async def run_statistics(self, recent_from: datetime) -> list[RunStatistic]:
        return [replace(group, timed=group.count) for group in await super().run_statistics(recent_from)]


@breaks("A1")
class RecentWithoutItsEdge(MemoryStore):
    """A run created exactly 24 hours ago is not recent."""

    async def run_statistics(self, recent_from: datetime) -> list[RunStatistic]:
        return await super().run_statistics(recent_from + timedelta(microseconds=1))


@breaks("A1")
class ForegroundCounted(MemoryStore):
    """Every run counts as a background task."""

    async def run_statistics(self, recent_from: datetime) -> list[RunStatistic]:
        return [replace(group, is_background_task=True) for group in await super().run_statistics(recent_from)]


@breaks("A1")
class AbsentStatuses(MemoryBackend):
    """Statuses that no run has are counted as 0."""

    async def get_workflow_stats(self) -> WorkflowStats:
        stats = await super().get_workflow_stats()
        stats["status_counts"] = {"cancelled": 0, **stats["status_counts"]}
        return stats


@breaks("A2")
class WindowWithoutItsEdge(MemoryStore):
    """A run last updated at the beginning of the window is not in it."""

    async def list_runs(self, query: RunQuery) -> list[str]:
        if query.updated_from is not None:
            query = replace(query, updated_from=query.updated_from + timedelta(microseconds=1))
        return await super().list_runs(query)


@breaks("A2")
class WindowByCreation(MemoryBackend):
    """The window is one of created_at."""

    async def _failed(self, query: RunQuery, hours_back: float) -> list[RunInfo]:
        since = ago(self.clock(), hours=1e6) if type(hours_back) is bool else ago(self.clock(), hours=hours_back)
        return [row for row in await super()._failed(query, hours_back) if row["created_at"] >= since]


@breaks("A2")
class FailedByCreation(MemoryStore):
    """Failed runs are listed by created_at."""

    async def list_runs(self, query: RunQuery) -> list[str]:
        return await super().list_runs(replace(query, order="created_at"))


@breaks("A2")
class StepsDontUpdate(Meddling):
    """A step does not make its run last updated."""

    def __init__(self, name: str = "", **more: Any) -> None:
        super().__init__(name, **more)
        self.before: dict[str, Any] = {}

    def meddle(self, draft: Draft) -> None:
        if draft.run and draft.change.steps:
            draft.run.recorded_at = self.before.get(draft.run.run_id, draft.run.created_at)
        elif draft.run:
            self.before[draft.run.run_id] = draft.run.recorded_at


@breaks("A2")
class WholeHours(MemoryBackend):
    """Fractions of an hour are cut."""

    async def get_failed_workflows(self, hours_back: float = 24) -> list[RunInfo]:
        return await super().get_failed_workflows(float(-(-hours_back // 1)) if hours_back == 0.5 else hours_back)


# --- A3 -------------------------------------------------------------------------------------------------------------


class _Cleaning(MemoryBackend):
    """Base of those that clean up by rules of their own."""

    def old(self, row: RunInfo, cutoff: datetime) -> bool:
        return row["created_at"] < cutoff and row["updated_at"] < cutoff

    async def pause(self) -> None:
        """Between the search and the deletion."""

    async def cleanup_old_workflows(self, days_old: float = 30, *, statuses: Collection[str] | None = None) -> int:
        # Neither removes anything, and together they refuse wrong arguments.
        await super().cleanup_old_workflows(days_old, statuses=())
        await super().cleanup_old_workflows(1e300, statuses=statuses)
        cutoff = ago(self.clock(), days=days_old)
        rows = await self._rows(RunQuery(placeholders=True))
        old = [row for row in rows if self.old(row, cutoff) and (statuses is None or row["status"] in statuses)]
        await self.pause()
        return sum([await self.delete_run(row["run_id"]) for row in old])


@breaks("A3")
class CleansByCreation(_Cleaning):
    """A cleanup looks at created_at only."""

    def old(self, row: RunInfo, cutoff: datetime) -> bool:
        return row["created_at"] < cutoff


@breaks("A3")
class CleansByUpdate(_Cleaning):
    """A cleanup looks at updated_at only."""

    def old(self, row: RunInfo, cutoff: datetime) -> bool:
        return row["updated_at"] < cutoff


@breaks("A3")
class CleansTheEdge(_Cleaning):
    """A cleanup removes a run of exactly the given age."""

    def old(self, row: RunInfo, cutoff: datetime) -> bool:
        return row["created_at"] <= cutoff and row["updated_at"] <= cutoff


@breaks("A3")
class CleansWhatWasUpdated(_Cleaning):
    """A run that is updated between the search and the deletion goes too."""

    async def pause(self) -> None:
        for _ in range(8):
            await asyncio.sleep(0)


@breaks("A3")
class CleansEveryStatus(MemoryBackend):
    """A cleanup ignores the statuses."""

    async def cleanup_old_workflows(self, days_old: float = 30, *, statuses: Collection[str] | None = None) -> int:
        none = await super().cleanup_old_workflows(1e300 if days_old == 30 else days_old, statuses=statuses)
        return none + await super().cleanup_old_workflows(days_old)


@breaks("A3")
class WholeDays(MemoryBackend):
    """Fractions of a day are cut."""

    async def cleanup_old_workflows(self, days_old: float = 30, *, statuses: Collection[str] | None = None) -> int:
        days = int(days_old) if type(days_old) is float and 0 <= days_old < 1e6 else days_old
        return await super().cleanup_old_workflows(days, statuses=statuses)


@breaks("A3")
class OnePageOnly(MemoryBackend):
    """A cleanup ends after its first page."""

    async def _pages(self, query: RunQuery, page_size: int) -> AsyncGenerator[list[Run], None]:
        yield await self._list(replace(query, limit=page_size))


@breaks("A3", "R5")
class PlaceholdersNeverGo(MemoryStore):
    """A cleanup leaves placeholders for ever."""

    async def list_runs(self, query: RunQuery) -> list[str]:
        return await super().list_runs(replace(query, placeholders=False))


@breaks("A3", "S7")
class OrphanedEvaluations(MemoryStore):
    """The evaluations of a run that went stay behind."""

    orphans: ClassVar[WeakKeyDictionary[Any, list[str]]] = WeakKeyDictionary()

    def _apply(self, change: Change) -> Outcome:
        left = self._data.runs.get(change.run_id)
        outcome = super()._apply(change)
        if left is not None and change.run_id not in self._data.runs:
            self.orphans.setdefault(self._data, []).extend(evaluation.document for evaluation in left.evaluations)
        return outcome

    async def evaluations(self, run_id: str | None, limit: int | None) -> list[str]:
        left = self.orphans.get(self._data, []) if run_id is None else []
        return (await super().evaluations(run_id, limit) + left)[:limit]


# --- A4 -------------------------------------------------------------------------------------------------------------


@breaks("A4")
class NoneIsMissing(MemoryBackend):
    """A system state of None is as one that was never set."""

    async def get_system_state(self, key: str) -> SystemState | None:
        found = await super().get_system_state(key)
        return found if found and found["value"] is not None else None


@breaks("A4")
class FirstSetStays(MemoryBackend):
    """updated_at of a system state is when it was first set."""

    def __init__(self, name: str = "", **more: Any) -> None:
        super().__init__(name, **more)
        self.first: dict[str, datetime] = {}

    async def get_system_state(self, key: str) -> SystemState | None:
        found = await super().get_system_state(key)
        return found and {**found, "updated_at": self.first.setdefault(key, found["updated_at"])}


@breaks("A4")
class ScalarsOnly(MemoryBackend):
    """An empty list as system state comes back as an empty dict."""

    async def get_system_state(self, key: str) -> SystemState | None:
        found = await super().get_system_state(key)
        return found and {**found, "value": {} if found["value"] == [] else found["value"]}


@breaks("A4")
class OldestEvaluationsFirst(MemoryStore):
    """Evaluations are listed oldest first."""

    async def evaluations(self, run_id: str | None, limit: int | None) -> list[str]:
        return (await super().evaluations(run_id, None))[::-1][:limit]


@breaks("A4")
class EvaluationsOfAllRuns(MemoryStore):
    """Of the evaluations of one run those of all runs count for the limit."""

    async def evaluations(self, run_id: str | None, limit: int | None) -> list[str]:
        some = await super().evaluations(None, limit)
        return [document for document in await super().evaluations(run_id, None) if document in some]


@breaks("A4")
class ScoresAsInts(MemoryBackend):
    """A whole score comes back as an int."""

    async def list_evaluations(self, limit: int | None = 20, run_id: str | None = None) -> list[Evaluation]:
        found = await super().list_evaluations(limit, run_id)
        for evaluation in found:
            if evaluation["score"].is_integer():
                evaluation["score"] = int(evaluation["score"])
        return found


@breaks("A4")
class AllEvaluations(MemoryBackend):
    """Without a limit all evaluations are listed."""

    async def list_evaluations(self, limit: int | None = None, run_id: str | None = None) -> list[Evaluation]:
        return await super().list_evaluations(limit, run_id)


# --- A5 -------------------------------------------------------------------------------------------------------------


@breaks("A5")
class BackgroundByFieldOnly(MemoryBackend):
    """A background task is one by its field, not by its metadata."""

    async def _rows(self, query: RunQuery) -> list[RunInfo]:
        rows = await super()._rows(query)
        if query.is_background_task:
            rows = [row for row in rows if row["metadata"].get("is_background_task") is not True]
        return rows


@breaks("A5")
class AnyTruthIsBackground(MemoryBackend):
    """A background task is one by any truthy value in its metadata."""

    async def list_background_tasks(self, *args: Any, **kwargs: Any) -> list[RunInfo]:
        rows = await self.list_runs(metadata_filter={"is_background_task": 1})
        return await super().list_background_tasks(*args, **kwargs) + rows


@breaks("A5")
class BackgroundAfterLimit(MemoryStore):
    """Background tasks are chosen from a page of all runs."""

    async def list_runs(self, query: RunQuery) -> list[str]:
        found = await super().list_runs(replace(query, limit=None, offset=0))
        page = await super().list_runs(replace(query, is_background_task=None))
        return [document for document in page if document in found]


@breaks("A5")
class ParentOfFailedIgnored(MemoryBackend):
    """Failed background tasks of all parents are listed."""

    async def get_failed_background_tasks(
        self, parent_run_id: str | None = None, hours_back: float = 24
    ) -> list[RunInfo]:
        return await super().get_failed_background_tasks(None, hours_back)


@breaks("A5")
class StaleWithoutASave(MemoryBackend):
    """A stale task is marked without a new revision."""

    def _marking(self, run_id: str, state: Any, failed: dict[str, Any], now: datetime) -> Any:
        apply, size = super()._marking(run_id, state, failed, now)

        def bent(draft: Draft) -> None:
            revision = draft.revision
            apply(draft)
            if draft.run:
                draft.run.revision = revision

        return bent, size


@breaks("A5")
class StaleTasksOfSnapshotsOnly(MemoryBackend):
    """A stale task without a snapshot stays as it is."""

    async def _mark_stale(self, run_id: str, *args: Any) -> bool:
        return await self.load_state(run_id) is not None and await super()._mark_stale(run_id, *args)


@breaks("A5")
class StaleWithoutAReason(MemoryBackend):
    """A stale task does not say why it failed."""

    def _marking(self, run_id: str, state: Any, failed: dict[str, Any], now: datetime) -> Any:
        return super()._marking(run_id, state, {**failed, "background_error": None}, now)


@breaks("A5")
class PausedTasksAreStale(MemoryBackend):
    """Tasks that are paused are stale too."""

    async def cleanup_stale_background_tasks(self, stale_hours: float = 24) -> int:
        marked = await super().cleanup_stale_background_tasks(stale_hours)
        for row in await self.list_background_tasks(status="paused"):
            state = await self.load_state(row["run_id"])
            if state and row["updated_at"] < ago(self.clock(), hours=stale_hours):
                await self.save_state(row["run_id"], {**state, "status": "failed"})
        return marked


@breaks("A5")
class StaleTasksOverwritten(MemoryBackend):
    """What a task saves while it is marked as stale is lost."""

    async def _mark_stale(self, run_id: str, cutoff: datetime, reason: str, now: datetime) -> bool:
        state = await self.load_state(run_id)
        for _ in range(4):
            await asyncio.sleep(0)
        if state is None:
            return await super()._mark_stale(run_id, cutoff, reason, now)
        failed = {"status": "failed", "background_error": reason, "updated_at": now}
        await self.save_state(run_id, {**state, **failed})
        return True
