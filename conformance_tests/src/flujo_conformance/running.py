"""How is the suite run on a harness without a test file? In this process, by pytest, on nothing but the suite.

`supervision` runs it in a process of its own, or in several at once.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final

import pytest

from flujo_core.errors import StorageUnavailableError

from .guarded_harness import HarnessError
from .harness import NO_RAW_READER, Harness
from .observations import UNSUPPORTED
from .report import Outcome, TestOutcome
from .rules import rules_of

HARNESS: Final = pytest.StashKey[Harness]()
SUITE: Final = Path(__file__).with_name("running_suite.py")


def run_pytest(harness: Harness, plugin: object, *options: str, seconds: float) -> int:
    """Pytest's exit code after the suite ran on the harness, watched by a plugin; no test lasts longer than that."""
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    for variable in ("PYTEST_ADDOPTS", "PYTEST_PLUGINS"):
        os.environ.pop(variable, None)
    alone = ["-c", os.devnull, "--rootdir", str(SUITE.parent), "--noconftest"]
    quiet = ["-p", "no:cacheprovider", "-p", "no:terminal"]
    # What crashes beside a test is a failure of the test.
    strict = ["-W", "error::pytest.PytestUnhandledThreadExceptionWarning"]
    return pytest.main([str(SUITE), *alone, *quiet, *strict, *options], plugins=[_Given(harness, seconds), plugin])


class _Given:
    """A plugin of pytest: which harness it is, and that no test lasts for ever."""

    def __init__(self, harness: Harness, seconds: float) -> None:
        self._harness = harness
        self._seconds = seconds

    def pytest_configure(self, config: pytest.Config) -> None:
        config.stash[HARNESS] = self._harness
        config.option.tbstyle = "short"
        config.option.verbose = 2

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self) -> Iterator[None]:
        with _deadline(self._seconds):
            return (yield)


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        pytest.fail(f"no end after {seconds:g} s")

    if not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    # Again and again: the loop that is closed after the first may wait too.
    signal.setitimer(signal.ITIMER_REAL, seconds, 5)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Collector:
    """A plugin of pytest: tells of each test when it begins, and what came of it.

    ``wanted`` says by its name whether to run a test; ``dealt``, asked again and again, which of those to run next, by
    its place among them, or a place past the last one: others run the rest. ``tell`` hears ("names", all, those left
    out), ("began", name) and ("outcome", `TestOutcome`).
    """

    def __init__(self, wanted: Callable[[str], bool], tell: Callable[..., None], dealt: Callable[[], int]) -> None:
        self._wanted = wanted
        self._tell = tell
        self._dealt = dealt
        self._blameless: set[str] = set()
        """Tests that failed because the database, or the harness, did."""
        self._found: dict[str, TestOutcome] = {}
        self.errors: list[str] = []

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.errors.append(report.longreprtext)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        names = [item.name for item in items]
        items[:] = [item for item in items if self._wanted(item.name)]
        self._tell("names", names, [name for name in names if not self._wanted(name)])

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Instead of one after the other. No test has the next one's fixtures to keep: the suite's are a test's own."""
        while not self.errors and (number := self._dealt()) < len(session.items):
            session.config.hook.pytest_runtest_protocol(item=session.items[number], nextitem=None)
        return True

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._tell("began", nodeid.rpartition("::")[2])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
        if call.excinfo is not None and call.excinfo.errisinstance((StorageUnavailableError, HarnessError)):
            self._blameless.add(item.nodeid)
        return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.rpartition("::")[2]
        if report.when != "call" and report.passed:
            return
        outcome, why = self._judged(report)
        before = self._found.get(name)
        if before is not None and outcome == "PASS":
            return
        self._found[name] = TestOutcome(
            name=name,
            rules=rules_of(name),
            outcome=outcome,
            seconds=round(report.duration + (before.seconds if before else 0), 3),
            why=why,
            details=report.longreprtext if outcome in ("FAIL", "ERROR") else "",
            figures={key: figure for key, figure in report.user_properties if key != UNSUPPORTED},  # type: ignore[misc]
        )
        self._tell("outcome", self._found[name])

    def _judged(self, report: pytest.TestReport) -> tuple[Outcome, str]:
        limit = dict(report.user_properties).get(UNSUPPORTED)
        if report.passed:
            return ("UNSUPPORTED", str(limit)) if limit else ("PASS", "")
        place: Any = report.longrepr
        if report.nodeid in self._blameless:
            return "ERROR", failure(report).partition("\n")[0]
        if hasattr(report, "wasxfail") and report.skipped:
            return "EXEMPT", report.wasxfail
        if report.skipped:
            reason = str(place[2]).removeprefix("Skipped: ")
            return ("NOT RUN", reason) if reason == NO_RAW_READER else ("ERROR", f"skipped: {reason}")
        return ("FAIL" if report.when == "call" else "ERROR"), failure(report).partition("\n")[0]


def failure(report: pytest.TestReport) -> str:
    """What a test that failed raised; where that can't be told, all that pytest says of it."""
    crash: Any = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message if crash else report.longreprtext)
