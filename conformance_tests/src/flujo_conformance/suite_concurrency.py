"""Does a backend keep its word to clients that call at the same time (G9, G10, S6, R7)?

What they call is drawn by Hypothesis; who overtakes whom is up to the scheduler. A history in which no two calls
overlapped proves nothing, so a test in which none did fails.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations
from itertools import count as counter
from random import Random
from typing import Any, Final

from hypothesis import given
from hypothesis import strategies as st

from flujo_core import StateBackend
from flujo_core.errors import StateConflictError

from .answers import Call
from .harness import Harness
from .histories import Client, Processes, Threads, Turn, Work, count, play, play_timed
from .linearizability import Operation, explain, linearize, most_overlapping
from .machine import NAMESPACE, START
from .model import ModelBackend
from .observations import observe, unsupported
from .profile import examples, times
from .strategies import plain_state
from .suite_outcomes import READ
from .suite_support import Handles, loaded, on_fresh_data, other_process

Plan = tuple[Client, ...]
PlanMaker = Callable[[int], Plan]
"""Makes a plan on runs that are new for each number."""
Histories = list[list[Operation]]
"""What happened in one place each: a client of an event loop, a thread, a process."""
Players = Callable[[Plan], Histories]

MEETINGS: Final = 50
"""How often clients that did not meet get another chance."""
STEPS: Final = 8
"""How many revisions are raced for."""
RACES: Final = 4
"""How often."""

_MAKERS: Final[dict[str, Callable[[str, int], Call]]] = {
    "save": lambda run, number: ("save_state", (run, _state(number)), {}),
    "save first": lambda run, number: ("save_state", (run, _state(number)), {"expected_revision": 0}),
    "save second": lambda run, number: ("save_state", (run, _state(number)), {"expected_revision": 1}),
    "save third": lambda run, number: ("save_state", (run, _state(number)), {"expected_revision": 2}),
    "load": lambda run, number: ("load_state", (run,), {}),
    "delete state": lambda run, number: ("delete_state", (run,), {}),
    "delete first state": lambda run, number: ("delete_state", (run,), {"expected_revision": 1}),
    "delete": lambda run, number: ("delete_run", (run,), {}),
    "start": lambda run, number: ("save_run_start", ({"run_id": run, "mine": number, "total_steps": number},), {}),
    "end": lambda run, number: ("save_run_end", (run, {"mine": number, "total_cost": number}), {}),
    "step": lambda run, number: ("save_step_result", (_step(run, number),), {}),
    "step again": lambda run, number: ("save_step_result", (_step(run, number, record_id="one"),), {}),
    "steps": lambda run, number: ("list_run_steps", (run,), {}),
    "details": lambda run, number: ("get_run_details", (run,), {}),
}
"""Calls on a run that say something else each time, so that an answer tells which of them came before it."""

FAMILIES: Final = (
    ("save", "save", "delete state", "load", "load", "details"),
    ("save first", "save second", "save third", "delete first state", "load"),
    ("start", "end", "delete", "details", "details"),
    ("step", "step", "step again", "delete", "steps", "steps"),
    tuple(_MAKERS),
)
"""Kinds that have to do with each other, so that a plan of a few calls is about something."""


def _state(number: int) -> dict[str, Any]:
    history = [number] * (number % 4 + 1)
    return {"mine": number, **plain_state(step_history=history, metadata={"n": number}, total_steps=number)}


def _step(run: str, number: int, **more: Any) -> dict[str, Any]:
    return {"output": number, "run_id": run, "step_name": "s", "step_index": 0, "cost": number, **more}


def plans(clients: int = 3, *, cancelled: bool = False) -> st.SearchStrategy[PlanMaker]:
    """What clients call on one run or two. Nothing in it is worth shrinking: who meets whom would be another matter."""
    return st.randoms(use_true_random=True).map(lambda chance: _drawn(chance, clients, cancelled))


def _drawn(chance: Random, most: int, cancelled: bool) -> PlanMaker:
    runs, kinds = chance.choice(("r", "r", "rs")), chance.choice(FAMILIES)
    patience = (None, *range(6)) if cancelled else (None,)

    def turns() -> list[tuple[str, str, tuple[int, int | None]]]:
        return [
            (chance.choice(runs), chance.choice(kinds), (chance.choice((0, 0, 0, 1, 2, 5)), chance.choice(patience)))
            for _ in range(chance.randint(3, 4))
        ]

    drawn = [(name, turns(), chance.randrange(2)) for name in "abcd"[: chance.choice((most, most, most, 2))]]

    def made(example: int) -> Plan:
        numbers = counter(1)
        return tuple(
            Client(
                name,
                tuple(_turn(f"{run}{example}", next(numbers), kind, *pauses) for run, kind, pauses in chosen),
                handle,
            )
            for name, chosen, handle in drawn
        )

    return made


def _turn(run: str, number: int, kind: str, pauses: int = 0, cancelled_after: int | None = None) -> Turn:
    return Turn(pauses, _MAKERS[kind](run, number), cancelled_after)


def _saves(example: int) -> Plan:
    """Clients that have little else to do than to meet."""
    return tuple(
        Client(name, tuple(_turn(f"m{example}", 4 * place + number, "save") for number in range(4)), place % 2)
        for place, name in enumerate("abc")
    )


def _oracle() -> ModelBackend:
    return ModelBackend(lambda: START)


def assert_linearizable(history: Sequence[Operation]) -> None:
    assert linearize(history, _oracle) is not None, explain(history, _oracle)


def run_histories(plan: st.SearchStrategy[PlanMaker], quick: int, players: Players) -> None:
    """Plays plans until the profile is content and the places have met; each history has to have an order."""
    number = counter()
    most, have_met = 0, False

    def look(made: PlanMaker) -> None:
        nonlocal most, have_met
        places = players(made(next(number)))
        history = joined(places)
        most, have_met = max(most, most_overlapping(history)), have_met or met(places)
        assert_linearizable(history)

    examples(quick)(given(plan)(look))()
    for _ in range(MEETINGS):
        if not have_met:
            look(_saves)
    observe("histories", next(number))
    observe("most overlapping operations", most)
    assert have_met, "no two calls of different places overlapped in any history: this proved nothing"


def joined(places: Histories) -> list[Operation]:
    return [operation for history in places for operation in history]


def met(places: Histories) -> bool:
    """Whether two calls on one run overlapped that were made in different places."""
    return any(
        a.run_id == b.run_id and a.invoked <= b.settled and b.invoked <= a.settled
        for one, other in combinations(places, 2)
        for a in one
        for b in other
    )


def race(here: Handles, runner: asyncio.Runner, plan: Plan, players: Players) -> None:
    """Clients climb the revisions of a run, again until those of different places met often enough. Of all saves that
    expected one revision one has won, and the last winner's snapshot is stored."""
    most = meetings = 0
    for _ in range(MEETINGS):
        runner.run(here.one.delete_run("r"))
        places = players(plan)
        history = joined(places)
        won = {one.answer: one for one in history if not isinstance(one.answer, StateConflictError)}
        lost = [one for one in history if isinstance(one.answer, StateConflictError)]
        assert (sorted(won), len(won) + len(lost)) == (list(range(1, STEPS + 1)), len(history)), explain(
            history, _oracle
        )
        assert_linearizable(history)
        state = runner.run(loaded(here.two))
        assert (state["revision"], state["mine"]) == (STEPS, won[STEPS].call[1][1]["mine"])
        most, meetings = max(most, most_overlapping(history)), meetings + met(places)
        if meetings == times(RACES):
            break
    observe("most overlapping operations", most)
    assert meetings, "no two saves of different places overlapped: this proved nothing"


