"""What if the backend under test ends the process, or never comes back? The suite runs in a process of its own.

Or in several at once, each of which is dealt the next test whenever it is through with one. This one deals, hears of
each test as it begins and ends, keeps the time, and makes the report.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import platform
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing.connection import Connection, wait
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
TEST_SECONDS: Final = {"quick": 60, "ci": 240, "soak": 240}
"""A backend may wait for ever; its test then fails."""
_GRACE: Final = 30
"""Seconds beyond these, or for what is no test, after which a process is killed."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to run: a URI, a harness as ``module:Class``, or both; the tests of some rules, or of all.

    ``jobs`` processes share the tests, each with a harness of its own: `Harness` says what that asks of one.
    """

    uri: str = ""
    harness: str = ""
    rules: frozenset[str] = frozenset()
    jobs: int = 1

    def wants(self, test: str) -> bool:
        """A test without a rule is always run."""
        rules = set(rules_of(test))
        return not (self.rules and rules) or bool(self.rules & rules)


class _Child:
    """A process that runs the tests it is dealt."""

    def __init__(self, request: Request, number: int) -> None:
        # Made anew, not forked: nothing of this process, threads above all, is the suite's.
        context = multiprocessing.get_context("spawn")
        self.connection, there = context.Pipe()
        name = f"flujo conformance {number}"
        self._process = context.Process(target=_in_its_process, args=(there, request), name=name)
        self._process.start()
        there.close()
        self.running = ""
        """The test that began last."""
        self.ended = False
        """Whether it said so."""

    def message(self) -> tuple[Any, ...] | None:
        """The next one; none if it has ended."""
        try:
            message: tuple[Any, ...] = self.connection.recv()
        except (EOFError, OSError):  # between two messages, or within one
            return None
        return message

    def deal(self, number: int) -> None:
        with suppress(OSError):  # it has ended
            self.connection.send(number)

    def interrupt(self) -> None:
        if self._process.pid is not None:
            with suppress(OSError):
                os.kill(self._process.pid, signal.SIGINT)

    def end(self, patience: float) -> int | None:
        """Its exit code, killed if it doesn't end by itself within these seconds."""
        self._process.join(patience)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        return self._process.exitcode


@dataclass(slots=True)
class _Heard:
    """What all processes have told so far."""

    subject: Subject
    names: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    dealt: int = 0
    """So many tests of those that are wanted, in their order."""
    outcomes: dict[str, TestOutcome] = field(default_factory=dict)
    interrupted: bool = False
    error: str = ""
    """Of the process that told one first: what befalls one mostly befalls all."""

    def take(self, child: _Child, kind: str, *what: Any) -> None:
        if kind == "subject":
            if not self.subject.database:  # else another process was quicker to reach it
                (self.subject,) = what
        elif kind == "names":
            self.names, self.left_out = what
        elif kind == "next":
            child.deal(self.dealt)
            self.dealt += 1
        elif kind == "began":
            (child.running,) = what
        elif kind == "outcome":
            self.outcomes[what[0].name] = what[0]
        elif kind == "refused":
            raise ConfigurationError(what[0])
        else:
            child.ended, self.error = True, self.error or what[0]

    def blame(self, child: _Child, why: str) -> None:
        """It ended in the middle: of a test, or between two."""
        name = child.running
        if child.ended or self.interrupted:
            return
        if name and name not in self.outcomes:
            self.outcomes[name] = TestOutcome(name=name, rules=rules_of(name), outcome="ERROR", seconds=0, why=why)
        else:
            self.error = self.error or why

    def all_outcomes(self) -> tuple[TestOutcome, ...]:
        """Of all tests; those that were not reached are not run."""
        return tuple(self.outcomes.get(name) or self._not_run(name) for name in self.names)

    def _not_run(self, name: str) -> TestOutcome:
        why = LEFT_OUT if name in self.left_out else "interrupted" if self.interrupted else "not reached"
        return TestOutcome(name=name, rules=rules_of(name), outcome="NOT RUN", seconds=0, why=why)


def run_suite(request: Request, told: Callable[[int, int, str], None] = lambda done, all_, name: None) -> Report:
    """The report on a backend, with the profile and seed of the environment.

    ``told`` hears as each test begins how many are done, of how many, and its name. Ctrl-C ends the run with a report;
    what was not reached is not run. Raises `ConfigurationError` for a request that makes no sense.
    """
    started, clock = datetime.now(UTC), time.perf_counter()
    name = request.harness or request.uri.partition(":")[0]
    heard = _Heard(Subject(name=name, harness=request.harness, uri=_masked(request.uri), durable=True, shared=True))
    children: list[_Child] = []
    try:
        for number in range(request.jobs):
            children.append(_Child(request, number))  # noqa: PERF401 - those made so far are ended, whatever comes
        _listen(children, heard, told)
    finally:
        _end(children)
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


def _listen(children: Sequence[_Child], heard: _Heard, told: Callable[[int, int, str], None]) -> None:
    """Until all have ended, or a second Ctrl-C."""
    limit = TEST_SECONDS[chosen_profile()] + _GRACE
    until = dict.fromkeys(children, time.monotonic() + limit)  # when the silence of each becomes too long
    while until:
        try:
            ready = wait([child.connection for child in until], max(0, min(until.values()) - time.monotonic()))
            for child in list(until):
                if child.connection in ready:
                    message = child.message()
                    if message is None:
                        heard.blame(child, f"the process ended by itself, with exit code {child.end(1)}")
                        del until[child]
                        continue
                    until[child] = time.monotonic() + limit
                    heard.take(child, *message)
                    if message[0] == "began":
                        told(len(heard.outcomes), len(heard.names) - len(heard.left_out), child.running)
                elif time.monotonic() >= until[child]:
                    child.end(0)
                    heard.blame(child, f"no end after {limit} s")
                    del until[child]
        except KeyboardInterrupt:
            if heard.interrupted:
                return
            heard.interrupted, limit = True, _GRACE
            for child in until:
                child.interrupt()
                until[child] = time.monotonic() + limit


def _end(children: Sequence[_Child]) -> None:
    soon = time.monotonic() + 1
    for child in children:
        child.end(max(0, soon - time.monotonic()))


def _masked(uri: str) -> str:
    return mask_uri(uri) if uri else ""


# --- in another process -----------------------------------------------------------------------------------------------


def _in_its_process(there: Connection, request: Request) -> None:
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # Ctrl-C reaches the parent only, which passes it on once

    def tell(*message: Any) -> None:
        there.send(message)

    def dealt() -> int:
        tell("next")
        number: int = there.recv()
        return number

    try:
        tell("ended", _run(request, tell, dealt))
    except (ConfigurationError, PluginError) as error:
        tell("refused", str(error))
    except KeyboardInterrupt:
        tell("ended", "")
    except (BrokenPipeError, EOFError):
        pass  # nobody listens any more
    except BaseException as error:  # noqa: BLE001 - whatever a harness raises, SystemExit too, is told
        tell("ended", f"{type(error).__name__}: {error}")


def _run(request: Request, tell: Callable[..., None], dealt: Callable[[], int]) -> str:
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
    collector = Collector(request.wants, tell, dealt)
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
