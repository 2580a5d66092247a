"""What does ``flujo-conformance rules`` list?"""

from __future__ import annotations

from flujo_conformance.rules import ELSEWHERE, KIT, named_tests
from flujo_core.cli.execution import JsonOption
from flujo_core.cli.output import Column, write, write_json, write_table
from flujo_core.contract import KEPT_BY, RULES

_COLUMNS = (Column("RULE"), Column("KEPT BY"), Column("TESTS", right=True), Column("WHAT IT SAYS", folds_at=60))


def rules(as_json: JsonOption = False) -> None:
    """List the rules of the contract, who keeps each, and the tests of the suite that prove it.

    Example:
      flujo-conformance rules --json
    """
    found = named_tests([KIT])
    if as_json:
        write_json(
            [
                {
                    "rule": rule,
                    "kept_by": KEPT_BY[rule],
                    "sentence": sentence,
                    "tests": found.get(rule, []),
                    "elsewhere": ELSEWHERE.get(rule),
                }
                for rule, sentence in RULES.items()
            ]
        )
        return
    write_table(
        _COLUMNS,
        [(rule, KEPT_BY[rule], str(len(found.get(rule, []))), sentence) for rule, sentence in RULES.items()],
    )
    write("\nNot shown by this suite:\n")
    for rule, why in ELSEWHERE.items():
        write(f"  {rule}: {why}\n")
    write("\nThe names of the tests: --json\n")
