"""Does the PostgreSQL backend keep the contract?"""

from __future__ import annotations

import pytest

from flujo_conformance import Harness, StateBackendSuite


class TestPostgres(StateBackendSuite):
    @pytest.fixture
    def state_harness(self, postgres_harness: Harness) -> Harness:
        return postgres_harness
