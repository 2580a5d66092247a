"""Did it happen at all? What a run of the state machine has to have met before it proves anything.

A machine whose runs never meet passes on every backend. So each situation below is counted, and one that never came
up fails the test. Each is told from a call, the oracle's answer and the oracle's runs before and after.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from flujo_core.errors import FlujoStateError, InvalidStateError, RunNotFoundError, StateConflictError

from .answers import Call
from .call_trace import Ask, SetClock, Step
from .compare import identical
from .model import ModelBackend
from .panel import ORACLE, Answered, Runs, runs_of
from .run_record import Run


@dataclass(slots=True)
class Past:
    """What was before, as far as the runs don't show it."""

    writers: dict[str, int] = field(default_factory=dict)
    """The handle that saved a run's snapshot last."""
    deleted: set[str] = field(default_factory=set)
    """Runs that were deleted and are not there again."""
    without_snapshot: set[str] = field(default_factory=set)
    """Runs whose snapshot was deleted and that have none since."""
    system_keys: set[str] = field(default_factory=set)
    unread: dict[tuple[int, bool], set[str]] = field(default_factory=dict)
    """By handle that was reopened, as it was or a new one: the runs of that time that nobody wrote to since."""

    def take(self, event: Event) -> None:
        run_id = event.run_id
        if event.method == "reopen":
            self.unread[event.handle, event.args[0]] = set(event.runs)
            self.unread.pop((event.handle, not event.args[0]), None)
        elif event.method == "set_system_state":
            self.system_keys.add(event.args[0])
        elif event.method == "save_state" and not event.refused:
            self.writers[run_id] = event.handle
            self.without_snapshot.discard(run_id)
        elif event.method == "delete_state" and event.was is not None and event.was.snapshot is not None:
            self.without_snapshot.add(run_id)
        elif event.method in ("delete_run", "cleanup_old_workflows"):
            self.deleted |= event.runs.keys() - event.then.keys()
            self.without_snapshot -= self.deleted
        if event.run is not None:
            self.deleted.discard(run_id)
        if event.method in (*_WRITES, "delete_run"):
            for runs in self.unread.values():
                runs.discard(run_id)


@dataclass(frozen=True, slots=True)
class Event:
    """One call, or another step under the method ``clock`` or ``reopen``."""

    handle: int
    method: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    answer: Any
    beside: Sequence[Call]
    """The calls that were made together with this one, itself among them."""
    runs: Runs
    """Before the call."""
    then: Runs
    """After it."""
    past: Past
    model: ModelBackend

    @property
    def run_id(self) -> str:
        return _run_of((self.method, self.args, {}))

    @property
    def was(self) -> Run | None:
        return self.runs.get(self.run_id)

    @property
    def run(self) -> Run | None:
        return self.then.get(self.run_id)

    @property
    def refused(self) -> bool:
        return isinstance(self.answer, FlujoStateError)

    @property
    def overwrites(self) -> bool:
        return not self.refused and self.was is not None and self.was.snapshot is not None

    def matches(self, *without: str) -> int:
        """How many runs all filters let through; ``without`` some of them."""
        aside = {"limit", "offset", "page_size", *without}
        return self.model.count_runs(**{name: value for name, value in self.kwargs.items() if name not in aside})


def _run_of(call: Call) -> str:
    first = call[1][0] if call[1] else ""
    if isinstance(first, dict):
        first = first.get("run_id", "")
    return first if isinstance(first, str) else ""


# --- predicates -------------------------------------------------------------------------------------------------------


def _histories(event: Event) -> tuple[list[Any], list[Any]]:
    """step_history before and after a save that replaced one by another; otherwise nothing that would change."""
    if not event.overwrites or event.was is None or event.run is None:
        return [], []
    before, after = ((run.snapshot or {}).get("step_history") or [] for run in (event.was, event.run))
    return before, after


def _appended(event: Event) -> bool:
    before, after = _histories(event)
    return 0 < len(before) < len(after) and identical(before, after[: len(before)])


def _shortened(event: Event) -> bool:
    before, after = _histories(event)
    return 0 < len(after) < len(before) and identical(before[: len(after)], after)


def _same_entries(before: list[Any], after: list[Any]) -> bool:
    left = [*after]
    for entry in before:
        place = next((number for number, other in enumerate(left) if identical(entry, other)), None)
        if place is None:
            return False
        del left[place]
    return not left


def _edited(event: Event) -> bool:
    before, after = _histories(event)
    kept = [identical(entry, other) for entry, other in zip(before, after, strict=False)]
    return len(before) == len(after) and any(kept) and not all(kept)


def _reordered(event: Event) -> bool:
    before, after = _histories(event)
    return len(before) == len(after) and not identical(before, after) and _same_entries(before, after)


def _tie(event: Event) -> bool:
    times = [row["created_at"] for row in event.answer] if isinstance(event.answer, list) else []
    return len(set(times)) < len(times)


def _found(event: Event) -> int:
    return event.answer if isinstance(event.answer, int) else 0 if event.refused else len(event.answer)


