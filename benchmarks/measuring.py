"""How is it measured? Each system in a process of its own, on databases of its own, repetitions in turn."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.environments import EnvironmentFailedError, interpreter
from benchmarks.results import Figure, Measured, NotRun, Results, SystemAbout
from benchmarks.systems import SYSTEMS
from benchmarks.workloads import ALL, ONCE, TASKS
from flujo_conformance.postgres_server import PostgresServer, PostgresServerError

ROOT = Path(__file__).resolve().parent.parent
Pair = tuple[str, str]
"""A task and a system."""


class NotRunError(Exception):
    """Why there is no figure."""


class Worker:
    """A system in its process."""

    def __init__(self, name: str, place: str) -> None:
        environment = SYSTEMS[name].environment
        python = interpreter(environment) if environment else sys.executable
        self._said = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - closed by `end`
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.worker", name, place],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            encoding="utf-8",
            # Ctrl-C is for the parent, which then ends its workers.
            start_new_session=True,
        )
        self.alive = True
        """It hasn't been seen to be dead."""
        try:
            self.about = SystemAbout(**self._answer())
        except BaseException:
            self.end(at_once=True)
            raise

    def measure(self, task: str, size: int) -> dict[str, float]:
        """Between two of its turns it stands still: some peers have threads that look for work all the time."""
        self._process.send_signal(signal.SIGCONT)
        try:
            return self._measured(task, size)
        finally:
            self._process.send_signal(signal.SIGSTOP)

    def _measured(self, task: str, size: int) -> dict[str, float]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"task": task, "size": size}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._death() from None
        answer = self._answer()
        if "failed" in answer:
            raise NotRunError(answer["failed"])
        figures: dict[str, float] = answer["figures"]
        return figures

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._death()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _death(self) -> NotRunError:
        self.alive = False
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:  # it said no more, but a thread of a driver keeps it alive
            self._process.kill()
            code = self._process.wait()
        self._said.seek(0)
        said = [line.strip() for line in self._said if line.strip()]
        return NotRunError(f"its process ended with exit code {code}{': ' if said else ''}{''.join(said[-1:])}")

    def end(self, *, at_once: bool) -> None:
        self._process.send_signal(signal.SIGCONT)
        try:
            if at_once:
                self._process.kill()
            self._process.communicate(timeout=60)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            self._process.kill()
            self._process.communicate()
        finally:
            self._said.close()


class Workers:
    """Those that a task needs are started, and again if they have died; at the end all are ended."""

    def __init__(self) -> None:
        self._workers: dict[Pair, Worker] = {}

    def of(self, name: str, place: str) -> Worker:
        worker = self._workers.get((name, place))
        if worker is None or not worker.alive:
            if worker is not None:
                worker.end(at_once=True)
            worker = self._workers[name, place] = Worker(name, place)
        return worker

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers.values():
            worker.end(at_once=error is not None)


class Places:
    """The databases of the systems: files of a folder, and on a temporary server."""

    def __init__(self, folder: str, server: PostgresServer | None) -> None:
        self._folder, self._server = folder, server
        self._places: dict[Pair, str] = {}

    def of(self, name: str, database: str) -> str:
        if (name, database) not in self._places:
            self._places[name, database] = (
                self._server.create_database()
                if self._server and SYSTEMS[name].database == "PostgreSQL"
                else f"sqlite:///{self._folder}/{len(self._places)}.db"
            )
        return self._places[name, database]


@dataclass
class Plan:
    pairs: list[Pair]
    rounds: int
    full: bool
    scale: float

    @property
    def repetitions(self) -> int:
        return sum(self.rounds if task in TASKS else 1 for task, _ in self.pairs)

    def size(self, task: str) -> int:
        wanted = ALL[task]
        size = wanted.full_size if self.full and wanted.full_size else wanted.size
        return size if self.scale == 1 else max(wanted.least, round(size * self.scale))


class Measurement:
    """What came of a plan so far: whoever interrupts it gets what was measured."""

    def __init__(self, plan: Plan, report: Callable[[str, int], None]) -> None:
        """``report`` is told what is done next, and how many repetitions are through."""
        self._plan, self._report = plan, report
        self._rounds: dict[Pair, list[dict[str, float]]] = {}
        self._not_run: dict[Pair, str] = {}
        self._systems: dict[str, SystemAbout] = {}
        self._through = 0

    def run(self) -> None:
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="flujo-benchmarks-"))
            places = Places(folder, self._prepare(stack))
            with Workers() as workers:
                for _ in range(self._plan.rounds):
                    for task, name in self._plan.pairs:
                        if task in TASKS:
                            self._repeat(task, name, workers, places)
            for task, name in self._plan.pairs:
                if task in ONCE:
                    with Workers() as workers:
                        self._repeat(task, name, workers, places)

    def add_to(self, results: Results) -> None:
        for (task, name), rounds in self._rounds.items():
            if (task, name) not in self._not_run:
                figures = {figure: Figure.of([one[figure] for one in rounds]) for figure in rounds[0]}
                measured = Measured(size=self._plan.size(task), rounds=len(rounds), figures=figures)
                results.tasks.setdefault(task, {})[name] = measured
        results.systems = self._systems
        results.not_run = [
            NotRun(task=task, system=name, reason=reason) for (task, name), reason in self._not_run.items()
        ]

    def _prepare(self, stack: ExitStack) -> PostgresServer | None:
        """Makes the environments of the peers and starts the server, where the plan needs them."""
        for environment in sorted({SYSTEMS[name].environment for _, name in self._plan.pairs} - {""}):
            self._report(f"making the environment of {environment}", 0)
            try:
                interpreter(environment)
            except EnvironmentFailedError as error:
                self._give_up({name for name in SYSTEMS if SYSTEMS[name].environment == environment}, str(error))
        on_postgres = {name for name in SYSTEMS if SYSTEMS[name].database == "PostgreSQL"}
        if not any(name in on_postgres for _, name in self._plan.pairs):
            return None
        try:
            return stack.enter_context(PostgresServer())
        except PostgresServerError as error:
            self._give_up(on_postgres, str(error))
            return None

    def _give_up(self, names: set[str], reason: str) -> None:
        self._not_run |= {(task, name): reason for task, name in self._plan.pairs if name in names}

    def _repeat(self, task: str, name: str, workers: Workers, places: Places) -> None:
        self._report(f"{task}: {name}", self._through)
        self._through += 1
        wanted = ALL[task]
        if (wanted.after, name) in self._not_run:
            self._not_run[task, name] = f"it needs “{wanted.after}”"
        if (task, name) in self._not_run:
            return
        try:
            worker = workers.of(name, places.of(name, wanted.database))
            self._systems[name] = worker.about
            figures = worker.measure(task, self._plan.size(task))
        except NotRunError as error:
            self._not_run[task, name] = str(error)
        else:
            self._rounds.setdefault((task, name), []).append(figures)
