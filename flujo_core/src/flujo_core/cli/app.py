"""Which commands does ``flujo`` have, and what does ``flujo --help`` say?"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from .backends import backends
from .migrate import migrate
from .output import write
from .runs import runs

_HELP = """\
Look at the state of workflow runs, and prepare the databases that hold it.

The database is the one of --uri, else of FLUJO_STATE_URI, else of flujo.toml,
else sqlite:///flujo_ops.db.

Examples:
  flujo migrate --dry-run
  flujo runs list --status failed --limit 5
  flujo runs show run_123 --uri postgresql://flujo@db.example.com/flujo
"""
_EPILOG = """\
Exit codes: 0 done, 1 error, 2 wrong usage, 130 interrupted, 141 nobody reads the output.
"""

app = typer.Typer(
    help=_HELP,
    epilog=_EPILOG,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["--help", "-h"]},
    # A bug shows Python's own traceback: without the values of local variables, which may be passwords.
    pretty_exceptions_enable=False,
    pretty_exceptions_show_locals=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        try:
            write(f"flujo {version('flujo-core')}\n")
        except PackageNotFoundError:  # run from a checkout that isn't installed
            write("flujo (unknown version)\n")
        raise typer.Exit


@app.callback()
def flujo(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, metavar="", help="Show the version and exit."),
    ] = False,
) -> None:
    pass


app.command()(migrate)
app.command()(backends)
app.add_typer(runs)
