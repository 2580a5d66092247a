"""What did the suite find, in full? The verdict on a backend, its tests and rules, as JSON and as tables."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, computed_field

from flujo_core.contract import RULES

Outcome = Literal["PASS", "UNSUPPORTED", "EXEMPT", "NOT RUN", "FAIL", "ERROR"]
OUTCOMES: Final[tuple[Outcome, ...]] = ("PASS", "UNSUPPORTED", "EXEMPT", "NOT RUN", "FAIL", "ERROR")
"""From best to worst.

PASS         the test passed
UNSUPPORTED  the backend declares that it can't do this, and refuses it as a declared limit should
EXEMPT       the test fails, and the harness gives a reason and a link
NOT RUN      the test was not run: left out, interrupted, or the harness lacks what it needs
FAIL         the backend breaks the rule, or an exempted test passes
ERROR        the test could not be judged: the database can't be reached, or the harness fails
"""

Verdict = Literal["PASS", "PARTIAL", "FAIL", "ERROR"]
"""Of the whole: PASS allows declared limits; PARTIAL is a pass but for what is exempt or was not run."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class TestOutcome(_Record):
    __test__ = False  # no test class, though its name begins like one

    name: str
    rules: tuple[str, ...]
    outcome: Outcome
    seconds: float
    why: str = ""
    """The limit, the reason of the exemption or of not running, or the failure in one line."""
    details: str = ""
    """The failure as pytest explains it."""
    figures: Mapping[str, int | float | str] = {}
    """What the test counted."""


class Subject(_Record):
    """What was tested."""

    name: str
    """Of the backend, such as ``sqlite``; of a harness without a plugin, its class."""
    harness: str
    """``module:Class``."""
    uri: str = ""
    """With passwords masked."""
    distribution: str = ""
    """Name and version of the plugin's distribution."""
    database: str = ""
    """Name and version, such as ``PostgreSQL 16.4``."""
    durable: bool
    shared: bool


class Report(_Record):
    format: Literal[1] = 1
    kit: str
    """The version of flujo-conformance."""
    contract: int
    """The version of the contract."""
    python: str
    platform: str
    subject: Subject
    profile: str
    seed: int | None
    """None: the calls that every run without a seed draws."""
    rounds: int = 1
    """How often the tests were run, each time with the next seed."""
    started: datetime
    seconds: float
    interrupted: bool = False
    error: str = ""
    """Why no test could be run."""
    tests: tuple[TestOutcome, ...]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def counts(self) -> dict[Outcome, int]:
        found = Counter(test.outcome for test in self.tests)
        return {outcome: found[outcome] for outcome in OUTCOMES}

    @computed_field  # type: ignore[prop-decorator]
    @property
    def verdict(self) -> Verdict:
        counts = self.counts
        if self.error or counts["ERROR"] or not self.tests:
            return "ERROR"
        if counts["FAIL"]:
            return "FAIL"
        return "PARTIAL" if counts["EXEMPT"] or counts["NOT RUN"] else "PASS"

    def of_rule(self, rule: str) -> tuple[TestOutcome, ...]:
        return tuple(test for test in self.tests if rule in test.rules)

    def limits(self) -> list[str]:
        """What the backend declares that it can't do, each once."""
        return list(dict.fromkeys(test.why for test in self.tests if test.outcome == "UNSUPPORTED"))


def worst(outcomes: Iterable[Outcome]) -> Outcome:
    return max(outcomes, key=OUTCOMES.index)


def read_report(text: str) -> Report:
    """Of JSON text. Raises `ValueError` (pydantic's) for anything else; what is computed is computed again."""
    try:
        document = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if isinstance(document, dict):
        document = {key: value for key, value in document.items() if key not in Report.model_computed_fields}
    return Report.model_validate(document)


def merged(rounds: Sequence[Report]) -> Report:
    """One report of several runs: of each test the worst outcome, and the time of all."""
    found: dict[str, list[TestOutcome]] = {}
    for one in rounds:
        for test in one.tests:
            found.setdefault(test.name, []).append(test)
    tests = []
    for outcomes in found.values():
        ran = [test for test in outcomes if test.outcome != "NOT RUN"] or outcomes
        bad = max(ran, key=lambda test: OUTCOMES.index(test.outcome))
        tests.append(bad.model_copy(update={"seconds": sum(test.seconds for test in ran)}))
    last = max(rounds, key=lambda one: bool(one.error))
    return rounds[0].model_copy(
        update={
            "rounds": len(rounds),
            "seconds": sum(one.seconds for one in rounds),
            "interrupted": any(one.interrupted for one in rounds),
            "error": last.error,
            "tests": tuple(tests),
        }
    )


def matrix(reports: Sequence[Report]) -> str:
    """Rules against backends, in Markdown. Raises `ValueError` for reports about different versions of the contract."""
    versions = sorted({one.contract for one in reports})
    if len(versions) > 1:
        raise ValueError(f"the reports are about versions {versions} of the contract; run the older ones again")
    names = [re.sub(r"[^\w .()-]", "?", one.subject.database or one.subject.name) for one in reports]
    lines = [
        f"| Rule | What it says | {' | '.join(names)} |",
        f"|---|---|{'---|' * len(reports)}",
    ]
    for rule, sentence in RULES.items():
        cells = [_cell(one.of_rule(rule)) for one in reports]
        if any(cells):
            lines.append(f"| {rule} | {sentence} | {' | '.join(cells)} |")
    lines.append(f"| | **Verdict** | {' | '.join(f'**{one.verdict}**' for one in reports)} |")
    return "\n".join(lines)


def _cell(tests: Sequence[TestOutcome]) -> str:
    """``PASS 12``, or how many of each outcome."""
    found = Counter(test.outcome for test in tests)
    return ", ".join(f"{outcome} {found[outcome]}" for outcome in OUTCOMES if found[outcome])
