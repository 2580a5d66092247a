"""Are backends that answer differently told apart by a few calls, and those that answer alike left in peace?"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flujo_conformance.answers import disagreement
from flujo_conformance.call_trace import Ask, Reopen, SetClock, dumps, loads
from flujo_conformance.differential import Difference, find_difference
from flujo_conformance.harness import Harness
from flujo_conformance.memory_harness import MemoryHarness
from flujo_conformance.model import STALE_ERROR
from flujo_conformance.panel import ORACLE, START
from flujo_conformance.replay import render, replay
from flujo_conformance.shortening import shortest
from flujo_conformance.sqlite_harness import SQLiteHarness
from flujo_conformance.strategies import plain_state
from flujo_conformance.zoo import UNBROKEN, ZooHarness
from flujo_core import StateBackend
from flujo_core.memory import MemoryBackend

MEMORY = MemoryHarness("memory://differential-{namespace}")


def different(mutant: str) -> Difference:
    found = find_difference({"memory": MEMORY, mutant: ZooHarness(mutant)}, examples=20, steps=10, seed=1)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("mutant", "calls"),
    [("prefix-delete", 3), ("case-folded-ids", 2), ("limit-before-filter", 3), ("floatised-ints", 2)],
)
def test_a_mutant_is_told_from_the_unbroken_by_a_few_calls(mutant: str, calls: int) -> None:
    found = different(mutant)
    assert found.repeatable
    assert found.who == mutant
    assert [type(step) for step in found.trace.steps] == [SetClock, *[Ask] * calls]
    assert found.step == calls
    assert list(found.answers) == [ORACLE, "memory", mutant]

    read = loads(dumps(found.trace))
    assert dumps(read) == dumps(found.trace)
    played = replay(read, {"memory": MEMORY, mutant: ZooHarness(mutant)}, reference="memory")
    assert [(one.number, one.call, one.who, one.why) for one in played if one.first] == [
        (found.step, found.call, found.who, found.why)
    ]
    text = render(played)
    assert text.isascii()
    assert f"\n{'':7}{ORACLE:{max(len(mutant), 8)}}  " in text
    assert f"THE FIRST DIFFERENCE is that of {mutant}: {found.why}\n" in text
    assert max(map(len, text.splitlines())) < 600


def test_memory_and_sqlite_answer_alike(tmp_path: Path) -> None:
    sqlite = SQLiteHarness(f"sqlite:///{tmp_path}/{{namespace}}.db")
    assert find_difference({"memory": MEMORY, "sqlite": sqlite}, examples=6, steps=15, seed=2) is None


def test_with_one_seed_it_is_one_trace() -> None:
    first, second = different("case-folded-ids"), different("case-folded-ids")
    assert dumps(first.trace) == dumps(second.trace)


def test_the_first_harness_is_right_and_those_that_err_alike_agree() -> None:
    broken = {"one": ZooHarness("case-folded-ids"), "two": ZooHarness("case-folded-ids")}
    assert find_difference(broken, examples=3, steps=10) is None
    found = find_difference({**broken, "unbroken": ZooHarness(UNBROKEN.name)}, examples=20, steps=10)
    assert found is not None
    assert found.who == "unbroken"
    assert disagreement(found.call, found.answers[ORACLE], found.answers["unbroken"]) is None
    assert disagreement(found.call, found.answers[ORACLE], found.answers["one"]) is not None


def test_it_takes_two_and_none_may_be_the_oracle() -> None:
    with pytest.raises(ValueError, match="two backends"):
        find_difference({"memory": MEMORY})
    with pytest.raises(ValueError, match="may be called 'oracle'"):
        find_difference({"memory": MEMORY, "oracle": MEMORY})


class Once(ZooHarness):
    """Its first answer is wrong, then never one again."""

    def __init__(self) -> None:
        super().__init__(UNBROKEN.name)
        self.answered = False

    def open(self, namespace: str, **settings: Any) -> StateBackend:
        harness = self

        class Forgetful(MemoryBackend):
            async def load_state(self, run_id: str) -> dict[str, Any] | None:
                if harness.answered:
                    return await super().load_state(run_id)
                harness.answered = True
                return {"wrong": True}

        return Forgetful(f"{self.name}-{namespace}")


def test_a_difference_that_does_not_come_again_is_one_all_the_same() -> None:
    found = find_difference({"memory": MEMORY, "once": Once()}, examples=10, steps=10, seed=3)
    assert found is not None
    assert (found.repeatable, found.who, found.call[0]) == (False, "once", "load_state")
    assert found.answers["once"] == {"wrong": True}
    last = found.trace.steps[found.step]
    assert isinstance(last, Ask)
    assert found.call in last.calls


class Crashing(ZooHarness):
    """get_trace raises what is no error of the contract."""

    def open(self, namespace: str, **settings: Any) -> StateBackend:
        class Backend(MemoryBackend):
            async def get_trace(self, run_id: str) -> dict[str, Any] | None:
                raise KeyError(run_id)

        return Backend(f"{self.name}-{namespace}")


def test_an_exception_that_is_not_of_the_contract_is_a_difference() -> None:
    trace = loads(
        '{"format": 1, "contract": 1, "calls": [{"handle": 1, "method": "get_trace", "args": ["r"], "kwargs": {}}]}'
    )
    (one,) = replay(trace, {"memory": MEMORY, "crashing": Crashing("unbroken")})
    assert one.first
    assert one.who == "crashing"
    assert "KeyError('r')" in one.why
    assert "crashing  KeyError: 'r'" in render([one])


def test_a_harness_that_fails_is_no_difference() -> None:
    class Absent(ZooHarness):
        async def wipe(self, namespace: str) -> None:
            raise ConnectionError("nobody there")

    with pytest.raises(ConnectionError, match="nobody there"):
        find_difference({"memory": MEMORY, "absent": Absent(UNBROKEN.name)})


def test_how_a_backend_says_that_a_task_is_stale_is_its_own_affair() -> None:
    class Terse(ZooHarness):
        def open(self, namespace: str, **settings: Any) -> StateBackend:
            class Backend(MemoryBackend):
                async def load_state(self, run_id: str) -> dict[str, Any] | None:
                    state = await super().load_state(run_id)
                    assert state is not None
                    assert state["background_error"] != STALE_ERROR
                    return {**state, "background_error": "stale"}

            return Backend(f"{self.name}-{namespace}")

    task = plain_state(is_background_task=True, updated_at="2024-01-01T00:00:00Z")
    steps = tuple(
        Ask(0, ((method, args, {}),))
        for method, args in (
            ("save_state", ("r", task)), ("cleanup_stale_background_tasks", (24,)), ("load_state", ("r",))
        )
    )  # fmt: skip
    trace = loads(dumps(type(loads(EMPTY))(steps)))
    harnesses: dict[str, Harness] = {"memory": MEMORY, "terse": Terse(UNBROKEN.name)}
    for reference in ("memory", "terse", ORACLE):
        assert [one.why for one in replay(trace, harnesses, reference=reference)] == ["", "", ""]


EMPTY = '{"format": 1, "contract": 1, "calls": []}'


def test_a_trace_is_replayed_with_its_clock_and_its_handles() -> None:
    later = START.replace(year=2025)
    trace = type(loads(EMPTY))(
        (
            Ask(3, (("save_run_start", ({"run_id": "r"},), {}), ("save_state", ("r", plain_state()), {}))),
            SetClock(later),
            Reopen(3, new=True),
            Reopen(2, new=False),
            Ask(3, (("save_run_start", ({"run_id": "s"},), {}),)),
            Ask(0, (("list_runs", (), {}),)),
        )
    )
    played = replay(trace, {"memory": MEMORY})
    assert [one.number for one in played] == [0, 0, 1, 2, 3, 4, 5]
    assert all(one.agree and not one.first for one in played)
    assert [row["created_at"] for row in (played[-1].answers or {})["memory"]] == [later, START]
    assert render(played).splitlines()[:6] == [
        "  0  handle 3, together: save_run_start({'run_id': 'r'})",
        "       all       None",
        f"  0  handle 3, together: save_state('r', {plain_state()})",
        "       all       1",
        "  1  the clock shows 2025-03-01T12:00:00.123456+00:00",
        "  2  handle 3 is shut down and replaced by a new one",
    ]
    assert shortest(trace, {"memory": MEMORY}) is trace


WITHOUT_PYTEST = """
import sys
from flujo_conformance.differential import find_difference
from flujo_conformance.replay import render, replay
from flujo_conformance.zoo import ZooHarness
harnesses = {"unbroken": ZooHarness("unbroken"), "broken": ZooHarness("case-folded-ids")}
found = find_difference(harnesses, examples=20, steps=10, seed=1)
print("THE FIRST" in render(replay(found.trace, harnesses)), "pytest" in sys.modules)
"""


def test_a_difference_is_found_without_pytest_and_nothing_else_is_said() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PYTEST], capture_output=True, text=True, timeout=60, check=True
    )
    assert (done.stdout, done.stderr) == ("True False\n", "")
