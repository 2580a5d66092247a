"""Does the in-memory backend keep the contract?"""

from __future__ import annotations

from typing import ClassVar

from flujo_conformance import Harness, StateBackendSuite
from flujo_conformance.memory_harness import MemoryHarness


class TestMemory(StateBackendSuite):
    harness: ClassVar[Harness] = MemoryHarness()
