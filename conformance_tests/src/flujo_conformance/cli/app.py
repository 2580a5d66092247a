"""Which commands does ``flujo-conformance`` have, and what does its ``--help`` say?"""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from flujo_core.cli.output import write
from flujo_core.contract import CONTRACT_VERSION

from .differences import diff, replay
from .matrix import matrix
from .rules import rules
from .run import run
from .selftest import selftest

_HELP = """\
Test whether a state backend keeps the contract.

Examples:
  flujo-conformance run --uri 'sqlite:////tmp/trial/{namespace}.db'
  flujo-conformance run --harness my_tests.harness:RedisHarness --report out.json
  flujo-conformance diff --uri memory:// --uri 'sqlite:////tmp/trial/{namespace}.db'
  flujo-conformance rules
"""

app = typer.Typer(
    help=_HELP,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["--help", "-h"]},
    pretty_exceptions_enable=False,
    pretty_exceptions_show_locals=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        write(f"flujo-conformance {version('flujo-conformance')}, contract {CONTRACT_VERSION}\n")
        raise typer.Exit


@app.callback()
def flujo_conformance(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, metavar="", help="Show the version and exit."),
    ] = False,
) -> None:
    pass


app.command()(run)
app.command()(diff)
app.command()(replay)
app.command()(rules)
app.command()(selftest)
app.command()(matrix)
