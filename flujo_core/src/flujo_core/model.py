"""Which records do users pass and get? Their keys and types; the rules are in `flujo_core.backend`.

A mapping that is passed may hold further keys, which are kept. Timestamps that are passed may be datetimes or ISO 8601
text; those that come back are aware UTC datetimes. ``*_ms`` are milliseconds, ``*_mb`` megabytes, ``*_usd`` US dollars.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal, TypedDict

RunStatus = Literal["running", "paused", "completed", "failed", "cancelled"]
State = dict[str, Any]
"""A snapshot. Required: pipeline_id, pipeline_name, pipeline_version, current_step_index. Known, with defaults: run_id,
status "running", pipeline_context {}, last_step_output None, step_history [], metadata {}, created_at, updated_at,
total_steps 0, error_message, execution_time_ms, memory_usage_mb, is_background_task False, parent_run_id, task_id,
background_error. Loaded: plus ``revision``."""


class RunInfo(TypedDict):
    """The row of a run, the same keys on every backend."""

    run_id: str
    pipeline_id: str
    pipeline_name: str
    pipeline_version: str
    status: RunStatus
    created_at: datetime
    updated_at: datetime
    """The later of the snapshot's updated_at and the last record of the run or of one of its steps."""
    start_time: datetime
    """= created_at."""
    end_time: datetime | None
    """As recorded, else updated_at of a finished run."""
    current_step_index: int
    total_steps: int
    error_message: str | None
    execution_time_ms: float | None
    memory_usage_mb: float | None
    total_cost: float | None
    """As recorded, else the sum of the steps' cost_usd."""
    metadata: dict[str, Any]
    is_background_task: bool
    parent_run_id: str | None
    task_id: str | None
    background_error: str | None
    revision: int
    """0 without a snapshot."""


Step = dict[str, Any]
"""A step: run_id, step_name, step_index (required); status "completed", output, raw_response, cost_usd, token_counts,
execution_time_ms, created_at (now), step_run_id, record_id, start_time, end_time, input, error; any other key."""
Span = dict[str, Any]
"""A span: span_id (required); parent_span_id, name "span", start_time 0.0, end_time, status "running", attributes {},
created_at (now). Times are finite floats on the caller's clock, in its unit."""


class Evaluation(TypedDict):
    run_id: str
    step_name: str | None
    score: float
    feedback: str | None
    metadata: dict[str, Any]
    created_at: datetime


class SystemState(TypedDict):
    key: str
    value: Any
    updated_at: datetime


class DurationStatistics(TypedDict):
    total: float
    count: int
    average: float


class SpanStatistics(TypedDict):
    """Finished spans; durations in the unit of the spans' clock."""

    total_spans: int
    by_name: dict[str, int]
    by_status: dict[str, int]
    avg_duration_by_name: dict[str, DurationStatistics]


class WorkflowStats(TypedDict):
    total_workflows: int
    status_counts: dict[str, int]
    """Only statuses that occur."""
    recent_workflows_24h: int
    average_execution_time_ms: float
    """0.0 if no run has one."""
    background_status_counts: dict[str, int]