def _cut_off(event: Event) -> bool:
    limit = event.kwargs.get("limit") or 0
    return 0 < limit == _found(event) and event.kwargs.get("offset", 0) + limit < event.matches()


def _ends_at_its_limit(event: Event) -> bool:
    limit = event.kwargs.get("limit") or 0
    return 0 < limit == _found(event) and event.kwargs.get("offset", 0) + limit == event.matches()


def _beyond_the_end(event: Event) -> bool:
    return event.kwargs.get("limit") != 0 and 0 < event.kwargs.get("offset", 0) >= event.matches() > 0


def _another_page(event: Event) -> bool:
    return not event.refused and len(event.answer) > event.kwargs.get("page_size", 500)


def _last_page_full(event: Event) -> bool:
    return not event.refused and bool(event.answer) and len(event.answer) % event.kwargs.get("page_size", 500) == 0


def _divides(event: Event, *filters: str) -> bool:
    """Whether the filters let some runs through and keep others out."""
    return not event.refused and 0 < event.matches() < event.matches(*filters)


def _misses(event: Event) -> bool:
    return bool(event.kwargs.get("metadata_filter")) and event.matches() == 0 < event.matches("metadata_filter")


_OTHER_FILTERS = (
    "status", "pipeline_name", "pipeline_id", "parent_run_id", "is_background_task",
    "created_after", "created_before", "updated_after", "updated_before",
)  # fmt: skip


def _one_index(event: Event) -> bool:
    steps = event.run.steps if event.run else []
    return len({step["step_index"] for step in steps}) < len(steps)


def _replaced_step(event: Event) -> bool:
    return (
        not event.refused and event.was is not None and event.run is not None and _steps(event.was) == _steps(event.run)
    )


def _steps(run: Run | None) -> int:
    return len(run.steps) if run else 0


def _replaced_span(event: Event) -> bool:
    spans = event.was.spans if event.was and not event.refused else {}
    return any(span.get("span_id") in spans for span in event.args[1])


def _trace_replaced(event: Event) -> bool:
    """A span of the trace before is not in the new one."""
    gone = event.was.traced_spans - event.run.spans.keys() if event.was and event.run else set()
    return not event.refused and bool(gone)


def _some_spans(event: Event) -> bool:
    return event.was is not None and not event.refused and 0 < len(event.answer) < len(event.was.spans)


def _completes(event: Event) -> bool:
    return event.was is not None and event.was.placeholder and event.run is not None and not event.run.placeholder


def _two_statuses(event: Event) -> bool:
    run = event.run
    return run is not None and run.snapshot is not None and run.recorded_status not in (None, run.snapshot_status)


def _together(event: Event) -> bool:
    return not event.refused and sum(_run_of(call) == event.run_id for call in event.beside) > 1


def _found_after_reopening(event: Event, new: bool) -> bool:
    return bool(event.answer) and not event.refused and event.run_id in event.past.unread.get((event.handle, new), ())


_READS = frozenset(("load_state", "get_run_details", "list_run_steps", "get_trace", "get_spans"))
_SAVES = ("save_state", "save_run_start")
_WRITES = (
    *_SAVES,
    "save_run_end",
    "save_step_result",
    "save_trace",
    "save_spans",
    "persist_evaluation",
    "delete_state",
)
_RECORDS = ("save_step_result", "save_trace", "save_spans", "persist_evaluation")
_SELECTS = ("list_runs", "iter_runs", "count_runs")
_ANY = (
    *_WRITES, *_READS, *_SELECTS, "delete_run", "cleanup_old_workflows", "cleanup_stale_background_tasks",
    "list_workflows", "list_background_tasks", "get_failed_workflows", "get_failed_background_tasks",
)  # fmt: skip

