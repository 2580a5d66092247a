"""Does the suite find bugs? ``python -m flujo_conformance.selftest`` runs it on each backend of the zoo.

It prints the kill matrix: which mutant breaks which rules, and which test found it. It fails if a mutant survives, if
no mutant is found by the tests of a rule, or if the unbroken backend doesn't pass.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict

from flujo_core.contract import RULES

from .selftest_run import Verdict, judge
from .zoo import ELSEWHERE, MUTANTS, UNBROKEN

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


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m flujo_conformance.selftest", description=__doc__)
    parser.add_argument("--only", metavar="ID", action="append", help="only this mutant, and say why it failed; repeat")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead")
    chosen = parser.parse_args(arguments)
    names = chosen.only or [UNBROKEN.name, *MUTANTS]
    unknown = [name for name in names if name != UNBROKEN.name and name not in MUTANTS]
    if unknown:
        parser.error(f"there is no mutant {unknown[0]!r}; the known ones are {', '.join(MUTANTS)}")
    started, found = time.perf_counter(), []
    for verdict in verdicts(names):
        found.append(verdict)
        if not chosen.json:
            print(line(verdict), flush=True)  # noqa: T201
        if chosen.only and not chosen.json:
            print(verdict.why)  # noqa: T201
    wrong = problems(found, complete=not chosen.only)
    found.sort(key=lambda verdict: names.index(verdict.name))
    killed = sum(verdict.name in MUTANTS and verdict.killed_by is not None for verdict in found)
    seconds = time.perf_counter() - started
    if chosen.json:
        matrix = [{**asdict(verdict), "proved": verdict.proved} for verdict in found]
        print(json.dumps({"seconds": seconds, "mutants": matrix, "elsewhere": ELSEWHERE, "problems": wrong}))  # noqa: T201
        return bool(wrong)
    print(f"\n{killed} of {sum(verdict.name in MUTANTS for verdict in found)} mutants killed in {seconds:.0f} s")  # noqa: T201
    if not chosen.only:
        print("not proved by the suite: " + "; ".join(f"{rule}, {why}" for rule, why in ELSEWHERE.items()))  # noqa: T201
    for problem in wrong:
        print(f"FAIL: {problem}")  # noqa: T201
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
