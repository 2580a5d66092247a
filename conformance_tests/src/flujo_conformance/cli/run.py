"""What does ``flujo-conformance run`` do, and how does it show its verdict?"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from flujo_conformance.profile import PROFILE_VARIABLE, PROFILES, SEED_VARIABLE
from flujo_conformance.report import Outcome, Report, merged, worst
from flujo_conformance.rules import ELSEWHERE
from flujo_conformance.supervision import LEFT_OUT, Request, run_suite
from flujo_core.cli.execution import JsonOption
from flujo_core.cli.output import Column, excerpt, safe, write, write_json, write_table
from flujo_core.contract import KEPT_BY, RULES

from .refusal import check_writable, refuse, told_errors, write_whole

if TYPE_CHECKING:
    from rich.text import Text

EXIT_CODES: Final = {"PASS": 0, "FAIL": 1, "ERROR": 2, "PARTIAL": 3}
_STYLES: Final = {"PASS": "green", "FAIL": "bold red", "ERROR": "bold red", "PARTIAL": "yellow"}
_COLUMNS = (
    Column("RULE"),
    Column("KEPT BY"),
    Column("TESTS", right=True),
    Column("OUTCOME"),
    Column("SECONDS", right=True),
    Column("WHY", folds_at=50),
)
_URI = typer.Option(
    "--uri", metavar="URI", help="The database, with {namespace} where one differs from another.", show_default=False
)
_HARNESS = typer.Option(
    "--harness", metavar="MODULE:CLASS", help="The harness, called with the URI if there is one.", show_default=False
)
_PROFILE = typer.Option("--profile", metavar="|".join(PROFILES), help="How thoroughly to look.")
_SEED = typer.Option(
    "--seed",
    metavar="N",
    min=0,
    help="Draw other calls, the same for each N; soak takes one at random.",
    show_default=False,
)
_MINUTES = typer.Option("--minutes", metavar="M", min=0.0, help="How long soak goes on.")
_RULES = typer.Option("--rule", metavar="ID", help="Only the tests of this rule; may be repeated.", show_default=False)
_JOBS = typer.Option(
    "--jobs",
    "-j",
    metavar="N",
    min=1,
    help="Run the tests in so many processes at once, each with a harness of its own.",
)
_REPORT = typer.Option("--report", metavar="FILE", help="Write the report there, as JSON.", show_default=False)


def run(  # noqa: PLR0917 - the options of a command
    uri: Annotated[str | None, _URI] = None,
    harness: Annotated[str | None, _HARNESS] = None,
    profile: Annotated[str, _PROFILE] = "quick",
    seed: Annotated[int | None, _SEED] = None,
    minutes: Annotated[float, _MINUTES] = 10.0,
    rule: Annotated[list[str] | None, _RULES] = None,
    jobs: Annotated[int, _JOBS] = 1,
    report: Annotated[Path | None, _REPORT] = None,
    as_json: JsonOption = False,
) -> None:
    """Hold a backend against every rule of the contract, and give a verdict.

    \b
    PASS         every test passed, or met a limit that the backend declares
    UNSUPPORTED  a declared limit: the backend refuses what it can't do
    EXEMPT       a known failure, with a reason and a link
    NOT RUN      left out, interrupted, or the harness lacks what the test needs
    FAIL         a rule is broken, or an exempted test passes
    ERROR        the database can't be reached, or the harness fails
    PARTIAL      of the whole: a pass but for what is exempt or was not run

    Exit codes: 0 PASS, 1 FAIL, 2 ERROR or wrong usage, 3 PARTIAL, 130 interrupted.

    \b
    Examples:
      flujo-conformance run --uri 'sqlite:////tmp/trial/{namespace}.db'
      flujo-conformance run --uri postgres://localhost/trial --profile ci --jobs 2 --report out.json
      flujo-conformance run --harness my_tests.harness:RedisHarness --rule S6
    """
    if uri is None and harness is None:
        refuse("give --uri, --harness or both")
    if profile not in PROFILES:
        refuse(f"--profile is {profile!r}; it is one of {', '.join(PROFILES)}")
    wanted = frozenset(name.upper() for name in rule or ())
    for name in wanted - RULES.keys():
        refuse(f"there is no rule {name}; `flujo-conformance rules` lists them")
    if report is not None:
        check_writable(report)
    os.environ[PROFILE_VARIABLE] = profile
    os.environ.pop(SEED_VARIABLE, None)
    if profile == "soak" and seed is None:
        seed = random.randrange(2**32)
    with told_errors():
        found = _rounds(Request(uri or "", harness or "", wanted, jobs), seed, minutes if profile == "soak" else 0)
    if as_json:
        write_json(found.model_dump(mode="json"))
    else:
        _show(found)
    if report is not None:
        write_whole(report, found.model_dump_json(indent=1) + "\n")
    raise typer.Exit(130 if found.interrupted else EXIT_CODES[found.verdict])


def _rounds(request: Request, seed: int | None, minutes: float) -> Report:
    """One run, or as many as begin within the minutes, each with the next seed, up to the first that doesn't pass."""
    reports: list[Report] = []
    end = time.monotonic() + minutes * 60
    while True:
        if seed is not None:
            os.environ[SEED_VARIABLE] = str(seed + len(reports))
        with _progress() as told:
            found = run_suite(request, told)
        reports.append(found)
        if found.interrupted or found.verdict in ("FAIL", "ERROR") or time.monotonic() >= end:
            return merged(reports)


