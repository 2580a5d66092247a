"""Which runs are there, and what happened in one of them?"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from flujo_core.errors import InvalidStateError
from flujo_core.model import RunInfo, RunStatus, Span, State, Step

from .execution import JsonOption, UriOption, fail, told_errors, use_backend
from .metadata_option import metadata_filter
from .output import (
    Column,
    dollars,
    duration,
    excerpt,
    message,
    moment,
    one_line,
    status_text,
    write,
    write_fields,
    write_json,
    write_table,
)

if TYPE_CHECKING:
    from rich.text import Text

    from flujo_core.backend import StateBackend
    from flujo_core.config import Configuration

runs = typer.Typer(name="runs", help="Look at runs. Nothing is written, created or upgraded.", no_args_is_help=True)

_LONGEST_NAME = 40
_LONGEST_VALUE = 300
_LONGEST_ERROR = 200

_STATUSES = " or ".join(", ".join(get_args(RunStatus)).rsplit(", ", 1))


# --- flujo runs list -------------------------------------------------------------------------------------------------

_LIST = (
    Column("RUN", folds_at=36),
    Column("PIPELINE", folds_at=24),
    Column("STATUS"),
    Column("STEP", right=True, rank=1),
    Column("CREATED"),
    Column("UPDATED", rank=4),
    Column("DURATION", right=True, rank=2),
    Column("COST", right=True, rank=3),
)


@runs.command("list")
def list_(
    *,
    # Statuses and numbers are checked by the library, whose errors are one line.
    status: Annotated[
        str | None,
        typer.Option(metavar="STATUS", help=f"Only runs that are {_STATUSES}.", show_default=False),
    ] = None,
    pipeline: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only runs of the pipeline of this name.", show_default=False)
    ] = None,
    meta: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE", help="Only runs whose metadata contains this; repeatable.", show_default=False
        ),
    ] = None,
    limit: Annotated[int, typer.Option(metavar="N", help="Show at most this many.")] = 20,
    offset: Annotated[int, typer.Option(metavar="N", help="Leave out this many of the newest.")] = 0,
    as_json: JsonOption = False,
    uri: UriOption = None,
) -> None:
    """List runs, newest first; times are UTC.

    VALUE is JSON, or text if it can't be read as JSON. A dot in KEY leads into
    an object; a dot that is part of a name is written with a backslash:
      --meta region=eu  --meta user.id=123  --meta 'user={"id": 123}'
      --meta 'tags=\\["a", "b"]'  --meta 'files.data\\.csv=true'

    Examples:
      flujo runs list --status failed --meta region=eu
      flujo runs list --limit 100 --json | jq -r '.\\[].run_id'
    """
    contained = metadata_filter(meta or [])

    async def read(backend: StateBackend) -> tuple[list[RunInfo], int]:
        found = await backend.list_runs(status, pipeline, limit, offset, contained)
        last = offset + len(found)
        more = len(found) == limit or (offset and not found)
        return found, await backend.count_runs(status, pipeline, contained) if more else last

    found, total = use_backend(uri, read, auto_migrate=False)
    if as_json:
        write_json(found)
    elif found:
        write_table(_LIST, [_list_row(run) for run in found])
    if not total and not as_json:
        message(f"no runs{' that match' if status or pipeline or contained else ''} in {_database(uri)}")
    elif len(found) < total:
        message(f"{len(found):,} of {total:,} runs; --limit and --offset show others")


def _list_row(run: RunInfo) -> list[str | Text]:
    return [
        run["run_id"],
        run["pipeline_name"],
        status_text(run["status"]),
        _progress(run["current_step_index"], run["total_steps"]),
        moment(run["created_at"]),
        moment(run["updated_at"]),
        duration(run["execution_time_ms"]),
        dollars(run["total_cost"]),
    ]


def _progress(step: int, total: int) -> str:
    return f"{step}/{total}" if total else str(step)


# --- flujo runs show -------------------------------------------------------------------------------------------------

_STEPS = (
    Column("#", right=True),
    Column("STEP", folds_at=24),
    Column("STATUS"),
    Column("DURATION", right=True, rank=1),
    Column("COST", right=True, rank=2),
    Column("TOKENS", right=True, rank=3),
    Column("CREATED", rank=4),
    Column("ERROR", folds_at=30),
)


@runs.command("show")
def show(
    run_id: Annotated[str, typer.Argument(metavar="RUN_ID", help="The run's id, as `flujo runs list` shows it.")],
    as_json: JsonOption = False,
    uri: UriOption = None,
) -> None:
    """Show all of one run: its row, details, snapshot, trace, evaluations and steps.

    With --json: run, steps, state, trace, spans and evaluations, complete.

    Examples:
      flujo runs show run_123
      flujo runs show run_123 --json | jq .state.pipeline_context
    """

    async def read(backend: StateBackend) -> dict[str, Any]:
        run = await backend.get_run_details(run_id)
        if run is None:
            fail(f"run {run_id!r} is not recorded in {_database(uri)}; see: flujo runs list")
        return {
            "run": run,
            "steps": await backend.list_run_steps(run_id),
            "state": await backend.load_state(run_id),
            "trace": await _trace(backend, run_id),
            "spans": await backend.get_spans(run_id),
            "evaluations": await backend.list_evaluations(limit=None, run_id=run_id),
        }

    record = use_backend(uri, read, auto_migrate=False)
    if as_json:
        write_json(record)
        return
    write_fields(_fields(record))
    if record["steps"]:
        write("\n")
        write_table(_STEPS, [_step_row(step) for step in record["steps"]])


async def _trace(backend: StateBackend, run_id: str) -> dict[str, Any] | None:
    try:
        return await backend.get_trace(run_id)
    except InvalidStateError as error:
        # Spans without a tree are no reason to show nothing.
        message(f"the run has no trace: {error}", label="note", style="bold")
        return None


def _fields(record: dict[str, Any]) -> list[tuple[str, str | Text]]:
    run, state = record["run"], record["state"]
    details = [
        (excerpt(name, _LONGEST_NAME), _json(value))
        for name, value in run.items()
        if name not in RunInfo.__annotations__
    ]
    return [
        ("run", run["run_id"]),
        ("pipeline", run["pipeline_name"]),
        ("pipeline id", run["pipeline_id"] if run["pipeline_id"] != run["pipeline_name"] else ""),
        ("version", run["pipeline_version"]),
        ("status", status_text(run["status"])),
        ("step", _progress(run["current_step_index"], run["total_steps"])),
        ("created", moment(run["created_at"])),
        ("updated", moment(run["updated_at"])),
        ("ended", moment(run["end_time"])),
        ("duration", duration(run["execution_time_ms"])),
        ("memory", "" if run["memory_usage_mb"] is None else f"{run['memory_usage_mb']:,.4g} MB"),
        ("cost", dollars(run["total_cost"])),
        ("background", "yes" if run["is_background_task"] else ""),
        ("parent run", run["parent_run_id"] or ""),
        ("task", run["task_id"] or ""),
        ("error", excerpt(run["error_message"] or "", _LONGEST_VALUE)),
        ("task error", excerpt(run["background_error"] or "", _LONGEST_VALUE)),
        ("metadata", _json(run["metadata"] or None)),
        *details,
        ("snapshot", _snapshot(state)),
        ("context keys", excerpt(", ".join(state["pipeline_context"]), _LONGEST_VALUE) if state else ""),
        ("trace", _trace_summary(record["trace"], record["spans"])),
        ("evaluations", _evaluations(record["evaluations"])),
        ("steps", _steps_summary(record["steps"])),
    ]


def _json(value: Any) -> str:
    return "" if value is None else excerpt(one_line(value), _LONGEST_VALUE)


def _snapshot(state: State | None) -> str:
    if state is None:
        return "none"
    progress = _progress(state["current_step_index"], state["total_steps"])
    history = len(state["step_history"])
    return (
        f"revision {state['revision']}, {state['status']} at step {progress}, saved {moment(state['updated_at'])}, "
        f"{history:,} {'entry' if history == 1 else 'entries'} of history"
    )


def _trace_summary(trace: dict[str, Any] | None, spans: list[Span]) -> str:
    if not spans:
        return "none" if trace is None else "saved, without spans"
    counts = ", ".join(f"{count:,} {status}" for status, count in Counter(s["status"] for s in spans).items())
    return f"{len(spans):,} {'span' if len(spans) == 1 else 'spans'}: {counts}"


def _evaluations(evaluations: list[dict[str, Any]]) -> str:
    if not evaluations:
        return "none"
    return f"{len(evaluations):,}, the latest with score {evaluations[0]['score']:g}"


def _steps_summary(steps: list[Step]) -> str:
    if not steps:
        return "none recorded"
    return f"{len(steps):,} recorded"


def _step_row(step: Step) -> list[str | Text]:
    tokens, error = step["token_counts"], "" if step["error"] is None else step["error"]
    return [
        str(step["step_index"]),
        step["step_name"],
        status_text(step["status"]),
        duration(step["execution_time_ms"]),
        dollars(step["cost_usd"]),
        "" if tokens is None else f"{tokens:,}",
        moment(step["created_at"]),
        excerpt(error if isinstance(error, str) else one_line(error), _LONGEST_ERROR),
    ]


def _database(uri: str | None) -> str:
    """Where was looked, without a password; and why that may be in vain."""
    with told_errors():
        from flujo_core.config import resolve_configuration

        configuration: Configuration = resolve_configuration(uri)
    shown = configuration.describe()["uri"]
    return shown if configuration.spec.durable else f"{shown}, which holds only what this process saved"
