"""Which backends bend values, or take what must be refused (G3, G4)?"""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import Callable
from datetime import datetime
from math import isfinite
from typing import Any, ClassVar

from pydantic import SecretStr

from flujo_core.errors import InvalidStateError
from flujo_core.memory import MemoryBackend
from flujo_core.model import State, Step
from flujo_core.settings import BackendSettings

from .registry import breaks

# --- G3: what is loaded is not what was saved ---------------------------------------------------------------------


class _Bending(MemoryBackend):
    """Base of those that make something else of each value within a snapshot."""

    exempt: ClassVar = ("revision", "created_at", "updated_at", "current_step_index", "total_steps")

    def bend(self, value: Any) -> Any:
        raise NotImplementedError

    async def load_state(self, run_id: str) -> State | None:
        state = await super().load_state(run_id)
        return state and {key: value if key in self.exempt else self._all(value) for key, value in state.items()}

    def _all(self, value: Any) -> Any:
        value = self.bend(value)
        if type(value) is dict:
            return {self.bend(key): self._all(item) for key, item in value.items()}
        return list(map(self._all, value)) if type(value) is list else value


@breaks("G3")
class FloatisedInts(_Bending):
    """Integers come back as floats."""

    def bend(self, value: Any) -> Any:
        return float(value) if type(value) is int and abs(value) < 10**300 else value


@breaks("G3")
class IntegralFloats(_Bending):
    """1.0 comes back as 1."""

    def bend(self, value: Any) -> Any:
        return int(value) if type(value) is float and value.is_integer() else value


@breaks("G3")
class BoolsAsInts(_Bending):
    """True comes back as 1."""

    def bend(self, value: Any) -> Any:
        return int(value) if type(value) is bool else value


@breaks("G3")
class BigIntsRounded(_Bending):
    """Integers of more than 53 bits are rounded as floats are."""

    def bend(self, value: Any) -> Any:
        return int(float(value)) if type(value) is int and 2**53 < abs(value) < 10**300 else value


@breaks("G3")
class FloatsRounded(_Bending):
    """Floats are kept to 15 digits."""

    def bend(self, value: Any) -> Any:
        return float(f"{value:.15g}") if type(value) is float else value


@breaks("G3")
class NegativeZeroLost(_Bending):
    """-0.0 comes back as 0.0."""

    def bend(self, value: Any) -> Any:
        return value + 0.0 if type(value) is float else value


@breaks("G3")
class NanAsNull(_Bending):
    """NaN and the infinities come back as None."""

    def bend(self, value: Any) -> Any:
        return None if type(value) is float and not isfinite(value) else value


@breaks("G3")
class NulStripped(_Bending):
    """Text loses its NUL characters."""

    def bend(self, value: Any) -> Any:
        return value.replace("\x00", "") if type(value) is str else value


@breaks("G3")
class SurrogatesReplaced(_Bending):
    """Lone surrogates come back as question marks."""

    def bend(self, value: Any) -> Any:
        return value.encode("utf-8", "replace").decode() if type(value) is str else value


@breaks("G3")
class SurrogatePairsJoined(_Bending):
    """Two adjacent surrogates come back as the character that they would make in UTF-16."""

    def bend(self, value: Any) -> Any:
        if type(value) is not str:
            return value
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


@breaks("G3")
class UnicodeNormalised(_Bending):
    """Text comes back composed."""

    def bend(self, value: Any) -> Any:
        return unicodedata.normalize("NFC", value) if type(value) is str else value


@breaks("G3")
class EmptyTextAsNull(_Bending):
    """The empty text is None."""

    def bend(self, value: Any) -> Any:
        return None if value == "" else value


@breaks("G3")
class KeyOrderLost(_Bending):
    """Keys come back sorted."""

    def bend(self, value: Any) -> Any:
        return dict(sorted(value.items())) if type(value) is dict else value


@breaks("G3")
class NullsDropped(_Bending):
    """Keys whose value is None are gone."""

    def bend(self, value: Any) -> Any:
        return {key: item for key, item in value.items() if item is not None} if type(value) is dict else value


@breaks("G3")
class DatesRestored(_Bending):
    """Text that looks like a date comes back as a datetime."""

    def bend(self, value: Any) -> Any:
        try:
            return datetime.fromisoformat(value) if type(value) is str and "T" in value else value
        except ValueError:
            return value


@breaks("G3")
class SharedResult(MemoryBackend):
    """Two loads of one revision return one and the same object, which a caller may change for all."""

    def __init__(self, name: str = "", **more: Any) -> None:
        super().__init__(name, **more)
        self.cache: dict[tuple[str, int], State] = {}

    async def load_state(self, run_id: str) -> State | None:
        state = await super().load_state(run_id)
        return state and self.cache.setdefault((run_id, state["revision"]), state)


