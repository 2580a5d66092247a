"""What is a run, and how does each write change it? (S, R: identity, status, defaults, row rules; no database)

`Run` is what core keeps of a run in its row. `Draft` is a run while the operations of one batch change it; at the end
it becomes one `Change` for the store.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Context, Decimal, localcontext
from hashlib import blake2b, sha256
from operator import attrgetter
from typing import Any, Final

from .codec import decode_document, encode, encode_plain, seal
from .errors import RunNotFoundError, StateConflictError
from .model import RunInfo, RunStatus
from .store import (
    DIGEST_SIZE,
    PROGRESS,
    Change,
    EvaluationRecord,
    HistoryEntry,
    Keep,
    RunRow,
    SpanRecord,
    StepRecord,
    StoredRun,
)
from .timestamps import from_text, text_of
from .validation import FINISHED, RunData, StateData

FILLERS: Final = frozenset({"unknown", "latest"})
MAX_KNOWN_COSTS: Final = 1000
"""Of so many steps the costs are kept with what is stored of a run; of a run with more they are read when needed."""
# Costs add up exactly: the exponents of floats span 2,150 decimal digits.
_EXACT: Final = Context(prec=2500)
_UNPRINTABLE: Final = {0: "\ufffd", **dict.fromkeys(range(55296, 57344), "�")}


@dataclass(slots=True)
class Run:
    """One run. ``saved`` and ``recorded`` hold row fields by name: what the last snapshot and what records said."""

    run_id: str
    created_at: datetime
    operation_id: bytes = b""
    listed: bool = False
    more: bool = False
    """Whether it has anything but snapshots."""
    recorded_run: bool = False
    """Whether save_run_start was called."""
    identity: tuple[str | None, str | None, str | None] = (None, None, None)
    revision: int = 0
    sequence: int = 0
    """How many records were numbered."""
    saved_at: datetime | None = None
    recorded_at: datetime | None = None
    end_time: datetime | None = None
    saved_status: RunStatus | None = None
    recorded_status: RunStatus | None = None
    saved: dict[str, Any] = field(default_factory=dict)
    recorded: dict[str, Any] = field(default_factory=dict)
    steps_cost: str | None = None

    # --- rules ---

    def identify(self, given: tuple[Any, ...]) -> None:
        """R1: each part is fixed by the first value that is no filler."""
        if None not in self.identity:
            return
        known = zip(self.identity, given, strict=True)
        self.identity = tuple(  # type: ignore[assignment]
            old if old is not None or new in FILLERS else new for old, new in known
        )

    @property
    def status(self) -> RunStatus:
        """R9."""
        if self.revision and self.saved_status:
            return self.saved_status
        return self.recorded_status or self.saved_status or "running"

    @property
    def updated_at(self) -> datetime:
        moments = [moment for moment in (self.saved_at, self.recorded_at) if moment is not None]
        return max(moments, default=self.created_at)

    def value(self, name: str, default: Any = None) -> Any:
        """A field of the row: the last word of snapshot and records."""
        value = self.saved[name] if name in self.saved else self.recorded.get(name)
        return default if value is None else value

    @property
    def metadata(self) -> dict[str, Any]:
        return self.value("metadata", {})  # type: ignore[no-any-return]

    def next_sequence(self) -> int:
        self.sequence += 1
        return self.sequence

    def add_cost(self, new: float | None, old: float | None) -> None:
        """Keeps the exact sum of the steps' costs; None while no step has one."""
        if new is None and old is None:
            return
        total, count = self.steps_cost.split("/") if self.steps_cost else ("0", "0")
        with localcontext(_EXACT):
            amount = Decimal(total) + Decimal(repr(new or 0.0)) - Decimal(repr(old or 0.0))
        costs = int(count) + (new is not None) - (old is not None)
        self.steps_cost = f"{amount}/{costs}" if costs else None

    @property
    def total_cost(self) -> float | None:
        recorded = self.recorded.get("total_cost")
        if recorded is not None:
            return float(recorded)
        return float(self.steps_cost.split("/")[0]) if self.steps_cost else None

    # --- forms ---

    def row(self) -> RunInfo:
        """R6: the row that users get."""
        pipeline_id, name, version = self.identity
        pipeline_id = pipeline_id or "unknown"
        metadata = self.metadata
        status, updated_at = self.status, self.updated_at
        end_time = self.end_time or (updated_at if status in FINISHED else None)
        return {
            "run_id": self.run_id,
            "pipeline_id": pipeline_id,
            "pipeline_name": name or pipeline_id,
            "pipeline_version": version or "latest",
            "status": status,
            "created_at": self.created_at,
            "updated_at": updated_at,
            "start_time": self.created_at,
            "end_time": end_time,
            "current_step_index": self.value("current_step_index", 0),
            "total_steps": self.value("total_steps", 0),
            "error_message": _shown(self.value("error_message")),
            "execution_time_ms": self.value("execution_time_ms"),
            "memory_usage_mb": self.value("memory_usage_mb"),
            "total_cost": self.total_cost,
            "metadata": metadata,
            "is_background_task": self.value("is_background_task", False) or metadata.get("is_background_task") is True,
            "parent_run_id": self.value("parent_run_id"),
            "task_id": self.value("task_id"),
            "background_error": _shown(self.value("background_error")),
            "revision": self.revision,
        }

    def store_row(self) -> RunRow:
        """The columns and the document of the run's row."""
        columns: dict[str, Any] = {**self.row()}
        columns |= {"operation_id": self.operation_id, "listed": self.listed, "run": seal(encode(self._plain()))}
        return RunRow._make(map(columns.__getitem__, RunRow._fields))

    def _plain(self) -> dict[str, Any]:
        plain: dict[str, Any] = {"run_id": self.run_id, "created_at": text_of(self.created_at)}
        for name, value in zip(_PLAIN, _PLAIN_OF(self), strict=True):
            if value:
                plain[name] = text_of(value) if isinstance(value, datetime) else value
        return plain

    @classmethod
    def from_document(cls, document: str, operation_id: bytes = b"") -> Run:
        plain = decode_document(document)
        for name in _MOMENTS:
            if name in plain:
                plain[name] = from_text(plain[name])
        if "identity" in plain:
            plain["identity"] = tuple(plain["identity"])
        return cls(operation_id=operation_id, **plain)


