"""Does a backend keep the contract? A subclass with a harness is a test class; each test names the rule it proves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import pytest

from flujo_core.contract import KEPT_BY

from .harness import Harness
from .observations import observing
from .rules import rules_of
from .suite_administration import AdministrationPart
from .suite_arguments import ArgumentsPart
from .suite_concurrency import ConcurrencyPart
from .suite_interruption import InterruptionPart
from .suite_life import LifePart
from .suite_lists import ListsPart
from .suite_metadata import MetadataPart
from .suite_outcomes import OutcomesPart
from .suite_runs import RunsPart
from .suite_snapshots import SnapshotsPart
from .suite_storage import StoragePart
from .suite_traces import TracesPart
from .suite_values import ValuesPart


class StateBackendSuite(
    LifePart,
    ValuesPart,
    ArgumentsPart,
    OutcomesPart,
    ConcurrencyPart,
    InterruptionPart,
    SnapshotsPart,
    RunsPart,
    ListsPart,
    MetadataPart,
    TracesPart,
    AdministrationPart,
    StoragePart,
):
    """Set ``harness``, or override the fixture where the harness needs other fixtures."""

    harness: ClassVar[Harness]

    @pytest.fixture
    def state_harness(self) -> Harness:
        return self.harness

    @pytest.fixture(autouse=True)
    def _observed(self, request: pytest.FixtureRequest) -> Iterator[None]:
        """What a test observes stands in pytest's reports too."""
        with observing(request.node.user_properties):
            yield

    @pytest.fixture(autouse=True)
    def _exempted(self, request: pytest.FixtureRequest, state_harness: Harness) -> None:
        """An exempted test has to fail."""
        exempt = state_harness.exemptions.get(request.node.originalname)
        if exempt is not None:
            request.applymarker(pytest.mark.xfail(reason=f"{exempt.reason} ({exempt.link})", strict=True))

    def test_exemptions_name_tests_of_rules_that_core_does_not_keep(self, state_harness: Harness) -> None:
        for name in state_harness.exemptions:
            assert callable(getattr(self, name, None)), f"there is no test {name} to exempt"
            for rule in rules_of(name):
                assert KEPT_BY[rule] != "core", f"{name} can't be exempted: core keeps {rule} for every backend"