@breaks("G3")
class SharedSteps(MemoryBackend):
    """All lists of one length of a run's steps are one and the same object."""

    def __init__(self, name: str = "", **more: Any) -> None:
        super().__init__(name, **more)
        self.cache: dict[tuple[str, int], list[Step]] = {}

    async def list_run_steps(self, run_id: str) -> list[Step]:
        steps = await super().list_run_steps(run_id)
        return self.cache.setdefault((run_id, len(steps)), steps)


@breaks("G3")
class CapturedLate(MemoryBackend):
    """The argument is read after the first suspension, when its owner may have changed it."""

    async def save_state(self, run_id: str, state: State, *, expected_revision: int | None = None) -> int:
        await asyncio.sleep(0)
        return await super().save_state(run_id, state, expected_revision=expected_revision)


@breaks("G3")
class ArgumentChanged(MemoryBackend):
    """save_state writes the run's id into the caller's dict."""

    async def save_state(self, run_id: str, state: State, *, expected_revision: int | None = None) -> int:
        result = await super().save_state(run_id, state, expected_revision=expected_revision)
        if isinstance(state, dict):
            state.setdefault("run_id", run_id)
        return result


# --- G4: what must be refused is taken ----------------------------------------------------------------------------


class Lenient(MemoryBackend):
    """Base of those that mend a wrong state instead of refusing it."""

    complaint: ClassVar[str]
    """A word of the error that they don't raise."""

    def mend(self, state: State) -> State:
        raise NotImplementedError

    async def save_state(self, run_id: str, state: State, *, expected_revision: int | None = None) -> int:
        try:
            return await super().save_state(run_id, state, expected_revision=expected_revision)
        except InvalidStateError as error:
            if self.complaint not in str(error) or not isinstance(state, dict):
                raise
            return await super().save_state(run_id, self.mend(state), expected_revision=expected_revision)


def _walk(value: Any, leaf: Callable[[Any], Any], levels: int = 190) -> Any:
    if levels and isinstance(value, dict):
        return {key: _walk(item, leaf, levels - 1) for key, item in value.items()}
    if levels and isinstance(value, (list, tuple)):
        return [_walk(item, leaf, levels - 1) for item in value]
    return leaf(value)


@breaks("G4")
class TooDeepIsCut(Lenient):
    """What is nested too deeply is cut off."""

    complaint = "nested"

    def mend(self, state: State) -> State:
        return _walk(state, lambda value: None if isinstance(value, (dict, list)) else value)  # type: ignore[no-any-return]


@breaks("G4")
class UnknownAsText(Lenient):
    """An object that has no JSON form is kept as its text."""

    complaint = "no JSON form"

    def mend(self, state: State) -> State:
        plain = (str, int, float, type(None))
        return _walk(state, lambda value: value if isinstance(value, plain) else str(value))  # type: ignore[no-any-return]


@breaks("G4")
class SecretsMasked(Lenient):
    """A secret is kept as its mask."""

    complaint = "SecretStr"

    def mend(self, state: State) -> State:
        return _walk(state, lambda value: str(value) if isinstance(value, SecretStr) else value)  # type: ignore[no-any-return]


@breaks("G4")
class BytesReplaced(Lenient):
    """Bytes that are not UTF-8 are kept with replacement characters."""

    complaint = "UTF-8"

    def mend(self, state: State) -> State:
        return _walk(state, lambda value: value.decode(errors="replace") if isinstance(value, bytes) else value)  # type: ignore[no-any-return]


@breaks("G4")
class KeysMerged(Lenient):
    """Of two keys that become one the last wins."""

    complaint = "two keys"

    def mend(self, state: State) -> State:
        def merged(value: Any) -> Any:
            if isinstance(value, dict):
                return {"null" if key is None else str(key): merged(item) for key, item in value.items()}
            return [merged(item) for item in value] if isinstance(value, list) else value

        return merged(state)  # type: ignore[no-any-return]


@breaks("G4")
class NoSizeLimit(MemoryBackend):
    """A document may be of any size."""

    def __init__(self, name: str = "", **more: Any) -> None:
        super().__init__(name, **{**more, "settings": BackendSettings(max_document_bytes=2**60)})

    @property
    def settings(self) -> BackendSettings:
        return BackendSettings()


@breaks("G4")
class SettingsDropped(MemoryBackend):
    """It has the settings that it has by default, whatever it was given."""

    def __init__(self, name: str = "", **more: Any) -> None:
        super().__init__(name)


@breaks("G4", "M3")
class NoPath(MemoryBackend):
    """The error for a wrong value does not name its place."""

    async def save_state(self, run_id: str, state: State, *, expected_revision: int | None = None) -> int:
        try:
            return await super().save_state(run_id, state, expected_revision=expected_revision)
        except InvalidStateError as error:
            raise InvalidStateError(str(error)) from None


@breaks("G4")
class ChecksAfterWriting(MemoryBackend):
    """A step whose output is refused is recorded without it."""

    async def save_step_result(self, step_data: Any) -> None:
        try:
            await super().save_step_result(step_data)
        except InvalidStateError:
            await super().save_step_result({**step_data, "output": None})
            raise
