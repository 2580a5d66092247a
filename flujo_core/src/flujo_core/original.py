"""What does a database of the original system hold, and how does it become ours?

A store that finds the original's tables asks `recognised`, moves them aside, makes ours, and lets `transfer` fill them:
all in one transaction. What the rows mean is decided here, in one place for all databases; what becomes of that meaning
is decided where it always is: `convert` calls the public methods of a backend whose writes go into drafts.
"""

from __future__ import annotations

import re
import secrets
from collections import Counter, deque
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from .backend import StateBackend
from .codec import decode_plain
from .errors import FlujoStateError, InvalidStateError, MigrationError, UnsupportedStorageError
from .runs import FILLERS, Draft
from .store import Change, SpanRecord
from .timestamps import instant
from .validation import IDENTITY, identifier

if TYPE_CHECKING:
    from .settings import BackendSettings

Result = TypeVar("Result")
Row = Mapping[str, Any]

# --- its tables -------------------------------------------------------------------------------------------------------

_STATE: Final = "workflow_state"
_ESSENTIAL: Final[Mapping[str, tuple[str, ...]]] = {
    _STATE: (
        "run_id", *IDENTITY, "current_step_index", "pipeline_context", "status", "created_at", "updated_at",
    ),
    "runs": ("run_id",),
    "steps": ("id", "run_id", "step_name", "step_index"),
    "traces": ("run_id", "trace_data"),
    "spans": ("id", "run_id", "span_id"),
    "evaluations": ("id", "run_id", "score"),
    "system_state": ("key", "value"),
}  # fmt: skip
_LATE: Final[Mapping[str, tuple[str, ...]]] = {
    _STATE: (
        "last_step_output", "step_history", "total_steps", "error_message", "execution_time_ms", "memory_usage_mb",
        "metadata", "is_background_task", "parent_run_id", "task_id", "background_error",
    ),
    "runs": (
        *IDENTITY, "status", "created_at", "updated_at", "execution_time_ms", "memory_usage_mb", "total_steps",
        "error_message",
    ),
    "steps": (
        "status", "output", "raw_response", "cost_usd", "token_counts", "execution_time_ms", "created_at",
    ),
    "traces": ("created_at",),
    "spans": ("parent_span_id", "name", "start_time", "end_time", "status", "attributes", "created_at"),
    "evaluations": ("step_name", "feedback", "metadata", "created_at"),
    "system_state": ("updated_at",),
}  # fmt: skip
COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {table: (*_ESSENTIAL[table], *_LATE[table]) for table in _ESSENTIAL}
"""What its tables hold. Another table may be missing, and so may columns that came later."""
_OF_RUNS: Final = tuple(table for table in COLUMNS if table != "system_state")
_DOCUMENTS: Final = frozenset(
    ("pipeline_context", "last_step_output", "step_history", "metadata", "output", "raw_response", "trace_data",
     "attributes", "value")
)  # fmt: skip
"""The columns that hold JSON, whatever the table."""
_MOMENTS: Final = ("created_at", "updated_at")


def recognised(layout: Mapping[str, Collection[str]], shown: str) -> bool:
    """Whether tables, given with their columns, are the original's; other tables beside don't matter.

    Without a table ``workflow_state`` they aren't. With one that doesn't fit, whose ever it is, Flujo can't go there:
    `UnsupportedStorageError`. ``shown`` is what messages call the place.
    """
    if _STATE not in layout:
        return False
    for table, known in COLUMNS.items():
        if table not in layout:
            continue
        lacking = [column for column in _ESSENTIAL[table] if column not in layout[table]]
        unknown = sorted(column for column in layout[table] if column not in known)
        if lacking or unknown:
            what = f"lacks the column {lacking[0]}" if lacking else f"has an unknown column {unknown[0]}"
            raise UnsupportedStorageError(
                f"{shown} has a table {table} that this library did not make, and that is not one of the original "
                f"Flujo either: it {what}; name another file or database, or mend the table"
            )
    return True


