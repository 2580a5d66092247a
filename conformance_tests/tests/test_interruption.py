"""Does the stepping find every point of a call, and is each hit once?"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from flujo_conformance.interruption import Cancel, Stepping, at_every_point, step
from flujo_conformance.leaks import held, left

Toy = Callable[[list[str]], Coroutine[Any, Any, Any]]


async def sleeper(log: list[str], awaits: int = 3) -> str:
    for number in range(awaits):
        log.append(f"begun {number}")
        await asyncio.sleep(0 if number % 2 else 0.001)
    return "done"


async def parent(log: list[str]) -> str:
    """Two awaits of its own; those of its child, and the child before it begins, are points too."""
    await asyncio.sleep(0)
    child = asyncio.get_running_loop().create_task(sleeper(log))
    try:
        return await child
    except asyncio.CancelledError:
        return "the child was cancelled"


async def by_callback(log: list[str]) -> str:
    """A task that is made by a callback belongs to the call."""
    loop, answer = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()
    loop.call_soon(lambda: loop.create_task(sleeper(log)).add_done_callback(lambda _: answer.set_result(None)))
    await answer
    return "done"


async def shielded(log: list[str]) -> str:
    return await asyncio.shield(asyncio.ensure_future(sleeper(log)))


def stepped(toy: Toy, cancel: Cancel | None) -> tuple[Stepping, Any, list[str]]:
    async def run() -> tuple[Stepping, Any, list[str]]:
        log: list[str] = []
        stepping, [answer] = await step([toy(log)], cancel)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        return stepping, answer, log

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("toy", "points"),
    [
        (lambda log: sleeper(log, 0), 0),
        (lambda log: sleeper(log, 1), 1),
        (sleeper, 3),
        (parent, 1 + 1 + 1 + 3),
        (by_callback, 1 + 1 + 3),
        (shielded, 1 + 1 + 3),
    ],
)
def test_every_await_of_every_task_of_a_call_is_a_point(toy: Toy, points: int) -> None:
    stepping, answer, _ = stepped(toy, None)
    assert (stepping.points, stepping.done, answer) == (points, False, "done")


@pytest.mark.parametrize("when", ["at once", "late"])
def test_each_point_is_hit_once_and_the_first_that_is_not_is_behind_the_end(when: Any) -> None:
    async def run() -> tuple[int, list[int], list[Any]]:
        begun, answers = [], []

        async def trial(cancel: Cancel) -> Stepping:
            log: list[str] = []
            stepping, [answer] = await step([sleeper(log)], cancel)
            begun.append(len(log))
            answers.append(type(answer))
            return stepping

        return await at_every_point(trial, when=when), begun, answers

    points, begun, answers = asyncio.run(run())
    assert points == 3
    assert begun == [1, 2, 3, 3]
    assert answers == [asyncio.CancelledError] * 3 + [str]


def test_a_call_without_an_end_is_told() -> None:
    async def trial(cancel: Cancel) -> Stepping:
        return (await step([sleeper([])], Cancel(0)))[0]

    with pytest.raises(AssertionError, match="no end"):
        asyncio.run(at_every_point(trial))


def test_a_call_that_ignores_its_cancellation_is_told() -> None:
    async def stubborn() -> None:
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.2)
                return

    with pytest.raises(TimeoutError, match="1 of 1 calls"):
        asyncio.run(step([stubborn()], Cancel(0), limit=0.05))


@pytest.mark.parametrize("when", ["at once", "late"])
def test_the_task_at_the_point_is_cancelled_or_the_caller(when: Any) -> None:
    # 0: the parent's own await; 1: its child is made; 2: it waits for the child; from 3 on the child waits.
    _, answer, log = stepped(parent, Cancel(4, "any", when))
    assert (answer, log) == ("the child was cancelled", ["begun 0", "begun 1"])
    _, answer, _ = stepped(parent, Cancel(0, "any", when))
    assert isinstance(answer, asyncio.CancelledError)
    _, answer, log = stepped(shielded, Cancel(3, "caller", when))
    assert isinstance(answer, asyncio.CancelledError)
    assert log == ["begun 0", "begun 1", "begun 2"]


def test_a_task_that_has_not_begun_can_be_cancelled() -> None:
    _, answer, log = stepped(parent, Cancel(1, "any"))
    assert (answer, log) == ("the child was cancelled", [])


def test_a_late_cancellation_comes_after_the_answer_and_before_it_is_taken() -> None:
    async def run(when: Any) -> tuple[bool, bool]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[int] = loop.create_future()
        loop.call_later(0.001, lambda: None if answer.cancelled() else answer.set_result(1))

        async def wait() -> int:
            return await answer

        _, [got] = await step([wait()], Cancel(0, when=when))
        return isinstance(got, asyncio.CancelledError), answer.cancelled()

    assert asyncio.run(run("at once")) == (True, True)
    assert asyncio.run(run("late")) == (True, False)


def test_of_several_calls_one_is_cancelled() -> None:
    async def run() -> list[Any]:
        _, answers = await step([sleeper([]), sleeper([]), sleeper([])], Cancel(4), victim=1)
        return [type(answer) for answer in answers]

    assert asyncio.run(run()) == [str, asyncio.CancelledError, str]


def test_errors_are_answers_and_the_loop_is_as_it_was() -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise LookupError("missing")

    async def run() -> tuple[Any, Any, int]:
        stepping, [answer] = await step([fail()], None)
        await asyncio.create_task(sleeper([]))
        return answer, asyncio.get_running_loop().get_task_factory(), stepping.points

    answer, factory, points = asyncio.run(run())
    assert isinstance(answer, LookupError)
    assert (factory, points) == (None, 1)


def test_what_is_held_is_told_once_it_stays() -> None:
    async def run() -> None:
        before, end = held(), threading.Event()
        reader, writer = os.pipe()
        task = asyncio.ensure_future(asyncio.sleep(60))
        thread = threading.Thread(target=end.wait)
        thread.start()
        await asyncio.to_thread(end.is_set)
        found = await left(before, patience=0.02)
        assert {task, thread} <= found
        if sys.platform == "linux":
            assert {int(each[0]) for each in found if isinstance(each, tuple)} == {reader, writer}
        task.cancel()
        end.set()
        os.close(reader)
        os.close(writer)
        assert await left(before) == set()

    asyncio.run(run())
