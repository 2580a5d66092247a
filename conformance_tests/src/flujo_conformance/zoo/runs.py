"""Which backends record runs and steps wrongly (R1 to R5, R9)?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

from flujo_core.errors import RunNotFoundError
from flujo_core.memory import MemoryBackend, MemoryStore
from flujo_core.model import Step
from flujo_core.runs import Draft
from flujo_core.store import RunQuery, RunRow
from flujo_core.validation import RECORD_FIELDS, RunData

from .registry import Meddling, breaks
from .snapshots import Saving

IDENTITY = ("pipeline_id", "pipeline_name", "pipeline_version")


@breaks("R1")
class StartDeletes(MemoryBackend):
    """A repeated save_run_start begins the run anew."""

    async def save_run_start(self, run_data: Mapping[str, Any]) -> None:
        await super().save_run_start(run_data)
        if "metadata" not in run_data:
            run_id = run_data["run_id"]
            await super().delete_run(run_id)
            await super().save_run_start(run_data)


@breaks("R1")
class StartResets(MemoryBackend):
    """A repeated save_run_start sets the fields that it doesn't contain to their defaults."""

    async def save_run_start(self, run_data: Mapping[str, Any]) -> None:
        await super().save_run_start(
            {**dict.fromkeys(RECORD_FIELDS), **run_data} if type(run_data) is dict else run_data
        )


@breaks("R1")
class StartRestarts(MemoryBackend):
    """A repeated save_run_start sets the status to "running"."""

    async def save_run_start(self, run_data: Mapping[str, Any]) -> None:
        await super().save_run_start({"status": "running", **run_data} if type(run_data) is dict else run_data)


@breaks("R1")
class IdentityMoves(Saving):
    """The pipeline of a run is the one that its last save named."""

    def after(self, draft: Draft, state: dict[str, Any]) -> None:
        if draft.run:
            draft.run.identity = (state["pipeline_id"], state["pipeline_name"], state["pipeline_version"])


@breaks("R1")
class FillersFixTheIdentity(Meddling):
    """ "unknown" and "latest" fix the identity as any other value does."""

    def meddle(self, draft: Draft) -> None:
        if draft.run and draft.run.listed:
            first, name, version = draft.run.identity
            draft.run.identity = (first or "unknown", name or "unknown", version or "latest")


@breaks("R1")
class IdentityIsWhole(Meddling):
    """The identity is fixed as a whole by the first write that names a pipeline_id."""

    def meddle(self, draft: Draft) -> None:
        if draft.run and draft.run.identity[0]:
            first, name, version = draft.run.identity
            draft.run.identity = (first, name or first, version or "latest")


@breaks("R1")
class FurtherKeysDropped(MemoryBackend):
    """Keys of a record that no row has are gone."""

    def _details(self, data: RunData) -> dict[str, str]:
        return {}


@breaks("R1")
class NoneChangesNothing(MemoryBackend):
    """A None in a record leaves the field as it is."""

    async def save_run_start(self, run_data: Mapping[str, Any]) -> None:
        if isinstance(run_data, dict):
            run_data = {key: value for key, value in run_data.items() if value is not None}
        await super().save_run_start(run_data)


@breaks("R2")
class EndMakesTheRun(MemoryBackend):
    """save_run_end of an unknown run records it."""

    async def save_run_end(self, run_id: str, end_data: Mapping[str, Any]) -> None:
        try:
            await super().save_run_end(run_id, end_data)
        except RunNotFoundError:
            await super().save_run_start({**end_data, "run_id": run_id})


@breaks("R2")
class EndOverwrites(MemoryBackend):
    """save_run_end sets the fields that it doesn't contain to their defaults."""

    async def save_run_end(self, run_id: str, end_data: Mapping[str, Any]) -> None:
        costs = {"total_cost"} if type(end_data) is dict and "cost_usd" not in end_data else set()
        defaults = dict.fromkeys({"error_message", "total_steps", *costs})
        await super().save_run_end(run_id, {**defaults, **end_data} if type(end_data) is dict else end_data)


@breaks("R2")
class EndEnds(MemoryBackend):
    """save_run_end without a status completes the run."""

    async def save_run_end(self, run_id: str, end_data: Mapping[str, Any]) -> None:
        await super().save_run_end(run_id, {"status": "completed", **end_data} if type(end_data) is dict else end_data)


@breaks("R2")
class SynonymsNotMerged(MemoryBackend):
    """cost_usd of a record is another key than total_cost."""

    async def save_run_end(self, run_id: str, end_data: Mapping[str, Any]) -> None:
        if isinstance(end_data, dict) and "cost_usd" in end_data:
            end_data = {("cost in usd" if key == "cost_usd" else key): value for key, value in end_data.items()}
        await super().save_run_end(run_id, end_data)


@breaks("R2")
class SnapshotsWin(Saving, Meddling):
    """What a record says of a field never counts while a snapshot says something else."""

    def __init__(self, name: str = "", **more: Any) -> None:
        super().__init__(name, **more)
        self.saved: dict[str, dict[str, Any]] = {}

    def after(self, draft: Draft, state: dict[str, Any]) -> None:
        if draft.run:
            self.saved[draft.run.run_id] = draft.run.saved

    def meddle(self, draft: Draft) -> None:
        if draft.run and draft.run.revision:
            draft.run.saved = dict(self.saved.get(draft.run.run_id, draft.run.saved))


