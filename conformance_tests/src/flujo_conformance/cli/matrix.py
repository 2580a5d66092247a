"""What does ``flujo-conformance matrix`` print?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flujo_conformance.report import matrix as matrix_of
from flujo_conformance.report import read_report
from flujo_core.cli.output import write

from .refusal import refuse

_REPORTS = typer.Argument(metavar="REPORT…", help="Files that `flujo-conformance run --report` wrote.")


def matrix(reports: Annotated[list[Path], _REPORTS]) -> None:
    """Print a compatibility matrix of several reports, in Markdown: rules against backends.

    Example:
      flujo-conformance matrix sqlite.json redis.json
    """
    found = []
    for path in reports:
        try:
            found.append(read_report(path.read_text(encoding="utf-8")))
        except OSError as error:
            refuse(f"{path} can't be read: {error.strerror}")
        except ValueError as error:
            refuse(f"{path} is no report of flujo-conformance: {str(error).partition(chr(10))[0]}")
    try:
        write(matrix_of(found) + "\n")
    except ValueError as error:
        refuse(str(error))
