"""How is a database brought to the schema that this code needs?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .execution import JsonOption, UriOption, use_backend
from .output import safe, write, write_json

if TYPE_CHECKING:
    from flujo_core.migrations import MigrationReport


def migrate(
    uri: UriOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", metavar="", help="Only tell the pending steps; nothing is written or created.")
    ] = False,
    target_version: Annotated[
        int | None, typer.Option(metavar="N", help="Stop at this version instead of the latest.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Create or upgrade the tables of a database. Harmless when repeated.

    Either all pending steps are applied or none.

    Examples:
      flujo migrate --dry-run
      flujo migrate --uri postgresql://flujo@db.example.com/flujo
    """
    report = use_backend(uri, lambda backend: backend.migrate(target_version, dry_run))
    if as_json:
        write_json(_record(report))
    else:
        write(_text(report, target_version))


def _record(report: MigrationReport) -> dict[str, object]:
    return {
        "database": report.database,
        "from_version": report.from_version,
        "to_version": report.to_version,
        "steps": [{"version": step.version, "name": str(step)} for step in report.steps],
        "dry_run": report.dry_run,
    }


def _text(report: MigrationReport, target_version: int | None) -> str:
    database = safe(report.database)
    if not report.steps:
        state = "is up to date" if target_version is None else "has nothing to do up to that version"
        return f"{database} {state} (schema version {report.from_version})\n"
    remark = " (dry run: nothing was written)" if report.dry_run else ""
    head = f"{database}: schema version {report.from_version} → {report.to_version}{remark}\n"
    word = "pending" if report.dry_run else "applied"
    return head + "".join(f"  {word}  {step}\n" for step in report.steps)