_MOMENTS: Final = ("created_at", "saved_at", "recorded_at", "end_time")
_PLAIN: Final = tuple(name for name in Run.__slots__ if name not in ("run_id", "created_at", "operation_id"))
_PLAIN_OF: Final = attrgetter(*_PLAIN)


def _shown(text: str | None) -> str | None:
    """G5: free text in a row, where every database can hold it."""
    return text if text is None else text.translate(_UNPRINTABLE)


@dataclass(frozen=True, slots=True)
class Digests:
    """Of the entries of a step_history."""

    each: bytes
    """Those of the entries, joined."""
    whole: bytes | None = None
    """That of all entries together; None: not known."""

    def __len__(self) -> int:
        return len(self.each) // DIGEST_SIZE


@dataclass(frozen=True, slots=True)
class History:
    """The entries of step_history, as JSON texts in UTF-8."""

    entries: list[bytes]

    def beside(self, stored: Digests) -> tuple[list[HistoryEntry], Digests]:
        """The entries that differ from what is stored (S8), and the digests of all."""
        # Most histories only grow at their end, and one digest of all the rest is made more quickly than one of each.
        whole = sha256(self._joined(0, len(stored)))
        same = len(stored) if whole.digest() == stored.whole else 0
        whole.update(self._joined(len(stored), None))
        new = [blake2b(entry, digest_size=DIGEST_SIZE).digest() for entry in self.entries[same:]]
        differing = [
            HistoryEntry(position, digest, self.entries[position].decode())
            for position, digest in enumerate(new, same)
            if stored.each[(at := position * DIGEST_SIZE) : at + DIGEST_SIZE] != digest
        ]
        return differing, Digests(stored.each[: same * DIGEST_SIZE] + b"".join(new), whole.digest())

    def _joined(self, start: int, end: int | None) -> bytes:
        return b",".join([*self.entries[start:end], b""])


