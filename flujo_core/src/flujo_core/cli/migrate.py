"""How is a database brought to the schema that this code needs, and what does it have?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from flujo_core.errors import ChecksumMismatchError, FlujoStateError, MigrationLockError, SchemaTooNewError

from .execution import JsonOption, UriOption, fail, use_backend
from .output import Column, duration, moment, safe, write, write_json, write_table

if TYPE_CHECKING:
    from flujo_core.backend import StateBackend
    from flujo_core.migrating import MigrationProgress, Told
    from flujo_core.migrations import Migration, MigrationReport, SchemaStatus

PENDING: Final = 3
EXIT_CODES: Final[dict[type[FlujoStateError], int]] = {
    MigrationLockError: 4,
    ChecksumMismatchError: 5,
    SchemaTooNewError: 6,
}
_COLUMNS: Final = (
    Column("MIGRATION", folds_at=40),
    Column("SERIES"),
    Column("STATE"),
    Column("APPLIED"),
    Column("TOOK", right=True, rank=1),
    Column("CODE", rank=2),
)

_REMARK: Final = """\
-- Stop at the first error, or a step that failed is recorded as applied: psql -v ON_ERROR_STOP=1, sqlite3 -bail.
"""

Mode = Literal["migrate", "dry run", "status", "check", "print sql", "repair checksums"]


def migrate(  # noqa: PLR0917 - the options of a command
    uri: UriOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", metavar="", help="Only tell the pending steps and their SQL; write nothing.")
    ] = False,
    target_version: Annotated[
        int | None,
        typer.Option(metavar="N", help="Stop at this version of Flujo's instead of the latest.", show_default=False),
    ] = None,
    status: Annotated[bool, typer.Option("--status", metavar="", help="List all migrations, applied or not.")] = False,
    check: Annotated[
        bool, typer.Option("--check", metavar="", help="Only tell by the exit code whether any is pending.")
    ] = False,
    print_sql: Annotated[
        bool, typer.Option("--print-sql", metavar="", help="Print the pending steps as SQL, and nothing else.")
    ] = False,
    repair_checksums: Annotated[
        bool, typer.Option("--repair-checksums", metavar="", help="Record files that were changed as they are now.")
    ] = False,
    lock_wait: Annotated[
        float | None,
        typer.Option(
            metavar="S", min=0, help="Seconds to wait for another process; 60 if not set.", show_default=False
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Create or upgrade the tables of a database. Harmless when repeated, and by several at once.

    Each step is applied as a whole or not at all; one that fails leaves those before it.

    \b
    Exit codes: 0 done, 1 error, 3 pending (--check), 4 waited too long for
    another process, 5 an applied file was changed, 6 the schema is too new

    \b
    Examples:
      flujo migrate --dry-run
      flujo migrate --uri postgresql://flujo@db.example.com/flujo
      flujo migrate --check || echo 'run flujo migrate'
      flujo migrate --print-sql > upgrade.sql
    """
    mode = _mode(dry_run=dry_run, status=status, check=check, print_sql=print_sql, repair_checksums=repair_checksums)
    if target_version is not None and mode not in ("migrate", "dry run", "print sql"):
        fail("--target-version goes with --dry-run, with --print-sql, or alone")
    if print_sql and as_json:
        fail("--print-sql prints SQL; take --dry-run --json")
    settings = {} if lock_wait is None else {"migration_lock_wait": lock_wait}

    with _progress(shown=mode == "migrate") as told:

        async def work(backend: StateBackend) -> Any:
            if mode in ("status", "check"):
                return await backend.schema_status()
            if mode == "repair checksums":
                return await backend.schema_status(), await backend.repair_checksums()
            report = await backend.migrate(target_version, mode != "migrate", told=told)
            # What takes over a database of the original system is code, not SQL; asked for its SQL, it says so.
            shown = report.dry_run and (mode == "print sql" or not report.original)
            return report, await backend.migration_script(target_version) if shown else []

        found = use_backend(uri, work, exit_codes=EXIT_CODES, **settings)

    if mode == "status":
        _show_status(found, as_json)
    elif mode == "check":
        _check(found, as_json)
    elif mode == "repair checksums":
        _show_repaired(found[0], found[1], as_json)
    elif mode == "print sql":
        write(_script(found[1]))
    elif as_json:
        write_json(_report_record(found[0], found[1]))
    else:
        write(_text(found[0], target_version) + (f"\n{_script(found[1])}" if found[1] else ""))


def _mode(**flags: bool) -> Mode:
    chosen = [name for name, wanted in flags.items() if wanted]
    if len(chosen) > 1:
        fail(" and ".join(f"--{name.replace('_', '-')}" for name in chosen) + " exclude each other")
    return chosen[0].replace("_", " ") if chosen else "migrate"  # type: ignore[return-value]