def add_up(here: Handles, runner: asyncio.Runner, counting: Callable[[Work], list[int]]) -> None:
    """Read, add, write what was expected, in several places until they come in each other's way; the sum is exact."""
    runner.run(here.one.save_state("n", plain_state(mine=0)))
    wanted = conflicts = 0
    for _ in range(MEETINGS):
        met_so_often = counting((count, ("n", 10)))
        wanted, conflicts = wanted + 10 * len(met_so_often), conflicts + sum(met_so_often)
        state = runner.run(loaded(here.one, "n"))
        assert (state["mine"], state["revision"]) == (wanted, wanted + 1)
        if conflicts:
            break
    observe("conflicts", conflicts)
    assert conflicts, "nobody ever came in another's way: this proved nothing"


def climbs(clients: str) -> Plan:
    """Each client tries to make each revision, first to last, whoever has made it already."""

    def turn(place: int, expected: int) -> Turn:
        state = _state(place * STEPS + expected)
        return Turn(0, ("save_state", ("r", state), {"expected_revision": expected}))

    return tuple(
        Client(name, tuple(turn(place, expected) for expected in range(STEPS))) for place, name in enumerate(clients)
    )


@contextmanager
def on_a_loop(harness: Harness) -> Iterator[tuple[asyncio.Runner, Handles]]:
    """Handles on fresh data, for tests that are no coroutines."""
    with asyncio.Runner() as runner:
        runner.run(harness.wipe(NAMESPACE))
        here = Handles(harness)
        try:
            yield runner, here
        finally:
            runner.run(here.shutdown())


