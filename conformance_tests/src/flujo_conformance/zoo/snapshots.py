"""Which backends save, guard or remove snapshots wrongly (S1 to S8)?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

from flujo_core.codec import decode
from flujo_core.errors import InvalidStateError, RunNotFoundError, StateConflictError
from flujo_core.memory import MemoryBackend, MemoryStore
from flujo_core.model import State
from flujo_core.runs import Draft
from flujo_core.store import Change, Outcome, Snapshot, SpanRecord

from .registry import Meddling, breaks


class Saving(MemoryBackend):
    """Base of those that do something to a state before they save it, or to a run after."""

    def before(self, run_id: str, state: dict[str, Any]) -> dict[str, Any]:
        return state

    def after(self, draft: Draft, state: dict[str, Any]) -> None:
        """Called on a run that has just been changed by a save."""

    def _save(self, run_id: str, state: State, expected: int | None) -> tuple[Callable[[Draft], int], int]:
        if isinstance(state, dict):
            state = self.before(run_id, state)
        apply, size = super()._save(run_id, state, expected)

        def bent(draft: Draft) -> int:
            apply(draft)
            self.after(draft, state)
            return draft.revision

        return bent, size


class _Loading(MemoryBackend):
    """Base of those that do something to a state that they loaded."""

    def bend(self, state: State) -> State | None:
        raise NotImplementedError

    async def load_state(self, run_id: str) -> State | None:
        state = await super().load_state(run_id)
        return state and self.bend(state)


# --- S1, S2 ---------------------------------------------------------------------------------------------------------


@breaks("S1")
class RevisionsFromZero(MemoryBackend):
    """The first save returns 0."""

    async def save_state(self, run_id: str, state: State, *, expected_revision: int | None = None) -> int:
        return await super().save_state(run_id, state, expected_revision=expected_revision) - 1


@breaks("S1")
class RevisionGaps(Saving):
    """Now and then a revision is left out."""

    def after(self, draft: Draft, state: dict[str, Any]) -> None:
        if draft.run and draft.run.revision % 4 == 3:
            draft.run.revision += 1


@breaks("S1")
class Merges(MemoryBackend):
    """A save keeps the keys of the snapshot before that it doesn't name."""

    async def save_state(self, run_id: str, state: State, *, expected_revision: int | None = None) -> int:
        before = await super().load_state(run_id) if isinstance(state, dict) and isinstance(run_id, str) else None
        return await super().save_state(run_id, {**before, **state} if before else state,
                                        expected_revision=expected_revision)  # fmt: skip


@breaks("S1", "M1")
class FirstMetadataStays(MemoryStore):
    """Metadata is indexed by the first save of a run only."""

    def _apply(self, change: Change) -> Outcome:
        run = self._data.runs.get(change.run_id)
        before = run and run.metadata
        outcome = super()._apply(change)
        if before and (run := self._data.runs.get(change.run_id)):
            run.metadata = before
        return outcome


@breaks("S2")
class UnknownKeysDropped(_Loading):
    """Only known keys come back."""

    def bend(self, state: State) -> State:
        return {key: value for key, value in state.items() if key not in ("mine", "zulu", "my key")}


@breaks("S2")
class NoDefaults(Saving, _Loading):
    """A known key that was not given is not there."""

    def before(self, run_id: str, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, "given": list(state)} if all(type(key) is str for key in state) else state

    def bend(self, state: State) -> State:
        given = {*state.pop("given", state), "revision", "run_id", "created_at", "updated_at"}
        return {key: value for key, value in state.items() if key in given}


@breaks("S2")
class RevisionOfTheState(Saving, _Loading):
    """A revision within the saved dict comes back instead of the stored one."""

    def before(self, run_id: str, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, "mine revision": state["revision"]} if "revision" in state else state

    def bend(self, state: State) -> State:
        return {**state, "revision": state.pop("mine revision", state["revision"])}


@breaks("S2")
class EmptyForNone(MemoryBackend):
    """A run without a snapshot loads as an empty dict."""

    async def load_state(self, run_id: str) -> State | None:
        return await super().load_state(run_id) or {}


# --- S3 to S5 -------------------------------------------------------------------------------------------------------


@breaks("S3", "R6")
class CreatedAtMoves(Saving):
    """Each save sets created_at anew."""

    def after(self, draft: Draft, state: dict[str, Any]) -> None:
        if draft.run and draft.run.saved_at:
            draft.run.created_at = draft.run.saved_at


@breaks("S3")
class CreatedAtIsNow(Saving):
    """The created_at that is given does not count."""

    def before(self, run_id: str, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, "created_at": None}