@contextmanager
def _progress(*, shown: bool) -> Iterator[Told]:
    """On a terminal, what is under way and for how long, on stderr; it is gone at the end."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal)) as bar:
        task = bar.add_task("connects")

        def told(progress: MigrationProgress) -> None:
            doing = "waits for another process to begin with" if progress.doing == "waits" else progress.doing
            bar.update(task, description=f"{doing} {progress.step} ({progress.number} of {progress.of})")

        yield told


# --- reports ----------------------------------------------------------------------------------------------------------


def _report_record(report: MigrationReport, script: list[str]) -> dict[str, object]:
    return {
        "database": report.database,
        "from_version": report.from_version,
        "to_version": report.to_version,
        "steps": [_step_record(step) for step in report.steps],
        "dry_run": report.dry_run,
        "original": report.original,
        **({"sql": script} if report.dry_run else {}),
    }


def _step_record(step: Migration) -> dict[str, object]:
    return {"series": step.series, "version": step.version, "name": str(step)}


def _text(report: MigrationReport, target_version: int | None) -> str:
    database = safe(report.database)
    if not report.steps:
        state = "is up to date" if target_version is None else "has nothing to do up to that version"
        return f"{database} {state} (schema version {report.to_version})\n"
    remark = " (dry run: nothing was written)" if report.dry_run else ""
    whence = "the original Flujo" if report.original else f"schema version {report.from_version}"
    head = f"{database}: {whence} → {'schema version ' if report.original else ''}{report.to_version}{remark}\n"
    word = "pending" if report.dry_run else "applied"
    return head + "".join(f"  {word}  {step}{_of_whom(step)}\n" for step in report.steps)


def _of_whom(step: Migration) -> str:
    return "" if step.series == "flujo" else f" ({step.series})"


def _script(statements: list[str]) -> str:
    return _REMARK * bool(statements) + "".join(f"{statement}{_end(statement)}\n" for statement in statements)


def _end(statement: str) -> str:
    """A semicolon, which must not become part of a comment."""
    return "\n;" if "--" in statement.rpartition("\n")[2] else ";"


# --- status -----------------------------------------------------------------------------------------------------------


def _show_status(status: SchemaStatus, as_json: bool) -> None:
    rows = _migrations(status)
    if as_json:
        write_json(
            {
                "database": status.database,
                "state": status.state,
                "current_version": status.current_version,
                "latest_version": status.latest_version,
                "migrations": rows,
            }
        )
        return
    if rows:
        write_table(_COLUMNS, [_row(row) for row in rows])
    state = "made by the original Flujo, to be taken over" if status.original else status.state
    versions = f"schema version {status.current_version} of {status.latest_version}"
    write(f"{safe(status.database)}: {state}, {versions}\n")


def _migrations(status: SchemaStatus) -> list[dict[str, Any]]:
    """What there is in files and records, each version of a series once."""
    files = {(one.series, one.version): one for one in status.migrations}
    records = {(row.series, row.version): row for row in status.applied}
    changed = {(one.series, one.version) for one in status.changed}
    found = []
    for key in sorted(files | records, key=lambda key: (key[0] != "flujo", key[1])):
        file, record = files.get(key), records.get(key)
        state = "pending"
        if record is not None and (record.checksum or file is None):
            state = "changed" if key in changed else "applied" if file else "unknown" if record.checksum else "by hand"
        name = str(file) if file else f"{key[1]:03d}" + (f"_{record.name}" if record and record.name else "")
        found.append(
            {
                "series": key[0],
                "version": key[1],
                "name": name,
                "state": state,
                "applied_at": record.applied_at if record else None,
                "duration_ms": record.duration_ms if record else None,
                "code_version": record.code_version if record else None,
                "min_code": record.min_code if record else file.min_code if file else 0,
            }
        )
    return found


def _row(row: dict[str, Any]) -> list[str]:
    took = duration(row["duration_ms"])
    return [row["name"], row["series"], row["state"], moment(row["applied_at"]), took, row["code_version"] or ""]


def _check(status: SchemaStatus, as_json: bool) -> None:
    """What is wrong with the schema as it is, by the exit code."""
    code, why = 0, "up to date"
    try:
        status.refuse_unusable()
    except FlujoStateError as error:
        code, why = EXIT_CODES[type(error)], str(error)
    else:
        if status.pending:
            code, why = PENDING, "pending: " + ", ".join(map(str, status.pending))
    if as_json:
        steps = [_step_record(step) for step in status.pending]
        write_json({"database": status.database, "state": status.state, "pending": steps, "exit_code": code})
    else:
        write(f"{safe(why if code in EXIT_CODES.values() else f'{status.database}: {why}')}\n")
    raise typer.Exit(code)


def _show_repaired(status: SchemaStatus, repaired: tuple[Migration, ...], as_json: bool) -> None:
    if as_json:
        write_json({"database": status.database, "repaired": [_step_record(step) for step in repaired]})
        return
    if not repaired:
        write(f"{safe(status.database)}: no file of an applied migration was changed\n")
    for step in repaired:
        write(f"  recorded as it is now  {step}{_of_whom(step)}\n")