@breaks("R3")
class OneRecordOfAStep(MemoryBackend):
    """A second record of one step_index replaces the first."""

    async def save_step_result(self, step_data: Mapping[str, Any]) -> None:
        if isinstance(step_data, dict) and isinstance(step_data.get("step_index"), int):
            step_data = {"record_id": f"step {step_data['step_index']}", **step_data}
        await super().save_step_result(step_data)


@breaks("R3")
class RecordIdAppends(Meddling):
    """A record_id that the run has is appended once more."""

    def meddle(self, draft: Draft) -> None:
        draft.change.steps = [step._replace(record_id=None) for step in draft.change.steps]


@breaks("R3")
class RecordIdsOfAllRuns(MemoryBackend):
    """A record_id that another run has replaces nothing, but is not kept either."""

    def __init__(self, name: str = "", **more: Any) -> None:
        super().__init__(name, **more)
        self.known: dict[str, str] = {}

    async def save_step_result(self, step_data: Mapping[str, Any]) -> None:
        record_id = step_data.get("record_id") if isinstance(step_data, dict) else None
        if type(record_id) is str and self.known.setdefault(record_id, step_data["run_id"]) != step_data["run_id"]:
            return
        await super().save_step_result(step_data)


@breaks("R3")
class CostsTwice(MemoryStore):
    """The cost of a record that is replaced is counted too."""

    async def step_cost(self, run_id: str, record_id: str) -> float | None:
        return None


@breaks("R3")
class CostsAsFloats(Meddling):
    """The sum of the costs is a float, with a float's errors."""

    def meddle(self, draft: Draft) -> None:
        if draft.run and draft.run.steps_cost:
            total, count = draft.run.steps_cost.split("/")
            draft.run.steps_cost = f"{Decimal(repr(float(total)))}/{count}"


@breaks("R3")
class StepKeysDropped(MemoryBackend):
    """raw_response of a step is gone."""

    async def list_run_steps(self, run_id: str) -> list[Step]:
        return [{**step, "raw_response": None} for step in await super().list_run_steps(run_id)]


@breaks("R4")
class StepsByTime(MemoryStore):
    """Steps of one index are in the order of their created_at."""

    async def list_steps(self, run_id: str) -> list[str]:
        run = self._run(run_id)
        steps = sorted(run.steps, key=lambda step: (step.step_index, step.created_at)) if run else []
        return [step.document for step in steps]


@breaks("R4")
class StepsAsSaved(MemoryStore):
    """Steps are in the order of saving."""

    async def list_steps(self, run_id: str) -> list[str]:
        run = self._run(run_id)
        return [step.document for step in run.steps] if run else []


@breaks("R4")
class StepsAsText(MemoryStore):
    """Steps are in the order of their index as text."""

    async def list_steps(self, run_id: str) -> list[str]:
        run = self._run(run_id)
        steps = sorted(run.steps, key=lambda step: (str(step.step_index), step.sequence)) if run else []
        return [step.document for step in steps]


@breaks("R4")
class UnknownStepsAreAnError(MemoryBackend):
    """The steps of an unknown run are an error."""

    async def list_run_steps(self, run_id: str) -> list[Step]:
        steps = await super().list_run_steps(run_id)
        if not steps and await self.get_run_details(run_id) is None:
            raise RunNotFoundError(run_id)
        return steps


@breaks("R5")
class PlaceholdersListed(MemoryStore):
    """Lists show the placeholder of a run of which only a step is known."""

    def _select(self, query: RunQuery) -> list[RunRow]:
        return super()._select(replace(query, placeholders=True))


@breaks("R5")
class RecordsOfUnknownRunsRefused(MemoryBackend):
    """A step of an unknown run is an error, as with a foreign key."""

    async def save_step_result(self, step_data: Mapping[str, Any]) -> None:
        if isinstance(step_data, dict) and type(step_data.get("run_id")) is str:
            found = await self.get_run_details(step_data["run_id"])
            if found is None:
                raise RunNotFoundError(step_data["run_id"])
        await super().save_step_result(step_data)


@breaks("R5")
class EvaluationsOfUnknownRunsLost(MemoryBackend):
    """An evaluation of an unknown run is dropped."""

    async def persist_evaluation(self, run_id: str, *args: Any, **kwargs: Any) -> None:
        if await self.get_run_details(run_id) is not None:
            await super().persist_evaluation(run_id, *args, **kwargs)


@breaks("R5")
class PlaceholdersStay(Meddling):
    """A run keeps the created_at of its placeholder."""

    def meddle(self, draft: Draft) -> None:
        if draft.run and draft._base:
            draft.run.created_at = draft._base.run.created_at


@breaks("R9")
class RecordedStatusWins(Meddling):
    """A recorded status hides that of the snapshot."""

    def meddle(self, draft: Draft) -> None:
        if draft.run and draft.run.recorded_status and draft.run.recorded_run:
            draft.run.saved_status = draft.run.recorded_status


@breaks("R9")
class StatusForgotten(MemoryBackend):
    """With its snapshot a run loses the status that this had."""

    async def delete_state(self, run_id: str, *, expected_revision: int | None = None) -> None:
        await super().delete_state(run_id, expected_revision=expected_revision)

        def apply(draft: Draft) -> None:
            if draft.run:
                draft.run.saved_status, draft.touched = None, True

        await self._write(run_id, apply)


@breaks("R9")
class PausedRunsEnd(MemoryBackend):
    """A paused run has an end_time."""

    async def get_run_details(self, run_id: str) -> dict[str, Any] | None:
        row = await super().get_run_details(run_id)
        if row and row["status"] == "paused" and row["end_time"] is None:
            row["end_time"] = row["updated_at"]
        return row
