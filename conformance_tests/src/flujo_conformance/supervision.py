"""What if the backend under test ends the process, or never comes back? The suite runs in a process of its own.

This one hears of each test as it begins and ends, keeps the time, and makes the report.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import platform
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Final

import pytest

from flujo_core.contract import CONTRACT_VERSION
from flujo_core.errors import ConfigurationError, FlujoStateError, PluginError
from flujo_core.uri import mask_uri

from .guarded_harness import GuardedHarness
from .harness import Harness
from .harnesses import harness_for, harness_named, subject_of
from .machine import NAMESPACE
from .profile import chosen_profile, chosen_seed
from .report import Report, Subject, TestOutcome
from .rules import rules_of
from .running import Collector, run_pytest

LEFT_OUT: Final = "left out"
INTERRUPTED: Final = "interrupted"
TEST_SECONDS: Final = {"quick": 60, "ci": 240, "soak": 240}
"""A backend may wait for ever; its test then fails."""
_GRACE: Final = 30
"""Seconds beyond these, or for what is no test, after which the process is killed."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to run: a URI, a harness as ``module:Class``, or both; the tests of some rules, or of all."""

    uri: str = ""
    harness: str = ""
    rules: frozenset[str] = frozenset()

    def wants(self, test: str) -> bool:
        """A test without a rule is always run."""
        rules = set(rules_of(test))
        return not (self.rules and rules) or bool(self.rules & rules)


@dataclass(slots=True)
class _Heard:
    """What the other process has told so far."""

    subject: Subject
    names: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    outcomes: dict[str, TestOutcome] = field(default_factory=dict)
    running: str = ""
    ended: bool = False
    interrupted: bool = False
    error: str = ""

    def take(self, kind: str, *what: Any) -> None:
        if kind == "subject":
            (self.subject,) = what
        elif kind == "names":
            self.names, self.left_out = what
        elif kind == "began":
            (self.running,) = what
        elif kind == "outcome":
            self.outcomes[what[0].name] = what[0]
        elif kind == "refused":
            raise ConfigurationError(what[0])
        else:
            self.ended, self.error = True, what[0]

    def all_outcomes(self) -> tuple[TestOutcome, ...]:
        """Of all tests; those that were not reached are not run."""
        return tuple(self.outcomes.get(name) or self._not_run(name) for name in self.names)

    def _not_run(self, name: str) -> TestOutcome:
        why = LEFT_OUT if name in self.left_out else INTERRUPTED if self.interrupted else "not reached"
        return TestOutcome(name=name, rules=rules_of(name), outcome="NOT RUN", seconds=0, why=why)


def run_suite(request: Request, told: Callable[[int, int, str], None] = lambda done, all_, name: None) -> Report:
    """The report on a backend, with the profile and seed of the environment.

    ``told`` hears as each test begins how many are done, of how many, and its name. Ctrl-C ends the run with a report;
    what was not reached is not run. Raises `ConfigurationError` for a request that makes no sense.
    """
    started, clock = datetime.now(UTC), time.perf_counter()
    name = request.harness or request.uri.partition(":")[0]
    heard = _Heard(Subject(name=name, harness=request.harness, uri=_masked(request.uri), durable=True, shared=True))
    # Made anew, not forked: nothing of this process, threads above all, is the suite's.
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_in_its_process, args=(there, request), name="flujo conformance")
    process.start()
    there.close()
    try:
        why = _listen(here, process, heard, told)
    finally:
        _end(process)
    if not heard.ended and not heard.interrupted:
        _blame(heard, why or f"the process ended by itself, with exit code {process.exitcode}")
    return Report(
        kit=version("flujo-conformance"),
        contract=CONTRACT_VERSION,
        python=platform.python_version(),
        platform=platform.platform(terse=True),
        subject=heard.subject,
        profile=chosen_profile(),
        seed=chosen_seed(),
        started=started,
        seconds=round(time.perf_counter() - clock, 1),
        interrupted=heard.interrupted,
        error=heard.error,
        tests=heard.all_outcomes(),
    )


def _listen(here: Connection, process: BaseProcess, heard: _Heard, told: Callable[[int, int, str], None]) -> str:
    """Until the other process has ended; why it was not waited for, if it wasn't."""
    limit = TEST_SECONDS[chosen_profile()] + _GRACE
    while True:
        try:
            if not here.poll(limit):
                return f"no end after {limit} s"
            message = here.recv()
        except EOFError:
            return ""
        except KeyboardInterrupt:
            if heard.interrupted or process.pid is None:
                return INTERRUPTED
            heard.interrupted, limit = True, _GRACE
            with suppress(OSError):
                os.kill(process.pid, signal.SIGINT)
            continue
        heard.take(*message)
        if message[0] == "began":
            told(len(heard.outcomes), len(heard.names) - len(heard.left_out), heard.running)


def _end(process: BaseProcess) -> None:
    process.join(1)
    if process.is_alive():
        process.kill()
        process.join()


def _blame(heard: _Heard, why: str) -> None:
    """It ended in the middle: of a test, or before the first."""
    name = heard.running
    if name and name not in heard.outcomes:
        heard.outcomes[name] = TestOutcome(name=name, rules=rules_of(name), outcome="ERROR", seconds=0, why=why)
    else:
        heard.error = why


def _masked(uri: str) -> str:
    return mask_uri(uri) if uri else ""


# --- in the other process ---------------------------------------------------------------------------------------------


def _in_its_process(there: Connection, request: Request) -> None:
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # Ctrl-C reaches the parent only, which passes it on once

    def tell(*message: Any) -> None:
        there.send(message)

    try:
        tell("ended", _run(request, tell))
    except (ConfigurationError, PluginError) as error:
        tell("refused", str(error))
    except KeyboardInterrupt:
        tell("ended", "")
    except BrokenPipeError:
        pass  # nobody listens any more
    except BaseException as error:  # noqa: BLE001 - whatever a harness raises, SystemExit too, is told
        tell("ended", f"{type(error).__name__}: {error}")


def _run(request: Request, tell: Callable[..., None]) -> str:
    """Why no test could be run; empty if some were."""
    uri = request.uri
    harness = GuardedHarness(harness_named(request.harness, uri) if request.harness else harness_for(uri))
    subject = subject_of(harness.guarded, uri)
    tell("subject", subject)
    try:
        database = asyncio.run(asyncio.wait_for(_reached(harness), _GRACE))
    except (FlujoStateError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    tell("subject", subject.model_copy(update={"database": database}))
    collector = Collector(request.wants, tell)
    code = run_pytest(harness, collector, seconds=TEST_SECONDS[chosen_profile()])
    if collector.errors:
        return collector.errors[0]
    if code in (pytest.ExitCode.INTERNAL_ERROR, pytest.ExitCode.USAGE_ERROR):
        return "pytest could not run the suite"
    with suppress(Exception):
        # What is left behind takes no verdict back.
        asyncio.run(asyncio.wait_for(harness.remove(), _GRACE))
    return ""


async def _reached(harness: Harness) -> str:
    """What the database is; raises if it can't be reached."""
    backend = harness.open(NAMESPACE)
    try:
        await backend.count_runs()
    finally:
        await backend.shutdown()
    await harness.wipe(NAMESPACE)
    return await harness.database()
