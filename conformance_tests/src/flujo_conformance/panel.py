"""Who is asked, and what do they answer? The oracle and any number of backends make the same calls at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from flujo_core import StateBackend
from flujo_core.errors import FlujoStateError

from .answers import Call, ask, disagreement, stale_words_aside
from .call_trace import Ask, InvalidState, SetClock, Step, step_from_json, step_to_json
from .harness import Harness
from .model import ModelBackend
from .run_record import Run

NAMESPACE: Final = "machine"
ORACLE: Final = "oracle"
_READING: Final = ("load_", "get_", "list_", "iter_", "count_")
START: Final = datetime.fromisoformat("2024-03-01T12:00:00.123456+00:00")


Runs = Mapping[str, Run]


def runs_of(model: ModelBackend) -> Runs:
    """The oracle's runs as they are now: what later calls change in place is copied."""
    return {
        run_id: replace(run, steps=[*run.steps], spans={**run.spans}, traced_spans={*run.traced_spans})
        for run_id, run in model._runs.items()
    }


class Clock:
    """A clock that stands still between the steps, so that instants coincide."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


@dataclass(frozen=True, slots=True)
class Answered:
    """A call with all answers to it, by name, the oracle's first; and the oracle's runs before and after it."""

    call: Call
    answers: dict[str, Any]
    before: Runs
    after: Runs

    def first_difference(self, reference: str) -> tuple[str, str] | None:
        """Who is the first not to answer as ``reference`` does, and how the answers differ; None if all do.

        The oracle is no party where it isn't the reference.
        """
        for name, got in self.answers.items():
            if name in (ORACLE, reference):
                continue
            # How a backend says that a task is stale is its own affair.
            wanted, answer = (stale_words_aside(self.answers[ORACLE], one) for one in (self.answers[reference], got))
            why = disagreement(self.call, wanted, answer)
            if why is not None:
                return name, why
        return None


class Panel:
    """Synchronous, as Hypothesis can't await: it has an event loop of its own."""

    def __init__(self, harnesses: Mapping[str, Harness], handles: int = 2) -> None:
        if ORACLE in harnesses:
            raise ValueError(f"no harness may be called {ORACLE!r}: the oracle is always asked")
        self.clock = Clock()
        self.model = ModelBackend(self.clock)
        self.runner = asyncio.Runner()
        self.backends: dict[str, list[StateBackend]] = {}
        self._runs: Runs = {}
        self._harnesses = harnesses
        self._handles = handles
        # Two harnesses for one place, such as memory://{namespace}, don't meet.
        places = [NAMESPACE, *(f"{NAMESPACE}{number}" for number in range(2, len(harnesses) + 1))]
        self._namespaces = dict(zip(harnesses, places, strict=True))

    def start(self) -> None:
        for name, harness in self._harnesses.items():
            self.runner.run(harness.wipe(self._namespaces[name]))
            self.backends[name] = [self._open(name) for _ in range(self._handles)]

    def _open(self, name: str) -> StateBackend:
        backend = self._harnesses[name].open(self._namespaces[name])
        backend.clock = self.clock
        return backend

    def close(self) -> None:
        try:
            for backends in self.backends.values():
                for backend in backends:
                    self.runner.run(backend.shutdown())
        finally:
            self.runner.close()

    def take(self, step: Step) -> list[Answered]:
        """Everyone takes a step; the answers to its calls, if it has any."""
        if isinstance(step, SetClock):
            self.clock.now = step.now
            return []
        if isinstance(step, Ask):
            return self._ask(step)
        for name, backends in self.backends.items():
            self.runner.run(backends[step.handle].shutdown())
            if step.new:
                backends[step.handle] = self._open(name)
        return []

    def _ask(self, step: Ask) -> list[Answered]:
        found = []
        before = self._runs
        # The oracle goes first: an argument that a backend changed would change its answer too, and be noticed.
        for call in step.calls:
            answer = self._ask_oracle(call)
            after = before if call[0].startswith(_READING) else runs_of(self.model)
            found.append(Answered(call, {ORACLE: answer}, before, after))
            before = self._runs = after
        # Of several backends none gets what another may have changed.
        copied = step_to_json(step) if len(self.backends) > 1 else None
        handles = {name: backends[step.handle] for name, backends in self.backends.items()}
        steps = [step if copied is None else step_from_json(copied) for _ in handles]
        for name, answers in self.runner.run(_ask_each(handles, steps)).items():
            for one, answer in zip(found, answers, strict=True):
                one.answers[name] = answer
        return found

    def _ask_oracle(self, call: Call) -> Any:
        method, args, kwargs = _made(call)
        try:
            return getattr(self.model, method)(*args, **kwargs)
        except FlujoStateError as error:
            return error


async def _ask_each(handles: Mapping[str, StateBackend], steps: list[Any]) -> dict[str, list[Any]]:
    return {
        name: await asyncio.gather(*(ask(handle, _made(call)) for call in step.calls), return_exceptions=True)
        for (name, handle), step in zip(handles.items(), steps, strict=True)
    }


def _made(call: Call) -> Call:
    method, args, kwargs = call
    return method, tuple(arg.make() if isinstance(arg, InvalidState) else arg for arg in args), kwargs
