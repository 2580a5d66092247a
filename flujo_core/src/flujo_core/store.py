"""What does a database have to do? A plugin implements `Store`; everything else is decided once, in core.

A store keeps rows and documents that core hands it, and finds them again. It decides nothing about their meaning:
no defaults, no validation, no status rules. Its one write is `Store.commit`.

How to write one: copy the folder of ``flujo_sqlite``, keep the file names, and run the conformance suite.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from operator import attrgetter
from typing import Any, ClassVar, Final, Literal, NamedTuple

from .errors import MigrationError
from .migrations import AppliedMigration, Migration


class RunRow(NamedTuple):
    """The row of a run, column by column in this order. ``run`` is the truth; the other columns are made from it by the
    writer, for filters, order and SQL."""

    run_id: str
    operation_id: bytes
    """16 bytes, unique to each write: what a compare-and-swap compares."""
    listed: bool
    """False for a placeholder, which no list, count or iteration shows."""
    pipeline_id: str
    pipeline_name: str
    pipeline_version: str
    status: str
    created_at: datetime
    updated_at: datetime
    end_time: datetime | None
    current_step_index: int
    total_steps: int
    error_message: str | None
    execution_time_ms: float | None
    memory_usage_mb: float | None
    total_cost: float | None
    is_background_task: bool
    parent_run_id: str | None
    task_id: str | None
    background_error: str | None
    revision: int
    run: str
    """A JSON document: what core needs to make rows and the next write."""


PROGRESS: Final = ("operation_id", "updated_at", "current_step_index", "total_cost", "revision", "run")
"""The columns that every step of a run changes; most writes change no other."""


class Keep:
    """The type of `KEEP`."""

    def __repr__(self) -> str:
        return "KEEP"


KEEP: Final = Keep()
"""Leave what is stored as it is."""


DIGEST_SIZE: Final = 16


class HistoryEntry(NamedTuple):
    """One entry of ``step_history``: its place from 0, `DIGEST_SIZE` bytes that tell entries apart, its JSON text."""

    position: int
    digest: bytes
    entry: str


class StepRecord(NamedTuple):
    """A step. Of one run, ``sequence`` is the order of saving. A ``record_id`` that the run already has is replaced:
    the other columns change, ``sequence`` stays."""

    sequence: int
    record_id: str | None
    step_index: int
    step_name: str
    status: str
    cost_usd: float | None
    created_at: datetime
    document: str


class SpanRecord(NamedTuple):
    """A span. A ``span_id`` that the run already has is replaced: the other columns change, ``sequence`` stays."""

    span_id: str
    sequence: int
    from_trace: bool
    name: str
    status: str
    start_time: float
    end_time: float | None
    document: str


class EvaluationRecord(NamedTuple):
    sequence: int
    score: float
    step_name: str | None
    created_at: datetime
    document: str


@dataclass(slots=True)
class Change:
    """What one commit does to one run, all of it or nothing, in the order of the fields."""

    run_id: str
    expected: bytes | None
    """The operation id that the stored row must have; None: there must be no row."""
    wipe: bool = False
    """First remove all that is the run's, its row included."""
    row: RunRow | None = None
    """The run's row from now on; None: no row (then only ``wipe`` is set). With a new row neither ``snapshot`` nor
    ``metadata`` is KEEP. Its ``created_at`` may differ from the old one's, when a placeholder is completed."""
    snapshot: str | Keep | None = KEEP
    """The snapshot document from now on; None: no snapshot."""
    metadata: str | Keep = KEEP
    """The metadata as JSON text, to be found by filters; given for a new row and when it changes."""
    only_progress: bool = False
    """All columns of the stored row but `PROGRESS` are as they are in ``row`` already, the metadata too. `columns` are
    those to set, and the indexes of the others need not be touched."""
    history_length: int | None = None
    """Remove history from this position on; None: none."""
    history: list[HistoryEntry] = field(default_factory=list)
    """Entries to put, ascending by position, replacing what is there. Positions between them are left out where the
    stored entry stays; what is stored in the end has no gap."""
    steps: list[StepRecord] = field(default_factory=list)
    """No record id twice."""
    drop_trace_spans: bool = False
    """Remove the spans that have ``from_trace``, before ``spans`` are put."""
    spans: list[SpanRecord] = field(default_factory=list)
    """In this order: a span may come twice."""
    trace: str | None = None
    """The trace document to put; None: leave it."""
    details: dict[str, str] = field(default_factory=dict)
    """Documents that only `StateBackend.get_run_details` shows, to put by key, in no order; a key is a JSON text."""
    evaluations: list[EvaluationRecord] = field(default_factory=list)

    @property
    def columns(self) -> tuple[str, ...]:
        """What an UPDATE of the row sets, and, after ``run_id``, what an INSERT gives: columns of `RunRow`, then
        ``metadata`` and ``snapshot``, if they are given."""
        return _COLUMNS[self._shape]

    @property
    def values(self) -> list[Any]:
        """Those of `columns`; only with a ``row``."""
        progress, metadata, snapshot = self._shape
        assert self.row is not None
        values = list(_PROGRESS_OF(self.row) if progress else self.row[1:])
        if metadata:
            values.append(self.metadata)
        if snapshot:
            values.append(self.snapshot)
        return values

    @property
    def _shape(self) -> tuple[bool, bool, bool]:
        return self.only_progress, isinstance(self.metadata, str), not isinstance(self.snapshot, Keep)


