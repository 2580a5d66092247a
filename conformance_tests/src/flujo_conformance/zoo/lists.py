"""Which backends list, page or count wrongly (R6 to R8, G8)?"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

from flujo_core.memory import MemoryBackend, MemoryStore
from flujo_core.model import RunInfo
from flujo_core.store import RunQuery

from .registry import breaks

# --- G8 -------------------------------------------------------------------------------------------------------------


@breaks("G8")
class ZeroIsNoLimit(MemoryStore):
    """limit=0 is all."""

    async def list_runs(self, query: RunQuery) -> list[str]:
        return await super().list_runs(replace(query, limit=query.limit or None))


@breaks("G8")
class OffsetNeedsALimit(MemoryStore):
    """offset without a limit is ignored."""

    async def list_runs(self, query: RunQuery) -> list[str]:
        return await super().list_runs(query if query.limit is not None else replace(query, offset=0))


@breaks("G8")
class NegativeIsNoLimit(MemoryBackend):
    """A negative limit is none."""

    async def list_runs(self, *args: Any, **kwargs: Any) -> list[RunInfo]:
        if kwargs.get("limit") == -1:
            kwargs["limit"] = None
        return await super().list_runs(*args, **kwargs)


@breaks("G8")
class DefaultLimit(MemoryStore):
    """No limit is a limit of 100."""

    async def list_runs(self, query: RunQuery) -> list[str]:
        return await super().list_runs(replace(query, limit=100 if query.limit is None else query.limit))


@breaks("G8", "A4")
class EvaluationsUnlimited(MemoryStore):
    """limit=0 of evaluations is all."""

    async def evaluations(self, run_id: str | None, limit: int | None) -> list[str]:
        return await super().evaluations(run_id, limit or None)


# --- R6 -------------------------------------------------------------------------------------------------------------


class _Sorting(MemoryBackend):
    """Base of those that list all runs in another order."""

    def key(self, row: RunInfo) -> Any:
        raise NotImplementedError

    async def _rows(self, query: RunQuery) -> list[RunInfo]:
        end = None if query.limit is None else query.offset + query.limit
        rows = await super()._rows(replace(query, limit=None, offset=0))
        return sorted(rows, key=self.key, reverse=True)[query.offset : end]


@breaks("R6")
class OldestFirst(_Sorting):
    """Runs are listed oldest first."""

    def key(self, row: RunInfo) -> Any:
        return -row["created_at"].timestamp()


@breaks("R6")
class TiesAscending(_Sorting):
    """Of runs created at once the lowest run_id comes first."""

    def key(self, row: RunInfo) -> Any:
        return row["created_at"], [-ord(character) for character in row["run_id"]]


@breaks("R6")
class CollatedTies(_Sorting):
    """Of runs created at once the order is that of a dictionary."""

    def key(self, row: RunInfo) -> Any:
        return row["created_at"], row["run_id"].casefold(), row["run_id"]


@breaks("R6")
class Utf16Ties(_Sorting):
    """Of runs created at once the order is that of UTF-16."""

    def key(self, row: RunInfo) -> Any:
        return row["created_at"], row["run_id"].encode("utf-16-be")


@breaks("R6")
class LastUpdatedFirst(_Sorting):
    """Runs are listed by updated_at."""

    def key(self, row: RunInfo) -> Any:
        return row["updated_at"], row["run_id"]


@breaks("R6")
class LimitBeforeFilter(MemoryStore):
    """limit and offset are applied before the metadata filter."""

    async def list_runs(self, query: RunQuery) -> list[str]:
        page = await super().list_runs(replace(query, metadata_filter=None))
        found = await super().list_runs(replace(query, limit=None, offset=0))
        return [document for document in page if document in found]


@breaks("R6")
class OnlyRecordedRunsListed(MemoryBackend):
    """A run that was saved and never started is not listed."""

    async def _rows(self, query: RunQuery) -> list[RunInfo]:
        runs = await self._list(query)
        return [run.row() for run in runs if run.recorded_run]


@breaks("R6")
class BoundsIncluded(MemoryStore):
    """The bounds of created_after and created_before are included."""

    async def list_runs(self, query: RunQuery) -> list[str]:
        tick = timedelta(microseconds=1)
        if query.created_after:
            query = replace(query, created_after=query.created_after - tick)
        if query.created_before:
            query = replace(query, created_before=query.created_before + tick)
        return await super().list_runs(query)


@breaks("R6")
class ParentIgnored(MemoryStore):
    """The filter parent_run_id is ignored."""

    async def list_runs(self, query: RunQuery) -> list[str]:
        return await super().list_runs(replace(query, parent_run_id=None))


@breaks("R6")
class PipelineByPrefix(MemoryBackend):
    """pipeline_name finds those that begin with it."""

    async def _rows(self, query: RunQuery) -> list[RunInfo]:
        rows = await super()._rows(replace(query, pipeline_name=None))
        return [row for row in rows if row["pipeline_name"].lower().startswith((query.pipeline_name or "").lower())]


@breaks("R6")
class FilterKeysInRows(MemoryBackend):
    """Rows of a list have a key that those of other methods don't have."""

    async def get_failed_workflows(self, *args: Any, **kwargs: Any) -> list[RunInfo]:
        rows: list[Any] = await super().get_failed_workflows(*args, **kwargs)
        for row in rows:
            row["failure"] = row["error_message"]
        return rows


# --- R7, R8 ---------------------------------------------------------------------------------------------------------


@breaks("R7")
class OffsetPaging(MemoryBackend):
    """iter_runs pages by offset, so that what comes and goes meanwhile moves the others."""

    async def _each(self, query: RunQuery, page_size: int) -> AsyncIterator[RunInfo]:
        while page := await self._rows(replace(query, limit=page_size)):
            for row in page:
                yield row
            query = replace(query, offset=query.offset + page_size)


@breaks("R7")
class TiesSkipped(MemoryStore):
    """A page begins after the created_at of the last run, and skips those of the same instant."""

    async def list_runs(self, query: RunQuery) -> list[str]:
        return await super().list_runs(replace(query, after=query.after and (query.after[0], "")))


@breaks("R7")
class LastPageTwice(MemoryBackend):
    """A last page that is full ends the iteration too late, with its last run again."""

    async def _each(self, query: RunQuery, page_size: int) -> AsyncIterator[RunInfo]:
        number = 0
        async for row in super()._each(query, page_size):
            number += 1
            yield row
        if number and number % page_size == 0:
            yield row


@breaks("R7")
class FirstPageOnly(MemoryBackend):
    """iter_runs ends after ten pages."""

    async def _each(self, query: RunQuery, page_size: int) -> AsyncIterator[RunInfo]:
        for row in await self._rows(replace(query, limit=5 * page_size)):
            yield row


@breaks("R8")
class CountIgnoresMetadata(MemoryStore):
    """count_runs ignores the metadata filter."""

    async def count_runs(self, query: RunQuery) -> int:
        return await super().count_runs(replace(query, metadata_filter=None))


@breaks("R8")
class CountsPlaceholders(MemoryStore):
    """count_runs counts placeholders."""

    async def count_runs(self, query: RunQuery) -> int:
        return await super().count_runs(replace(query, placeholders=True))


@breaks("R8")
class CountIgnoresTime(MemoryStore):
    """count_runs ignores the bounds of time."""

    async def count_runs(self, query: RunQuery) -> int:
        return await super().count_runs(replace(query, created_before=None, created_after=None))
