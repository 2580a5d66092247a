"""Which test finds out one backend of the zoo? Runs the suite on it in this process, up to the first failure."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final

import hypothesis
import pytest

from .harness import Harness
from .rules import rules_of
from .zoo import MUTANTS, UNBROKEN, ZooHarness

HARNESS: Final = pytest.StashKey[Harness]()
SUITE: Final = Path(__file__).with_name("selftest_suite.py")
TEST_SECONDS: Final = 30
"""A mutant may wait for ever; its test then fails."""


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
    watch, started = _Watch(name, rules), time.perf_counter()
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    os.environ.pop("PYTEST_ADDOPTS", None)
    # No shrinking: which example failed does not matter here.
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    hypothesis.settings.register_profile("selftest", phases=phases, report_multiple_bugs=False)
    hypothesis.settings.load_profile("selftest")
    options = ["-x", "-c", os.devnull, "--rootdir", str(SUITE.parent), "--noconftest"]
    plugins = ["-p", "no:cacheprovider", "-p", "no:terminal", "-p", "no:warnings"]
    code = pytest.main([str(SUITE), *options, *plugins], plugins=[watch])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED) or not watch.tests:
        raise RuntimeError(f"the suite did not run on {name}: pytest ended with {code!r}")
    return Verdict(name, rules, watch.failed, watch.why, watch.tests, time.perf_counter() - started)


class _Watch:
    """A plugin of pytest: the tests of the mutant's rules come first, and none lasts for ever."""

    def __init__(self, name: str, rules: tuple[str, ...]) -> None:
        self._name = name
        self._rules = rules
        self.tests = 0
        self.failed: str | None = None
        self.why = ""

    def pytest_configure(self, config: pytest.Config) -> None:
        config.stash[HARNESS] = ZooHarness(self._name)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=self._place)

    def _place(self, item: pytest.Item) -> tuple[int, bool]:
        name = item.name.partition("[")[0]
        places = [self._rules.index(rule) for rule in rules_of(name) if rule in self._rules]
        return min(places, default=len(self._rules)), "_any_" in name

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self) -> Iterator[None]:
        with _deadline(TEST_SECONDS):
            return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.tests += report.when == "call"
        if report.failed and self.failed is None:
            self.failed = report.nodeid.rpartition("::")[2].partition("[")[0]
            crash: Any = getattr(report.longrepr, "reprcrash", None)
            self.why = crash.message if crash else report.longreprtext


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        pytest.fail(f"no end after {seconds:g} s")

    if not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
