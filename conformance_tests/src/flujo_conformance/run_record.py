"""What was said about one run, and which row, snapshot and steps follow from it? (S2, R1 to R6, R9)"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal, localcontext
from typing import Any

from flujo_conformance import fields
from flujo_conformance.json_values import UNSTORABLE, fresh

IDENTITY = ("pipeline_id", "pipeline_name", "pipeline_version")
FILLERS = ("unknown", "latest")

ROW_FIELDS: dict[str, fields.Check] = {
    "current_step_index": fields.counter,
    "total_steps": fields.counter,
    "error_message": fields.text,
    "execution_time_ms": fields.number,
    "memory_usage_mb": fields.number,
    "metadata": fields.metadata,
    "is_background_task": fields.flag,
    "parent_run_id": fields.identifier,
    "task_id": fields.identifier,
    "background_error": fields.text,
}
"""What a snapshot and a record can both say of a row; a record may say None."""

STATE_KEYS = (
    "run_id", *IDENTITY, "current_step_index", "pipeline_context", "last_step_output", "step_history", "status",
    "created_at", "updated_at", "total_steps", "error_message", "execution_time_ms", "memory_usage_mb", "metadata",
    "is_background_task", "parent_run_id", "task_id", "background_error",
)  # fmt: skip

STEP_KEYS = (
    "step_name", "step_index", "status", "output", "raw_response", "cost_usd", "token_counts", "execution_time_ms",
    "created_at", "step_run_id", "record_id", "start_time", "end_time", "input", "error",
)  # fmt: skip


def state_defaults() -> dict[str, Any]:
    """The known keys whose absence or None means something else than None."""
    return {
        "pipeline_context": {}, "step_history": [], "metadata": {}, "total_steps": 0, "is_background_task": False,
    }  # fmt: skip


@dataclass
class Run:
    """One run: the two layers of its row fields, its snapshot, its records."""

    created_at: datetime
    placeholder: bool = False
    """Known only from a step, trace, span or evaluation (R5)."""
    has_more: bool = False
    """Something other than snapshots was ever written, so the run outlives its snapshot (S7)."""
    started: bool = False
    """An R1 was written."""
    identity: dict[str, str] = field(default_factory=dict)
    snapshot: dict[str, Any] | None = None
    revision: int = 0
    snapshot_status: str | None = None
    """Of the last snapshot, deleted or not; so are the two below."""
    snapshot_updated_at: datetime | None = None
    snapshot_layer: dict[str, Any] = field(default_factory=dict)
    recorded_status: str | None = None
    recorded_at: datetime | None = None
    recorded: dict[str, Any] = field(default_factory=dict)
    extras: dict[str, Any] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)
    trace: dict[str, Any] | None = None
    spans: dict[str, dict[str, Any]] = field(default_factory=dict)
    traced_spans: set[str] = field(default_factory=set)
    """The spans that a save_trace wrote last."""

    def fix_identity(self, said: Mapping[str, Any]) -> None:
        for key in IDENTITY:
            if said.get(key) is not None and said[key] not in FILLERS:
                self.identity.setdefault(key, said[key])

    def take_snapshot(self, state: dict[str, Any], updated_at: datetime) -> int:
        """Replace the snapshot and its layer of the row (S1)."""
        self.fix_identity(state)
        self.snapshot = state
        self.snapshot_status = state.get("status", "running")
        self.snapshot_updated_at = updated_at
        self.snapshot_layer = {key: state[key] for key in ROW_FIELDS if state.get(key) is not None}
        self.revision += 1
        return self.revision

    def take_record(self, said: Mapping[str, Any], now: datetime) -> None:
        """Lay what R1 or R2 says over what was said before."""
        self.fix_identity(said)
        for key, value in said.items():
            if key == "status":
                self.recorded_status = value
            elif key in ROW_FIELDS or key in ("end_time", "total_cost"):
                self.recorded[key] = value
                self.snapshot_layer.pop(key, None)
            elif key not in IDENTITY and key not in ("run_id", "updated_at", "created_at", "start_time"):
                self.extras[key] = value
        self.recorded_at = said.get("updated_at") or now

    def forget_snapshot(self) -> None:
        """Remove the snapshot; the row keeps what it showed (S7)."""
        self.snapshot = None
        self.revision = 0

    def take_step(self, step: dict[str, Any]) -> None:
        """Append a step, or put it in the place of the one with its record_id."""
        for place, old in enumerate(self.steps):
            if step.get("record_id") is not None and old.get("record_id") == step["record_id"]:
                self.steps[place] = step
                break
        else:
            self.steps.append(step)
        self.recorded_at = max(self.recorded_at or step["created_at"], step["created_at"])

    @property
    def status(self) -> str:
        """The effective status (R9)."""
        if self.snapshot is not None and self.snapshot_status is not None:
            return self.snapshot_status
        return self.recorded_status or self.snapshot_status or "running"

    @property
    def updated_at(self) -> datetime:
        """When the run was last updated (A2)."""
        told = [at for at in (self.snapshot_updated_at, self.recorded_at) if at is not None]
        return max(told, default=self.created_at)

    def _said(self, key: str) -> Any:
        return self.snapshot_layer.get(key, self.recorded.get(key))

    def total_cost(self) -> float | None:
        """The recorded cost, else the exact sum of the costs of the steps."""
        if self.recorded.get("total_cost") is not None:
            return float(self.recorded["total_cost"])
        costs = [step["cost_usd"] for step in self.steps if step.get("cost_usd") is not None]
        if not costs:
            return None
        with localcontext() as context:
            context.prec = 2000  # more digits than lie between the largest and the smallest double
            return float(sum((Decimal(repr(cost)) for cost in costs), Decimal(0)))

    def row(self, run_id: str) -> dict[str, Any]:
        """The row that every method that returns runs returns (R6)."""
        pipeline_id = self.identity.get("pipeline_id", "unknown")
        end_time = self.recorded.get("end_time")
        if end_time is None and self.status in fields.FINISHED:
            end_time = self.updated_at
        metadata = self._said("metadata") or {}
        return {
            "run_id": run_id,
            "pipeline_id": pipeline_id,
            "pipeline_name": self.identity.get("pipeline_name", pipeline_id),
            "pipeline_version": self.identity.get("pipeline_version", "latest"),
            "status": self.status,
            "created_at": self.created_at,
            "updated_at": self.updated_at,
            "start_time": self.created_at,
            "end_time": end_time,
            "current_step_index": int(self._said("current_step_index") or 0),
            "total_steps": int(self._said("total_steps") or 0),
            "error_message": _shown(self._said("error_message")),
            "execution_time_ms": _float(self._said("execution_time_ms")),
            "memory_usage_mb": _float(self._said("memory_usage_mb")),
            "total_cost": self.total_cost(),
            "metadata": fresh(metadata),
            "is_background_task": bool(self._said("is_background_task")) or metadata.get("is_background_task") is True,
            "parent_run_id": self._said("parent_run_id"),
            "task_id": self._said("task_id"),
            "background_error": _shown(self._said("background_error")),
            "revision": self.revision,
        }

    def details(self, run_id: str) -> dict[str, Any]:
        """The row and every other key that R1 and R2 were given."""
        extras: dict[str, Any] = fresh(self.extras)
        return {**self.row(run_id), "final_context": extras.pop("final_context", None), **extras}

    def load(self, run_id: str) -> dict[str, Any] | None:
        """The snapshot: the keys that were saved in their order, then the absent ones, then the revision (S2)."""
        if self.snapshot is None:
            return None
        state: dict[str, Any] = fresh(self.snapshot)
        for key, value in (state_defaults() | {"status": "running", "run_id": run_id}).items():
            if state.get(key) is None:
                state[key] = value
        state["created_at"], state["updated_at"] = self.created_at, self.snapshot_updated_at
        absent = {key: state.pop(key, None) for key in STATE_KEYS if key not in self.snapshot}
        return {**state, **absent, "revision": self.revision}

    def list_steps(self, run_id: str) -> list[dict[str, Any]]:
        """The steps by step_index; the order of saving decides among equal ones (R4)."""
        found = []
        for step in sorted(self.steps, key=lambda step: int(step["step_index"])):
            known = {key: step.get(key) for key in STEP_KEYS}
            found.append(fresh({**known, **step, "run_id": run_id}))
        return found


def _shown(text: str | None) -> str | None:
    return None if text is None else UNSTORABLE.sub("\ufffd", text)


def _float(value: int | float | None) -> float | None:
    return None if value is None else float(value)
