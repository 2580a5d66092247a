"""What do ``flujo-conformance diff`` and ``flujo-conformance replay`` do?"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer
from hypothesis.errors import HypothesisWarning

from flujo_conformance.call_trace import check_calls, dumps, loads
from flujo_conformance.differential import find_difference
from flujo_conformance.harness import Harness
from flujo_conformance.harnesses import harness_for, harness_named
from flujo_conformance.profile import PROFILES
from flujo_conformance.replay import render
from flujo_conformance.replay import replay as replayed
from flujo_core.cli.output import message, write
from flujo_core.uri import mask_uri

from .refusal import refuse, told_errors, write_whole

_URIS = typer.Option(
    "--uri", metavar="URI", help="A database to ask, with {namespace}; may be repeated.", show_default=False
)
_HARNESSES = typer.Option(
    "--harness", metavar="MODULE:CLASS", help="A harness instead of a URI; may be repeated.", show_default=False
)
_PROFILE = typer.Option("--profile", metavar="quick|ci", help="How many sequences of calls to try.")
_SEED = typer.Option("--seed", metavar="N", min=0, help="Draw other calls, the same for each N.")
_TRACE_OUT = typer.Option("--trace", metavar="FILE", help="Where the calls are written, as JSON.")
_TRACE = typer.Argument(metavar="TRACE", help="A file that `flujo-conformance diff` wrote.")
_EXAMPLES = 50


def diff(
    uri: Annotated[list[str] | None, _URIS] = None,
    harness: Annotated[list[str] | None, _HARNESSES] = None,
    profile: Annotated[str, _PROFILE] = "quick",
    seed: Annotated[int, _SEED] = 0,
    trace: Annotated[Path, _TRACE_OUT] = Path("trace.json"),
) -> None:
    """Make the same calls on several backends, and shrink the first difference to a few calls.

    Every answer is compared with that of the first backend, to the type and the last bit. The databases are emptied.

    Exit codes: 0 no difference, 1 a difference, which is written to --trace and printed.

    \b
    Example:
      flujo-conformance diff --uri 'sqlite:////tmp/t/{namespace}.db' --uri postgres://localhost/trial
    """
    if profile not in ("quick", "ci"):
        refuse(f"--profile is {profile!r}; it is one of quick, ci")
    asked = _asked(uri or (), harness or ())
    if len(asked) < 2:
        refuse("it takes two backends to differ: give --uri or --harness twice")
    # Of states with huge numbers; nobody sees it.
    warnings.filterwarnings("ignore", "Generating overly large repr", HypothesisWarning)
    with told_errors(), _removing(asked):
        found = find_difference(asked, examples=_EXAMPLES * PROFILES[profile], seed=seed)
        if found is None:
            write(f"no difference between {' and '.join(asked)} (seed {seed})\n")
            return
        write_whole(trace, dumps(found.trace))
        write(render(replayed(found.trace, asked)))
    if not found.repeatable:
        message("the difference did not show again when the calls were repeated", label="warning", style="yellow")
    message(f"the calls are in {trace}; run: flujo-conformance replay {trace} …", label="difference", style="bold red")
    raise typer.Exit(1)


def replay(
    trace: Annotated[Path, _TRACE],
    uri: Annotated[list[str] | None, _URIS] = None,
    harness: Annotated[list[str] | None, _HARNESSES] = None,
) -> None:
    """Make the calls of a trace on some backends and on the oracle, and print the answers side by side.

    Exit codes: 0 all agree with the oracle, 1 some differ. The databases are emptied.

    \b
    Example:
      flujo-conformance replay trace.json --uri memory:// --uri 'sqlite:////tmp/t/{namespace}.db'
    """
    asked = _asked(uri or (), harness or ())
    try:
        calls = loads(trace.read_text(encoding="utf-8"))
        check_calls(calls)
    except OSError as error:
        refuse(f"{trace} can't be read: {error.strerror}")
    except ValueError as error:
        refuse(f"{trace} is no trace: {error}")
    with told_errors(), _removing(asked):
        found = replayed(calls, asked)
    write(render(found))
    if not all(one.agree for one in found):
        raise typer.Exit(1)


@contextmanager
def _removing(asked: Mapping[str, Harness]) -> Iterator[None]:
    """Leaves nothing behind."""
    try:
        yield
    finally:
        for harness in asked.values():
            with suppress(Exception):  # what is left behind takes no answer back
                asyncio.run(harness.remove())


def _asked(uris: Sequence[str], harnesses: Sequence[str]) -> Mapping[str, Harness]:
    """By a name that tells them apart."""
    with told_errors():
        found = [(mask_uri(uri), harness_for(uri)) for uri in uris]
        found += [(name, harness_named(name)) for name in harnesses]
    names = [name for name, _ in found]
    return {
        f"{name} ({number})" if names.count(name) > 1 else name: harness
        for number, (name, harness) in enumerate(found, 1)
    }