@breaks("S3")
class UpdatedAtIsNow(Saving):
    """The updated_at that is given does not count."""

    def before(self, run_id: str, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, "updated_at": None}


@breaks("S3")
class UpdatedAtOnlyForward(Meddling):
    """updated_at of a row never goes back."""

    def __init__(self, name: str = "", **more: Any) -> None:
        super().__init__(name, **more)
        self.latest: dict[str, datetime] = {}

    def meddle(self, draft: Draft) -> None:
        if draft.run and draft.run.saved_at:
            latest = self.latest.get(draft.run.run_id, datetime(1, 1, 2, tzinfo=UTC))
            draft.run.saved_at = self.latest[draft.run.run_id] = max(latest, draft.run.saved_at)


@breaks("S4")
class VersionDefaulted(Saving):
    """A snapshot without a pipeline_version has "latest"."""

    def before(self, run_id: str, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, "pipeline_version": state.get("pipeline_version") or "latest"}


@breaks("S4")
class FalsyIsNone(_Loading):
    """A falsy value of a field without a default comes back as None."""

    def bend(self, state: State) -> State:
        return {**state, "error_message": state["error_message"] or None}


@breaks("S4")
class NoneStays(_Loading):
    """An empty pipeline_context comes back as None."""

    def bend(self, state: State) -> State:
        return {**state, "pipeline_context": state["pipeline_context"] or None}


@breaks("S4")
class AnyStatus(Saving):
    """An unknown status is taken for "running"."""

    def before(self, run_id: str, state: dict[str, Any]) -> dict[str, Any]:
        known = ("running", "paused", "completed", "failed", "cancelled")
        status = state.get("status", "running")
        return {**state, "status": status if getattr(status, "value", status) in known else "running"}


@breaks("S5")
class AnyRunId(Saving):
    """A state with another run_id is saved."""

    def before(self, run_id: str, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, "run_id": run_id}


# --- S6, S7 ---------------------------------------------------------------------------------------------------------


@breaks("S6")
class LostUpdate(Saving):
    """expected_revision is ignored."""

    def _save(self, run_id: str, state: State, expected: int | None) -> tuple[Callable[[Draft], int], int]:
        return super()._save(run_id, state, None)


@breaks("S6")
class ZeroIsNone(Saving):
    """expected_revision=0 is no expectation."""

    def _save(self, run_id: str, state: State, expected: int | None) -> tuple[Callable[[Draft], int], int]:
        return super()._save(run_id, state, expected or None)


@breaks("S6")
class ComparesFirst(MemoryBackend):
    """The revision is compared in a read before the write."""

    async def save_state(self, run_id: str, state: State, *, expected_revision: int | None = None) -> int:
        if expected_revision is not None:
            before = await self.load_state(run_id)
            actual = before["revision"] if before else 0
            if actual != expected_revision:
                raise StateConflictError(run_id, expected=expected_revision, actual=actual)
        return await super().save_state(run_id, state)


@breaks("S6")
class OlderIsFine(MemoryBackend):
    """An expected revision higher than the stored one is no conflict."""

    async def save_state(self, run_id: str, state: State, *, expected_revision: int | None = None) -> int:
        try:
            return await super().save_state(run_id, state, expected_revision=expected_revision)
        except StateConflictError as error:
            if error.expected < error.actual:
                raise
            return await super().save_state(run_id, state)


@breaks("S6")
class ConflictsTouch(MemoryBackend):
    """A save that meets a conflict marks the run as updated nevertheless."""

    def _save(self, run_id: str, state: State, expected: int | None) -> tuple[Callable[[Draft], int], int]:
        apply, size = super()._save(run_id, state, expected)

        def bent(draft: Draft) -> int:
            try:
                return apply(draft)
            except StateConflictError:
                if draft.run:
                    draft.touched, draft.run.recorded_status = True, "failed"
                    draft.run.more = True
                    draft.run.recorded["background_error"] = "conflict"
                raise

        return bent, size


@breaks("S7")
class NothingToDelete(MemoryBackend):
    """Deleting a snapshot that is not there is an error."""

    async def delete_state(self, run_id: str, *, expected_revision: int | None = None) -> None:
        if isinstance(run_id, str) and await self.get_run_details(run_id) is None:
            raise RunNotFoundError(run_id)
        await super().delete_state(run_id, expected_revision=expected_revision)


