"""How thoroughly does the suite look, and at which calls?

``FLUJO_CONFORMANCE_PROFILE`` and ``FLUJO_CONFORMANCE_SEED`` decide:
``quick`` is for every change, ``ci`` draws about four times as many examples, ``soak`` as many in each of its rounds.
Without a seed every run draws the same calls; with one too, but others for each seed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final, TypeVar

import hypothesis
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

Test = TypeVar("Test", bound=Callable[..., None])

PROFILE_VARIABLE: Final = "FLUJO_CONFORMANCE_PROFILE"
SEED_VARIABLE: Final = "FLUJO_CONFORMANCE_SEED"
PROFILES: Final = {"quick": 1, "ci": 4, "soak": 4}
"""How many times the examples of ``quick`` each draws."""


def chosen_profile() -> str:
    named = os.environ.get(PROFILE_VARIABLE, "quick")
    if named not in PROFILES:
        raise ValueError(f"{PROFILE_VARIABLE} is {named!r}; it is one of {', '.join(PROFILES)}")
    return named


def chosen_seed() -> int | None:
    text = os.environ.get(SEED_VARIABLE)
    if text is None or text.isdecimal():
        return None if text is None else int(text)
    raise ValueError(f"{SEED_VARIABLE} is {text!r}; it is a whole number")


def times(quick: int) -> int:
    """How often to do what ``quick`` does so often."""
    return quick * PROFILES[chosen_profile()]


def examples(quick: int) -> Callable[[Test], Test]:
    """Decorates a Hypothesis test: as many examples as the profile says, the same in every run with one seed."""
    seed = chosen_seed()

    def decorate(test: Test) -> Test:
        bounded: Test = _settings(quick)(test)
        return bounded if seed is None else hypothesis.seed(seed)(bounded)

    return decorate


def run_machine(machine: type[RuleBasedStateMachine], quick: int, steps: int) -> None:
    """Runs a state machine as a test, ``steps`` calls in each example."""
    seed = chosen_seed()
    if seed is not None:
        hypothesis.seed(seed)(machine)
    # Nothing is shrunk here: `shortening` needs a hundredth of the executions.
    phases = {"phases": (hypothesis.Phase.generate,), "report_multiple_bugs": False, "print_blob": False}
    run_state_machine_as_test(machine, settings=_settings(quick, stateful_step_count=steps, **phases))


def _settings(quick: int, **more: Any) -> settings:
    return settings(
        max_examples=times(quick),
        derandomize=chosen_seed() is None,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        **more,
    )