@dataclass(slots=True)
class Base:
    """What is stored of a run, as far as core knows: the expectation of the next commit, never an answer."""

    run: Run
    digests: Digests
    metadata: str
    """The run's, as JSON text."""
    costs: dict[str, float | None] | None
    """Of the run's steps, by record id; None: not known of all."""
    settled: tuple[Any, ...] | None = None
    """The columns of its row that are not `PROGRESS`; None: not known."""

    @classmethod
    def of(cls, stored: StoredRun) -> Base:
        run = Run.from_document(stored.run, stored.operation_id)
        return cls(run, Digests(stored.history_digests), encode_plain(run.metadata), None if run.sequence else {})

    @property
    def size(self) -> int:
        """About how many bytes it takes, beyond the run itself."""
        return len(self.digests.each) + 100 * len(self.costs or ())


class Draft:
    """One run while operations change it. Each operation checks first and changes then, so that one that fails has
    changed nothing."""

    __slots__ = (
        "_base", "_costs", "_digests", "_metadata", "_new_costs", "_settled", "change", "history", "run", "touched",
    )  # fmt: skip

    def __init__(self, run_id: str, base: Base | None, read_costs: Mapping[str, float | None] | None = None) -> None:
        """``read_costs``: of stored steps, by record id, where ``base`` doesn't know them."""
        self._base = base
        self._metadata = base.metadata if base else ""
        self.run: Run | None = _copy(base.run) if base else None
        self.change = Change(run_id, base.run.operation_id if base else None)
        self.history: History | None = None
        """From now on; None: as it was."""
        self._digests: Digests | None = None
        self._settled = base.settled if base else None
        self._costs = base.costs if base else {}
        self._new_costs = dict(read_costs or {})
        self.touched = False

    # --- what operations do ---

    @property
    def revision(self) -> int:
        return self.run.revision if self.run else 0

    def complete(self, created_at: datetime) -> Run:
        """The run for S1 or R1: made if it isn't there, no placeholder any more."""
        run = self._run(created_at)
        if not run.listed:
            run.listed, run.created_at = True, created_at
        return run

    def hold(self, now: datetime) -> Run:
        """The run for a record that needs one: a placeholder if it isn't there (R5)."""
        run = self._run(now)
        run.more = True
        return run

    def _run(self, created_at: datetime) -> Run:
        self.touched = True
        if self.run is None:
            self.run = Run(self.change.run_id, created_at)
        return self.run

    def save(
        self,
        *,
        data: StateData,
        created_at: datetime,
        updated_at: datetime,
        snapshot: str,
        history: History,
        expected_revision: int | None,
    ) -> int:
        """S1, S6."""
        if expected_revision is not None and expected_revision != self.revision:
            raise StateConflictError(self.change.run_id, expected=expected_revision, actual=self.revision)
        run = self.complete(created_at)
        run.identify(data.identity)
        run.saved, run.saved_status, run.saved_at = dict(data.fields), data.status, updated_at
        run.revision += 1
        self.change.snapshot, self.history = snapshot, history
        return run.revision

    def delete_snapshot(self, expected_revision: int | None) -> None:
        """S7."""
        run = self.run
        if expected_revision is not None and expected_revision != self.revision:
            raise StateConflictError(self.change.run_id, expected=expected_revision, actual=self.revision)
        if run is None or not run.revision:
            return
        if not run.more:
            self.delete()
            return
        self.touched = True
        run.revision = 0
        self.change.snapshot, self.history = None, History([])

    def delete(self) -> bool:
        """Everything of the run goes; whether there was anything."""
        if self.run is None:
            return False
        self.touched = True
        self.run, self.history, self._costs, self._new_costs = None, None, {}, {}
        self.change = Change(self.change.run_id, self.change.expected, wipe=self.change.expected is not None)
        return True

    def record_start(self, data: RunData, details: dict[str, str], now: datetime) -> None:
        """R1."""
        run = self.complete(data.created_at or now)
        if not run.recorded_run:
            run.recorded_run, run.recorded_status = True, "running"
        self._record(run, data, details, now)

    def record_end(self, data: RunData, details: dict[str, str], now: datetime) -> None:
        """R2."""
        if self.run is None or not self.run.listed:
            raise RunNotFoundError(self.change.run_id)
        self._record(self._run(now), data, details, now)

    def _record(self, run: Run, data: RunData, details: dict[str, str], now: datetime) -> None:
        run.more = True
        self.change.details.update(details)
        run.identify(data.identity)
        run.recorded_status = data.status or run.recorded_status
        run.recorded_at = data.updated_at or now
        if data.has_end_time:
            run.end_time = data.end_time
        run.recorded.update(data.fields)
        for name in data.fields:
            run.saved.pop(name, None)

    def add_step(self, record: StepRecord) -> None:
        """R3."""
        run = self.hold(record.created_at)
        run.recorded_at = max(run.recorded_at or record.created_at, record.created_at)
        old = None
        if record.record_id is not None:
            old = self._new_costs.get(record.record_id, (self._costs or {}).get(record.record_id))
            self._new_costs[record.record_id] = record.cost_usd
        run.add_cost(record.cost_usd, old)
        self._put_step(record._replace(sequence=run.next_sequence()))

    def _put_step(self, record: StepRecord) -> None:
        """One change never names a record twice."""
        steps = self.change.steps
        for place, other in enumerate(steps):
            if record.record_id is not None and other.record_id == record.record_id:
                steps[place] = record._replace(sequence=other.sequence)
                return
        steps.append(record)

    def add_spans(self, spans: list[SpanRecord], now: datetime) -> None:
        """T2."""
        run = self.hold(now)
        self.change.spans.extend(span._replace(sequence=run.next_sequence()) for span in spans)

    def set_trace(self, trace: str, spans: list[SpanRecord], now: datetime) -> None:
        """T1, T2."""
        self.change.drop_trace_spans = True
        self.change.trace = trace
        self.add_spans(spans, now)

    def add_evaluation(self, record: EvaluationRecord, now: datetime) -> None:
        """A4."""
        run = self.hold(now)
        self.change.evaluations.append(record._replace(sequence=run.next_sequence()))

    # --- what becomes of it ---

    def finish(self, operation_id: bytes) -> Change | None:
        """The change for the store; None if nothing is to be written."""
        if not self.touched:
            return None
        change, run = self.change, self.run
        if run is None:
            return change if change.expected is not None else None
        run.operation_id = operation_id
        change.row = run.store_row()
        fresh = self._base is None or change.wipe
        self._metadata = encode_plain(run.metadata)
        self._settled = _SETTLED_OF(change.row)
        if fresh or self._base is None or self._metadata != self._base.metadata:
            change.metadata = self._metadata
        else:
            change.only_progress = self._settled == self._base.settled
        if fresh and isinstance(change.snapshot, Keep):
            change.snapshot = None
        if self.history is not None:
            stored = Digests(b"") if fresh or self._base is None else self._base.digests
            change.history, self._digests = self.history.beside(stored)
            if len(self._digests) < len(stored):
                change.history_length = len(self.history.entries)
        return change

    def result(self) -> Base | None:
        """What is stored once the change is applied."""
        if self.run is None:
            return None
        digests = self._digests
        if digests is None:
            digests = self._base.digests if self._base and not self.change.wipe else Digests(b"")
        costs = self._costs
        if costs is not None and self._new_costs:
            costs = {**costs, **self._new_costs} if len(costs) < MAX_KNOWN_COSTS else None
        return Base(self.run, digests, self._metadata, costs, self._settled)


_FIELDS_OF: Final = attrgetter(*Run.__slots__)
_SETTLED_OF: Final = attrgetter(*(name for name in RunRow._fields if name not in PROGRESS))


def _copy(run: Run) -> Run:
    """As `dataclasses.replace`, which looks at each field's definition."""
    copy = Run(*_FIELDS_OF(run))
    copy.saved, copy.recorded = dict(run.saved), dict(run.recorded)
    return copy