_PROGRESS_OF: Final = attrgetter(*PROGRESS)
_BOTH: Final = (False, True)
_COLUMNS: Final = {
    (progress, metadata, snapshot): (
        *(PROGRESS if progress else RunRow._fields[1:]), *(["metadata"] if metadata else []),
        *(["snapshot"] if snapshot else []),
    )
    for progress in _BOTH for metadata in _BOTH for snapshot in _BOTH if not (progress and metadata)
}  # fmt: skip
SETS: Final = tuple(_COLUMNS.values())
"""All that `Change.columns` may be."""


class StoredRun(NamedTuple):
    """A run as a commit needs to know it."""

    operation_id: bytes
    run: str
    history_digests: bytes
    """The digests of all entries in order, joined."""


APPLIED: Final = "applied"
BUSY: Final = "busy"
"""Another writer holds the run; nothing was done for it."""

Outcome = Literal["applied", "busy"] | StoredRun | None
"""Of one change: applied, not tried, or not expected: what is stored instead (None: nothing)."""


Migrated = Literal["applied", "busy", "changed"]
"""Of one migration: applied and recorded; another process holds the lock; or other migrations are applied than were
expected. In the latter two nothing was done."""


class Snapshot(NamedTuple):
    revision: int
    created_at: datetime
    snapshot: str
    history: str
    """The JSON texts of all entries in order, joined by commas."""


@dataclass(frozen=True, slots=True)
class RunQuery:
    """Which runs, in which order. All conditions hold together; None is no condition."""

    statuses: tuple[str, ...] | None = None
    pipeline_id: str | None = None
    pipeline_name: str | None = None
    parent_run_id: str | None = None
    is_background_task: bool | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    updated_after: datetime | None = None
    """Strictly, as the other three; ``updated_from`` includes its instant."""
    updated_before: datetime | None = None
    updated_from: datetime | None = None
    metadata_filter: Mapping[str, Any] | None = None
    """Never empty; containment as `flujo_core.containment.contains` defines it."""
    placeholders: bool = False
    """Whether placeholders are among them."""
    order: Literal["created_at", "updated_at"] = "created_at"
    """Newest first, ties by run_id descending, ids compared byte for byte in UTF-8."""
    after: tuple[datetime, str] | None = None
    """Only what comes behind this (order value, run_id)."""
    limit: int | None = None
    offset: int = 0
    """Each at most 2**63 - 1; their sum may be more."""


@dataclass(frozen=True, slots=True)
class SpanStatistic:
    name: str
    status: str
    count: int
    total: float
    """Sum of end_time - start_time."""


@dataclass(frozen=True, slots=True)
class RunStatistic:
    status: str
    is_background_task: bool
    count: int
    recent: int
    timed: int
    """How many have an execution_time_ms."""
    total_ms: float


