"""Is a run of the state machine that proves too little found out, and does each scene bring about what it is for?"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from flujo_conformance import StateBackendSuite
from flujo_conformance.call_trace import Ask, Step, loads
from flujo_conformance.gate import TRACE_VARIABLE, hold_against_the_oracle
from flujo_conformance.machine import ContractMachine
from flujo_conformance.observations import observing
from flujo_conformance.panel import ORACLE
from flujo_conformance.replay import replay
from flujo_conformance.scenes import FORCED_BY, SCENES
from flujo_conformance.witnesses import WITNESSES, Witnesses
from flujo_conformance.zoo import UNBROKEN, ZooHarness

BACKEND = ZooHarness(UNBROKEN.name)


def test_there_is_a_scene_for_everything_that_has_to_happen() -> None:
    assert FORCED_BY.keys() == WITNESSES.keys()
    assert set(FORCED_BY.values()) == SCENES.keys()


@pytest.mark.parametrize("name", SCENES)
def test_a_scene_brings_about_what_it_is_for_whatever_was_there(name: str) -> None:
    @settings(max_examples=4, database=None, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
    @hypothesis.given(st.data(), st.lists(st.sampled_from(sorted(SCENES)), max_size=2), st.integers(0, 1))
    def play(data: st.DataObject, before: list[str], handle: int) -> None:
        machine = machine_of(seen=None)
        try:
            machine.start()
            for scene in before:
                SCENES[scene](machine, handle, data.draw)
            seen = Witnesses()
            type(machine).seen = seen
            SCENES[name](machine, handle, data.draw)
        finally:
            machine.teardown()
        assert {witness for witness, scene in FORCED_BY.items() if scene == name} <= {*seen.counts.elements()}

    play()


def machine_of(**parts: Any) -> ContractMachine:
    made: ContractMachine = type("Watched", (ContractMachine,), {"harnesses": {"unbroken": BACKEND}, **parts})()
    return made


class ScatteredMachine(ContractMachine):
    """No two calls are about one run."""

    _numbers: Iterator[int] = count()

    def take(self, step: Step) -> None:
        super().take(Ask(step.handle, tuple(map(self._elsewhere, step.calls))) if isinstance(step, Ask) else step)

    def _elsewhere(self, call: Any) -> Any:
        method, args, kwargs = call
        run_id = f"run {next(self._numbers)}"
        if args and isinstance(args[0], dict) and "run_id" in args[0]:
            args = ({**args[0], "run_id": run_id}, *args[1:])
        elif args and isinstance(args[0], str) and not method.startswith(("set_system", "list_", "get_system")):
            args = (run_id, *args[1:])
        return method, args, kwargs


def test_a_machine_whose_runs_never_meet_fails_and_says_what_never_happened() -> None:
    seen = hold_against_the_oracle(BACKEND, 3, 15, ScatteredMachine)
    missing = {
        "a snapshot was overwritten", "a run was deleted", "a deleted run was made again",
        "a placeholder was completed", "a step was replaced by its record_id",
        "a history was edited in place", "a span was replaced",
        "revisions began again at 1 after a snapshot was deleted", "StateConflictError",
        "writes to one run met in one batch", "a new handle read what was there before",
    }  # fmt: skip
    assert missing <= set(seen.missing)
    assert not {"two listed runs had one created_at", "a list was cut off at its limit"} & set(seen.missing)
    with pytest.raises(AssertionError, match=r"never happened in it: a snapshot was overwritten; .*StateConflictError"):
        seen.demand()


def test_what_did_not_come_up_by_itself_is_played_at_the_end() -> None:
    seen = hold_against_the_oracle(BACKEND, 1, 1)
    assert seen.missing == []
    seen.demand()


def test_the_figures_are_in_the_report() -> None:
    found: list[tuple[str, object]] = []
    with observing(found):
        StateBackendSuite().test_g10_any_sequence_of_calls_answers_as_the_model(BACKEND)
    figures = dict(found)
    assert int(str(figures["calls"])) > 300
    for name in WITNESSES:
        assert f"{name}: " in str(figures["witnesses"])


def test_the_gate_is_closed_in_the_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WITNESSES, "pigs flew", ((), lambda _: True))
    monkeypatch.setitem(FORCED_BY, "pigs flew", "judging")
    with pytest.raises(AssertionError, match=r"never happened in it: pigs flew$"):
        StateBackendSuite().test_g10_any_sequence_of_calls_answers_as_the_model(BACKEND)


def test_a_failure_shows_the_fewest_calls_and_keeps_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, broken = tmp_path / "trace.json", ZooHarness("case-folded-ids")
    monkeypatch.setenv(TRACE_VARIABLE, str(path))
    with pytest.raises(AssertionError, match="expected against actual") as failed:
        hold_against_the_oracle(broken, 10, 10)
    said = str(failed.value)
    assert "The fewest calls that show it:\n  0  the clock shows" in said
    assert said.endswith(f"They are in {path}.")
    trace = loads(path.read_text(encoding="ascii"))
    assert len(trace.steps) <= 4
    differences = [one for one in replay(trace, {"broken": broken}) if not one.agree]
    assert [(one.number, one.who, one.first) for one in differences] == [(len(trace.steps) - 1, "broken", True)]
    assert list(differences[0].answers or ()) == [ORACLE, "broken"]
    assert all(one.agree for one in replay(trace, {"unbroken": BACKEND}))


def test_without_a_file_a_failure_says_how_to_keep_the_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TRACE_VARIABLE, raising=False)
    with pytest.raises(AssertionError, match=TRACE_VARIABLE):
        hold_against_the_oracle(ZooHarness("case-folded-ids"), 10, 10)
