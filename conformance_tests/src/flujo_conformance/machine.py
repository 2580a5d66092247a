"""Does a backend answer as the oracle does, whatever is called in whatever order? A Hypothesis state machine.

Each rule calls the model and the backend alike and compares their answers, or the exact classes of their errors,
type-strictly. The machine is synchronous (Hypothesis can't await): its rules run on one `asyncio.Runner`, closed in
`teardown`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import datetime, timedelta
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from flujo_core import StateBackend
from flujo_core.errors import FlujoStateError

from . import strategies as make
from .compare import difference
from .harness import Harness
from .model import STALE_ERROR, ModelBackend

NAMESPACE = "machine"
START = datetime.fromisoformat("2024-03-01T12:00:00.123456+00:00")


class Clock:
    """A clock that stands still between the machine's steps, so that instants coincide."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


Call = tuple[str, tuple[Any, ...], dict[str, Any]]


class ContractMachine(RuleBasedStateMachine):
    harness: ClassVar[Harness]
    handles: ClassVar[int] = 2

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.model = ModelBackend(self.clock)
        self.runner = asyncio.Runner()
        self.backends: list[StateBackend] = []

    @initialize()
    def start(self) -> None:
        self.runner.run(self.harness.wipe(NAMESPACE))
        self.backends = [self._open() for _ in range(self.handles)]

    def _open(self) -> StateBackend:
        backend = self.harness.open(NAMESPACE)
        backend.clock = self.clock
        return backend

    def teardown(self) -> None:
        try:
            for backend in self.backends:
                self.runner.run(backend.shutdown())
        finally:
            self.runner.close()

    # --- calling both ------------------------------------------------------------------------------------------

    def check(self, handle: int, method: str, *args: Any, **kwargs: Any) -> None:
        """One call, both answers, no difference."""
        self.check_together(handle, [(method, args, kwargs)])

    def check_together(self, handle: int, calls: list[Call]) -> None:
        """Calls that one handle gets at the same time; writes of one run take effect in the order of the calls."""
        # The model goes first: an argument that a backend changed would change its answer too, and be noticed.
        expected = [self._ask_model(call) for call in calls]

        async def ask() -> list[Any]:
            backend = self.backends[handle]
            return await asyncio.gather(*(_ask(backend, call) for call in calls), return_exceptions=True)

        for call, wanted, got in zip(calls, expected, self.runner.run(ask()), strict=True):
            self._compare(call, wanted, got)

    def _ask_model(self, call: Call) -> Any:
        method, args, kwargs = call
        try:
            return getattr(self.model, method)(*args, **kwargs)
        except FlujoStateError as error:
            return error

    def _compare(self, call: Call, wanted: Any, got: Any) -> None:
        if isinstance(got, BaseException) and not isinstance(got, FlujoStateError):
            raise got
        if isinstance(wanted, FlujoStateError) or isinstance(got, FlujoStateError):
            assert type(got) is type(wanted), f"{_shown(call)}: expected {wanted!r}, got {got!r}"
            return
        wanted = _in_order_of(_with_words_of(wanted, got), got)
        approximate = APPROXIMATE.get(call[0])
        found = difference(wanted, got, approx=approximate or (), ordered=approximate is None)
        assert found is None, f"{_shown(call)}: expected against actual: {found}"

    # --- snapshots ---------------------------------------------------------------------------------------------

    @rule(handle=st.integers(0, 1), run_id=make.run_ids(), state=make.states(), expected=st.none() | st.integers(0, 3))
    def save_state(self, handle: int, run_id: str, state: Any, expected: int | None) -> None:
        self.check(handle, "save_state", run_id, state, expected_revision=expected)

    @rule(handle=st.integers(0, 1), run_id=make.run_ids(), state=make.states())
    def save_state_expecting_what_is_there(self, handle: int, run_id: str, state: Any) -> None:
        loaded = self.model.load_state(run_id)
        revision = loaded["revision"] if loaded else 0
        self.check(handle, "save_state", run_id, state, expected_revision=revision)

    @rule(handle=st.integers(0, 1), run_id=make.run_ids(), name=make.invalid_states())
    def save_invalid_state(self, handle: int, run_id: str, name: str) -> None:
        self.check(handle, "save_state", run_id, make.INVALID_STATES[name]())
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
        self._check_everything(1 - handle)

    @rule(handle=st.integers(0, 1), hours=st.sampled_from((0, 12, 24)))
    def cleanup_stale(self, handle: int, hours: float) -> None:
        self.check(handle, "cleanup_stale_background_tasks", hours)
        self._check_everything(1 - handle)

    def _check_everything(self, handle: int) -> None:
        self.check(handle, "list_runs")
        for run_id in make.RUN_IDS:
            self.check(handle, "get_run_details", run_id)
            self.check(handle, "load_state", run_id)

    # --- time, handles, concurrency ----------------------------------------------------------------------------

    @rule(step=st.sampled_from((timedelta(microseconds=1), timedelta(hours=1), timedelta(days=31))))
    def time_passes(self, step: timedelta) -> None:
        if self.clock.now < START + timedelta(days=3650):
            self.clock.now += step

    @rule(handle=st.integers(0, 1), keep=st.booleans())
    def reopen(self, handle: int, keep: bool) -> None:
        """A handle that was shut down opens again; a new one finds what the old one left."""
        self.runner.run(self.backends[handle].shutdown())
        if not keep:
            self.backends[handle] = self._open()

    @rule(handle=st.integers(0, 1), data=st.data())
    def together(self, handle: int, data: st.DataObject) -> None:
        """Writes that meet in one batch."""
        self.check_together(handle, data.draw(st.lists(_WRITES, min_size=2, max_size=6)))
        self._check_everything(1 - handle)


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
# Statistics: averages of which the contract bounds the error, and counts by names in no order.
APPROXIMATE = {
    "get_workflow_stats": ("$.average_execution_time_ms",),
    "get_span_statistics": ("$.avg_duration_by_name.*.total", "$.avg_duration_by_name.*.average"),
}


async def _ask(backend: StateBackend, call: Call) -> Any:
    method, args, kwargs = call
    if method == "iter_runs":
        return [row async for row in backend.iter_runs(*args, **kwargs)]
    answer: Coroutine[Any, Any, Any] = getattr(backend, method)(*args, **kwargs)
    return await answer


def _in_order_of(wanted: Any, got: Any) -> Any:
    """The keys of a record, or of each record of a list, may come in any order; those within its values may not."""
    if isinstance(wanted, list) and isinstance(got, list) and len(wanted) == len(got):
        return [_in_order_of(one, other) for one, other in zip(wanted, got, strict=True)]
    if isinstance(wanted, dict) and isinstance(got, dict) and wanted.keys() == got.keys():
        return {key: wanted[key] for key in got}
    return wanted


def _with_words_of(wanted: Any, got: Any) -> Any:
    """The contract leaves it to a backend how it says that a task is stale."""
    if isinstance(wanted, dict) and isinstance(got, dict):
        return {key: _with_words_of(value, got.get(key)) for key, value in wanted.items()}
    if isinstance(wanted, list) and isinstance(got, list) and len(wanted) == len(got):
        return [_with_words_of(one, other) for one, other in zip(wanted, got, strict=True)]
    return got if isinstance(wanted, str) and wanted == STALE_ERROR and isinstance(got, str) and got else wanted


def _shown(call: Call) -> str:
    method, args, kwargs = call
    words = [ascii(value)[:200] for value in args] + [f"{name}={ascii(value)[:200]}" for name, value in kwargs.items()]
    return f"{method}({', '.join(words)})"
