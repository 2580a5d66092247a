"""Which backends take ids, times and numbers wrongly, or show them wrongly (G5 to G7)?"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from flujo_core.errors import InvalidStateError
from flujo_core.memory import MemoryBackend, MemoryStore
from flujo_core.model import RunInfo, State
from flujo_core.runs import Draft
from flujo_core.store import Change, Outcome, Snapshot, StoredRun

from .registry import Meddling, breaks
from .values import Lenient

# --- G5: identifiers and text ---------------------------------------------------------------------------------------


class _Folding(MemoryStore):
    """Base of those that take several ids for one."""

    def fold(self, run_id: str) -> str:
        raise NotImplementedError

    async def commit(self, changes: Sequence[Change]) -> list[Outcome]:
        return await super().commit([replace(change, run_id=self.fold(change.run_id)) for change in changes])

    async def stored_runs(self, run_ids: Sequence[str]) -> dict[str, StoredRun]:
        found = await super().stored_runs([self.fold(run_id) for run_id in run_ids])
        return {run_id: found[self.fold(run_id)] for run_id in run_ids if self.fold(run_id) in found}

    async def load(self, run_id: str) -> Snapshot | None:
        return await super().load(self.fold(run_id))


@breaks("G5")
class CaseFoldedIds(_Folding):
    """Ids are compared without regard to case."""

    def fold(self, run_id: str) -> str:
        return run_id.casefold()


@breaks("G5")
class SpacesIgnored(_Folding):
    """Ids are compared without the spaces at their ends."""

    def fold(self, run_id: str) -> str:
        return run_id.strip() or run_id


@breaks("G5")
class ComposedIds(_Folding):
    """Ids are compared in their composed form."""

    def fold(self, run_id: str) -> str:
        return unicodedata.normalize("NFC", run_id)


@breaks("G5")
class IdsCut(MemoryBackend):
    """Ids are refused from 64 characters on."""

    async def save_state(self, run_id: str, state: State, *, expected_revision: int | None = None) -> int:
        if isinstance(run_id, str) and len(run_id) > 63:
            raise InvalidStateError("run_id is too long")
        return await super().save_state(run_id, state, expected_revision=expected_revision)


@breaks("G5")
class IdsCast(MemoryBackend):
    """An id that is a number is made text."""

    async def save_state(self, run_id: str, state: State, *, expected_revision: int | None = None) -> int:
        return await super().save_state(str(run_id), state, expected_revision=expected_revision)


@breaks("G5")
class SystemKeysFolded(MemoryBackend):
    """The keys of system state are compared without regard to case."""

    async def set_system_state(self, key: str, value: Any) -> None:
        await super().set_system_state(key.lower() if isinstance(key, str) else key, value)

    async def get_system_state(self, key: str) -> Any:
        found = await super().get_system_state(key.lower() if isinstance(key, str) else key)
        return found and {**found, "key": key}


@breaks("G5")
class RowTextStripped(MemoryBackend):
    """Rows leave out what they can't show of an error's text."""

    async def _rows(self, query: Any) -> list[RunInfo]:
        rows = await super()._rows(query)
        for row in rows:
            row["error_message"] = row["error_message"] and row["error_message"].replace("�", "")
        return rows


# --- G6: timestamps -------------------------------------------------------------------------------------------------


class _BendingTimes(MemoryBackend):
    """Base of those that return other instants than were saved."""

    def bend(self, moment: datetime) -> Any:
        raise NotImplementedError

    async def load_state(self, run_id: str) -> State | None:
        state = await super().load_state(run_id)
        return state and {**state, **{key: self.bend(state[key]) for key in ("created_at", "updated_at")}}


@breaks("G6")
class MicrosecondsCut(_BendingTimes):
    """Times are kept to the millisecond."""

    def bend(self, moment: datetime) -> Any:
        return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


@breaks("G6")
class NaiveTimes(_BendingTimes):
    """Times come back without a zone."""

    def bend(self, moment: datetime) -> Any:
        return moment.replace(tzinfo=None)


@breaks("G6")
class LocalTimes(_BendingTimes):
    """Times come back in the zone of the server."""

    def bend(self, moment: datetime) -> Any:
        return moment.astimezone(timezone(timedelta(hours=-2)))


@breaks("G6")
class TimesAsText(_BendingTimes):
    """Times come back as text."""

    def bend(self, moment: datetime) -> Any:
        return moment.isoformat()


@breaks("G6")
class NaiveIsLocal(MemoryBackend):
    """A time without a zone is taken for local time."""

    async def save_state(self, run_id: str, state: State, *, expected_revision: int | None = None) -> int:
        if isinstance(state, dict) and isinstance(created := state.get("created_at"), datetime) and not created.tzinfo:
            state = {**state, "created_at": created.replace(tzinfo=timezone(timedelta(hours=1)))}
        return await super().save_state(run_id, state, expected_revision=expected_revision)


@breaks("G6")
class NumbersAreTimes(Lenient):
    """A number is taken for seconds since 1970."""

    complaint = "created_at"

    def mend(self, state: State) -> State:
        if not isinstance(state["created_at"], (int, float)):
            return state
        return {**state, "created_at": datetime.fromtimestamp(state["created_at"], UTC)}


@breaks("G6")
class DatesAreTimes(Lenient):
    """A date without a time is taken for its midnight."""

    complaint = "updated_at"

    def mend(self, state: State) -> State:
        return {**state, "updated_at": f"{state['updated_at']}T00:00:00"}


# --- G7: numbers ----------------------------------------------------------------------------------------------------


@breaks("G7")
class BoolsAreNumbers(Lenient):
    """True is a duration of 1."""

    complaint = "execution_time_ms"

    def mend(self, state: State) -> State:
        value = state["execution_time_ms"]
        return {**state, "execution_time_ms": int(value) if isinstance(value, bool) else value}


@breaks("G7")
class DigitsAreNumbers(Lenient):
    """Text of digits is a counter."""

    complaint = "total_steps"

    def mend(self, state: State) -> State:
        value = state["total_steps"]
        return {**state, "total_steps": int(value) if isinstance(value, str) and value.isdigit() else value}


@breaks("G7")
class AmountsAsInts(MemoryBackend):
    """A row shows an amount without a fraction as an int."""

    async def _rows(self, query: Any) -> list[RunInfo]:
        rows = await super()._rows(query)
        for row in rows:
            amount = row["execution_time_ms"]
            row["execution_time_ms"] = int(amount) if amount is not None and amount.is_integer() else amount
        return rows


@breaks("G7")
class CountersOf32Bits(Meddling):
    """Counters of rows wrap at 32 bits."""

    def meddle(self, draft: Draft) -> None:
        for fields in (draft.run.saved, draft.run.recorded) if draft.run else ():
            if isinstance(fields.get("total_steps"), int):
                fields["total_steps"] %= 2**32


@breaks("G7")
class RoundedAverages(MemoryBackend):
    """Averages are rounded to hundredths."""

    async def get_workflow_stats(self) -> Any:
        stats = deepcopy(await super().get_workflow_stats())
        return {**stats, "average_execution_time_ms": round(stats["average_execution_time_ms"], 2)}
