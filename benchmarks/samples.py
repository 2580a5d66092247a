"""What do the workloads save? A state of 2 KiB with 200 bytes of metadata, and runs to be listed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, Final

STEPS: Final = 10
"""Of a run's whole lifecycle."""
STATUSES: Final = ("completed", "completed", "completed", "completed", "completed", "failed", "paused", "cancelled",
                   "running", "running")  # fmt: skip
"""Of the runs to be listed: half of them are completed."""
PIPELINES: Final = 20
HITS: Final = 10
"""So many runs a selective filter finds, however many there are."""
BEGAN: Final = datetime(2024, 1, 1, tzinfo=UTC)


def state(number: int, step: int = 0) -> dict[str, Any]:
    """About 2 KiB of JSON; the metadata stay the same from step to step."""
    words = Random(f"{number} {step}")
    context = {f"key {n}": f"{words.getrandbits(200):050x}" for n in range(26)}
    return {
        "pipeline_id": f"pipeline {number % PIPELINES}",
        "pipeline_name": f"Pipeline {number % PIPELINES}",
        "pipeline_version": "1.0",
        "current_step_index": step,
        "total_steps": STEPS,
        "pipeline_context": {**context, "count": number, "rate": 0.25},
        "last_step_output": {"ok": True, "items": [1, 2.5, None, "text"]},
        "status": "running",
        "metadata": metadata(number, 100_000),
    }


def metadata(number: int, different: int) -> dict[str, Any]:
    """About 200 bytes. Each of ``different`` values is that of every so many runs."""
    value = number % different
    return {
        "batch": f"batch-{value}",
        "customer": {"id": value, "region": "europe-north-1"},
        "tags": [f"tag-{value}", "nightly", "billing"],
        "priority": 5,
        "half": number % 2,
        "source": "scheduler of the nightly runs, node 7",
    }


def listed(number: int, of: int) -> dict[str, Any]:
    """Run ``number`` of those that the lists go through: a second apart, small, its metadata found `HITS` times."""
    moment = BEGAN + timedelta(seconds=number)
    return {
        "pipeline_id": f"pipeline {number % PIPELINES}",
        "pipeline_name": f"Pipeline {number % PIPELINES}",
        "pipeline_version": "1.0",
        "current_step_index": 3,
        "pipeline_context": {"count": number},
        "status": STATUSES[number // PIPELINES % len(STATUSES)],
        "created_at": moment,
        "updated_at": moment,
        "metadata": metadata(number, max(1, of // HITS)),
    }


def step_record(run_id: str, step: int) -> dict[str, Any]:
    return {
        "run_id": run_id,
        "record_id": f"{run_id}-{step}",
        "step_name": f"step {step}",
        "step_index": step,
        "status": "completed",
        "output": {"text": "x" * 200},
        "cost_usd": 0.001,
        "token_counts": 120,
        "execution_time_ms": 12.5,
    }


def history_entry(number: int) -> dict[str, Any]:
    """About 1 KiB of JSON."""
    return {"step": number, "text": f"{Random(number).getrandbits(3800):0950x}", "ok": True}
