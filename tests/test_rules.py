"""Is every rule of the contract proved by a test, and does every test name rules that there are?"""

from __future__ import annotations

import ast
import re
from pathlib import Path

from flujo_conformance.rules import KIT, differences, named_tests, table
from flujo_core.contract import RULES

ROOT = Path(__file__).parent.parent
FOLDERS = [
    KIT,
    ROOT / "tests",
    *(ROOT / package / "tests" for package in ("flujo_core", "conformance_tests")),
    *sorted(ROOT.glob("plugins/*/tests")),
    *sorted(ROOT.glob("examples/*/tests")),
]


def test_every_rule_has_a_test_and_every_test_a_rule() -> None:
    assert differences(named_tests(FOLDERS)) == []


def test_every_rule_stands_in_a_docstring_of_the_product() -> None:
    """Of the method that it binds, so that whoever reads the code finds the rule."""
    sources = [ROOT / "flujo_core" / "src", *ROOT.glob("plugins/*/src")]
    texts = [path.read_text(encoding="utf-8") for source in sources for path in source.rglob("*.py")]
    nodes = [node for text in texts for node in ast.walk(ast.parse(text))]
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = [ast.get_docstring(node) or "" for node in nodes if isinstance(node, kinds)]
    assert sorted(set(RULES) - set(re.findall(r"\w+", " ".join(docstrings)))) == []


def test_the_contract_names_each_group_of_rules() -> None:
    counts = {"G": 12, "S": 8, "R": 9, "M": 4, "T": 3, "A": 5, "D": 6}
    assert list(RULES) == [f"{group}{number}" for group, count in counts.items() for number in range(1, count + 1)]
    assert all(sentence.endswith(".") for sentence in RULES.values())


def test_the_rules_of_a_name_are_those_it_begins_with(tmp_path: Path) -> None:
    tests = (
        "def test_s1_s2_two_rules(self): ...\n"
        "class TestX:\n"
        "    async def test_g10_as_r3_says(self): ...\n"
        "def test_without_a_rule(): ...\n"
        "def helper_s4_x(): ...\n"
        "def test_s9_there_is_no_such_rule(): ...\n"
    )
    (tmp_path / "test_x.py").write_text(tests, encoding="utf-8")
    found = named_tests([tmp_path])
    two, unknown = ["test_s1_s2_two_rules"], ["test_s9_there_is_no_such_rule"]
    assert found == {"S1": two, "S2": two, "G10": ["test_g10_as_r3_says"], "S9": unknown}
    assert "S3 has no test" in differences(found)
    assert "test_s9_there_is_no_such_rule: there is no rule S9" in differences(found)
    assert "| S1 | store | " + RULES["S1"] + " | 1 | `test_s1_s2_two_rules` |" in table(found)
