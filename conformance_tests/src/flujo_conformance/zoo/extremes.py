"""Which backends are right until something is huge, many, nearly the same, long ago, or changed later?"""

from __future__ import annotations

import struct
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, ClassVar

from flujo_core.errors import InvalidStateError
from flujo_core.memory import MemoryStore, _StoredState
from flujo_core.store import (
    APPLIED,
    Change,
    Outcome,
    RunQuery,
    RunRow,
    RunStatistic,
    SpanStatistic,
    StoredRun,
)

from .registry import breaks

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_32_BITS = 2**32 - 1

# --- huge numbers ---


@breaks("G8")
class OffsetsOf32Bits(MemoryStore):
    """An offset wraps at 32 bits."""

    async def list_runs(self, query: RunQuery) -> list[str]:
        return await super().list_runs(replace(query, offset=query.offset & _32_BITS))


@breaks("G8")
class LimitsOf32Bits(MemoryStore):
    """The limit of a list of runs wraps at 32 bits."""

    async def list_runs(self, query: RunQuery) -> list[str]:
        limit = None if query.limit is None else query.limit & _32_BITS
        return await super().list_runs(replace(query, limit=limit))


@breaks("G8")
class EvaluationLimitsOf32Bits(MemoryStore):
    """The limit of a list of evaluations wraps at 32 bits."""

    async def evaluations(self, run_id: str | None, limit: int | None) -> list[str]:
        return await super().evaluations(run_id, None if limit is None else limit & _32_BITS)


# --- many at once ---


@breaks("G9")
class StepsPast100Lost(MemoryStore):
    """Of more than 100 steps in one commit the rest is lost."""

    def _apply(self, change: Change) -> Outcome:
        return super()._apply(replace(change, steps=change.steps[:100]))


@breaks("S8")
class HistoryPast1000Lost(MemoryStore):
    """Of more than 1,000 new entries of a history the rest is lost."""

    def _apply(self, change: Change) -> Outcome:
        return super()._apply(replace(change, history=change.history[:1000]))


@breaks("G9")
class StoredRunsOf100(MemoryStore):
    """Of more than 100 runs that are asked for at once the rest is taken for unknown."""

    async def stored_runs(self, run_ids: Sequence[str]) -> dict[str, StoredRun]:
        return await super().stored_runs(run_ids[:100])


@breaks("M4", "M1")
class IndexOf64Terms(MemoryStore):
    """Only 64 values of a run's metadata are indexed."""

    def _index(self, run: _StoredState, terms: set[int]) -> None:
        super()._index(run, set(sorted(terms)[:64]))


# --- nearly the same ---


@breaks("G5")
class SystemKeysOf255Bytes(MemoryStore):
    """Keys of system state are cut to 255 bytes."""

    async def put_system_state(self, key: str, document: str) -> None:
        await super().put_system_state(key.encode()[:255].decode(errors="ignore"), document)

    async def get_system_state(self, key: str) -> str | None:
        return await super().get_system_state(key.encode()[:255].decode(errors="ignore"))


class _Folding(MemoryStore):
    """Base of those to which some names are the same: the first one is kept."""

    def fold(self, name: str) -> str:
        raise NotImplementedError

    def kept(self, known: Iterable[str], names: Iterable[str]) -> list[str]:
        first = {self.fold(name): name for name in known}
        return [first.setdefault(self.fold(name), name) for name in names]


class _FoldingSpans(_Folding):
    def _apply(self, change: Change) -> Outcome:
        run = self._data.runs.get(change.run_id)
        kept = self.kept(run.spans if run and not change.wipe else (), (span.span_id for span in change.spans))
        spans = [span._replace(span_id=name) for span, name in zip(change.spans, kept, strict=True)]
        return super()._apply(replace(change, spans=spans))


class _FoldingRecords(_Folding):
    def _apply(self, change: Change) -> Outcome:
        run = self._data.runs.get(change.run_id)
        known = [step.record_id for step in run.steps if step.record_id] if run and not change.wipe else []
        kept = self.kept(known, (step.record_id or "" for step in change.steps))
        steps = [step._replace(record_id=name or None) for step, name in zip(change.steps, kept, strict=True)]
        return super()._apply(replace(change, steps=steps))


class _FoldingDetails(_Folding):
    def _apply(self, change: Change) -> Outcome:
        run = self._data.runs.get(change.run_id)
        kept = self.kept(run.details if run and not change.wipe else (), change.details)
        details = dict(zip(kept, change.details.values(), strict=True))
        return super()._apply(replace(change, details=details))


