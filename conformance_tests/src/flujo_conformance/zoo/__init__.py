"""Does the suite find bugs? A zoo of backends, each broken in one way, that a good suite tells from an unbroken one.

``flujo-conformance selftest`` runs the suite on each.
"""

from __future__ import annotations

from typing import Any, Final

from flujo_conformance.harness import Harness, Tables
from flujo_conformance.memory_harness import tables_of
from flujo_core import StateBackend
from flujo_core.memory import _NAMED, MemoryBackend
from flujo_core.settings import BackendSettings

from . import (
    administration,
    arguments,
    concurrency,
    extremes,
    interruption,
    life,
    lists,
    metadata,
    outcomes,
    runs,
    snapshots,
    traces,
    values,
)
from .registry import MUTANTS, Mutant, forget, maker

__all__ = ["MUTANTS", "UNBROKEN", "Mutant", "ZooHarness"]

_FILES = (
    life,
    outcomes,
    interruption,
    concurrency,
    values,
    arguments,
    snapshots,
    runs,
    lists,
    metadata,
    traces,
    administration,
    extremes,
)

UNBROKEN: Final = Mutant("unbroken", (), "The backend that all others are made from.", maker(MemoryBackend))


class ZooHarness(Harness):
    """Handles on a mutant, by its name."""

    durable = shared = False

    def __init__(self, name: str) -> None:
        self.name = name

    def open(self, namespace: str, **settings: Any) -> StateBackend:
        mutant = UNBROKEN if self.name == UNBROKEN.name else MUTANTS[self.name]
        return mutant.make(f"{self.name}-{namespace}", BackendSettings(**settings))

    async def wipe(self, namespace: str) -> None:
        forget(f"{self.name}-{namespace}")

    async def raw(self, namespace: str) -> Tables | None:
        return tables_of(_NAMED[f"{self.name}-{namespace}"])
