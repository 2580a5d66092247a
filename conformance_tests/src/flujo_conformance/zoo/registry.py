"""How is a broken backend made? A class with one method bent, registered with the rules it breaks."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from flujo_core import StateBackend
from flujo_core.memory import _NAMED, MemoryBackend, MemoryStore
from flujo_core.runs import Draft
from flujo_core.settings import BackendSettings

Kind = TypeVar("Kind", bound=type[MemoryStore] | type[MemoryBackend])


@dataclass(frozen=True, slots=True)
class Mutant:
    name: str
    rules: tuple[str, ...]
    """The rules it breaks; that of the test which should find it comes first."""
    sentence: str
    make: Callable[[str, BackendSettings], StateBackend]
    """A handle on a namespace."""


MUTANTS: Final[dict[str, Mutant]] = {}
"""By name, in the order of the files."""


def breaks(*rules: str) -> Callable[[Kind], Kind]:
    """Registers a store, or a backend, under its name with hyphens; its docstring says what is wrong with it."""

    def register(kind: Kind) -> Kind:
        name = re.sub(r"(?<!^)(?=[A-Z])", "-", kind.__name__).lower()
        if name in MUTANTS:
            raise ValueError(f"two mutants are named {name}")
        MUTANTS[name] = Mutant(name, rules, " ".join((kind.__doc__ or "").split()), maker(kind))
        return kind

    return register


def maker(kind: type[MemoryStore] | type[MemoryBackend]) -> Callable[[str, BackendSettings], StateBackend]:
    def make(namespace: str, settings: BackendSettings) -> StateBackend:
        if issubclass(kind, MemoryBackend):
            return kind(namespace, settings=settings)
        store, data = kind, _NAMED[namespace]
        return StateBackend(lambda: store(data), settings)

    return make


def forget(namespace: str) -> None:
    """Remove the data of a namespace."""
    _NAMED.pop(namespace, None)


class Meddling(MemoryBackend):
    """Base of the mutants that do something to a run after each write."""

    def meddle(self, draft: Draft) -> None:
        raise NotImplementedError

    async def _write(self, run_id: str, apply: Callable[[Draft], Any], **more: Any) -> Any:
        def meddling(draft: Draft) -> Any:
            result = apply(draft)
            self.meddle(draft)
            return result

        return await super()._write(run_id, meddling, **more)
