"""Does the backend of a harness keep the contract? The whole suite on it; pytest runs it for `running`."""

from __future__ import annotations

import pytest

from . import StateBackendSuite
from .harness import Harness
from .running import HARNESS


class TestBackend(StateBackendSuite):
    @pytest.fixture
    def state_harness(self, pytestconfig: pytest.Config) -> Harness:
        return pytestconfig.stash[HARNESS]
