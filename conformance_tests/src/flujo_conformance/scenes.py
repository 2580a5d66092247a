"""Which situations does the state machine bring about on purpose, being too rare to wait for?

A scene makes its situations from whatever is there. The machine plays scenes among its other rules; those whose
situations nevertheless never came up are played once more before the gate is closed.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from hypothesis import strategies as st

from . import strategies as make
from .call_trace import InvalidState
from .strategies import plain_state

if TYPE_CHECKING:
    from .machine import ContractMachine

Draw = Callable[[st.SearchStrategy[Any]], Any]
Scene = Callable[["ContractMachine", int, Draw], None]
"""It is given the machine, the number of the handle that writes, and Hypothesis."""

SCENES: Final[dict[str, Scene]] = {}
FORCED_BY: Final[dict[str, str]] = {}
"""The scene that brings a situation about, by the name of the witness."""


def brings(*witnesses: str) -> Callable[[Scene], Scene]:
    def register(scene: Scene) -> Scene:
        SCENES[scene.__name__] = scene
        FORCED_BY.update(dict.fromkeys(witnesses, scene.__name__))
        return scene

    return register


@brings(
    "a snapshot was overwritten",
    "a snapshot was overwritten through the other handle",
    "a save expected the revision that was there",
    "StateConflictError",
)
def overwriting(machine: ContractMachine, handle: int, draw: Draw) -> None:
    run_id = draw(make.run_ids())
    machine.check(handle, "save_state", run_id, plain_state(mine=1))
    machine.check(1 - handle, "save_state", run_id, plain_state(mine=True))
    revision = machine.revision(run_id)
    machine.check(handle, "save_state", run_id, plain_state(mine=1.0), expected_revision=revision)
    machine.check(1 - handle, "save_state", run_id, plain_state(), expected_revision=revision)
    machine.check(1 - handle, "load_state", run_id)


@brings("a snapshot was deleted and its run stayed", "revisions began again at 1 after a snapshot was deleted")
def beginning_again(machine: ContractMachine, handle: int, draw: Draw) -> None:
    run_id = draw(make.run_ids())
    machine.check(handle, "save_run_start", {"run_id": run_id})
    machine.check(handle, "save_state", run_id, plain_state(status="paused"))
    machine.check(1 - handle, "delete_state", run_id)
    machine.check(handle, "get_run_details", run_id)
    machine.check(handle, "save_state", run_id, plain_state())
    machine.check(1 - handle, "load_state", run_id)


@brings(
    "a run was deleted",
    "a deleted run was made again",
    "a run was recorded again",
    "a run was ended",
    "a snapshot and a record said different statuses",
)
def living_twice(machine: ContractMachine, handle: int, draw: Draw) -> None:
    run_id = draw(make.run_ids())
    machine.check(handle, "save_state", run_id, plain_state(total_steps=3, mine="old"))
    machine.check(1 - handle, "delete_run", run_id)
    machine.check(handle, "save_run_start", {"run_id": run_id})
    machine.check(1 - handle, "save_run_start", {"run_id": run_id, "error_message": "again"})
    machine.check(handle, "save_state", run_id, plain_state(status="paused"))
    machine.check(1 - handle, "save_run_end", run_id, {"status": "completed", "total_cost": 0.25})
    machine.check(handle, "get_run_details", run_id)


@brings(
    "a history was appended to",
    "a history was edited in place",
    "a history was shortened",
    "a history was reordered",
)
def rewriting_history(machine: ContractMachine, handle: int, draw: Draw) -> None:
    run_id = draw(make.run_ids())
    first, second, third = {"entry": 0, "yes": 1}, {"entry": 1}, draw(make.json_values())
    edited = {"entry": 0, "yes": True}
    histories = [[first, second], [first, second, third], [edited, second, third], [second, edited, third], [second]]
    for number, history in enumerate(histories):
        machine.check((handle + number) % 2, "save_state", run_id, plain_state(step_history=history))
        machine.check((handle + number + 1) % 2, "load_state", run_id)


@brings("RunNotFoundError", "InvalidStateError")
def being_refused(machine: ContractMachine, handle: int, draw: Draw) -> None:
    machine.check(handle, "save_run_end", "nobody", {})
    run_id = draw(make.run_ids())
    machine.check(handle, "save_state", run_id, InvalidState(draw(make.invalid_states())))
    machine.check(1 - handle, "load_state", run_id)


@brings("a placeholder was made", "a placeholder was completed")
def completing_a_placeholder(machine: ContractMachine, handle: int, draw: Draw) -> None:
    run_id = draw(make.run_ids())
    machine.check(handle, "delete_run", run_id)
    machine.check(handle, "save_step_result", {"run_id": run_id, "step_name": "ask", "step_index": 0})
    machine.check(1 - handle, "get_run_details", run_id)
    machine.check(1 - handle, "list_runs")
    if draw(st.booleans()):
        machine.check(1 - handle, "save_state", run_id, plain_state())
    else:
        machine.check(1 - handle, "save_run_start", {"run_id": run_id})
    machine.check(handle, "get_run_details", run_id)
    machine.check(handle, "list_runs")


@brings("a step was replaced by its record_id", "a run had several steps of one index")
def repeating_a_step(machine: ContractMachine, handle: int, draw: Draw) -> None:
    run_id = draw(make.run_ids())
    step = {"run_id": run_id, "step_name": "ask", "step_index": 1}
    machine.check(handle, "save_step_result", {**step, "output": "once", "record_id": "first", "cost_usd": 0.1})
    machine.check(handle, "save_step_result", step)
    machine.check(1 - handle, "save_step_result", {**step, "output": "again", "record_id": "first", "cost_usd": 0.7})
    machine.check(handle, "list_run_steps", run_id)
    machine.check(1 - handle, "get_run_details", run_id)


@brings(
    "two listed runs had one created_at",
    "a list was cut off at its limit",
    "a list ended exactly at its limit",
    "an offset lay beyond the end",
    "a full page of an iteration was followed by another",
    "the last page of an iteration was exactly full",
)
def paging(machine: ContractMachine, handle: int, draw: Draw) -> None:
    for run_id in draw(st.lists(make.run_ids(), min_size=2, max_size=3, unique=True)):
        machine.check(handle, "delete_run", run_id)
        machine.check(handle, "save_run_start", {"run_id": run_id})
    total = machine.model.count_runs()
    machine.check(1 - handle, "list_runs")
    machine.check(1 - handle, "list_runs", limit=total - 1)
    machine.check(1 - handle, "list_runs", limit=1, offset=total - 1)
    machine.check(1 - handle, "list_runs", offset=total)
    for page_size in {1, max(size for size in range(1, total) if total % size == 0)}:
        machine.check(1 - handle, "iter_runs", page_size=page_size)


@brings(
    "a metadata filter found a run",
    "a metadata filter found none of the runs that there were",
    "a metadata filter found some runs and not others",
    "a list had a metadata filter and a limit",
    "another filter found some runs and not others",
)
def filtering(machine: ContractMachine, handle: int, draw: Draw) -> None:
    one, other = draw(st.lists(make.run_ids(), min_size=2, max_size=2, unique=True))
    value = draw(st.sampled_from(make.METADATA_SCALARS))
    machine.check(handle, "save_state", one, plain_state(metadata={"a": [value, {"b": 1}]}, status="paused"))
    machine.check(handle, "save_state", other, plain_state(metadata={"b": value}, status="failed"))
    for wanted in ({"a": [value]}, {"a": [{"b": True}]}, {"nowhere": value}):
        machine.check(1 - handle, "list_runs", metadata_filter=wanted)
    machine.check(1 - handle, "list_runs", metadata_filter={"a": [{}]}, limit=1)
    machine.check(1 - handle, "list_runs", "failed", metadata_filter={"b": value}, limit=1)
    machine.check(1 - handle, "iter_runs", status="paused")


@brings(
    "a span was replaced",
    "a trace replaced the spans of the one before",
    "a trace was rebuilt from spans",
    "some spans of a run were found and not others",
    "finished spans were counted",
)
def tracing(machine: ContractMachine, handle: int, draw: Draw) -> None:
    run_id = draw(make.run_ids())
    machine.check(handle, "delete_run", run_id)
    spans = [{"span_id": "s1", "name": "ask", "end_time": 1.5}, {"span_id": "s2", "parent_span_id": "s1"}]
    machine.check(handle, "save_spans", run_id, spans)
    machine.check(1 - handle, "save_spans", run_id, [{"span_id": "s1", "name": "ask", "end_time": 2}])
    machine.check(handle, "get_trace", run_id)
    machine.check(handle, "get_spans", run_id, name="ask")
    for span_id in ("s3", "S1"):
        machine.check(handle, "save_trace", run_id, {"span_id": span_id, "name": "ask", "children": []})
    machine.check(1 - handle, "get_spans", run_id)
    machine.check(1 - handle, "get_trace", run_id)
    machine.check(1 - handle, "get_span_statistics")


@brings("an evaluation was listed", "a system value was replaced")
def judging(machine: ContractMachine, handle: int, draw: Draw) -> None:
    run_id, key = draw(make.run_ids()), draw(st.sampled_from(make.SYSTEM_KEYS))
    machine.check(handle, "persist_evaluation", run_id, 0.5)
    machine.check(1 - handle, "list_evaluations", 2)
    for value in (1, True):
        machine.check(handle, "set_system_state", key, value)
        machine.check(1 - handle, "get_system_state", key)


@brings("a cleanup removed a run", "a cleanup removed one run and left another")
def cleaning_up(machine: ContractMachine, handle: int, draw: Draw) -> None:
    old, young = draw(st.lists(make.run_ids(), min_size=2, max_size=2, unique=True))
    for run_id in (old, young):
        machine.check(handle, "delete_run", run_id)
    long_ago = machine.clock.now - timedelta(days=400)
    machine.check(handle, "save_run_start", {"run_id": old, "created_at": long_ago, "updated_at": long_ago})
    machine.check(handle, "save_run_start", {"run_id": young, "created_at": long_ago})
    machine.check(handle, "cleanup_old_workflows", 365)
    machine.check_everything(1 - handle)


@brings("a stale task was marked", "a background task was listed", "a failed run was found")
def growing_stale(machine: ContractMachine, handle: int, draw: Draw) -> None:
    run_id = draw(make.run_ids())
    before = machine.clock.now - timedelta(hours=25)
    machine.check(handle, "save_state", run_id, plain_state(is_background_task=True))
    machine.check(handle, "delete_run", run_id)
    task = plain_state(is_background_task=True, updated_at=before)
    if draw(st.booleans()):
        machine.check(handle, "save_state", run_id, task)
    else:
        machine.check(handle, "save_run_start", {"run_id": run_id, "is_background_task": True, "updated_at": before})
    machine.check(1 - handle, "cleanup_stale_background_tasks", 24)
    machine.check(handle, "list_background_tasks")
    machine.check(handle, "get_failed_workflows", 1)
    machine.check(handle, "get_failed_background_tasks")
    machine.check(handle, "load_state", run_id)


@brings("writes to one run met in one batch")
def meeting(machine: ContractMachine, handle: int, draw: Draw) -> None:
    run_id = draw(make.run_ids())
    step = {"run_id": run_id, "step_name": "ask", "step_index": 0}
    machine.check_together(
        handle,
        [
            ("save_step_result", (step,), {}),
            ("save_state", (run_id, plain_state(mine=1)), {}),
            ("save_state", (run_id, plain_state(mine=2)), {}),
            ("save_run_end", (run_id, {"status": "failed"}), {}),
        ],
    )
    machine.check(1 - handle, "get_run_details", run_id)
    machine.check(1 - handle, "list_run_steps", run_id)


@brings(
    "a handle that was shut down read what was there before",
    "a new handle read what was there before",
    "time passed over a run",
)
def coming_back(machine: ContractMachine, handle: int, draw: Draw) -> None:
    run_id = draw(make.run_ids())
    machine.check(handle, "save_state", run_id, plain_state(mine=draw(make.json_values())))
    machine.pass_time(timedelta(hours=1))
    for new in (False, True):
        machine.reopen_handle(handle, new=new)
        machine.check(handle, "load_state", run_id)
        machine.check(handle, "get_run_details", run_id)
