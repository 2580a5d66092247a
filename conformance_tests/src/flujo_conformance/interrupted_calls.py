"""Which calls are interrupted, and what may be there after?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import product
from typing import Any, Final

import pytest

from flujo_core import StateBackend
from flujo_core.errors import FlujoStateError, OutcomeUnknownError

from .answers import Call, disagreement
from .compare import difference
from .machine import START, Clock
from .model import ModelBackend
from .strategies import plain_state
from .suite_support import call

LONG_AGO: Final = START - timedelta(days=100)
REST: Final[Call] = ("set_system_state", ("k", "rest"), {})
"""The last call of each test."""


@dataclass(frozen=True)
class Case:
    """Calls that are made at the same time, on runs of their own."""

    before: list[Call]
    """What is there when they begin."""
    calls: list[Call]
    runs: list[str]
    """Those that they may change, each of them in one transaction."""


def snapshot_of(run_id: str, number: int, **more: Any) -> dict[str, Any]:
    """A state of which each part tells its number."""
    history = [{"entry": place, "of": number if place % 3 else 0} for place in range(4 + 3 * number)]
    return plain_state(
        step_history=history, metadata={"of": run_id, "n": number}, mine=number, error_message=str(number), **more
    )


def save_of(run_id: str, number: int, **more: Any) -> Call:
    return "save_state", (run_id, snapshot_of(run_id, number, **more)), {}


def step_of(run_id: str, **more: Any) -> Call:
    return "save_step_result", ({"run_id": run_id, "step_name": "s", "step_index": 0, **more},), {}


def full_run(run_id: str) -> list[Call]:
    """Some of everything that a run can have."""
    return [
        save_of(run_id, 1),
        ("save_run_start", ({"run_id": run_id, "started": "yes"},), {}),
        step_of(run_id, record_id="one", cost=0.5),
        ("save_trace", (run_id, {"span_id": "t", "name": "trace", "end_time": 1}), {}),
        ("save_spans", (run_id, [{"span_id": "a", "start_time": 1}, {"span_id": "b", "start_time": 2}]), {}),
        ("persist_evaluation", (run_id, 0.5, "good"), {}),
    ]


def on_a_full_run(method: str, *args: Any) -> Callable[[str], Case]:
    return lambda run_id: Case(full_run(run_id), [(method, (run_id, *args), {})], [run_id])


def old_runs(run_id: str) -> Case:
    runs = [run_id, f"{run_id} too"]
    before = [
        one
        for name in runs
        for one in (save_of(name, 1, created_at=LONG_AGO, updated_at=LONG_AGO), step_of(name, created_at=LONG_AGO))
    ]
    return Case(before, [("cleanup_old_workflows", (30,), {})], runs)


def stale_runs(run_id: str) -> Case:
    runs = [run_id, f"{run_id} too"]
    before = [save_of(name, 1, is_background_task=True, updated_at=LONG_AGO) for name in runs]
    return Case(before, [("cleanup_stale_background_tasks", (), {})], runs)


def several(run_id: str) -> Case:
    """Four writes of three runs, which meet in one batch."""
    other, new = f"{run_id} other", f"{run_id} new"
    calls = [save_of(run_id, 2), save_of(run_id, 3), step_of(other, output=1), save_of(new, 2)]
    return Case([*full_run(run_id), save_of(other, 1)], calls, [run_id, other, new])


# --- what may be there afterwards ------------------------------------------------------------------------------------


def reads_of(run_id: str) -> list[Call]:
    """All that can be read of a run, by its indexes too."""
    return [
        ("get_run_details", (run_id,), {}),
        ("load_state", (run_id,), {}),
        ("list_run_steps", (run_id,), {}),
        ("get_spans", (run_id,), {}),
        ("get_trace", (run_id,), {}),
        ("list_evaluations", (None, run_id), {}),
        *(("list_runs", (), {"metadata_filter": {"of": run_id, "n": number}}) for number in (1, 2)),
        ("get_system_state", ("k",), {}),
    ]


def asked(model: ModelBackend, one: Call) -> Any:
    method, args, kwargs = one
    return getattr(model, method)(*args, **kwargs)


def is_open(answer: Any) -> bool:
    """Whether a call that ended so may have had its effect or not."""
    if isinstance(answer, FlujoStateError):
        return isinstance(answer, OutcomeUnknownError)
    return isinstance(answer, BaseException)


def possible(case: Case, answers: Sequence[Any], probes: list[Call], clock: Clock) -> Iterator[ModelBackend]:
    """What may be there: all that returned and nothing that failed, with or without each call whose outcome is open."""
    effects = [
        (False, True) if is_open(answer) else (False,) if isinstance(answer, FlujoStateError) else (True,)
        for answer in answers
    ]
    for chosen in product(*effects):
        model = ModelBackend(clock)
        for one in (REST, *case.before):
            asked(model, one)
        said = [asked(model, one) if yes else None for one, yes in zip(case.calls, chosen, strict=True)]
        for one in probes:
            asked(model, one)
        wrong = [
            (wanted, got)
            for wanted, got, outcomes in zip(said, answers, effects, strict=True)
            if outcomes == (True,) and difference(wanted, got) is not None
        ]
        if not wrong:
            yield model


async def check(case: Case, answers: Sequence[Any], probes: list[Call], backend: StateBackend, where: str) -> None:
    """Each run of the case is, for a reader, as some model of what may be there says."""
    models = list(possible(case, answers, probes, backend.clock))  # type: ignore[arg-type]
    assert models, f"{where}: the calls answered {answers!r:.300}, which they can't have"
    for run_id in case.runs:
        view = reads_of(run_id)
        # One after another: a pool would connect anew for each.
        found = [await call(backend, one) for one in view]
        differences = []
        for model in models:
            answered = zip(view, found, strict=True)
            wrong = [f"{one[0]}: {why}" for one, got in answered if (why := disagreement(one, asked(model, one), got))]
            if not wrong:
                break
            differences += wrong[:1]
        else:
            shown = "\n".join(f"  {why}" for why in differences)
            pytest.fail(f"{where}: {answers!r:.200} left {run_id!r} neither old nor new:\n{shown}")
