"""Does the SQLite backend keep the contract?"""

from __future__ import annotations

from pathlib import Path

import pytest

from flujo_conformance import Harness, StateBackendSuite
from flujo_conformance.sqlite_harness import SQLiteHarness


class TestSQLite(StateBackendSuite):
    @pytest.fixture
    def state_harness(self, tmp_path: Path) -> Harness:
        return SQLiteHarness(f"sqlite:///{tmp_path}/{{namespace}}.db")