def selection(table: str, columns: Collection[str]) -> tuple[str, ...]:
    """Which of the table's columns are read, in order."""
    return tuple(column for column in COLUMNS[table] if column in columns)


# --- from its rows to changes -----------------------------------------------------------------------------------------

_SYNONYMS: Final[Mapping[str, str]] = {
    word: status
    for status, words in {
        "running": "running pending queued started in_progress",
        "paused": "paused suspended waiting",
        "completed": "completed complete success succeeded done finished",
        "failed": "failed failure error errored",
        "cancelled": "cancelled canceled aborted",
    }.items()
    for word in words.split()
}
"""The contract's word for each that stands in a run's status, in lower case."""


def convert(rows: Mapping[str, Sequence[Row]], now: datetime) -> list[Change]:
    """The rows of some runs, by table, in the order of their id: a change for each run, in byte order of run_id.

    ``now`` is the time of a run of which no time is known. Raises `MigrationError` for a value that the contract
    refuses.
    """
    runs: dict[str, dict[str, list[Row]]] = {}
    for table, found in rows.items():
        for row in found:
            runs.setdefault(row["run_id"], {}).setdefault(table, []).append(row)
    drafts = _Drafts(now)
    return [drafts.change_of(run_id, runs[run_id]) for run_id in sorted(runs)]


class _Drafts(StateBackend):
    """A backend whose writes change a draft, so that its coroutines never wait."""

    def __init__(self, now: datetime) -> None:
        super().__init__(_no_store, _settings(), clock=lambda: self._moment)
        self._now = self._moment = now
        self._draft = Draft("", None)

    async def _write(self, run_id: str, apply: Callable[[Draft], Any], **_: Any) -> Any:
        return apply(self._draft)

    def change_of(self, run_id: str, given: Mapping[str, Sequence[Row]]) -> Change:
        with _named(_STATE if _STATE in given else next(iter(given)), run_id):
            self._draft = Draft(identifier(run_id, "run_id"), None)
        rows: dict[str, list[dict[str, Any]]] = {table: [] for table in _OF_RUNS}
        for table, found in given.items():
            with _named(table, run_id):
                rows[table] = [_cleaned(row) for row in found]
        known = [row[name] for found in rows.values() for row in found for name in _MOMENTS if name in row]
        began = self._save_and_record(run_id, rows, min(known, default=self._now))
        for table, add in (
            ("steps", self._add_step),
            ("traces", self._add_trace),
            ("spans", self._add_span),
            ("evaluations", self._add_evaluation),
        ):
            for row in rows[table]:
                self._moment = row.get("created_at", began)
                with _named(table, run_id):
                    at_once(add(run_id, row))
        change = self._draft.finish(secrets.token_bytes(16))
        assert change is not None
        change.spans = _each_once(change.spans)
        return change

    def _save_and_record(self, run_id: str, rows: Mapping[str, list[dict[str, Any]]], earliest: datetime) -> datetime:
        """What the two tables that name a run say of it, the later one last. Returns when the run began."""
        both = [(table, row) for table in ("runs", _STATE) for row in rows[table]]
        begins = [row[name] for _, row in both for name in _MOMENTS[: 1 + ("created_at" not in row)] if name in row]
        began = min(begins, default=earliest)
        if not both:
            self._draft.hold(began)
        # Of equally late ones the snapshot is the last.
        both.sort(key=lambda one: one[1].get("updated_at") or one[1].get("created_at") or began)
        for table, row in both:
            row["updated_at"] = row.get("updated_at") or row.get("created_at") or began
            row["created_at"] = began
            row["status"] = _status(row.get("status"))
            with _named(table, run_id):
                if table == _STATE:
                    at_once(self.save_state(run_id, _snapshot(row)))
                else:
                    at_once(self.save_run_start(_record(row, rows[_STATE])))
        return began

    async def _add_step(self, run_id: str, row: dict[str, Any]) -> None:
        await self.save_step_result({"step_name": "unknown", **_without_blanks(row, "step_name", "status")})

    async def _add_trace(self, run_id: str, row: dict[str, Any]) -> None:
        if row.get("trace_data") is not None:
            await self.save_trace(run_id, row["trace_data"])

    async def _add_span(self, run_id: str, row: dict[str, Any]) -> None:
        content = _without_blanks(row, "parent_span_id", "name", "status")
        content.pop("run_id")
        await self.save_spans(run_id, [content])

    async def _add_evaluation(self, run_id: str, row: dict[str, Any]) -> None:
        content = _without_blanks(row, "step_name")
        score: Any = content.get("score")
        await self.persist_evaluation(
            run_id, score, content.get("feedback"), content.get("step_name"), content.get("metadata")
        )

    def system_document(self, row: Row) -> tuple[str, str]:
        """The key and the document of a row of system_state."""
        with _named("system_state", row["key"]):
            cleaned = _cleaned(row)
            self._moment = cleaned.get("updated_at", self._now)
            return identifier(row["key"], "key"), self._system_document(cleaned.get("value"))


