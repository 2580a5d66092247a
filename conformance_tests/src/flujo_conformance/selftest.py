"""Does the suite find bugs? It is run on each backend of the zoo.

The selftest fails if a mutant survives, if no mutant is found by the tests of a rule, or if the unbroken backend
doesn't pass.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

from flujo_core.contract import RULES

from .rules import ELSEWHERE
from .selftest_run import Verdict, judge
from .zoo import MUTANTS, UNBROKEN

PROCESSES = 2


def verdicts(names: Iterable[str]) -> Iterator[Verdict]:
    """Of the named backends, as they come."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, mp_context=context) as pool:
        for done in as_completed([pool.submit(judge, name) for name in names]):
            yield done.result()


def problems(found: Sequence[Verdict], *, complete: bool) -> list[str]:
    """What makes the selftest fail, in words; rules are looked at only if all mutants were."""
    wrong = [
        f"the unbroken backend fails {verdict.killed_by}: {verdict.why}"
        for verdict in found
        if verdict.name == UNBROKEN.name and verdict.killed_by
    ]
    wrong += [
        f"{verdict.name} survived {verdict.tests} tests: {MUTANTS[verdict.name].sentence}"
        for verdict in found
        if verdict.name in MUTANTS and verdict.killed_by is None
    ]
    if complete:
        killing = {rule for verdict in found if verdict.name in MUTANTS for rule in verdict.proved}
        wrong += [f"no mutant is found by a test of {rule}" for rule in RULES if rule not in killing | set(ELSEWHERE)]
    return wrong


def line(verdict: Verdict) -> str:
    return "  ".join(
        (
            f"{verdict.name:32}",
            f"{' '.join(verdict.rules):10}",
            f"{verdict.seconds:5.1f} s",
            f"{verdict.tests:4} tests",
            verdict.killed_by or ("passed" if verdict.name == UNBROKEN.name else "SURVIVED"),
            # A test of another rule was the first to notice.
            *(["*"] if verdict.killed_by and verdict.rules and not {*verdict.rules} & {*verdict.proved} else []),
        )
    )
