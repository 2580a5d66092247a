"""Does a backend keep the contract? A subclass with a harness is a test class; each test names the rule it proves."""

from __future__ import annotations

from typing import ClassVar

import pytest

from .harness import Harness
from .suite_administration import AdministrationPart
from .suite_arguments import ArgumentsPart
from .suite_life import LifePart
from .suite_lists import ListsPart
from .suite_metadata import MetadataPart
from .suite_outcomes import OutcomesPart
from .suite_runs import RunsPart
from .suite_snapshots import SnapshotsPart
from .suite_traces import TracesPart
from .suite_values import ValuesPart


class StateBackendSuite(
    LifePart,
    ValuesPart,
    ArgumentsPart,
    OutcomesPart,
    SnapshotsPart,
    RunsPart,
    ListsPart,
    MetadataPart,
    TracesPart,
    AdministrationPart,
):
    """Set ``harness``, or override the fixture where the harness needs other fixtures. A harness can be pickled: some
    tests open handles in other processes."""

    harness: ClassVar[Harness]

    @pytest.fixture
    def state_harness(self) -> Harness:
        return self.harness