WITNESSES: Final[dict[str, tuple[Collection[str], Callable[[Event], bool]]]] = {
    # By name: the methods that can show it, and how it is told.
    "a snapshot was overwritten": (("save_state",), lambda e: e.overwrites),
    "a snapshot was overwritten through the other handle": (
        ("save_state",), lambda e: e.overwrites and e.past.writers.get(e.run_id) != e.handle
    ),
    "a save expected the revision that was there": (
        ("save_state",), lambda e: e.overwrites and e.kwargs.get("expected_revision") is not None
    ),
    "a snapshot was deleted and its run stayed": (
        ("delete_state",), lambda e: e.was is not None and e.was.snapshot is not None and e.run is not None
    ),
    "revisions began again at 1 after a snapshot was deleted": (
        ("save_state",), lambda e: e.answer == 1 and e.run_id in e.past.without_snapshot
    ),
    "a history was appended to": (("save_state",), _appended),
    "a history was edited in place": (("save_state",), _edited),
    "a history was shortened": (("save_state",), _shortened),
    "a history was reordered": (("save_state",), _reordered),
    "a run was deleted": (("delete_run",), lambda e: e.answer is True),
    "a deleted run was made again": (_WRITES, lambda e: e.run_id in e.past.deleted and e.run is not None),
    "a run was recorded again": (("save_run_start",), lambda e: not e.refused and e.was is not None and e.was.started),
    "a run was ended": (("save_run_end",), lambda e: not e.refused),
    "a snapshot and a record said different statuses": (("get_run_details",), _two_statuses),
    "a placeholder was made": (_RECORDS, lambda e: e.was is None and e.run is not None and e.run.placeholder),
    "a placeholder was completed": (_SAVES, _completes),
    "a step was replaced by its record_id": (("save_step_result",), _replaced_step),
    "a run had several steps of one index": (("list_run_steps",), _one_index),
    "two listed runs had one created_at": (("list_runs",), _tie),
    "a list was cut off at its limit": (("list_runs",), _cut_off),
    "a list ended exactly at its limit": (("list_runs",), _ends_at_its_limit),
    "an offset lay beyond the end": (("list_runs",), _beyond_the_end),
    "a full page of an iteration was followed by another": (("iter_runs",), _another_page),
    "the last page of an iteration was exactly full": (("iter_runs",), _last_page_full),
    "a metadata filter found a run": (
        _SELECTS, lambda e: bool(e.kwargs.get("metadata_filter")) and not e.refused and _found(e) > 0
    ),
    "a metadata filter found none of the runs that there were": (_SELECTS, _misses),
    "a metadata filter found some runs and not others": (_SELECTS, lambda e: _divides(e, "metadata_filter")),
    "a list had a metadata filter and a limit": (
        ("list_runs",), lambda e: bool(e.kwargs.get("limit")) and _divides(e, "metadata_filter")
    ),
    "another filter found some runs and not others": (_SELECTS, lambda e: _divides(e, *_OTHER_FILTERS)),
    "a background task was listed": (("list_background_tasks",), lambda e: _found(e) > 0),
    "a failed run was found": (("get_failed_workflows",), lambda e: _found(e) > 0),
    "a span was replaced": (("save_spans",), _replaced_span),
    "a trace replaced the spans of the one before": (("save_trace",), _trace_replaced),
    "a trace was rebuilt from spans": (
        ("get_trace",), lambda e: isinstance(e.answer, dict) and e.run is not None and e.run.trace is None
    ),
    "some spans of a run were found and not others": (("get_spans",), _some_spans),
    "finished spans were counted": (
        ("get_span_statistics",), lambda e: isinstance(e.answer, dict) and e.answer["total_spans"] > 0
    ),
    "an evaluation was listed": (("list_evaluations",), lambda e: _found(e) > 0),
    "a system value was replaced": (("set_system_state",), lambda e: not e.refused and e.args[0] in e.past.system_keys),
    "a cleanup removed a run": (("cleanup_old_workflows",), lambda e: _found(e) > 0),
    "a cleanup removed one run and left another": (("cleanup_old_workflows",), lambda e: _found(e) > 0 < len(e.then)),
    "a stale task was marked": (("cleanup_stale_background_tasks",), lambda e: _found(e) > 0),
    "writes to one run met in one batch": (_WRITES, _together),
    "a handle that was shut down read what was there before": (_READS, lambda e: _found_after_reopening(e, new=False)),
    "a new handle read what was there before": (_READS, lambda e: _found_after_reopening(e, new=True)),
    "time passed over a run": (("clock",), lambda e: len(e.runs) > 0),
    "StateConflictError": (_ANY, lambda e: isinstance(e.answer, StateConflictError)),
    "RunNotFoundError": (_ANY, lambda e: isinstance(e.answer, RunNotFoundError)),
    "InvalidStateError": (_ANY, lambda e: isinstance(e.answer, InvalidStateError)),
}  # fmt: skip


class Witnesses:
    """Counts over all examples of one run of the machine."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.calls = 0

    @property
    def missing(self) -> list[str]:
        return [name for name in WITNESSES if not self.counts[name]]

    def demand(self) -> None:
        """Fails, saying in words what never happened."""
        assert not self.missing, f"the run proves nothing of what never happened in it: {'; '.join(self.missing)}"

    def figures(self) -> str:
        return "; ".join(f"{name}: {self.counts[name]}" for name in WITNESSES)

    def note(self, step: Step, answered: Sequence[Answered], past: Past, model: ModelBackend) -> None:
        """A step that all took and agreed on."""
        if isinstance(step, Ask):
            self.calls += len(step.calls)
            for one in answered:
                method, args, kwargs = one.call
                answer = one.answers[ORACLE]
                self._tell(
                    Event(step.handle, method, args, kwargs, answer, step.calls, one.before, one.after, past, model)
                )
            return
        runs = runs_of(model)
        if isinstance(step, SetClock):
            self._tell(Event(0, "clock", (step.now,), {}, None, (), runs, runs, past, model))
        else:
            self._tell(Event(step.handle, "reopen", (step.new,), {}, None, (), runs, runs, past, model))

    def _tell(self, event: Event) -> None:
        for name, happened in _BY_METHOD.get(event.method, ()):
            self.counts[name] += happened(event)
        event.past.take(event)


_BY_METHOD: dict[str, list[tuple[str, Callable[[Event], bool]]]] = {}
for _name, (_methods, _tell) in WITNESSES.items():
    for _method in _methods:
        _BY_METHOD.setdefault(_method, []).append((_name, _tell))
