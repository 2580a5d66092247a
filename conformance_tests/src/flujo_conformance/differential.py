"""Do several backends answer alike? The state machine asks them all, and what it finds is shortened to a few calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, Verbosity, settings
from hypothesis.stateful import run_state_machine_as_test

from .answers import Call
from .call_trace import Trace
from .harness import Harness
from .machine import ContractMachine, DisagreementError, Recording, without_advice
from .replay import replay
from .shortening import shortest


@dataclass(frozen=True, slots=True)
class Difference:
    trace: Trace
    """Ends with the step that shows the difference."""
    step: int
    """The number of that step in the trace."""
    call: Call
    answers: Mapping[str, Any]
    """Of everyone, the oracle among them, to the call."""
    who: str
    """Whose answer differs from that of the first harness."""
    why: str
    """How, beginning with the path."""
    repeatable: bool
    """Whether replaying the trace showed the difference again."""


def find_difference(
    harnesses: Mapping[str, Harness], *, examples: int = 50, steps: int = 30, seed: int = 0
) -> Difference | None:
    """The smallest difference that is found between the answers of the first harness and those of any other.

    With one seed it is the same calls every time. All namespaces are emptied.
    """
    if len(harnesses) < 2:
        raise ValueError("it takes two backends to differ")
    first, recording = next(iter(harnesses)), Recording()
    parts: dict[str, Any] = {"harnesses": harnesses, "reference": first, "recording": recording}
    machine: type[ContractMachine] = type("DifferentialMachine", (ContractMachine,), parts)
    hypothesis.seed(seed)(machine)
    try:
        with without_advice():
            run_state_machine_as_test(machine, settings=_settings(examples, steps))
    except Exception:
        # Whatever Hypothesis makes of it, a flaky test among them: an answer that differed once did differ.
        if recording.failed is None or not isinstance(recording.failed[1], DisagreementError):
            raise
        return _confirmed(recording.failed[0], recording.failed[1], harnesses, first)
    return None


def _confirmed(trace: Trace, error: DisagreementError, harnesses: Mapping[str, Harness], first: str) -> Difference:
    trace = shortest(trace, harnesses, reference=first)
    last = next((one for one in replay(trace, harnesses, reference=first) if one.first), None)
    if last is None or last.call is None or last.answers is None:
        one = error.answered
        return Difference(trace, len(trace.steps) - 1, one.call, one.answers, error.name, error.why, repeatable=False)
    return Difference(trace, last.number, last.call, last.answers, last.who, last.why, repeatable=True)


def _settings(examples: int, steps: int) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        # `shortest` takes a hundredth of the executions that shrinking the machine's draws would.
        phases=(Phase.generate,),
        verbosity=Verbosity.quiet,
        database=None,
        deadline=None,
        derandomize=False,
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
