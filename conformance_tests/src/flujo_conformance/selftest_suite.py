"""Is a backend of the zoo told from an unbroken one? The whole suite on it; pytest runs it for `selftest_run`."""

from __future__ import annotations

import pytest

from . import StateBackendSuite
from .harness import Harness
from .selftest_run import HARNESS


class TestMutant(StateBackendSuite):
    @pytest.fixture
    def state_harness(self, pytestconfig: pytest.Config) -> Harness:
        return pytestconfig.stash[HARNESS]
