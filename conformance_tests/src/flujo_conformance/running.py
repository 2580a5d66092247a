"""How is the suite run on a harness without a test file? In this process, by pytest, on nothing but the suite."""

from __future__ import annotations

import asyncio
import os
import platform
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any, Final

import pytest

from flujo_core.contract import CONTRACT_VERSION
from flujo_core.errors import FlujoStateError, StorageUnavailableError

from .harness import Harness
from .machine import NAMESPACE
from .observations import UNSUPPORTED
from .profile import chosen_profile, chosen_seed
from .report import Outcome, Report, Subject, TestOutcome
from .rules import rules_of

HARNESS: Final = pytest.StashKey[Harness]()
SUITE: Final = Path(__file__).with_name("running_suite.py")
LEFT_OUT: Final = "left out"
INTERRUPTED: Final = "interrupted"
TEST_SECONDS: Final = {"quick": 60, "ci": 240, "soak": 240}
"""A backend may wait for ever; its test then fails."""


def run_pytest(harness: Harness, plugin: object, *options: str, seconds: float) -> int:
    """Pytest's exit code after the suite ran on the harness, watched by a plugin; no test lasts longer than that."""
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    os.environ.pop("PYTEST_ADDOPTS", None)
    alone = ["-c", os.devnull, "--rootdir", str(SUITE.parent), "--noconftest"]
    quiet = ["-p", "no:cacheprovider", "-p", "no:terminal"]
    return pytest.main([str(SUITE), *alone, *quiet, *options], plugins=[_Given(harness, seconds), plugin])


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
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class _Collector:
    """A plugin of pytest: the outcome of each test."""

    def __init__(self, wanted: Callable[[str], bool], told: Callable[[int, int, str], None]) -> None:
        self._wanted = wanted
        self._told = told
        self._unavailable: set[str] = set()
        self.left_out: list[str] = []
        self.found: dict[str, TestOutcome] = {}
        self.names: list[str] = []
        self.errors: list[str] = []

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.errors.append(report.longreprtext)

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        self.names = [item.name for item in items]
        self.left_out = [item.name for item in items if not self._wanted(item.name)]
        items[:] = [item for item in items if self._wanted(item.name)]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._told(len(self.found), len(self.names) - len(self.left_out), nodeid.rpartition("::")[2])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
        if call.excinfo is not None and call.excinfo.errisinstance(StorageUnavailableError):
            self._unavailable.add(item.nodeid)
        return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.rpartition("::")[2]
        if report.when != "call" and report.passed:
            return
        outcome, why = self._judged(report)
        before = self.found.get(name)
        if before is not None and outcome == "PASS":
            return
        self.found[name] = TestOutcome(
            name=name,
            rules=rules_of(name),
            outcome=outcome,
            seconds=round(report.duration + (before.seconds if before else 0), 3),
            why=why,
            details=report.longreprtext if outcome in ("FAIL", "ERROR") else "",
            figures={key: figure for key, figure in report.user_properties if key != UNSUPPORTED},  # type: ignore[misc]
        )

    def _judged(self, report: pytest.TestReport) -> tuple[Outcome, str]:
        limit = dict(report.user_properties).get(UNSUPPORTED)
        if report.passed:
            return ("UNSUPPORTED", str(limit)) if limit else ("PASS", "")
        if report.skipped:
            if hasattr(report, "wasxfail"):
                return "EXEMPT", report.wasxfail
            place: Any = report.longrepr
            return "NOT RUN", str(place[2]).removeprefix("Skipped: ")
        crash: Any = getattr(report.longrepr, "reprcrash", None)
        why = (crash.message if crash else report.longreprtext).partition("\n")[0]
        if report.when != "call" or report.nodeid in self._unavailable:
            return "ERROR", why
        return "FAIL", why

    def outcomes(self, reason: str) -> tuple[TestOutcome, ...]:
        """Of all tests; those that were not reached are not run."""

        def not_run(name: str) -> TestOutcome:
            why = LEFT_OUT if name in self.left_out else reason
            return TestOutcome(name=name, rules=rules_of(name), outcome="NOT RUN", seconds=0, why=why)

        return tuple(self.found.get(name) or not_run(name) for name in self.names)


def run_suite(
    harness: Harness,
    subject: Subject,
    *,
    wanted: Callable[[str], bool] = lambda name: True,
    told: Callable[[int, int, str], None] = lambda done, all_, name: None,
) -> Report:
    """The report on a harness, with the profile and seed of the environment.

    ``wanted`` says by its name whether to run a test; ``told`` hears before each how many are done, of how many, and
    its name. Ctrl-C ends the run with a report; what was not reached is not run.
    """
    started, clock = datetime.now(UTC), time.perf_counter()
    collector = _Collector(wanted, told)
    error = _unreachable(harness)
    reason = "not reached"
    if not error:
        code = run_pytest(harness, collector, seconds=TEST_SECONDS[chosen_profile()])
        reason = INTERRUPTED if code == pytest.ExitCode.INTERRUPTED else reason
        if collector.errors:
            error = collector.errors[0]
        elif code in (pytest.ExitCode.INTERNAL_ERROR, pytest.ExitCode.USAGE_ERROR):
            error = "pytest could not run the suite"
    return Report(
        kit=version("flujo-conformance"),
        contract=CONTRACT_VERSION,
        python=platform.python_version(),
        platform=platform.platform(terse=True),
        subject=subject,
        profile=chosen_profile(),
        seed=chosen_seed(),
        started=started,
        seconds=round(time.perf_counter() - clock, 1),
        error=error,
        tests=collector.outcomes(reason),
    )


def _unreachable(harness: Harness) -> str:
    """Why no test can be run, in words; empty if one can."""

    async def open_once() -> None:
        backend = harness.open(NAMESPACE)
        try:
            await backend.count_runs()
        finally:
            await backend.shutdown()
        await harness.wipe(NAMESPACE)

    try:
        asyncio.run(open_once())
    except (FlujoStateError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return ""
