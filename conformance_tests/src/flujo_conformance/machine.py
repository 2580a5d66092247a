"""Does a backend answer as the oracle does, whatever is called in whatever order? A Hypothesis state machine.

Each rule asks the oracle and one backend or several alike and compares their answers, or the exact classes of their
errors, type-strictly.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from flujo_core import StateBackend

from . import strategies as make
from .answers import Call, written
from .call_trace import Ask, InvalidState, Reopen, SetClock, Step, Trace, step_from_json, step_to_json
from .harness import Harness
from .panel import NAMESPACE, ORACLE, START, Answered, Clock, Panel
from .scenes import SCENES
from .witnesses import Past, Witnesses

__all__ = ["NAMESPACE", "START", "Clock", "ContractMachine", "DisagreementError", "Recording", "without_advice"]


class DisagreementError(AssertionError):
    """Two answers to one call don't agree: those of the reference and of ``name``."""

    def __init__(self, message: str, answered: Answered, name: str, why: str) -> None:
        super().__init__(message)
        self.answered = answered
        self.name = name
        self.why = why


class Recording:
    """The steps of the execution that failed last, which is the one that Hypothesis reports."""

    def __init__(self) -> None:
        self.failed: tuple[Trace, Exception] | None = None
        self._steps: list[Any] = []

    def begin(self) -> None:
        self._steps = [step_to_json(SetClock(START))]

    def add(self, step: Step) -> None:
        # Written down at once: nobody can change it any more.
        self._steps.append(step_to_json(step))

    def fail(self, error: Exception) -> None:
        self.failed = Trace(tuple(map(step_from_json, self._steps))), error


