"""Which values come back exactly, and which are refused (G3, G4)?"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, UserDict, namedtuple
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from math import inf, nan
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr

from flujo_core.errors import InvalidStateError

from . import strategies as make
from .answers import Call
from .harness import Harness
from .profile import examples
from .strategies import BAD_JSON, INVALID_STATES, nested, plain_state
from .suite_support import (
    Handles,
    beside_the_oracle,
    everything,
    fill,
    loaded,
    on_fresh_data,
    refused,
    same,
)


class Colour(Enum):
    RED = "red"
    PAIR = (1, 2)


class Level(IntEnum):
    HIGH = 3


@dataclass
class Point:
    x: int
    when: date


class Model(BaseModel):
    name: str
    inner: dict[str, Any] = {}


class Secretive(BaseModel):
    password: SecretStr


class Text(str):
    __slots__ = ()


Pair = namedtuple("Pair", "left right")

CONVERTED: dict[str, tuple[Any, Any]] = {
    "tuple": ((1, (2,)), [1, [2]]),
    "named tuple": (Pair(1, 2), [1, 2]),
    "aware datetime": (datetime(2024, 1, 2, 3, 4, 5, 6, tzinfo=UTC), "2024-01-02T03:04:05.000006+00:00"),
    "naive datetime": (datetime(2024, 1, 2, 3, 4), "2024-01-02T03:04:00"),  # noqa: DTZ001
    "date": (date(2024, 1, 2), "2024-01-02"),
    "time": (time(3, 4, 5, tzinfo=timezone(timedelta(hours=2))), "03:04:05+02:00"),
    "timedelta": (timedelta(days=1, hours=2, seconds=3, microseconds=500_000), "P1DT2H3.5S"),
    "negative timedelta": (timedelta(seconds=-1), "-PT1S"),
    "no time": (timedelta(0), "PT0S"),
    "UUID": (UUID("12345678-1234-5678-1234-567812345678"), "12345678-1234-5678-1234-567812345678"),
    "Decimal": (Decimal("1.50"), "1.50"),
    "Enum": (Colour.RED, "red"),
    "Enum of a tuple": (Colour.PAIR, [1, 2]),
    "IntEnum": (Level.HIGH, 3),
    "bytes": ("é".encode(), "é"),
    "bytearray": (bytearray(b"a\x00"), "a\x00"),
    "set": ({10, 9, "a"}, ["a", 10, 9]),
    "frozenset": (frozenset({(1, 2)}), [[1, 2]]),
    "dataclass": (Point(1, date(2024, 1, 2)), {"x": 1, "when": "2024-01-02"}),
    "pydantic model": (Model(name="m", inner={"f": 1.0, "n": nan}), {"name": "m", "inner": {"f": 1.0, "n": nan}}),
    "OrderedDict": (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
    "subclass of str": (Text("text"), "text"),
    "the largest int": (10**4300 - 1, 10**4300 - 1),
    "200 levels": (nested(198), nested(198)),
}

EXACT: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 1.0, 0.0, -0.0, 1e300, 1e22, 10**22, 2**63, 5e-324, nan, inf, -inf),
    *make.AWKWARD_STRINGS,
    *make.WRAPPER_LOOKALIKES,
    [],
    {},
    [[]],
    [{}],
    {"b": 1, "a": 2},
    {"a": 2, "b": 1},
    *({key: key} for key in make.AWKWARD_KEYS),
)


def holders(value: Any) -> dict[str, Call]:
    """A call for each place that takes any JSON value."""
    step = {"run_id": "r", "step_name": "s", "step_index": 0}
    return {
        **{
            f"state.{key}": ("save_state", ("r", plain_state(**{key: {"x": [value]}})), {})
            for key in ("pipeline_context", "last_step_output", "my key")
        },
        "state.step_history": ("save_state", ("r", plain_state(step_history=[value])), {}),
        "run_data": ("save_run_start", ({"run_id": "r", "mine": value},), {}),
        "end_data": ("save_run_end", ("r", {"final_context": {"x": value}}), {}),
        **{f"step.{key}": ("save_step_result", (step | {key: value},), {}) for key in ("output", "error", "mine")},
        "trace": ("save_trace", ("r", {"any": [value]}), {}),
        "span.attributes": ("save_spans", ("r", [{"span_id": "s", "attributes": {"x": value}}]), {}),
        "span.mine": ("save_spans", ("r", [{"span_id": "s", "mine": value}]), {}),
        "evaluation": ("persist_evaluation", ("r", 1), {"metadata": {"x": value}}),
        "system": ("set_system_state", ("k", value), {}),
    }


def _spoil(value: Any) -> None:
    """Changes every container within."""
    if isinstance(value, dict):
        for item in value.values():
            _spoil(item)
        value.clear()
    elif isinstance(value, list):
        for item in value:
            _spoil(item)
        value.append("spoilt")


class ValuesPart:
    def test_g3_any_json_value_comes_back_as_it_was_saved(self, state_harness: Harness) -> None:
        with beside_the_oracle(state_harness) as machine:

            @examples(60)
            @given(st.lists(make.json_values(), min_size=1, max_size=8), make.json_objects())
            def holds(values: list[Any], mine: dict[str, Any]) -> None:
                state = plain_state(last_step_output=values, step_history=values, pipeline_context=mine, mine=mine)
                machine.check(0, "save_state", "r", state)
                found = machine.runner.run(loaded(machine.backends[1]))
                same(values, found["last_step_output"])
                same(values, found["step_history"])
                same([mine, mine], [found["pipeline_context"], found["mine"]])

            holds()

    def test_g3_any_value_in_any_place_is_what_the_model_keeps(self, state_harness: Harness) -> None:
        with beside_the_oracle(state_harness) as machine:
            machine.check(0, "save_run_start", {"run_id": "r"})

            @examples(25)
            @given(make.json_values(), st.sampled_from(sorted(holders(None))))
            def holds(value: Any, place: str) -> None:
                method, args, kwargs = holders(value)[place]
                machine.check(0, method, *args, **kwargs)
                for read in ("load_state", "get_run_details", "list_run_steps", "get_spans", "get_trace"):
                    machine.check(1, read, "r")
                machine.check(1, "list_evaluations", 1)
                machine.check(1, "get_system_state", "k")

            holds()

    @on_fresh_data
    async def test_g3_every_awkward_value_stays_itself(self, here: Handles) -> None:
        await here.one.save_state("r", plain_state(mine=list(EXACT), step_history=list(EXACT)))
        found = await loaded(here.two)
        same(list(EXACT), found["mine"])
        same(list(EXACT), found["step_history"])

    @on_fresh_data
    async def test_g3_values_of_python_become_their_json_form(self, here: Handles) -> None:
        given_, wanted = ({name: pair[side] for name, pair in CONVERTED.items()} for side in (0, 1))
        await here.one.save_state("r", plain_state(**given_))
        state = await loaded(here.two)
        same(wanted, {name: state[name] for name in wanted})

    @on_fresh_data
    async def test_g3_keys_become_text_as_json_writes_them(self, here: Handles) -> None:
        keys = {7: 1, 1.5: 2, True: 3, None: 4, inf: 5, Level.HIGH: 6, -0.0: 7}
        await here.one.save_state("r", plain_state(mine=keys))
        wanted = {"7": 1, "1.5": 2, "true": 3, "null": 4, "Infinity": 5, "3": 6, "-0.0": 7}
        same(wanted, (await loaded(here.two))["mine"])

    @on_fresh_data
    async def test_g3_a_whole_state_may_be_an_object(self, here: Handles) -> None:
        class Whole(BaseModel):
            pipeline_id: str = "p"
            pipeline_name: str = "p"
            pipeline_version: str = "1"
            current_step_index: int = 2
            pipeline_context: Model = Model(name="inner")

        whole: Any = Whole()
        await here.one.save_state("r", whole)
        assert (await loaded(here.two))["pipeline_context"] == {"name": "inner", "inner": {}}

    @on_fresh_data
    async def test_g3_the_argument_is_captured_at_the_call_and_never_changed(self, here: Handles) -> None:
        await here.one.count_runs()
        state = plain_state(mine=[1], step_history=[[1]], metadata={"a": [1]})
        save = asyncio.ensure_future(here.one.save_state("r", state))
        await asyncio.sleep(0)
        for changed in (state["mine"], state["step_history"][0], state["metadata"]["a"]):
            changed.append(2)
        state["pipeline_context"] = {"late": True}
        await save
        found = await loaded(here.one)
        assert (found["mine"], found["step_history"], found["metadata"]) == ([1], [[1]], {"a": [1]})
        assert found["pipeline_context"] == {}
        assert list(state) == [*plain_state(), "mine", "step_history", "metadata", "pipeline_context"]

    @on_fresh_data
    async def test_g3_what_is_loaded_is_fresh(self, here: Handles) -> None:
        await fill(here.one)
        await here.one.set_system_state("k", [1])
        for backend in (here.one, here.two):
            # A copy: what is returned may be what is spoilt.
            before = deepcopy(await everything(backend))
            _spoil(await everything(backend))
            for reader in (here.one, here.two):
                same(before, await everything(reader))

    @pytest.mark.parametrize("value", ["x" * 1_000_000, list(range(10_000)), {"é" * 1000: "\x00" * 1000}])
    def test_g3_large_values_come_back(self, state_harness: Harness, value: Any) -> None:
        with beside_the_oracle(state_harness) as machine:
            machine.check(0, "save_state", "r", plain_state(mine=value, step_history=[value]))
            machine.check(1, "load_state", "r")

    @on_fresh_data
    async def test_g4_every_invalid_state_is_refused_and_changes_nothing(self, here: Handles) -> None:
        await fill(here.one)
        before = await everything(here.two, "unknown")
        for name, state in INVALID_STATES.items():
            for run_id in ("r", "unknown"):
                await refused(here.one, ("save_state", (run_id, state()), {}), name)
        same(before, await everything(here.two, "unknown"))

    @on_fresh_data
    async def test_g4_what_has_no_json_form_is_refused_wherever_json_is_taken(self, here: Handles) -> None:
        await fill(here.one)
        before = await everything(here.two)
        more: dict[str, Callable[[], Any]] = {
            "SecretStr": lambda: SecretStr("hush"),
            "SecretStr in a model": lambda: Secretive(password=SecretStr("hush")),
            "UserDict": lambda: UserDict({"a": 1}),
            "function": lambda: refused,
        }
        for name, bad in {**BAD_JSON, **more}.items():
            for place, one in holders(bad()).items():
                error = await refused(here.one, one, f"{name} in {place}")
                assert error is not None
                assert "hush" not in str(error)
        same(before, await everything(here.two))

    @on_fresh_data
    async def test_g4_the_error_names_the_json_path(self, here: Handles) -> None:
        for state, path in (
            (plain_state(mine={"a": [0, {"b c": object()}]}), "$.mine.a[1]['b c']"),
            (plain_state(step_history=[0, b"\xff"]), "$.step_history[1]"),
            (plain_state(metadata={"a": {"b": [nan]}}), "$.metadata.a.b[0]"),
        ):
            with pytest.raises(InvalidStateError) as caught:
                await here.one.save_state("r", state)
            path_found = caught.value.path or ""
            assert path_found.replace("metadata.metadata", "metadata") == path
            assert path_found in str(caught.value)

    @on_fresh_data
    async def test_g4_a_document_has_at_most_200_levels(self, here: Handles) -> None:
        await here.one.save_state("r", plain_state(mine=nested(199)))
        same(nested(199), (await loaded(here.one))["mine"])
        await refused(here.one, ("save_state", ("r", plain_state(mine=nested(200))), {}), "201 levels")
        await here.one.set_system_state("k", nested(200))
        await refused(here.one, ("set_system_state", ("k", nested(201)), {}), "201 levels")

    @on_fresh_data
    async def test_g4_a_document_over_the_limit_is_refused(self, here: Handles) -> None:
        limit = 20_000
        one = here.open(max_document_bytes=limit)
        assert one.settings.max_document_bytes == limit
        await fill(one)
        before = await everything(here.two)
        too_large: list[Call] = [
            # Its characters are within the limit, its bytes are not.
            ("set_system_state", ("k", "é" * (limit // 2)), {}),
            ("save_state", ("r", plain_state(step_history=["x" * (limit // 2)] * 2)), {}),
        ]
        for wrong in too_large:
            await refused(one, wrong, "a document over the limit")
        same(before, await everything(here.two))
        # Another handle has the limit it was given, or the usual one.
        await here.two.save_state("r", plain_state(step_history=["x" * (limit // 2)] * 2))
        assert len((await loaded(one))["step_history"]) == 2
