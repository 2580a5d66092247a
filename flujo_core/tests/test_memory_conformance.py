"""Does the in-memory backend keep the contract?"""

from __future__ import annotations

from typing import ClassVar

from flujo_conformance import Harness, StateBackendSuite, UriHarness


class TestMemory(StateBackendSuite):
    harness: ClassVar[Harness] = UriHarness("memory://{namespace}")
    shared_between_processes = False