class Store(ABC):
    """One open database, used from one event loop.

    All methods are to be there; where one is missing, Python says "Can't instantiate abstract class".

    Every method raises only `FlujoStateError`s; `commit` and `migrate` may raise `Interrupted` and `CommitUnknown` too:
    each of the others waits and tries again by itself, up to its limit. No method blocks the loop; what would block
    runs in a thread.

    A method may be called concurrently with any other. Of commits at once no two name the same run: they are at most
    ``commits_at_once`` batches, and lone changes of runs that were BUSY. Any call may be cancelled, the opening too: no
    lock, transaction or connection stays behind.

    Several stores of one process on one database are normal: for several handles and event loops, and for a migration
    beside them. A forked child makes stores of its own and never touches its parent's.

    What core does about an error of `commit`: after `Interrupted` it tries again, for ``lock_timeout``; after
    `CommitUnknown` it looks whether the change is there; after any other error of a batch it commits each change alone.
    A commit of several changes whose own wait for a lock used up ``lock_timeout`` therefore raises
    ``Interrupted(StorageTimeoutError(…))``: after any other error each change alone would wait as long again.
    """

    @abstractmethod
    async def open(self, *, create: bool) -> None:
        """Connect, or raise. Makes no table; makes the database itself (a file) only if ``create``. Called once, before
        any other method but `database`. Where nothing is to connect to and nothing may be made, nothing is applied."""

    @abstractmethod
    async def close(self) -> None:
        """Release everything; wait for what runs. Called once; also after a failed or cancelled ``open``."""

    @abstractmethod
    def abandon(self) -> None:
        """Release what can be released without a loop: the one it was used from is closed, or ``close`` took too long
        and may still be running. Takes a moment at most."""

    migrations: ClassVar[str | None] = None
    """The package with the files of this backend's migrations, such as ``flujo_sqlite.migrations``; None: it has no
    schema, and `migrate` is never called."""
    migrates_outside_transactions: ClassVar[bool] = False
    """Whether `migrate` takes a step whose ``transaction`` is False; else such a file is refused."""
    batch_size: ClassVar[int] = 200
    """The most operations of one batch."""
    commits_at_once: ClassVar[int] = 1
    """How many batches may be on their way. More than one pay where another process does the work: while it writes one
    batch, the next is prepared. A further one begins once half of ``batch_size`` wait."""

    @property
    @abstractmethod
    def database(self) -> str:
        """What messages call the place, with no password in it. Known before ``open``."""

    @abstractmethod
    async def applied_migrations(self) -> Sequence[AppliedMigration]:
        """The rows of `VERSIONS_TABLE`, then those of `DEPLOYMENT_TABLE`, each by version; writes nothing, and needs no
        more than the right to read. A table that isn't there has no rows. Raises `UnsupportedStorageError` for a
        database with tables of these names that Flujo did not make."""

    @abstractmethod
    async def migrate(self, step: Migration, expected: Sequence[AppliedMigration]) -> Migrated:
        """Apply one migration, and record it; or do nothing, if that is not the next thing to do.

        In one transaction: take the lock of migrations, without waiting for it; compare `applied_migrations`, read
        anew, with ``expected``; make the table of the series if it isn't there; run the statements, one at a time;
        record version, name, checksum, duration in ms, code_version and min_code. A record that is there already is
        replaced, but keeps its time and duration if it has a checksum. Without statements only the record is written.

        What ends a step that fails is its transaction: no mark stays behind. With ``step.transaction`` False the
        statement runs by itself, and the store sees to it that only one process runs it, and that a crash at any
        moment is mended by calling this again. Raises `MigrationError` for a statement that fails; `Interrupted` for a
        reason that may pass; `CommitUnknown` if the connection was lost before the answer.
        """

    async def is_original(self) -> bool:
        """Whether it holds the tables of the original system instead of ours (`flujo_core.original.recognised`). Asked
        only where none of Flujo's migrations is applied; as `applied_migrations` it only reads. Raises
        `UnsupportedStorageError` for tables of these names that are neither."""
        return False

    async def take_over(self, steps: Sequence[Migration]) -> Migrated:
        """Make a database of the original system one of ours, with all that it holds; or do nothing, if it is none.

        In one transaction: take the lock of migrations, without waiting for it; look again whether it is the
        original's; move its tables out of the way, where they, or a copy of them, stay; apply and record the steps as
        `migrate` does; call `flujo_core.original.transfer`. Raises what `migrate` raises.
        """
        raise MigrationError(f"{self.database} can't be taken over from the original Flujo")

    @abstractmethod
    def migration_script(self, step: Migration) -> list[str]:
        """What `migrate` does, as statements that somebody may run by hand instead, each without its semicolon."""

    @abstractmethod
    async def commit(self, changes: Sequence[Change]) -> list[Outcome]:
        """Apply each change whose expectation holds, all of them in one transaction, durably; tell each one's outcome.

        The changes name different runs and come in ascending byte order of run_id. A change whose expectation doesn't
        hold does nothing and hinders no other. With several changes, one whose run is locked by another writer may be
        BUSY; a lone change waits for the lock instead. Raises `Interrupted` if nothing was applied for a reason that
        may pass, `CommitUnknown` if the connection was lost before the answer.

        The outcomes come in the order of the changes, one each. To answer again and again that what is stored is what
        the change expects, and yet not to apply it, is a bug of the backend; core says so, as a `StorageError`.
        """

    @abstractmethod
    async def stored_runs(self, run_ids: Sequence[str]) -> dict[str, StoredRun]:
        """What is stored of these runs, of each in one consistent view; one that isn't stored is missing."""

    @abstractmethod
    async def load(self, run_id: str) -> Snapshot | None:
        """The snapshot, from one consistent view; None if the run has none."""

    @abstractmethod
    async def list_runs(self, query: RunQuery) -> list[str]:
        """The ``run`` documents of the runs that the query selects, in its order."""

    @abstractmethod
    async def count_runs(self, query: RunQuery) -> int:
        """How many runs the query selects; order, after, limit and offset are not set."""

    @abstractmethod
    async def run_details(self, run_id: str) -> tuple[str, dict[str, str]] | None:
        """The ``run`` document, placeholder or not, and the documents of its details by key, in any order; from one
        consistent view."""

    @abstractmethod
    async def step_cost(self, run_id: str, record_id: str) -> float | None:
        """The cost of a step by its record id; None if it has none or there is no such step."""

    @abstractmethod
    async def list_steps(self, run_id: str) -> list[str]:
        """Documents by (step_index, sequence)."""

    @abstractmethod
    async def trace(self, run_id: str) -> str | None:
        """The trace document."""

    @abstractmethod
    async def spans(self, run_id: str, status: str | None, name: str | None) -> list[str]:
        """Documents by (start_time, sequence)."""

    @abstractmethod
    async def span_statistics(
        self, pipeline_name: str | None, start: float | None, end: float | None
    ) -> list[SpanStatistic]:
        """Finished spans (end_time is not None) with start <= start_time <= end, grouped by name and status."""

    @abstractmethod
    async def run_statistics(self, recent_from: datetime) -> list[RunStatistic]:
        """Listed runs grouped by status and is_background_task; ``recent`` are those with created_at >= recent_from."""

    @abstractmethod
    async def evaluations(self, run_id: str | None, limit: int | None) -> list[str]:
        """Documents by created_at, run_id, sequence, all descending."""

    @abstractmethod
    async def put_system_state(self, key: str, document: str) -> None:
        """Put a document under a key, durably."""

    @abstractmethod
    async def get_system_state(self, key: str) -> str | None:
        """The document under a key."""


class Interrupted(Exception):  # noqa: N818 - a signal to core, never an error of a user
    """A commit certainly had no effect, for a reason that may pass (a lock, a deadlock, a lost connection).

    For `Store.commit` and `Store.migrate` only. ``error`` is what the user sees if it doesn't pass in time.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class CommitUnknown(Exception):  # noqa: N818 - a signal to core, never an error of a user
    """The answer to a commit was lost; ``error`` tells why. For `Store.commit` and `Store.migrate` only."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error