def apart(harness: Harness) -> bool:
    """Whether other processes can't use the data; if so that is seen, and told."""
    if harness.shared:
        return False
    with on_a_loop(harness) as (runner, here):
        runner.run(here.one.save_state("r", plain_state()))
        if harness.durable:
            assert other_process(harness, READ) == "StorageUnavailableError"
            unsupported("another process is refused with StorageUnavailableError while this one has the data open")
        else:
            assert other_process(harness, READ).split() == ["None", "1"]
            unsupported("another process finds nothing, so it can't write at the same time")
    return True


class ConcurrencyPart:
    # --- any calls -----------------------------------------------------------------------------------------------

    def test_g10_any_calls_at_once_have_an_order(self, state_harness: Harness) -> None:
        """Of clients in one event loop, on one handle or on several."""
        with on_a_loop(state_harness) as (runner, here):
            run_histories(plans(), 60, lambda plan: runner.run(play_on((here.one, here.two), plan)))

    def test_g9_any_cancelled_calls_at_once_happened_wholly_once_or_never(self, state_harness: Harness) -> None:
        with on_a_loop(state_harness) as (runner, here):
            run_histories(plans(cancelled=True), 20, lambda plan: runner.run(play_on((here.one, here.two), plan)))

    def test_g10_any_calls_at_once_from_threads_have_an_order(self, state_harness: Harness) -> None:
        """One backend in event loops of several threads."""
        with on_a_loop(state_harness) as (_, here), Threads([here.one] * 3) as threads:
            run_histories(plans(), 15, in_places(threads, 3))

    def test_g10_any_calls_at_once_from_processes_have_an_order(self, state_harness: Harness) -> None:
        if not apart(state_harness):
            with on_a_loop(state_harness), Processes(state_harness, NAMESPACE, START) as processes:
                run_histories(plans(4), 8, in_places(processes, 2))

    # --- compare-and-set -----------------------------------------------------------------------------------------

    def test_s6_of_threads_that_save_with_one_expected_revision_one_wins(self, state_harness: Harness) -> None:
        with on_a_loop(state_harness) as (runner, here), Threads([here.one, here.one, here.two]) as threads:
            race(here, runner, climbs("abc"), in_places(threads, 3))

    def test_s6_of_processes_that_save_with_one_expected_revision_one_wins(self, state_harness: Harness) -> None:
        if not apart(state_harness):
            with on_a_loop(state_harness) as (runner, here), Processes(state_harness, NAMESPACE, START) as processes:
                race(here, runner, climbs("abcd"), in_places(processes, 2))
                add_up(here, runner, lambda work: processes.together([work] * 2))

    def test_s6_counting_in_threads_with_expected_revisions_loses_nothing(self, state_harness: Harness) -> None:
        with on_a_loop(state_harness) as (runner, here), Threads([here.one, here.one, here.two]) as threads:
            add_up(here, runner, lambda work: threads.together([work] * 3))

    # --- iterations ----------------------------------------------------------------------------------------------

    @on_fresh_data
    async def test_r7_iterations_beside_writers_yield_what_stays_once_and_in_order(self, here: Handles) -> None:
        for number in range(12):
            await put(here.one, f"stays{number:02}")
            await put(here.one, f"other{number:02}", metadata={"a": 2}, status="paused")
            await put(here.one, f"comes{number:02}")
        metadata, status = {"metadata_filter": {"a": 1}}, {"status": "running"}
        filters: list[dict[str, Any]] = [{}, metadata, status, metadata | status]
        written = [0, 0]
        writers = [asyncio.ensure_future(stir(backend, written, n)) for n, backend in enumerate((here.one, here.two))]
        patience = time.monotonic() + 20
        try:
            while min(written) < 40 and time.monotonic() < patience:
                each = [((here.one, here.two)[n % 2], n % 3 + 1, given) for n, given in enumerate(filters * 2)]
                await asyncio.gather(*(watch(*one, written) for one in each))
        finally:
            for writer in writers:
                writer.cancel()
            done = await asyncio.gather(*writers, return_exceptions=True)
        assert all(isinstance(error, asyncio.CancelledError) for error in done), done
        observe("writes meanwhile", sum(written))
        assert min(written) > 0, f"{written} writes while the iterations went on: this proved nothing"


