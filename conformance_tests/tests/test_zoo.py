"""Is the zoo whole, and does the selftest tell what survived? It runs on a handful of mutants."""

from __future__ import annotations

from collections import Counter

import pytest

from flujo_conformance.rules import ELSEWHERE, KIT, named_tests, rules_of
from flujo_conformance.selftest import line, problems, verdicts
from flujo_conformance.selftest_run import Verdict
from flujo_conformance.zoo import MUTANTS, UNBROKEN, ZooHarness
from flujo_core.contract import RULES

HANDFUL = (
    "prefix-delete",
    "lost-update",
    "limit-before-filter",
    "bool-as-int",
    "torn-on-cancel",
    "orphaned-evaluations",
)


def verdict(name: str, killed_by: str | None) -> Verdict:
    rules = MUTANTS[name].rules if name in MUTANTS else ()
    return Verdict(name, rules, killed_by, "because", 3, 0.1)


def test_every_mutant_breaks_rules_that_there_are_and_says_how() -> None:
    assert len(MUTANTS) >= 60
    for name, mutant in MUTANTS.items():
        assert mutant.name == name
        assert mutant.rules
        assert set(mutant.rules) <= set(RULES) - set(ELSEWHERE), name
        assert mutant.sentence.endswith("."), name
    repeated = [text for text, count in Counter(mutant.sentence for mutant in MUTANTS.values()).items() if count > 1]
    assert repeated == []
    assert UNBROKEN.name not in MUTANTS


def test_every_rule_that_the_suite_proves_has_a_mutant_and_no_other_rule_is_proved() -> None:
    proved = set(named_tests([KIT]))
    assert {rule for mutant in MUTANTS.values() for rule in mutant.rules} == proved == set(RULES) - set(ELSEWHERE)


@pytest.mark.parametrize("name", [UNBROKEN.name, *MUTANTS])
def test_every_mutant_can_be_made(name: str) -> None:
    assert ZooHarness(name).open("n") is not ZooHarness(name).open("n")


def test_a_handful_is_found_by_the_tests_of_their_rules() -> None:
    found = {verdict.name: verdict for verdict in verdicts(HANDFUL)}
    assert set(found) == set(HANDFUL)
    for name, one in found.items():
        assert set(one.proved) & set(MUTANTS[name].rules), one
        assert one.why
    assert problems(list(found.values()), complete=False) == []


def test_what_survives_is_a_failure_and_so_is_a_rule_without_a_kill() -> None:
    fine = [verdict(name, f"test_{mutant.rules[0].lower()}_x") for name, mutant in MUTANTS.items()]
    assert problems([verdict(UNBROKEN.name, None), *fine], complete=True) == []
    survivor = verdict("prefix-delete", None)
    assert "SURVIVED" in line(survivor)
    assert any("prefix-delete survived" in problem for problem in problems([survivor, *fine], complete=True))
    without_s5 = [one for one in fine if "S5" not in one.proved]
    assert problems(without_s5, complete=True) == ["no mutant is found by a test of S5"]
    broken = problems([verdict(UNBROKEN.name, "test_s1_x"), *fine], complete=True)
    assert broken == ["the unbroken backend fails test_s1_x: because"]


def test_a_test_names_its_rules_first() -> None:
    assert rules_of("test_s1_r10_two_rules_and_s3") == ("S1", "R10")
    assert rules_of("test_of_nothing") == ()
