"""What does ``flujo-conformance selftest`` do?"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Annotated

import typer

from flujo_conformance.rules import ELSEWHERE
from flujo_conformance.selftest import line, problems, verdicts
from flujo_conformance.zoo import MUTANTS, UNBROKEN
from flujo_core.cli.execution import JsonOption
from flujo_core.cli.output import write, write_json

from .refusal import refuse

_ONLY = typer.Option("--only", metavar="ID", help="Only this mutant, and say why it failed; may be repeated.")


def selftest(only: Annotated[list[str] | None, _ONLY] = None, as_json: JsonOption = False) -> None:
    """Prove that the suite finds bugs: run it on each backend of a zoo of broken ones.

    The kill matrix says which mutant breaks which rules, and which test was the first to find it; a * marks a test of
    another rule. Ends with 1 if a mutant survives, if no mutant is found by the tests of a rule, or if the unbroken
    backend doesn't pass.

    Example:
      flujo-conformance selftest --only prefix-delete
    """
    names = only or [UNBROKEN.name, *MUTANTS]
    unknown = [name for name in names if name != UNBROKEN.name and name not in MUTANTS]
    if unknown:
        refuse(f"there is no mutant {unknown[0]!r}; the known ones are {', '.join(MUTANTS)}")
    started, found = time.perf_counter(), []
    for verdict in verdicts(names):
        found.append(verdict)
        if not as_json:
            write(line(verdict) + "\n" + (verdict.why + "\n" if only and verdict.why else ""))
    wrong = problems(found, complete=not only)
    found.sort(key=lambda verdict: names.index(verdict.name))
    seconds = time.perf_counter() - started
    if as_json:
        matrix = [{**asdict(verdict), "proved": verdict.proved} for verdict in found]
        write_json({"seconds": seconds, "mutants": matrix, "elsewhere": ELSEWHERE, "problems": wrong})
    else:
        mutants = [verdict for verdict in found if verdict.name in MUTANTS]
        killed = sum(verdict.killed_by is not None for verdict in mutants)
        write(f"\n{killed} of {len(mutants)} mutants killed in {seconds:.0f} s\n")
        if not only:
            write("not proved by the suite: " + "; ".join(f"{rule}, {why}" for rule, why in ELSEWHERE.items()) + "\n")
        write("".join(f"FAIL: {problem}\n" for problem in wrong))
    if wrong:
        raise typer.Exit(1)