async def play_on(backends: Sequence[StateBackend], plan: Plan) -> Histories:
    """All clients in this event loop, each on its handle."""
    ticks = counter()
    return await asyncio.gather(*(play(backends[client.handle], [client], ticks.__next__) for client in plan))


def in_places(places: Threads | Processes, number: int) -> Players:
    """The clients in turn to one place and the next."""
    return lambda plan: places.together(
        [(play_timed, (plan[place::number],)) for place in range(min(number, len(plan)))]
    )


async def put(backend: StateBackend, run_id: str, **changes: Any) -> None:
    """A run that is always made at the same instant, which it shares with others."""
    created_at = START.replace(minute=int(run_id[-1]) % 3)
    await backend.save_state(run_id, plain_state(created_at=created_at, metadata={"a": 1}) | changes)


async def stir(backend: StateBackend, written: list[int], place: int) -> None:
    """Updates and removes runs and makes them again until it is stopped; counts its writes at its place."""
    while True:
        number = written[place] // 4
        await put(backend, f"stays{number % 12:02}", mine=number, metadata={"a": 1, "b": number})
        await backend.delete_run(f"comes{number % 12:02}")
        await put(backend, f"stays{(number * 7 + place) % 12:02}", mine=number)
        await put(backend, f"comes{number * 5 % 12:02}")
        written[place] += 4


async def watch(backend: StateBackend, page_size: int, filters: dict[str, Any], written: list[int]) -> None:
    """One iteration, which finds all that stays and fits and nothing that doesn't fit."""
    rows: list[Any] = []
    before = 0
    async for row in backend.iter_runs(page_size=page_size, **filters):
        rows.append(row)
        assert len(rows) <= 1000, "the iteration doesn't end"
        # Where writing is slow, iterations alone would keep the machine busy.
        await asyncio.sleep(0 if sum(written) > before else 0.001)
        before = sum(written)
    keys = [(row["created_at"], row["run_id"]) for row in rows]
    assert keys == sorted(set(keys), reverse=True), "out of order, or one twice"
    found = {row["run_id"] for row in rows}
    assert {f"stays{number:02}" for number in range(12)} <= found
    others = {f"other{number:02}" for number in range(12)}
    assert found & others == (set() if filters else others)
    for row in rows:
        assert not filters or (row["status"], row["metadata"]["a"]) == ("running", 1)