@contextmanager
def _progress() -> Iterator[Callable[[int, int, str], None]]:
    """On a terminal, a bar on stderr that is gone at the end."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (MofNCompleteColumn(), BarColumn(20), TimeElapsedColumn(), TextColumn("{task.description}"))
    console = Console(stderr=True)
    # Without a refreshing thread: while a test runs, what is written is taken for the test's.
    with Progress(
        *columns, console=console, transient=True, auto_refresh=False, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("")

        def told(done: int, all_: int, name: str) -> None:
            bar.update(task, completed=done, total=all_, description=name)
            bar.refresh()

        yield told


# --- showing ---------------------------------------------------------------------------------------------------------


def _show(found: Report) -> None:
    for test in found.tests:
        if test.details:
            write(f"{'─' * 20} {test.outcome} {test.name}\n{safe_lines(test.details)}\n\n")
    shown = [rule for rule in RULES if any(test.why != LEFT_OUT for test in found.of_rule(rule))]
    if shown:
        write_table(_COLUMNS, [_row(found, rule) for rule in shown])
        write("not shown by this suite: " + "; ".join(f"{rule}, {why}" for rule, why in ELSEWHERE.items()) + "\n\n")
        _show_figures(found)
    subject = found.subject
    parts = (
        f"flujo-conformance {found.kit}",
        f"contract {found.contract}",
        (subject.distribution or subject.name) + (f" on {subject.database}" if subject.database else ""),
        f"Python {found.python}",
        f"profile {found.profile}",
        "no seed" if found.seed is None else f"seed {found.seed}",
        *([f"{found.rounds} rounds"] if found.rounds > 1 else []),
        f"{found.seconds:.0f} s",
    )
    write("\n" + safe(", ".join(parts)) + "\n")
    for limit in found.limits():
        write(safe(f"declared limit: {limit}") + "\n")
    if found.error:
        write(safe_lines(found.error).rstrip() + "\n")
    counts = ", ".join(f"{count} {outcome}" for outcome, count in found.counts.items() if count)
    _write_verdict(found.verdict, counts or "no test was run")


def _write_verdict(verdict: str, counts: str) -> None:
    from rich.console import Console
    from rich.text import Text

    Console(highlight=False).print(Text.assemble((verdict, _STYLES[verdict]), f": {counts}"), soft_wrap=True)


def _row(found: Report, rule: str) -> list[str | Text]:
    from rich.text import Text

    tests = found.of_rule(rule)
    outcome: Outcome = worst(test.outcome for test in tests)
    style = "green" if outcome == "PASS" else "bold red" if outcome in ("FAIL", "ERROR") else "yellow"
    whys = dict.fromkeys(test.why for test in tests if test.outcome == outcome and test.why)
    bad = sum(test.outcome == outcome for test in tests)
    shown = outcome if outcome == "PASS" else f"{outcome} {bad}"
    seconds = f"{sum(test.seconds for test in tests):.1f}"
    return [rule, KEPT_BY[rule], str(len(tests)), Text(shown, style=style), seconds, safe("; ".join(whys))[:300]]


def _show_figures(found: Report) -> None:
    for test in found.tests:
        if test.figures:
            figures = ", ".join(f"{name}: {figure}" for name, figure in test.figures.items())
            write(excerpt(safe(f"{test.name}: {figures}"), 160) + "\n")


def safe_lines(text: str) -> str:
    return "\n".join(safe(line) for line in text.splitlines())
