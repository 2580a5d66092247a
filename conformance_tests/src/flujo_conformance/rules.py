"""Which rule is proved by which tests?

A test names the rules it proves first: ``test_s3_…``, or ``test_s1_s2_…`` for two.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from flujo_core.contract import KEPT_BY, RULES

KIT = Path(__file__).parent
_TEST = re.compile(r"^\s*(?:async )?def (test_((?:[a-z][0-9]+_)+)\w*)\(", re.MULTILINE)


ELSEWHERE: Final = {
    "G12": "no wait can be made to last through the public methods; the plugins' tests hold locks and connections",
    "D1": "it is decided in core before there is a backend; core's tests prove it",
    "D2": "it is about SQLite files; the SQLite plugin's tests prove it",
    "D3": "it is about libpq's grammar; the PostgreSQL plugin's tests prove it",
    "D4": "it is decided in core before there is a backend; core's tests prove it",
    "D6": "no public method writes a document in a newer format; the tests of core and of the plugins do",
}
"""Rules that no test of the suite proves, because no backend's public methods can show them, and who proves them."""


def rules_of(test: str) -> tuple[str, ...]:
    """The rules that a test names."""
    found = re.match(r"test_((?:[a-z][0-9]+_)+)", test)
    return tuple(found[1].upper().rstrip("_").split("_")) if found else ()


def named_tests(folders: Iterable[Path]) -> dict[str, list[str]]:
    """The names of the tests in all Python files within the folders, under each rule that they name."""
    found: dict[str, list[str]] = {}
    for path in sorted({path for folder in folders for path in folder.rglob("*.py")}):
        for name, ids in _TEST.findall(path.read_text(encoding="utf-8")):
            for rule in ids.upper().rstrip("_").split("_"):
                found.setdefault(rule, []).append(name)
    return found


def differences(found: Mapping[str, list[str]]) -> list[str]:
    """Rules without a test and tests of unknown rules, in words."""
    untested = [f"{rule} has no test" for rule in RULES if rule not in found]
    unknown = [f"{', '.join(names)}: there is no rule {rule}" for rule, names in found.items() if rule not in RULES]
    return untested + unknown


def table(found: Mapping[str, list[str]]) -> str:
    """Rule, who keeps it, sentence, number of tests and their names, in Markdown."""
    lines = ["| Rule | Kept by | What it says | Tests | Names |", "|---|---|---|---|---|"]
    for rule, sentence in RULES.items():
        names = found.get(rule, [])
        lines.append(
            f"| {rule} | {KEPT_BY[rule]} | {sentence} | {len(names)} | {', '.join(f'`{name}`' for name in names)} |"
        )
    return "\n".join(lines)