@contextmanager
def without_advice() -> Iterator[None]:
    """Hypothesis builds the text of all rules where it retries a draw, and warns that this text is long."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Generating overly large repr")
        yield


class ContractMachine(RuleBasedStateMachine):
    harnesses: ClassVar[Mapping[str, Harness]]
    reference: ClassVar[str] = ORACLE
    """Whose answers all others have to give: the oracle's, or those of one of the harnesses."""
    seen: ClassVar[Witnesses | None] = None
    recording: ClassVar[Recording | None] = None
    forced: ClassVar[Sequence[str]] = ()
    """Scenes with which each example begins; else some that are drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.panel = Panel(self.harnesses)
        self.past = Past()
        self.clock, self.model, self.runner = self.panel.clock, self.panel.model, self.panel.runner

    @property
    def backends(self) -> list[StateBackend]:
        """The handles of the first harness."""
        return next(iter(self.panel.backends.values()))

    @initialize(handle=st.integers(0, 1), drawn=st.lists(st.sampled_from(sorted(SCENES)), max_size=6), data=st.data())
    def begin(self, handle: int, drawn: list[str], data: st.DataObject) -> None:
        self.start()
        for name in self.forced or drawn:
            SCENES[name](self, handle, data.draw)

    def start(self) -> None:
        if self.recording is not None:
            self.recording.begin()
        self.panel.start()

    def teardown(self) -> None:
        self.panel.close()

    # --- asking all --------------------------------------------------------------------------------------------

    def check(self, handle: int, method: str, *args: Any, **kwargs: Any) -> None:
        """One call, all answers, no difference."""
        self.take(Ask(handle, ((method, args, kwargs),)))

    def check_together(self, handle: int, calls: list[Call]) -> None:
        self.take(Ask(handle, tuple(calls)))

    def take(self, step: Step) -> None:
        if self.recording is not None:
            self.recording.add(step)
        try:
            answered = self.panel.take(step)
            for one in answered:
                self._judge(one)
        except Exception as error:
            if self.recording is not None:
                self.recording.fail(error)
            raise
        if self.seen is not None:
            self.seen.note(step, answered, self.past, self.model)

    def _judge(self, one: Answered) -> None:
        found = one.first_difference(self.reference)
        if found is None:
            return
        name, why = found
        who = "expected against actual" if self.reference == ORACLE else f"{self.reference} against {name}"
        got = one.answers[name]
        cause = got if isinstance(got, BaseException) else None
        raise DisagreementError(f"{written(one.call)}: {who}: {why}", one, name, why) from cause

    def revision(self, run_id: str) -> int:
        """The revision that the oracle has; 0 without a snapshot."""
        state = self.model.load_state(run_id)
        return state["revision"] if state else 0

    def pass_time(self, by: timedelta) -> None:
        self.take(SetClock(self.clock.now + by))

    def reopen_handle(self, handle: int, *, new: bool) -> None:
        self.take(Reopen(handle, new))

    def check_everything(self, handle: int) -> None:
        self.check(handle, "list_runs")
        for run_id in make.RUN_IDS:
            self.check(handle, "get_run_details", run_id)
            self.check(handle, "load_state", run_id)

    # --- snapshots ---------------------------------------------------------------------------------------------

    @rule(handle=st.integers(0, 1), run_id=make.run_ids(), state=make.states(), expected=st.none() | st.integers(0, 3))
    def save_state(self, handle: int, run_id: str, state: Any, expected: int | None) -> None:
        self.check(handle, "save_state", run_id, state, expected_revision=expected)

    @rule(handle=st.integers(0, 1), run_id=make.run_ids(), state=make.states())
    def save_state_expecting_what_is_there(self, handle: int, run_id: str, state: Any) -> None:
        self.check(handle, "save_state", run_id, state, expected_revision=self.revision(run_id))

    @rule(handle=st.integers(0, 1), run_id=make.run_ids(), name=make.invalid_states())
    def save_invalid_state(self, handle: int, run_id: str, name: str) -> None:
        self.check(handle, "save_state", run_id, InvalidState(name))
        self.check(1 - handle, "load_state", run_id)

    @rule(handle=st.integers(0, 1), run_id=make.run_ids())
    def load_state(self, handle: int, run_id: str) -> None:
        self.check(handle, "load_state", run_id)

    @rule(handle=st.integers(0, 1), run_id=make.run_ids(), edit=st.sampled_from(("append", "edit", "cut", "turn")))
    def edit_history(self, handle: int, run_id: str, edit: str) -> None:
        """S8: what a save finds in step_history is near to what is stored."""
        state = self.model.load_state(run_id)
        if state is None:
            return
        history = state["step_history"]
        if edit == "append":
            history.append({"entry": len(history), "yes": 1})
        elif edit == "edit" and history:
            history[0] = {"entry": 0, "yes": True}
        elif edit == "cut":
            del history[1:]
        else:
            history.reverse()
        self.check(handle, "save_state", run_id, state)
        self.check(1 - handle, "load_state", run_id)

    @rule(handle=st.integers(0, 1), run_id=make.run_ids(), expected=st.none() | st.integers(0, 2))
    def delete_state(self, handle: int, run_id: str, expected: int | None) -> None:
        self.check(handle, "delete_state", run_id, expected_revision=expected)
        self.check(1 - handle, "get_run_details", run_id)

    @rule(handle=st.integers(0, 1), run_id=make.run_ids())
    def delete_run(self, handle: int, run_id: str) -> None:
        self.check(handle, "delete_run", run_id)
        for method in ("get_run_details", "list_run_steps", "get_trace", "get_spans"):
            self.check(1 - handle, method, run_id)

    # --- runs and steps ----------------------------------------------------------------------------------------

    @rule(handle=st.integers(0, 1), data=make.run_starts())
    def save_run_start(self, handle: int, data: Any) -> None:
        self.check(handle, "save_run_start", data)
        self.check(1 - handle, "get_run_details", data["run_id"])

    @rule(handle=st.integers(0, 1), run_id=make.run_ids(), data=make.run_ends())
    def save_run_end(self, handle: int, run_id: str, data: Any) -> None:
        self.check(handle, "save_run_end", run_id, data)
        self.check(1 - handle, "get_run_details", run_id)

    @rule(handle=st.integers(0, 1), step=make.steps())
    def save_step_result(self, handle: int, step: Any) -> None:
        self.check(handle, "save_step_result", step)
        self.check(1 - handle, "list_run_steps", step["run_id"])
        self.check(handle, "get_run_details", step["run_id"])

    # --- lists -------------------------------------------------------------------------------------------------

    @rule(handle=st.integers(0, 1), filters=make.run_filters(), page=make.pages())
    def list_runs(self, handle: int, filters: Any, page: Any) -> None:
        self.check(handle, "list_runs", **filters, **page)
        self.check(handle, "count_runs", **filters)

    @rule(handle=st.integers(0, 1), filters=make.run_filters(), page_size=st.integers(0, 3))
    def iter_runs(self, handle: int, filters: Any, page_size: int) -> None:
        self.check(handle, "iter_runs", **filters, page_size=page_size)

    @rule(handle=st.integers(0, 1), status=st.none() | make.statuses(), pipeline=st.none() | make.pipelines())
    def list_workflows(self, handle: int, status: str | None, pipeline: str | None) -> None:
        self.check(handle, "list_workflows", status, pipeline, limit=2, offset=1)
        self.check(handle, "list_background_tasks", status=status)
        self.check(handle, "get_workflow_stats")

    @rule(handle=st.integers(0, 1), hours=st.sampled_from((0, 1, 24, 1e9)), parent=st.none() | make.run_ids())
    def failed(self, handle: int, hours: float, parent: str | None) -> None:
        self.check(handle, "get_failed_workflows", hours)
        self.check(handle, "get_failed_background_tasks", parent, hours_back=hours)

    # --- traces, spans, evaluations, system state ----------------------------------------------------------------

    @rule(handle=st.integers(0, 1), run_id=make.run_ids(), trace=make.traces())
    def save_trace(self, handle: int, run_id: str, trace: Any) -> None:
        self.check(handle, "save_trace", run_id, trace)
        self.check(1 - handle, "get_trace", run_id)
        self.check(1 - handle, "get_spans", run_id)

    @rule(handle=st.integers(0, 1), run_id=make.run_ids(), spans=make.span_lists())
    def save_spans(self, handle: int, run_id: str, spans: Any) -> None:
        self.check(handle, "save_spans", run_id, spans)
        self.check(1 - handle, "get_spans", run_id)
        self.check(1 - handle, "get_spans", run_id, status="completed", name="ask")
        self.check(1 - handle, "get_trace", run_id)

    @rule(
        handle=st.integers(0, 1),
        pipeline=st.none() | make.pipelines(),
        bounds=st.none() | st.tuples(st.sampled_from((None, 0, 1.5)), st.sampled_from((None, 1.5, 1e9))),
    )
    def span_statistics(self, handle: int, pipeline: str | None, bounds: Any) -> None:
        self.check(handle, "get_span_statistics", pipeline, bounds)

    @rule(
        handle=st.integers(0, 1),
        run_id=make.run_ids(),
        score=st.sampled_from((0, 1, 0.5, -0.0)),
        feedback=st.none() | make.texts(),
        metadata=st.none() | make.json_objects(),
    )
    def persist_evaluation(self, handle: int, run_id: str, score: float, feedback: Any, metadata: Any) -> None:
        self.check(handle, "persist_evaluation", run_id, score, feedback, "ask", metadata)
        self.check(1 - handle, "list_evaluations", limit=3)
        self.check(1 - handle, "list_evaluations", None, run_id)

    @rule(handle=st.integers(0, 1), key=st.sampled_from(make.SYSTEM_KEYS), value=make.json_values())
    def system_state(self, handle: int, key: str, value: Any) -> None:
        self.check(1 - handle, "get_system_state", key)
        self.check(handle, "set_system_state", key, value)
        self.check(1 - handle, "get_system_state", key)

    # --- cleaning up -------------------------------------------------------------------------------------------

    @rule(handle=st.integers(0, 1), days=st.sampled_from((0, 0.5, 30)), statuses=st.none() | st.sets(make.statuses()))
    def cleanup(self, handle: int, days: float, statuses: Any) -> None:
        self.check(handle, "cleanup_old_workflows", days, statuses=statuses)
        self.check_everything(1 - handle)

    @rule(handle=st.integers(0, 1), hours=st.sampled_from((0, 12, 24)))
    def cleanup_stale(self, handle: int, hours: float) -> None:
        self.check(handle, "cleanup_stale_background_tasks", hours)
        self.check_everything(1 - handle)

    # --- time, handles, concurrency ----------------------------------------------------------------------------

    @rule(step=st.sampled_from((timedelta(microseconds=1), timedelta(hours=1), timedelta(days=31))))
    def time_passes(self, step: timedelta) -> None:
        if self.clock.now < START + timedelta(days=3650):
            self.pass_time(step)

    @rule(handle=st.integers(0, 1), keep=st.booleans())
    def reopen(self, handle: int, keep: bool) -> None:
        """A handle that was shut down opens again; a new one finds what the old one left."""
        self.reopen_handle(handle, new=not keep)

    @rule(handle=st.integers(0, 1), name=st.sampled_from(sorted(SCENES)), data=st.data())
    def scene(self, handle: int, name: str, data: st.DataObject) -> None:
        """A situation that would come up too rarely."""
        SCENES[name](self, handle, data.draw)

    @rule(handle=st.integers(0, 1), data=st.data())
    def together(self, handle: int, data: st.DataObject) -> None:
        """Writes that meet in one batch."""
        self.check_together(handle, data.draw(st.lists(_WRITES, min_size=2, max_size=6)))
        self.check_everything(1 - handle)


def _writes() -> st.SearchStrategy[Call]:
    def call(method: str, *args: st.SearchStrategy[Any], **kwargs: st.SearchStrategy[Any]) -> st.SearchStrategy[Call]:
        return st.tuples(st.just(method), st.tuples(*args), st.fixed_dictionaries(kwargs))

    few = st.sampled_from(make.RUN_IDS[:2])
    return st.one_of(
        call("save_state", few, make.states(), expected_revision=st.sampled_from((None, None, 0, 1, 2))),
        call("delete_state", few),
        call("delete_run", few),
        call("save_run_start", make.run_starts(few)),
        call("save_run_end", few, make.run_ends()),
        call("save_step_result", make.steps(few)),
        call("save_spans", few, make.span_lists()),
        call("save_trace", few, make.traces()),
        call("persist_evaluation", few, st.just(1)),
    )


_WRITES = _writes()