@breaks("S7")
class RevisionsGoOn(Meddling):
    """After a deletion revisions go on where they were."""

    def __init__(self, name: str = "", **more: Any) -> None:
        super().__init__(name, **more)
        self.deleted: dict[str, int] = {}

    def meddle(self, draft: Draft) -> None:
        if draft.run and draft.run.revision == 1 and draft.change.run_id in self.deleted:
            draft.run.revision = self.deleted.pop(draft.change.run_id) + 1

    async def delete_state(self, run_id: str, *, expected_revision: int | None = None) -> None:
        state = await self.load_state(run_id)
        await super().delete_state(run_id, expected_revision=expected_revision)
        if state:
            self.deleted[run_id] = state["revision"]


@breaks("S7")
class DeleteStateRemovesRecords(MemoryBackend):
    """delete_state removes the whole run."""

    async def delete_state(self, run_id: str, *, expected_revision: int | None = None) -> None:
        await super().delete_state(run_id, expected_revision=expected_revision)
        await super().delete_run(run_id)


@breaks("S7")
class EmptyRunsStay(Meddling):
    """A run that only ever had a snapshot stays listed without it."""

    def meddle(self, draft: Draft) -> None:
        if draft.run:
            draft.run.more = True


@breaks("S7")
class DeletesUnguarded(MemoryBackend):
    """delete_state ignores expected_revision."""

    async def delete_state(self, run_id: str, *, expected_revision: int | None = None) -> None:
        await super().delete_state(run_id)


@breaks("S7")
class PrefixDelete(MemoryBackend):
    """delete_run removes every run whose id begins with the given one."""

    async def delete_run(self, run_id: str) -> bool:
        found = await super().delete_run(run_id)
        for row in await self.list_runs():
            if row["run_id"].startswith(run_id):
                await super().delete_run(row["run_id"])
        return found


@breaks("S7")
class DeletedForSure(MemoryBackend):
    """delete_run always says that there was something."""

    async def delete_run(self, run_id: str) -> bool:
        await super().delete_run(run_id)
        return True


@breaks("S7")
class SpansOutliveTheirRun(MemoryStore):
    """The spans of a deleted run are still there when a run of its id comes."""

    graves: ClassVar[WeakKeyDictionary[Any, dict[str, dict[str, SpanRecord]]]] = WeakKeyDictionary()

    def _apply(self, change: Change) -> Outcome:
        graves = self.graves.setdefault(self._data, {})
        left = self._data.runs.get(change.run_id)
        outcome = super()._apply(change)
        run = self._data.runs.get(change.run_id)
        if run is not None:
            run.spans = {**graves.pop(change.run_id, {}), **run.spans}
        elif left is not None:
            graves[change.run_id] = left.spans
        return outcome


# --- S8 -------------------------------------------------------------------------------------------------------------


@breaks("S8")
class HistoryNeverShortens(MemoryStore):
    """Entries that were cut off at the end of step_history are left."""

    def _apply(self, change: Change) -> Outcome:
        return super()._apply(replace(change, history_length=None) if change.history_length != 0 else change)


@breaks("S8")
class HistoryAppends(MemoryStore):
    """An entry of step_history that was edited in place stays as it was."""

    def _apply(self, change: Change) -> Outcome:
        run = self._data.runs.get(change.run_id)
        if run is not None and not change.wipe and change.snapshot is not None:
            change = replace(change, history=[new for new in change.history if new.position >= len(run.history)])
        return super()._apply(change)


@breaks("S8")
class EqualEntriesStay(MemoryStore):
    """An entry of step_history that equals the stored one, as True equals 1, is not written."""

    def _apply(self, change: Change) -> Outcome:
        run = self._data.runs.get(change.run_id)
        stored = [] if run is None else [decode(entry.entry) for entry in run.history]
        new = [new for new in change.history if stored[new.position : new.position + 1] != [decode(new.entry)]]
        return super()._apply(replace(change, history=new))


@breaks("S8")
class HistoryWithoutRepeats(MemoryStore):
    """Equal entries of step_history are loaded once."""

    async def load(self, run_id: str) -> Snapshot | None:
        found = await super().load(run_id)
        run = self._data.runs.get(run_id)
        if found is None or run is None:
            return None
        return found._replace(history=",".join({entry.entry: 0 for entry in run.history}))


@breaks("S8")
class FailedSaveCutsHistory(MemoryBackend):
    """A save that is refused for its values has emptied step_history already."""

    async def save_state(self, run_id: str, state: State, *, expected_revision: int | None = None) -> int:
        try:
            return await super().save_state(run_id, state, expected_revision=expected_revision)
        except (InvalidStateError, StateConflictError):
            run = self._data_of(run_id)
            if run is not None:
                run.history.clear()
            raise

    def _data_of(self, run_id: str) -> Any:
        store = self._make_store()
        assert isinstance(store, MemoryStore)
        return store._data.runs.get(run_id) if isinstance(run_id, str) else None
