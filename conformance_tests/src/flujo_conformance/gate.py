"""Does a backend answer as the oracle does in every situation that matters, each of which did come up?

``FLUJO_CONFORMANCE_TRACE`` names a file: there the calls are kept that lead to a difference, for `replay`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

from hypothesis import Phase, settings

from .call_trace import Trace, dumps
from .harness import Harness
from .machine import ContractMachine, DisagreementError, Recording, without_advice
from .profile import run_machine
from .replay import render, replay
from .scenes import FORCED_BY
from .shortening import shortest
from .witnesses import Witnesses

TRACE_VARIABLE: Final = "FLUJO_CONFORMANCE_TRACE"


def hold_against_the_oracle(
    harness: Harness, quick: int, steps: int, machine: type[ContractMachine] = ContractMachine
) -> Witnesses:
    """Runs the state machine, and then the scenes of what did not come up in it; what came up in the end."""
    seen, recording = Witnesses(), Recording()
    parts: dict[str, Any] = {"harnesses": {"backend": harness}, "seen": seen, "recording": recording}
    watched: type[ContractMachine] = type("Machine", (machine,), parts)
    try:
        with without_advice():
            run_machine(watched, quick, steps)
            forced = sorted({FORCED_BY[name] for name in seen.missing})
            if forced:
                run_machine(type("ForcedMachine", (watched,), {"forced": forced}), 1, steps=10)
    except DisagreementError as error:
        if recording.failed is None or Phase.shrink not in settings().phases:
            raise
        raise AssertionError(_explained(recording.failed[0], harness, error)) from None
    return seen


def _explained(trace: Trace, harness: Harness, error: DisagreementError) -> str:
    """The difference, and the fewest calls that show it."""
    harnesses = {"backend": harness}
    trace = shortest(trace, harnesses)
    replayed = replay(trace, harnesses)
    if all(one.agree for one in replayed):
        return f"{error}\n\nIt did not show again when the same calls were repeated."
    path = os.environ.get(TRACE_VARIABLE)
    kept = f"They are in {path}." if path else f"To keep them, name a file in {TRACE_VARIABLE}."
    if path:
        try:
            Path(path).write_text(dumps(trace), encoding="ascii")
        except OSError as failed:
            kept = f"They could not be written to {path}: {failed.strerror}."
    return f"{error}\n\nThe fewest calls that show it:\n{render(replayed)}{kept}"
