"""Do writes take effect once and in order, whatever becomes of a commit? A store that fails on purpose tells."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from fractions import Fraction
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flujo_core import runs
from flujo_core.backend import StateBackend
from flujo_core.errors import (
    OutcomeUnknownError,
    RunNotFoundError,
    SchemaTooNewError,
    StateConflictError,
    StorageError,
    StorageUnavailableError,
)
from flujo_core.memory import MemoryStore, _Data
from flujo_core.settings import BackendSettings
from flujo_core.store import BUSY, Change, CommitUnknown, Interrupted, Outcome, StoredRun

STATE = {"pipeline_id": "p", "pipeline_name": "P", "pipeline_version": "1", "current_step_index": 0}


class FaultyStore(MemoryStore):
    """Does what ``script`` says at each commit, then what it should: see `_faulty`."""

    def __init__(self, data: _Data, script: list[str]) -> None:
        super().__init__(data)
        self.script = script
        self.commits: list[list[str]] = []
        self.late: list[Change] = []
        """A commit whose connection broke, and which the server carries out after it was looked for."""
        self.under_way: list[str] = []

    async def commit(self, changes: Sequence[Change]) -> list[Outcome]:
        run_ids = [change.run_id for change in changes]
        self.commits.append(run_ids)
        self.under_way += run_ids
        assert len(set(self.under_way)) == len(self.under_way)
        try:
            await asyncio.sleep(0)
            return await self._commit(changes)
        finally:
            self.under_way = [run_id for run_id in self.under_way if run_id not in run_ids]

    async def _commit(self, changes: Sequence[Change]) -> list[Outcome]:
        fault = self.script.pop(0) if self.script else "no fault"
        if fault == "interrupted":
            raise Interrupted(StorageUnavailableError("went away before the commit"))
        if fault == "refused":
            raise StorageError("no")
        if fault == "no answer, not applied":
            raise CommitUnknown(StorageUnavailableError("went away"))
        if fault == "no answer, applied late":
            self.late = list(changes)
            raise CommitUnknown(StorageUnavailableError("went away"))
        if fault == "busy" and len(changes) > 1:
            rest = await super().commit(changes[1:])
            return [BUSY, *rest]
        outcomes = await super().commit(changes)
        if fault == "no answer, applied":
            raise CommitUnknown(StorageUnavailableError("went away"))
        return outcomes

    async def stored_runs(self, run_ids: Sequence[str]) -> dict[str, StoredRun]:
        found = await super().stored_runs(run_ids)
        late, self.late = self.late, []
        await super().commit(late)
        return found


FAULTS = ("interrupted", "no answer, not applied", "no answer, applied", "no answer, applied late", "busy", "no fault")


def faulty(
    script: list[str], *, deadline: float = 5.0, size: int = 200, at_once: int = 1
) -> tuple[StateBackend, list[FaultyStore]]:
    data, stores = _Data(), list[FaultyStore]()

    class Limited(FaultyStore):
        batch_size = size
        commits_at_once = at_once

    def make() -> FaultyStore:
        stores.append(Limited(data, script))
        return stores[-1]

    return StateBackend(make, BackendSettings(lock_timeout=deadline)), stores


async def outcome(call: Any) -> Any:
    try:
        return await call
    except (StateConflictError, RunNotFoundError) as error:
        return type(error).__name__


def draw_call(backend: StateBackend, random: Random) -> Any:
    run_id = random.choice("abcd")
    match random.randrange(6):
        case 0:
            return backend.save_state(run_id, {**STATE, "step_history": list(range(random.randint(0, 3)))})
        case 1:
            return backend.save_state(run_id, STATE, expected_revision=random.randint(0, 2))
        case 2:
            step = {"run_id": run_id, "step_name": "s", "step_index": 0, "cost_usd": 0.1}
            return backend.save_step_result(step)
        case 3:
            return backend.save_run_end(run_id, {"status": "failed"})
        case 4:
            return backend.delete_state(run_id)
        case _:
            return backend.delete_run(run_id)


@pytest.mark.parametrize("seed", range(60))
def test_g9_every_operation_takes_effect_once_and_in_order(seed: int) -> None:
    """Against the same calls on a store without faults."""
    random = Random(seed)

    async def session(backend: StateBackend, random: Random) -> list[Any]:
        answers: list[Any] = []
        for _ in range(6):
            calls = [draw_call(backend, random) for _ in range(random.randint(1, 9))]
            answers.append(await asyncio.gather(*(outcome(call) for call in calls)))
        for run_id in "abcd":
            loaded = await backend.load_state(run_id)
            steps = await backend.list_run_steps(run_id)
            details = await backend.get_run_details(run_id)
            answers.append((loaded and (loaded["revision"], loaded["step_history"]), len(steps)))
            answers.append(details and (details["status"], details["total_cost"]))
        return answers

    script = [random.choice(FAULTS) for _ in range(40)]
    calls = random.randint(0, 10**9)
    expected = asyncio.run(session(faulty([])[0], Random(calls)))
    size, at_once = random.choice([(200, 1), (1, 1), (2, 2), (4, 2), (2, 3)])
    assert asyncio.run(session(faulty(script, size=size, at_once=at_once)[0], Random(calls))) == expected


def test_g9_a_lost_answer_is_recognised_by_the_operation_id() -> None:
    async def main() -> None:
        backend, _ = faulty(["no fault", "no answer, applied", "no answer, not applied"])
        assert await backend.save_state("r", STATE) == 1
        assert await backend.save_state("r", STATE) == 2
        assert await backend.save_state("r", STATE) == 3

    asyncio.run(main())


def test_g9_what_cannot_be_found_out_is_said() -> None:
    """Another process wrote between our commit and our look."""

    async def main() -> None:
        backend, stores = faulty([])
        await backend.save_state("r", STATE)
        other = MemoryStore(stores[0]._data)
        rival = StateBackend(lambda: other, BackendSettings())
        stores[0].script.append("no answer, applied")
        look = stores[0].stored_runs

        async def late(run_ids: Sequence[str]) -> dict[str, StoredRun]:
            await rival.save_state("r", STATE)
            return await look(run_ids)

        stores[0].stored_runs = late  # type: ignore[method-assign]
        with pytest.raises(OutcomeUnknownError, match="load the run before you repeat it"):
            await backend.save_state("r", STATE)
        stores[0].stored_runs = look  # type: ignore[method-assign]
        assert await backend.save_state("r", STATE) == 4

    asyncio.run(main())


def test_g12_a_fault_that_stays_is_told_after_the_deadline() -> None:
    async def main() -> None:
        backend, stores = faulty(["interrupted"] * 1000, deadline=0.2)
        with pytest.raises(StorageUnavailableError, match="before the commit"):
            await backend.save_state("r", STATE)
        stores[0].script.clear()
        assert await backend.save_state("r", STATE) == 1

        stores[0].script.extend(["no answer, not applied"] * 1000)
        with pytest.raises(OutcomeUnknownError):
            await backend.save_state("r", STATE)

    asyncio.run(main())


def test_g9_a_refusal_after_a_lost_answer_is_no_proof_that_nothing_happened() -> None:
    async def main() -> None:
        backend, _ = faulty(["no answer, applied late", "refused"])
        with pytest.raises(OutcomeUnknownError):
            await backend.save_state("r", STATE)
        loaded = await backend.load_state("r")
        assert loaded is not None
        assert loaded["revision"] == 1

    asyncio.run(main())


def test_g9_one_bad_operation_fails_alone() -> None:
    async def main() -> None:
        backend, stores = faulty([])
        await backend.load_state("a")
        # The batch is refused as a whole; then each run is tried alone, and the second of them is refused.
        stores[0].script.extend(["refused", "no fault", "refused", "no fault"])
        results = await asyncio.gather(*(backend.save_state(run_id, STATE) for run_id in "abc"), return_exceptions=True)
        assert results[0] == 1
        assert isinstance(results[1], StorageError)
        assert results[2] == 1
        assert stores[0].commits == [["a", "b", "c"], ["a"], ["b"], ["c"]]

    asyncio.run(main())


def test_g9_concurrent_writes_share_commits() -> None:
    async def main() -> None:
        backend, stores = faulty([])
        await asyncio.gather(*(backend.save_state(f"{n}", STATE) for n in range(500)))
        assert sum(map(len, stores[0].commits)) == 500
        assert [len(commit) for commit in stores[0].commits] == [200, 200, 100]
        assert all(commit == sorted(commit) for commit in stores[0].commits)

    asyncio.run(main())


def test_g9_a_cancelled_write_is_not_begun_or_ends() -> None:
    async def main() -> None:
        backend, stores = faulty([])
        await backend.load_state("r")
        first = asyncio.create_task(backend.save_state("r", STATE))
        second = asyncio.create_task(backend.save_state("r", STATE))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        await backend.shutdown()
        loaded = await backend.load_state("r")
        assert loaded is not None
        assert loaded["revision"] in (1, 2)
        assert len(stores[0].commits) == 1

    asyncio.run(main())


def test_g10_a_failed_expectation_is_told_from_what_is_stored_now() -> None:
    """The head that is kept from the last write is an expectation, never an answer."""

    async def main() -> None:
        backend, stores = faulty([])
        await backend.save_state("r", STATE)
        rival = StateBackend(lambda: MemoryStore(stores[0]._data), BackendSettings())
        await rival.save_state("r", STATE)
        with pytest.raises(StateConflictError) as caught:
            await backend.save_state("r", STATE, expected_revision=1)
        assert (caught.value.expected, caught.value.actual) == (1, 2)
        with pytest.raises(StateConflictError) as caught:
            await backend.save_state("r", STATE, expected_revision=7)
        assert (caught.value.expected, caught.value.actual) == (7, 2)
        await rival.save_run_start({"run_id": "other"})
        await backend.save_run_end("other", {"status": "failed"})
        await rival.delete_run("r")
        with pytest.raises(RunNotFoundError):
            await backend.save_run_end("r", {"status": "failed"})
        assert await backend.save_state("r", STATE, expected_revision=0) == 1

    asyncio.run(main())


def test_d6_a_run_that_cannot_be_read_fails_no_other() -> None:
    async def main() -> None:
        backend, stores = faulty([])
        await backend.save_state("m", STATE)
        stored = stores[0]._data.runs["m"]
        stored.row = stored.row._replace(run=stored.row.run.replace('"format":1', '"format":2'))
        fresh = StateBackend(lambda: stores[0], BackendSettings())
        results = await asyncio.gather(*(fresh.save_state(run_id, STATE) for run_id in "amz"), return_exceptions=True)
        assert [type(result) for result in results] == [int, SchemaTooNewError, int]
        refused, saved = await asyncio.gather(
            fresh.delete_state("m"), fresh.save_state("q", STATE), return_exceptions=True
        )
        assert isinstance(refused, SchemaTooNewError)
        assert saved == 1

    asyncio.run(main())


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_g9_batches_side_by_side(at_once: int) -> None:
    """As many as the store takes, and none for fewer than half a batch."""
    begun: list[str] = []
    going_on = asyncio.Event()

    class Slow(MemoryStore):
        batch_size = 4
        commits_at_once = at_once

        async def commit(self, changes: Sequence[Change]) -> list[Outcome]:
            begun.append("".join(change.run_id for change in changes))
            await going_on.wait()
            return await super().commit(changes)

    async def main() -> None:
        data = _Data()
        backend = StateBackend(lambda: Slow(data), BackendSettings())
        saves = [asyncio.create_task(backend.save_state(run_id, STATE)) for run_id in "abcdefghi"]
        await asyncio.sleep(0.01)
        assert begun == ["abcd", "efgh"][:at_once]
        going_on.set()
        assert await asyncio.gather(*saves) == [1] * 9
        assert "".join(begun) == "abcdefghi"
        await backend.shutdown()

    asyncio.run(main())


def test_g12_what_waits_for_a_locked_run_holds_up_no_other() -> None:
    locked = [True]
    free = asyncio.Event()

    class Held(MemoryStore):
        async def commit(self, changes: Sequence[Change]) -> list[Outcome]:
            if len(changes) == 1 and changes[0].run_id == "locked" and locked:
                locked.pop()
                return [BUSY]
            if len(changes) == 1 and changes[0].run_id == "locked":
                await free.wait()
            return await super().commit(changes)

    async def main() -> None:
        data = _Data()
        backend = StateBackend(lambda: Held(data), BackendSettings())
        saves = []
        for _ in range(3):
            saves.append(asyncio.create_task(backend.save_state("locked", STATE)))
            await asyncio.sleep(0.001)
        assert await asyncio.wait_for(backend.save_state("another", STATE), 5) == 1
        free.set()
        assert await asyncio.gather(*saves) == [1, 2, 3]
        await backend.shutdown()

    asyncio.run(main())


def test_g9_a_run_that_is_set_apart_twice_keeps_its_order() -> None:
    class Held(FaultyStore):
        async def commit(self, changes: Sequence[Change]) -> list[Outcome]:
            self.commits.append([change.run_id for change in changes])
            await asyncio.sleep(0.001)
            if len(self.commits) <= 3:
                return [BUSY for _ in changes]
            return await MemoryStore.commit(self, changes)

    async def main() -> None:
        data = _Data()
        backend = StateBackend(lambda: Held(data, []), BackendSettings())
        saves = []
        for number in range(5):
            saves.append(asyncio.create_task(backend.save_state("r", {**STATE, "current_step_index": number})))
            await asyncio.sleep(0.0015)
        assert await asyncio.gather(*saves) == [1, 2, 3, 4, 5]
        loaded = await backend.load_state("r")
        assert loaded is not None
        assert loaded["current_step_index"] == 4
        await backend.shutdown()

    asyncio.run(main())


def test_g9_a_look_that_fails_after_a_lost_answer_leaves_the_outcome_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    # What the step cost before is read from the store.
    monkeypatch.setattr(runs, "MAX_KNOWN_COSTS", 0)

    async def main() -> None:
        backend, stores = faulty([])
        step = {"run_id": "r", "step_name": "s", "step_index": 0, "record_id": "k"}
        await backend.save_step_result(step)
        stores[0].script.append("no answer, applied late")

        async def gone(run_id: str, record_id: str) -> float | None:
            raise StorageUnavailableError("gone")

        known = stores[0].step_cost

        async def once(run_id: str, record_id: str) -> float | None:
            stores[0].step_cost = gone  # type: ignore[method-assign]
            return await known(run_id, record_id)

        stores[0].step_cost = once  # type: ignore[method-assign]
        with pytest.raises(OutcomeUnknownError):
            await backend.save_step_result(step)

    asyncio.run(main())


@given(
    st.integers(0, 3),
    st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from([None, 0.1, 0.7, 1e16]), st.booleans()), max_size=12),
)
def test_r3_costs_add_up_whether_they_are_kept_or_read(most: int, steps: list[tuple[str, float | None, bool]]) -> None:
    async def main() -> None:
        backend, _ = faulty([])
        last: dict[str, float | None] = {}
        for record_id, cost, forget in steps:
            if forget:
                await backend.shutdown()
            last[record_id] = cost
            step = {"run_id": "r", "step_name": "s", "step_index": 0, "record_id": record_id, "cost_usd": cost}
            await backend.save_step_result(step)
        details = await backend.get_run_details("r") or {"total_cost": None}
        costs = [Fraction(repr(cost)) for cost in last.values() if cost is not None]
        assert details["total_cost"] == (float(sum(costs)) if costs else None)
        await backend.shutdown()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(runs, "MAX_KNOWN_COSTS", most)
        asyncio.run(main())


def test_r3_the_costs_of_a_run_that_is_known_are_not_read() -> None:
    async def main() -> None:
        backend, stores = faulty([])
        await backend.save_run_start({"run_id": "r"})

        async def refuse(run_id: str, record_id: str) -> float | None:
            raise AssertionError

        stores[0].step_cost = refuse  # type: ignore[method-assign]
        for cost in (0.5, 0.25):
            await backend.save_step_result(
                {"run_id": "r", "step_name": "s", "step_index": 0, "record_id": "k", "cost_usd": cost}
            )
        details = await backend.get_run_details("r")
        assert details is not None
        assert details["total_cost"] == 0.25
        await backend.shutdown()

    asyncio.run(main())


class WrongStore(FaultyStore):
    """Answers each commit of the run "r" with what ``answer`` makes of the changes, and does nothing for it."""

    def __init__(self, data: _Data, answer: Callable[[Sequence[Change]], Any], times: int) -> None:
        super().__init__(data, [])
        self.answer = answer
        self.times = times

    async def commit(self, changes: Sequence[Change]) -> list[Outcome]:
        if any(change.run_id == "r" for change in changes) and self.times:
            self.times -= 1
            self.commits.append([change.run_id for change in changes])
            return self.answer(changes)  # type: ignore[no-any-return]
        return await super().commit(changes)


def wrong(answer: Callable[[Sequence[Change]], Any], *, times: int = 1_000_000) -> tuple[StateBackend, WrongStore]:
    store = WrongStore(_Data(), answer, times)
    return StateBackend(lambda: store, BackendSettings()), store


def as_expected(changes: Sequence[Change]) -> list[Outcome]:
    """Of each change: what is stored is what it expects."""
    return [StoredRun(change.expected, "{}", b"") if change.expected else None for change in changes]


def test_g11_a_store_that_finds_what_is_expected_and_does_not_apply_it_is_told_from_contention() -> None:
    async def main() -> None:
        backend, store = wrong(as_expected)
        with pytest.raises(StorageError, match=r"that what is stored is as expected.* for run 'r'; this is a bug"):
            await backend.save_state("r", STATE)
        assert len(store.commits) < 10
        assert await backend.save_state("q", STATE) == 1

        # Once it has a row.
        store.answer, changes = lambda changes: [row_again(store, change) for change in changes], store.times
        store.times = 0
        assert await backend.save_state("r", STATE) == 1
        store.times = changes
        before = len(store.commits)
        with pytest.raises(StorageError, match="this is a bug of the backend"):
            await backend.save_state("r", STATE)
        assert len(store.commits) - before < 10
        store.times = 0
        assert await backend.save_state("r", STATE) == 2

    asyncio.run(main())


def row_again(store: MemoryStore, change: Change) -> StoredRun:
    row = store._data.runs[change.run_id].row
    return StoredRun(row.operation_id, row.run, b"")


def test_g9_a_run_that_came_and_went_meanwhile_is_tried_again() -> None:
    """A rival's row stopped our insert, and was gone when the store looked what is stored."""

    async def main() -> None:
        backend, store = wrong(as_expected, times=2)
        assert await backend.save_state("r", STATE) == 1
        assert len(store.commits) == 3

    asyncio.run(main())


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda changes: None, "the store answered None instead of a list of 1 for run 'r'"),
        (lambda changes: [], "a list of 0 instead of a list of 1"),
        (lambda changes: ["applied"] * 2, "a list of 2 instead of a list of 1"),
        (lambda changes: {}, "a dict instead of a list of 1"),
        (lambda changes: [True], "True instead of an outcome"),
        (lambda changes: ["Applied"], "a str instead of an outcome"),
        (lambda changes: [(b"", "{}", b"")], "a tuple of 3 instead of an outcome"),
    ],
)
def test_g11_an_answer_that_is_none_is_a_storage_error(answer: Callable[[Sequence[Change]], Any], words: str) -> None:
    async def main() -> None:
        backend, store = wrong(answer)
        with pytest.raises(StorageError, match=f"{words}.*; this is a bug of the backend"):
            await backend.save_state("r", STATE)
        assert len(store.commits) == 1

    asyncio.run(main())


def test_g9_a_wrong_answer_for_one_run_fails_no_other() -> None:
    async def main() -> None:
        backend, _ = wrong(lambda changes: [BUSY if change.run_id == "a" else "applied?" for change in changes])
        await backend.load_state("r")
        saved, refused = await asyncio.gather(
            backend.save_state("a", STATE), backend.save_state("r", STATE), return_exceptions=True
        )
        assert saved == 1
        assert isinstance(refused, StorageError)

    asyncio.run(main())


def test_g9_a_wrong_answer_after_a_lost_one_leaves_the_outcome_unknown() -> None:
    async def main() -> None:
        backend, store = wrong(lambda changes: ["?"])
        commit = store.commit
        lost: list[bool] = []

        async def lose(changes: Sequence[Change]) -> list[Outcome]:
            if not lost:
                lost.append(True)
                raise CommitUnknown(StorageUnavailableError("went away"))
            return await commit(changes)

        store.commit = lose  # type: ignore[method-assign]
        with pytest.raises(OutcomeUnknownError):
            await backend.save_state("r", STATE)

    asyncio.run(main())
