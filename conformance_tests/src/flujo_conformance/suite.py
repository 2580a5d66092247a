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
from .suite_extremes import ExtremesPart
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
    ExtremesPart,
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
        name = request.node.originalname
        exempt = state_harness.exemptions.get(name)
        if exempt is not None and _can_be_exempted(name):
            request.applymarker(pytest.mark.xfail(reason=f"{exempt.reason} ({exempt.link})", strict=True))

    def test_exemptions_name_tests_of_rules_that_core_does_not_keep(self, state_harness: Harness) -> None:
        for name in state_harness.exemptions:
            assert callable(getattr(self, name, None)), f"there is no test {name} to exempt"
            assert _can_be_exempted(name), f"{name} can't be exempted: core keeps its rules for every backend"


def _can_be_exempted(test: str) -> bool:
    rules = rules_of(test)
    return bool(rules) and all(KEPT_BY[rule] != "core" for rule in rules)
