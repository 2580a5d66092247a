"""What may a caller rely on once a call returned, failed or was cancelled (G9, G10, G11)?"""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest

from flujo_core.errors import FlujoStateError, InvalidStateError, RunNotFoundError, StateConflictError

from .gate import hold_against_the_oracle
from .harness import Harness
from .observations import observe, unsupported
from .strategies import plain_state
from .suite_support import (
    WRITES,
    Handles,
    call,
    everything,
    fill,
    ids,
    loaded,
    on_fresh_data,
    other_process,
    row_of,
    same,
)

SAVE_AND_DIE = """
async def main():
    backend = harness.open("machine")
    state = {"pipeline_id": "p", "pipeline_name": "p", "pipeline_version": "1", "current_step_index": 0}
    for run_id in ("one", "two"):
        await backend.save_state(run_id, state | {"step_history": [run_id]})
    await backend.save_step_result({"run_id": "one", "step_name": "s", "step_index": 0})
    os._exit(0)
asyncio.run(main())
"""
READ = """
from flujo_core.errors import StorageUnavailableError
async def main():
    backend = harness.open("machine")
    try:
        state = await backend.load_state("r")
    except StorageUnavailableError as error:
        print(type(error).__name__)
    else:
        print(None if state is None else state["revision"])
        print(await backend.save_state("r", state or {
            "pipeline_id": "p", "pipeline_name": "p", "pipeline_version": "1", "current_step_index": 0}))
    await backend.shutdown()
asyncio.run(main())
"""