@breaks("G5")
class SpanIdsStripped(_FoldingSpans):
    """A span_id is compared without the spaces at its end."""

    def fold(self, name: str) -> str:
        return name.rstrip(" ")


@breaks("G5")
class SpanIdsComposed(_FoldingSpans):
    """A span_id is compared in its composed form."""

    def fold(self, name: str) -> str:
        return unicodedata.normalize("NFC", name)


@breaks("G5")
class RecordIdsStripped(_FoldingRecords):
    """A record_id is compared without the spaces at its end."""

    def fold(self, name: str) -> str:
        return name.rstrip(" ")


@breaks("G5")
class RecordIdsOf255Bytes(_FoldingRecords):
    """A record_id is compared by its first 255 bytes."""

    def fold(self, name: str) -> str:
        return name.encode()[:255].decode(errors="ignore")


@breaks("G5")
class DetailKeysFolded(_FoldingDetails):
    """Further keys of a record are compared without regard to case."""

    def fold(self, name: str) -> str:
        return name.casefold()


@breaks("G5")
class DetailKeysOf255(_FoldingDetails):
    """Further keys of a record are compared by the first 255 characters of their JSON text."""

    def fold(self, name: str) -> str:
        return name[:255]


@breaks("G5")
class SpanNamesGroupedFolded(MemoryStore):
    """Statistics don't tell apart span names that differ in case only."""

    async def span_statistics(
        self, pipeline_name: str | None, start: float | None, end: float | None
    ) -> list[SpanStatistic]:
        groups: dict[tuple[str, str], SpanStatistic] = {}
        for one in await super().span_statistics(pipeline_name, start, end):
            key = (one.name.casefold(), one.status)
            known = groups.get(key)
            groups[key] = (
                one
                if known is None
                else SpanStatistic(known.name, known.status, known.count + one.count, known.total + one.total)
            )
        return list(groups.values())


# --- changed later ---


class _FirstWrite(MemoryStore):
    """Base of those whose updates forget a column."""

    column: ClassVar[str]

    def _apply(self, change: Change) -> Outcome:
        old = None if change.wipe else self._data.runs.get(change.run_id)
        before = old.row if old else None
        outcome = super()._apply(change)
        run = self._data.runs.get(change.run_id)
        if outcome == APPLIED and run is not None and before is not None:
            known: dict[str, Any] = {self.column: getattr(before, self.column)}
            run.row = run.row._replace(**known)
        return outcome


@breaks("A1")
class TimesOfTheFirstWrite(_FirstWrite):
    """The average is of the execution times that the runs had first."""

    column = "execution_time_ms"


@breaks("A5")
class BackgroundOfTheFirstWrite(_FirstWrite):
    """A run that becomes a background task later is not found as one."""

    column = "is_background_task"


@breaks("A5", "R6")
class ParentOfTheFirstWrite(_FirstWrite):
    """A run is found by the parent_run_id that it had first."""

    column = "parent_run_id"


@breaks("R5", "R6")
class CompletedKeepsItsCreation(_FirstWrite):
    """A run that was a placeholder has the place of the placeholder's created_at."""

    column = "created_at"


@breaks("A1")
class RecentByUpdate(MemoryStore):
    """A run counts as one of the last 24 hours if it was updated in them."""

    async def run_statistics(self, recent_from: datetime) -> list[RunStatistic]:
        updated = [row for row in self._select(RunQuery()) if row.updated_at >= recent_from]
        return [
            replace(
                group,
                recent=sum(
                    (row.status, row.is_background_task) == (group.status, group.is_background_task) for row in updated
                ),
            )
            for group in await super().run_statistics(recent_from)
        ]


@breaks("S7", "A4")
class WipeLeavesEvaluations(MemoryStore):
    """A run that is deleted and saved in one commit has its old evaluations."""

    def _apply(self, change: Change) -> Outcome:
        old = self._data.runs.get(change.run_id)
        outcome = super()._apply(change)
        if outcome == APPLIED and old is not None and change.wipe and change.row is not None:
            self._data.runs[change.run_id].evaluations[:0] = old.evaluations
        return outcome


# --- times ---


def _single(bound: float | None) -> float | None:
    """As a number of single precision."""
    if bound is None or abs(bound) > 1e38:
        return bound
    value: float = struct.unpack("f", struct.pack("f", bound))[0]
    return value