def _no_store() -> Any:
    raise AssertionError("drafts need no store")


@cache
def _settings() -> BackendSettings:
    from .settings import BackendSettings

    # What was stored there is not too large to be stored here.
    return BackendSettings(max_document_bytes=2**62)


def at_once(work: Coroutine[Any, Any, Result]) -> Result:
    """The result of a coroutine that waits for nothing."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    raise AssertionError("it waits for something")


@contextmanager
def _named(table: str, run_id: object) -> Iterator[None]:
    try:
        yield
    except FlujoStateError as error:
        what = "key" if table == "system_state" else "run"
        raise MigrationError(f"{table}, {what} {run_id!r:.120}: {error}") from None


def _cleaned(row: Row) -> dict[str, Any]:
    """A row without id and NULL, its times as instants, its documents as values."""
    cleaned = {}
    for name, value in row.items():
        if name == "id" or value is None:
            continue
        if name in _MOMENTS:
            if value != "":
                cleaned[name] = _instant(value, name)
        else:
            cleaned[name] = _decoded(value, name) if name in _DOCUMENTS else value
    return cleaned


_TOO_FINE: Final = re.compile(r"([.][0-9]{6})[0-9]+")


def _instant(value: Any, name: str) -> datetime:
    return instant(_TOO_FINE.sub(r"\1", value.strip()) if isinstance(value, str) else value, name)


def _decoded(value: Any, name: str) -> Any:
    """The value of a JSON text, as json.loads reads what json.dumps wrote, NaN too; another text is itself."""
    if not isinstance(value, str):
        return value
    try:
        return decode_plain(value)
    except ValueError:
        return value
    except RecursionError:
        raise InvalidStateError(f"{name} is nested too deeply", path=f"$.{name}") from None


def _status(value: Any) -> Any:
    if value is None or value == "":
        return "running"
    return _SYNONYMS.get(value.strip().lower(), value) if isinstance(value, str) else value


def _without_blanks(row: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not (name in names and value == "")}


def _snapshot(row: Mapping[str, Any]) -> dict[str, Any]:
    state = _without_blanks(row, *IDENTITY, "parent_run_id", "task_id")
    if state.get("is_background_task") in (0, 1):
        state["is_background_task"] = bool(state["is_background_task"])
    defaults = dict(zip((*IDENTITY, "current_step_index"), ("unknown", "unknown", "latest", 0), strict=True))
    return {**defaults, **state}


def _record(row: Mapping[str, Any], states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A snapshot says which pipeline it is of; the record only where that doesn't know."""
    known = {name for state in states for name in IDENTITY if state.get(name, "") not in {"", *FILLERS}}
    return {name: value for name, value in _without_blanks(row, *IDENTITY).items() if name not in known}


def _each_once(spans: Sequence[SpanRecord]) -> list[SpanRecord]:
    """The last of each span at the place of its first."""
    found: dict[str, SpanRecord] = {}
    for span in spans:
        first = found.get(span.span_id, span)
        found[span.span_id] = span._replace(sequence=first.sequence)
    return list(found.values())


# --- all of it --------------------------------------------------------------------------------------------------------

