"""What do the suite's tests stand on? Handles on fresh data, a clock that they move, and the oracle beside them."""

from __future__ import annotations

import asyncio
import functools
import pickle
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from flujo_core import StateBackend
from flujo_core.errors import InvalidStateError

from .answers import Call
from .compare import difference
from .harness import Harness
from .machine import NAMESPACE, Clock, ContractMachine
from .strategies import plain_state

WRITES: list[Call] = [
    ("save_state", ("r", plain_state(mine=1, step_history=[1, 2], metadata={"a": 1})), {}),
    ("save_state", ("r", plain_state(mine=2, step_history=[2])), {}),
    ("save_run_start", ({"run_id": "r", "total_steps": 3, "mine": 1},), {}),
    ("save_run_end", ("r", {"status": "failed", "final_context": {"a": 1}}), {}),
    ("save_step_result", ({"run_id": "r", "step_name": "s", "step_index": 0, "cost": 1},), {}),
    ("save_trace", ("r", {"span_id": "a", "name": "n"}), {}),
    ("save_spans", ("r", [{"span_id": "b"}]), {}),
    ("persist_evaluation", ("r", 1), {}),
    ("set_system_state", ("k", 1), {}),
    ("delete_state", ("r",), {}),
    ("delete_run", ("r",), {}),
]
"""One of every kind; each of them changes something, made one after the other."""


class Handles:
    """Handles on one namespace, which was empty when the test began, and the clock of all of them."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        self.clock = Clock()
        self._opened: list[StateBackend] = []
        self.one, self.two = self.open(), self.open()

    def open(self, **settings: Any) -> StateBackend:
        backend = self.harness.open(NAMESPACE, **settings)
        backend.clock = self.clock
        self._opened.append(backend)
        return backend

    async def shutdown(self) -> None:
        for backend in self._opened:
            await backend.shutdown()


def on_fresh_data(
    test: Callable[[Any, Handles], Coroutine[Any, Any, None]],
) -> Callable[[Any, Harness], None]:
    """Runs a test that is a coroutine in an event loop of its own, on `Handles`."""

    async def run(suite: Any, harness: Harness) -> None:
        await harness.wipe(NAMESPACE)
        here = Handles(harness)
        try:
            await test(suite, here)
        finally:
            await here.shutdown()

    def in_loop(self: Any, state_harness: Harness) -> None:
        asyncio.run(run(self, state_harness))

    functools.update_wrapper(in_loop, test)
    del in_loop.__wrapped__  # type: ignore[attr-defined]  # pytest would take the fixtures from it
    return in_loop


@contextmanager
def beside_the_oracle(harness: Harness) -> Iterator[ContractMachine]:
    """Two handles and the oracle, all empty; ``check`` makes a call on both and compares."""
    machine_type: Any = type("Beside", (ContractMachine,), {"harnesses": {"backend": harness}})
    machine: ContractMachine = machine_type()
    try:
        machine.start()
        yield machine
    finally:
        machine.teardown()


def same(wanted: Any, got: Any, **how: Any) -> None:
    """Asserts that two values are identical to the type and the last bit."""
    found = difference(wanted, got, **how)
    assert found is None, f"expected against actual: {found}"


async def collect(rows: Any) -> list[Any]:
    """All that an iteration yields; one without an end fails."""
    found = []
    async for row in rows:
        found.append(row)
        assert len(found) <= 1000, "the iteration doesn't end"
    return found


async def ids(backend: StateBackend, **filters: Any) -> list[str]:
    """The ids of the listed runs, in order."""
    return [row["run_id"] for row in await backend.list_runs(**filters)]


async def row_of(backend: StateBackend, run_id: str = "r") -> dict[str, Any]:
    """What `get_run_details` says of a run that is there."""
    row = await backend.get_run_details(run_id)
    assert row is not None
    return row


async def loaded(backend: StateBackend, run_id: str = "r") -> dict[str, Any]:
    """The snapshot of a run that has one."""
    state = await backend.load_state(run_id)
    assert state is not None
    return state


async def fill(backend: StateBackend, run_id: str = "r") -> None:
    """Some of everything that a run can have."""
    await backend.save_state(run_id, plain_state(step_history=[1, {"a": 2}], metadata={"full": [1]}, mine="yes"))
    await backend.save_run_start({"run_id": run_id, "started": "yes"})
    await backend.save_step_result(
        {"run_id": run_id, "step_name": "s", "step_index": 0, "record_id": "one", "cost": 0.5}
    )
    await backend.save_trace(run_id, {"span_id": "t", "name": "trace", "end_time": 1})
    await backend.save_spans(run_id, [{"span_id": "s", "name": "span", "end_time": 2}])
    await backend.persist_evaluation(run_id, 0.5, "good")


async def everything(backend: StateBackend, *run_ids: str) -> dict[str, Any]:
    """All that can be read: of the listed runs, and of the named ones that may not be listed."""
    rows = await backend.list_runs()
    found: dict[str, Any] = {
        "rows": rows,
        "stats": await backend.get_workflow_stats(),
        "spans": await backend.get_span_statistics(),
        "evaluations": await backend.list_evaluations(None),
        "system": [await backend.get_system_state(key) for key in ("k", "K")],
    }
    for run_id in {row["run_id"]: None for row in rows} | dict.fromkeys(run_ids):
        found[f"run {run_id}"] = [
            await backend.get_run_details(run_id),
            await backend.load_state(run_id),
            await backend.list_run_steps(run_id),
            await backend.get_spans(run_id),
            await backend.get_trace(run_id),
        ]
    return found


async def call(backend: StateBackend, one: Call) -> Any:
    """Makes a call that is written as (method, args, kwargs)."""
    method, args, kwargs = one
    if method == "iter_runs":
        return await collect(backend.iter_runs(*args, **kwargs))
    return await getattr(backend, method)(*args, **kwargs)


async def refused(backend: StateBackend, one: Call, what: str) -> InvalidStateError | None:
    """The `InvalidStateError` of a wrong call; a failed test if there is none. ``what`` is for its report."""
    try:
        answer = await call(backend, one)
    except InvalidStateError as error:
        return error
    pytest.fail(f"{one[0]}: {what} was taken; the answer was {answer!r:.200}")


_CHILD = """
import asyncio, os, pickle, sys
task, sys.path[:] = pickle.load(sys.stdin.buffer)
harness, code = pickle.loads(task)
exec(compile(code, "child", "exec"), {"harness": harness, "asyncio": asyncio, "os": os, "sys": sys})
"""


def other_process(harness: Harness, code: str, *, timeout: float = 30) -> str:
    """What another interpreter prints while it runs code that finds the harness as ``harness``."""
    task = pickle.dumps((pickle.dumps((harness, code)), sys.path))
    done = subprocess.run([sys.executable, "-c", _CHILD], input=task, capture_output=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()
