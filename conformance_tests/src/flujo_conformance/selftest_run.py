"""Which test finds out one backend of the zoo? Runs the suite on it in this process, up to the first failure."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

import hypothesis
import pytest

from .rules import rules_of
from .running import failure, run_pytest
from .zoo import MUTANTS, UNBROKEN, ZooHarness

TEST_SECONDS: Final = 30


@dataclass(frozen=True, slots=True)
class Verdict:
    name: str
    rules: tuple[str, ...]
    """Those that it breaks."""
    killed_by: str | None
    """The first test that failed; None if all passed."""
    why: str
    tests: int
    """How many ran."""
    seconds: float

    @property
    def proved(self) -> tuple[str, ...]:
        """The rules of the test that failed."""
        return rules_of(self.killed_by) if self.killed_by else ()


def judge(name: str) -> Verdict:
    """Of a mutant, or of the unbroken backend."""
    rules = () if name == UNBROKEN.name else MUTANTS[name].rules
    watch, started = _Watch(rules), time.perf_counter()
    # No shrinking: which example failed does not matter here.
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    hypothesis.settings.register_profile("selftest", phases=phases, report_multiple_bugs=False)
    hypothesis.settings.load_profile("selftest")
    code = run_pytest(ZooHarness(name), watch, "-x", seconds=TEST_SECONDS)
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED) or not watch.tests:
        raise RuntimeError(f"the suite did not run on {name}: pytest ended with {code!r}")
    return Verdict(name, rules, watch.failed, watch.why, watch.tests, time.perf_counter() - started)


class _Watch:
    """A plugin of pytest: the tests of the mutant's rules come first."""

    def __init__(self, rules: tuple[str, ...]) -> None:
        self._rules = rules
        self.tests = 0
        self.failed: str | None = None
        self.why = ""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=self._place)

    def _place(self, item: pytest.Item) -> tuple[int, bool]:
        name = item.name.partition("[")[0]
        places = [self._rules.index(rule) for rule in rules_of(name) if rule in self._rules]
        return min(places, default=len(self._rules)), "_any_" in name

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.tests += report.when == "call"
        if report.failed and self.failed is None:
            self.failed = report.nodeid.rpartition("::")[2].partition("[")[0]
            self.why = failure(report)
