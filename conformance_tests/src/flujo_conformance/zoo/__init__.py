"""Does the suite find bugs? A zoo of backends, each broken in one way, that a good suite tells from an unbroken one.

``python -m flujo_conformance.selftest`` runs the suite on each.
"""

from __future__ import annotations

from typing import Any, Final

from flujo_conformance.harness import Harness, Tables
from flujo_conformance.memory_harness import tables_of
from flujo_core import StateBackend
from flujo_core.memory import _NAMED, MemoryBackend
from flujo_core.settings import BackendSettings

from . import administration, arguments, life, lists, metadata, outcomes, runs, snapshots, traces, values
from .registry import MUTANTS, Mutant, forget, maker

__all__ = ["ELSEWHERE", "MUTANTS", "UNBROKEN", "Mutant", "ZooHarness"]

_FILES = (life, outcomes, values, arguments, snapshots, runs, lists, metadata, traces, administration)

UNBROKEN: Final = Mutant("unbroken", (), "The backend that all others are made from.", maker(MemoryBackend))

ELSEWHERE: Final = {
    "G12": "no wait can be made to last through the public methods; the plugins' tests hold locks and connections",
    "D1": "it is decided in core before there is a backend; core's tests prove it",
    "D2": "it is about SQLite files; the SQLite plugin's tests prove it",
    "D3": "it is about libpq's grammar; the PostgreSQL plugin's tests prove it",
    "D4": "it is decided in core before there is a backend; core's tests prove it",
    "D6": "no public method writes a document in a newer format; the tests of core and of the plugins do",
}
"""Rules that no test of the suite proves, because no backend's public methods can show them, and who proves them."""


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

    async def raw(self, namespace: str) -> Tables:
        return tables_of(_NAMED[f"{self.name}-{namespace}"])