CHUNK: Final = 50
"""Rows that a store reads at a time."""
_MOST_RUNS: Final = 200
_MOST_ROWS: Final = 2000
_MOST_TEXT: Final = 8 * 1024 * 1024
"""So many runs, rows and characters are converted and put at a time; a run is never divided."""


class Taking(Protocol):
    """What a store does while it takes over, in its transaction."""

    async def read(self, table: str) -> Sequence[Row]:
        """The next rows of one of the original's tables by run_id, in byte order, then id; none: there are no more."""

    async def apart(self, work: Callable[[], Result]) -> Result:
        """The result of what takes its time, without blocking an event loop."""

    async def count_original(self, table: str) -> int:
        """How many rows a table of the original has."""

    async def put(self, changes: Sequence[Change]) -> None:
        """Apply them as `Store.commit` does, or raise."""

    async def put_system_state(self, key: str, document: str) -> None: ...

    async def count(self, table: str) -> int:
        """How many rows a table of ours has."""


async def transfer(taking: Taking, tables: Collection[str], shown: str, now: datetime) -> None:
    """Put all that those tables of the original hold into ours, which are there and empty."""
    try:
        await _transfer(taking, tables, now)
    except MigrationError as error:
        raise MigrationError(
            f"{shown} can't be taken over from the original Flujo, and nothing was changed: {error}"
        ) from None


async def _transfer(taking: Taking, tables: Collection[str], now: datetime) -> None:
    reader = _Reader(taking, [table for table in _OF_RUNS if table in tables])
    put: Counter[str] = Counter()
    while rows := await reader.batch():
        changes = await taking.apart(partial(convert, rows, now))
        for change in changes:
            put.update(
                workflow_state=1,
                workflow_history=len(change.history),
                workflow_steps=len(change.steps),
                workflow_spans=len(change.spans),
                workflow_traces=change.trace is not None,
                workflow_evaluations=len(change.evaluations),
            )
        await taking.put(changes)
    drafts = _Drafts(now)
    while "system_state" in tables and (found := await taking.read("system_state")):
        for row in found:
            await taking.put_system_state(*drafts.system_document(row))
        reader.read["system_state"] += len(found)
        put["flujo_system_state"] += len(found)
    for table in tables:
        _agree(table, await taking.count_original(table), reader.read[table])
    for table in put:
        _agree(table, put[table], await taking.count(table))


def _agree(table: str, wanted: int, found: int) -> None:
    if wanted != found:
        raise MigrationError(f"{table}: {found} of {wanted} rows were taken over; this is a bug of the backend")


class _Reader:
    """All rows of several tables, run by run."""

    def __init__(self, taking: Taking, tables: Sequence[str]) -> None:
        self._taking = taking
        self._waiting: dict[str, deque[Row]] = {table: deque() for table in tables}
        self._unread = set(tables)
        self.read: Counter[str] = Counter()

    async def batch(self) -> dict[str, list[Row]]:
        """The rows of the next runs by table; none at the end."""
        rows: dict[str, list[Row]] = {}
        runs = count = size = 0
        while runs < _MOST_RUNS and count < _MOST_ROWS and size < _MOST_TEXT:
            for table in self._waiting:
                await self._fill(table)
            heads = [waiting[0]["run_id"] for waiting in self._waiting.values() if waiting]
            if not heads:
                break
            run_id = min(heads)
            for table, waiting in self._waiting.items():
                while waiting and waiting[0]["run_id"] == run_id:
                    row = waiting.popleft()
                    rows.setdefault(table, []).append(row)
                    count += 1
                    size += sum(len(value) for value in row.values() if isinstance(value, str))
                    await self._fill(table)
            runs += 1
        return rows

    async def _fill(self, table: str) -> None:
        if self._waiting[table] or table not in self._unread:
            return
        found = await self._taking.read(table)
        if not found:
            self._unread.remove(table)
        for row in found:
            if not isinstance(row["run_id"], str):
                raise MigrationError(f"{table} has a row whose run_id is {row['run_id']!r:.80}, not a text")
        self._waiting[table].extend(found)
        self.read[table] += len(found)