class OutcomesPart:
    @on_fresh_data
    async def test_g9_what_returned_is_there_after_the_process_died(self, here: Handles) -> None:
        other_process(here.harness, SAVE_AND_DIE)
        if not here.harness.durable:
            assert await ids(here.one) == []
            unsupported("what was saved is gone with its process")
            return
        assert sorted(await ids(here.one)) == ["one", "two"]
        assert len(await here.one.list_run_steps("one")) == 1
        for run_id in ("one", "two"):
            assert (await loaded(here.one, run_id))["step_history"] == [run_id]

    @on_fresh_data
    async def test_g9_what_returned_is_there_after_a_shutdown(self, here: Handles) -> None:
        for write in WRITES:
            writer, reader = here.open(), here.open()
            await call(writer, write)
            wanted = await everything(writer, "r")
            for backend in (writer, here.one, here.two):
                await backend.shutdown()
            same(wanted, await everything(reader, "r"))
            await reader.shutdown()

    @on_fresh_data
    async def test_g9_many_writes_at_once_all_happen_and_in_the_order_of_the_calls(self, here: Handles) -> None:
        runs = [f"r{number % 3}" for number in range(90)]
        revisions = await asyncio.gather(
            *(here.one.save_state(run_id, plain_state(mine=number)) for number, run_id in enumerate(runs))
        )
        assert revisions == [1 + number // 3 for number in range(90)]
        assert [(await loaded(here.two, f"r{n}"))["mine"] for n in range(3)] == [87, 88, 89]

    @on_fresh_data
    async def test_g9_writes_of_every_kind_on_one_run_at_once(self, here: Handles) -> None:
        writes: list[Any] = []
        for number in range(10):
            writes += [
                here.one.save_state("r", plain_state(step_history=list(range(number)))),
                here.one.save_step_result({"run_id": "r", "step_name": "s", "step_index": 0, "output": number}),
                here.one.save_spans("r", [{"span_id": f"s{number}"}]),
                here.one.save_trace("r", {"number": number}),
                here.one.persist_evaluation("r", number),
                here.one.save_run_end("r", {"end": number}),
            ]
        await asyncio.gather(*writes)
        state = await loaded(here.two)
        assert (state["revision"], state["step_history"]) == (10, list(range(9)))
        assert [step["output"] for step in await here.two.list_run_steps("r")] == list(range(10))
        assert [span["span_id"] for span in await here.two.get_spans("r")] == [f"s{n}" for n in range(10)]
        assert await here.two.get_trace("r") == {"number": 9}
        assert [found["score"] for found in await here.two.list_evaluations()] == [9.0 - n for n in range(10)]
        assert (await row_of(here.two))["end"] == 9

    @on_fresh_data
    async def test_g9_a_refused_write_among_many_hinders_no_other(self, here: Handles) -> None:
        answers = await asyncio.gather(
            here.one.save_state("r", plain_state(), expected_revision=0),
            here.one.save_state("r", plain_state(), expected_revision=0),
            here.one.save_run_end("unknown", {}),
            here.one.save_state("r", plain_state(), expected_revision=1),
            here.one.save_state("other", plain_state()),
            here.one.delete_state("other", expected_revision=7),
            return_exceptions=True,
        )
        kinds = [type(answer) for answer in answers]
        assert kinds == [int, StateConflictError, RunNotFoundError, int, int, StateConflictError]
        assert [answers[0], answers[3], answers[4]] == [1, 2, 1]
        assert sorted(await ids(here.two)) == ["other", "r"]

    @on_fresh_data
    async def test_g9_many_cancelled_among_many_that_are_not(self, here: Handles) -> None:
        saves = [
            asyncio.ensure_future(here.one.save_step_result({"run_id": "r", "step_name": "s", "step_index": number}))
            for number in range(60)
        ]
        await asyncio.sleep(0)
        for save in saves[::3]:
            save.cancel()
        done = await asyncio.gather(*saves, return_exceptions=True)
        await here.one.save_run_start({"run_id": "r"})
        saved = [step["step_index"] for step in await here.two.list_run_steps("r")]
        assert saved == sorted(set(saved))
        assert {number for number, answer in enumerate(done) if answer is None} <= set(saved)

    @on_fresh_data
    async def test_g9_n_processes_write_and_nothing_is_lost_or_doubled(self, here: Handles) -> None:
        """Two handles stand for two processes: neither knows of the other's writes until it meets them."""
        revisions = await asyncio.gather(
            *((here.one, here.two)[number % 2].save_state("r", plain_state(mine=number)) for number in range(30)),
        )
        assert sorted(revisions) == list(range(1, 31))
        steps = [
            (here.one, here.two)[number % 2].save_step_result({"run_id": "r", "step_name": "s", "step_index": number})
            for number in range(30)
        ]
        await asyncio.gather(*steps)
        assert [step["step_index"] for step in await here.one.list_run_steps("r")] == list(range(30))

    def test_g10_any_sequence_of_calls_answers_as_the_model(self, state_harness: Harness) -> None:
        seen = hold_against_the_oracle(state_harness, 10, steps=24)
        observe("calls", seen.calls)
        observe("witnesses", seen.figures())
        seen.demand()

    @on_fresh_data
    async def test_g10_another_handle_reads_what_one_wrote(self, here: Handles) -> None:
        for number in range(10):
            writer, reader = (here.one, here.two) if number % 2 else (here.two, here.one)
            assert await writer.save_state("r", plain_state(mine=number)) == number + 1
            assert (await loaded(reader))["mine"] == number
            await writer.save_step_result({"run_id": "r", "step_name": "s", "step_index": number})
            assert len(await reader.list_run_steps("r")) == number + 1
            assert (await reader.list_runs())[0]["revision"] == number + 1

    @on_fresh_data
    async def test_g10_another_process_reads_what_one_wrote_and_writes_on(self, here: Handles) -> None:
        await here.one.save_state("r", plain_state())
        found = other_process(here.harness, READ).split()
        if not here.harness.durable:
            assert found == ["None", "1"]
            unsupported("another process finds nothing")
            return
        if not here.harness.shared:
            assert found == ["StorageUnavailableError"]
            await here.shutdown()
            found = other_process(here.harness, READ).split()
            unsupported("another process is refused with StorageUnavailableError while this one has the data open")
        assert found == ["1", "2"]
        assert (await loaded(here.one))["revision"] == 2
        assert await here.one.save_state("r", plain_state(), expected_revision=2) == 3

    @on_fresh_data
    async def test_g10_a_deleted_run_is_gone_for_every_handle(self, here: Handles) -> None:
        await fill(here.one)
        await loaded(here.two)
        assert await here.two.delete_run("r") is True
        assert await here.one.get_run_details("r") is None
        assert await here.one.save_state("r", plain_state()) == 1
        assert await here.one.list_run_steps("r") == []

    @on_fresh_data
    async def test_g10_a_load_beside_saves_is_one_of_them(self, here: Handles) -> None:
        async def save() -> None:
            for number in range(1, 26):
                history = [number] * (number % 7 + 1)
                await here.one.save_state("r", plain_state(mine=number, step_history=history))

        await here.one.save_state("r", plain_state(mine=0, step_history=[0]))
        saves, seen = asyncio.ensure_future(save()), 0
        while not saves.done():
            found = await loaded(here.two)
            number = found["mine"]
            assert number >= seen
            same([number + 1, [number] * (number % 7 + 1 if number else 1)], [found["revision"], found["step_history"]])
            seen = number
            await asyncio.sleep(0)
        await saves
        assert (await loaded(here.two))["mine"] == 25

    @on_fresh_data
    async def test_g11_errors_are_of_one_tree_and_say_what_to_do(self, here: Handles) -> None:
        await here.one.save_state("r", plain_state())
        with pytest.raises(InvalidStateError, match="pipeline_id") as invalid:
            await here.one.save_state("r", {})
        with pytest.raises(StateConflictError, match=r"'r'.*revision 1.*expected revision 5.*load") as conflict:
            await here.one.save_state("r", plain_state(), expected_revision=5)
        with pytest.raises(RunNotFoundError, match=r"'unknown'.*save_run_start") as missing:
            await here.one.save_run_end("unknown", {})
        found: list[FlujoStateError] = [invalid.value, conflict.value, missing.value]
        assert isinstance(found[0], ValueError)
        assert isinstance(found[2], LookupError)
        assert (conflict.value.run_id, conflict.value.expected, conflict.value.actual) == ("r", 5, 1)
        for error in found:
            assert isinstance(error, FlujoStateError)
            assert error.__cause__ is None or isinstance(error.__cause__, FlujoStateError)
            again = pickle.loads(pickle.dumps(error))
            assert (type(again), str(again)) == (type(error), str(error))

    @on_fresh_data
    async def test_g11_an_unknown_filter_or_argument_is_a_type_error_as_in_any_python(self, here: Handles) -> None:
        for method in ("list_runs", "count_runs"):
            with pytest.raises(TypeError):
                await getattr(here.one, method)(state="running")
        with pytest.raises(TypeError):
            here.one.iter_runs(state="running")  # type: ignore[call-arg]