@breaks("T3")
class EndZeroIsNone(MemoryStore):
    """A time range that ends at 0 has no end."""

    async def span_statistics(
        self, pipeline_name: str | None, start: float | None, end: float | None
    ) -> list[SpanStatistic]:
        return await super().span_statistics(pipeline_name, start, end or None)


@breaks("T3")
class StartZeroIsNone(MemoryStore):
    """A time range that begins at 0 has no beginning."""

    async def span_statistics(
        self, pipeline_name: str | None, start: float | None, end: float | None
    ) -> list[SpanStatistic]:
        return await super().span_statistics(pipeline_name, start or None, end)


@breaks("T3")
class SpanTimesInSinglePrecision(MemoryStore):
    """The ends of a time range are numbers of single precision."""

    async def span_statistics(
        self, pipeline_name: str | None, start: float | None, end: float | None
    ) -> list[SpanStatistic]:
        return await super().span_statistics(pipeline_name, _single(start), _single(end))


@breaks("T3")
class SpanTimesInMilliseconds(MemoryStore):
    """Spans are sorted by milliseconds."""

    async def spans(self, run_id: str, status: str | None, name: str | None) -> list[str]:
        run = self._run(run_id)
        spans = sorted(run.spans.values(), key=lambda span: (span.start_time * 1000 // 1, span.sequence)) if run else []
        return [span.document for span in spans if status in (None, span.status) and name in (None, span.name)]


@breaks("R6", "G6")
class EpochsUnsigned(MemoryStore):
    """Runs of before 1970 are sorted as though they were of 1970."""

    async def list_runs(self, query: RunQuery) -> list[str]:
        if query.after is not None or query.order != "created_at":
            return await super().list_runs(query)
        rows = sorted(self._select(query), key=lambda row: (max(row.created_at, _EPOCH), row.run_id), reverse=True)
        end = None if query.limit is None else query.offset + query.limit
        return [row.run for row in rows[query.offset : end]]


@breaks("R6", "G6")
class BoundsBefore1970(MemoryStore):
    """A bound of before 1970 is none."""

    def _select(self, query: RunQuery) -> list[RunRow]:
        bound = query.created_before
        early = bound is not None and bound < _EPOCH
        return super()._select(replace(query, created_before=None) if early else query)


# --- long documents ---


class _Columns64K(MemoryStore):
    """Base of those with a column of 65,535 characters."""

    def documents(self, change: Change) -> Iterable[str]:
        raise NotImplementedError

    def _apply(self, change: Change) -> Outcome:
        if any(len(document) > 65535 for document in self.documents(change)):
            raise InvalidStateError("too long for its column")
        return super()._apply(change)


@breaks("G3", "G4")
class LongStepsRefused(_Columns64K):
    """A step of more than 64 KiB is refused."""

    def documents(self, change: Change) -> Iterable[str]:
        return [step.document for step in change.steps]


@breaks("G3", "G4")
class LongSpansRefused(_Columns64K):
    """A span of more than 64 KiB is refused."""

    def documents(self, change: Change) -> Iterable[str]:
        return [span.document for span in change.spans]


@breaks("G3", "G4")
class LongTracesRefused(_Columns64K):
    """A trace of more than 64 KiB is refused."""

    def documents(self, change: Change) -> Iterable[str]:
        return [change.trace or ""]


@breaks("G3", "G4")
class LongEvaluationsRefused(_Columns64K):
    """An evaluation of more than 64 KiB is refused."""

    def documents(self, change: Change) -> Iterable[str]:
        return [evaluation.document for evaluation in change.evaluations]


@breaks("G3", "G4")
class LongDetailsRefused(_Columns64K):
    """Details of more than 64 KiB are refused."""

    def documents(self, change: Change) -> Iterable[str]:
        return change.details.values()


@breaks("G3", "G4")
class LongRowsRefused(_Columns64K):
    """A row with metadata of more than 64 KiB is refused."""

    def documents(self, change: Change) -> Iterable[str]:
        return [change.row.run if change.row else ""]


@breaks("G3", "G4")
class LongSystemStateRefused(MemoryStore):
    """System state of more than 64 KiB is refused."""

    async def put_system_state(self, key: str, document: str) -> None:
        if len(document) > 65535:
            raise InvalidStateError("too long for its column")
        await super().put_system_state(key, document)
