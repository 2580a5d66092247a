"""Which identifiers, timestamps, numbers and pages are taken, and how do they come back (G5 to G8)?"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta, timezone
from enum import Enum
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from . import strategies as make
from .answers import Call
from .harness import Harness
from .machine import START
from .profile import examples
from .strategies import NOON, plain_state
from .suite_support import (
    Handles,
    beside_the_oracle,
    collect,
    everything,
    fill,
    ids,
    loaded,
    on_fresh_data,
    refused,
    row_of,
    same,
)

Place = Callable[[Any], Call]
STEP = {"run_id": "r", "step_name": "s", "step_index": 0}
SPAN = {"span_id": "s"}


def _in_state(key: str) -> Place:
    return lambda value: ("save_state", ("r", plain_state(**{key: value})), {})


def _in_start(key: str) -> Place:
    return lambda value: ("save_run_start", ({"run_id": "r", key: value},), {})


def _in_end(key: str) -> Place:
    return lambda value: ("save_run_end", ("r", {key: value}), {})


def _in_step(key: str) -> Place:
    return lambda value: ("save_step_result", (STEP | {key: value},), {})


def _in_span(key: str) -> Place:
    return lambda value: ("save_spans", ("r", [SPAN, SPAN | {key: value}]), {})


def _in_filter(key: str, *methods: str) -> list[tuple[str, Place]]:
    def place(method: str) -> Place:
        return lambda value: (method, (), {key: value})

    return [(f"{method}({key})", place(method)) for method in methods]


def _at(method: str, *more: Any, **others: Any) -> Place:
    """The value as the first argument."""
    return lambda value: (method, (value, *more), others)


def _fields(where: str, place: Callable[[str], Place], keys: Iterable[str]) -> list[tuple[str, Place]]:
    return [(f"{where}.{key}", place(key)) for key in keys]


LISTS = ("list_runs", "iter_runs", "count_runs")
OPTIONAL_IDENTIFIERS: dict[str, Place] = dict(
    [
        *_fields("state", _in_state, ("parent_run_id", "task_id")),
        *_fields("run", _in_start, ("pipeline_id", "pipeline_name", "pipeline_version", "parent_run_id", "task_id")),
        *_fields("end", _in_end, ("pipeline_id", "pipeline_name", "pipeline_version", "parent_run_id", "task_id")),
        *_fields("step", _in_step, ("step_run_id", "record_id")),
        *_fields("span", _in_span, ("parent_span_id",)),
        *_in_filter("pipeline_name", *LISTS, "get_span_statistics"),
        *_in_filter("pipeline_id", *LISTS, "list_workflows"),
        *_in_filter("parent_run_id", *LISTS, "list_background_tasks", "get_failed_background_tasks"),
        *_in_filter("run_id", "list_evaluations"),
        ("get_spans(name)", lambda value: ("get_spans", ("r",), {"name": value})),
        ("get_spans(status)", lambda value: ("get_spans", ("r",), {"status": value})),
        ("evaluation.step_name", lambda value: ("persist_evaluation", ("r", 1), {"step_name": value})),
    ]
)
IDENTIFIERS: dict[str, Place] = dict(
    [
        ("save_state(run_id)", _at("save_state", plain_state())),
        *((f"{name}(run_id)", _at(name)) for name in ("load_state", "delete_state", "delete_run", "list_run_steps")),
        *((f"{name}(run_id)", _at(name)) for name in ("get_run_details", "get_trace", "get_spans")),
        ("save_run_end(run_id)", _at("save_run_end", {})),
        ("save_trace(run_id)", _at("save_trace", {})),
        ("save_spans(run_id)", _at("save_spans", [SPAN])),
        ("persist_evaluation(run_id)", _at("persist_evaluation", 1)),
        ("get_system_state(key)", _at("get_system_state")),
        ("set_system_state(key)", _at("set_system_state", 1)),
        *_fields("state", _in_state, ("pipeline_id", "pipeline_name", "pipeline_version")),
        *_fields("run", _in_start, ("run_id",)),
        *_fields("step", _in_step, ("run_id", "step_name", "status")),
        *_fields("span", _in_span, ("span_id", "name", "status")),
    ]
)
TIMESTAMPS: dict[str, Place] = dict(
    [
        *_fields("state", _in_state, ("created_at", "updated_at")),
        *_fields("run", _in_start, ("created_at", "start_time", "updated_at", "end_time")),
        *_fields("end", _in_end, ("updated_at", "end_time")),
        *_fields("step", _in_step, ("created_at", "start_time", "end_time")),
        *_fields("span", _in_span, ("created_at",)),
        *_in_filter("created_after", *LISTS),
        *_in_filter("created_before", *LISTS),
        *_in_filter("updated_after", *LISTS),
        *_in_filter("updated_before", *LISTS),
    ]
)
NUMBERS: dict[str, Place] = dict(
    [
        *_fields("state", _in_state, ("execution_time_ms", "memory_usage_mb")),
        *_fields("run", _in_start, ("execution_time_ms", "duration_ms", "memory_usage_mb", "total_cost")),
        *_fields("end", _in_end, ("execution_time_ms", "duration_ms", "total_cost", "cost_usd")),
        *_fields("step", _in_step, ("cost_usd", "cost", "execution_time_ms", "duration_ms")),
        *_fields("span", _in_span, ("start_time", "end_time")),
        ("evaluation.score", lambda value: ("persist_evaluation", ("r", value), {})),
        ("time_range from", lambda value: ("get_span_statistics", (None, (value, None)), {})),
        ("time_range to", lambda value: ("get_span_statistics", (None, (None, value)), {})),
        ("get_failed_workflows", _at("get_failed_workflows")),
        ("get_failed_background_tasks", _at("get_failed_background_tasks", hours_back=1)),
        ("cleanup_old_workflows", _at("cleanup_old_workflows")),
        ("cleanup_stale_background_tasks", _at("cleanup_stale_background_tasks")),
    ]
)
NUMBERS["get_failed_background_tasks"] = lambda value: ("get_failed_background_tasks", (), {"hours_back": value})
COUNTERS: dict[str, Place] = dict(
    [
        *_fields("state", _in_state, ("current_step_index", "total_steps")),
        *_fields("run", _in_start, ("current_step_index", "total_steps")),
        *_fields("end", _in_end, ("current_step_index", "total_steps")),
        *_fields("step", _in_step, ("step_index", "token_counts", "tokens")),
    ]
)
STATUSES: dict[str, Place] = dict(
    [
        ("state.status", _in_state("status")),
        ("run.status", _in_start("status")),
        ("end.status", _in_end("status")),
        *_in_filter("status", *LISTS, "list_workflows", "list_background_tasks"),
        ("cleanup_old_workflows", lambda value: ("cleanup_old_workflows", (), {"statuses": [value]})),
    ]
)
FLAGS: dict[str, Place] = dict(
    [
        ("state.is_background_task", _in_state("is_background_task")),
        ("run.is_background_task", _in_start("is_background_task")),
        ("end.is_background_task", _in_end("is_background_task")),
        *_in_filter("is_background_task", *LISTS),
    ]
)
TEXTS: dict[str, Place] = dict(
    [
        *_fields("state", _in_state, ("error_message", "background_error")),
        *_fields("run", _in_start, ("error_message", "background_error")),
        *_fields("end", _in_end, ("error_message", "background_error")),
        ("evaluation.feedback", lambda value: ("persist_evaluation", ("r", 1), {"feedback": value})),
    ]
)
BAD_PAGES: tuple[Any, ...] = (-1, 1.0, 0.5, "1", True, False, float("nan"), [1])
PAGES: dict[str, Place] = dict(
    [
        *_in_filter("limit", "list_runs", "list_workflows", "list_background_tasks", "list_evaluations"),
        *_in_filter("offset", "list_runs", "list_workflows", "list_background_tasks"),
        *_in_filter("page_size", "iter_runs"),
        (
            "save_state(expected_revision)",
            lambda value: ("save_state", ("r", plain_state()), {"expected_revision": value}),
        ),
        ("delete_state(expected_revision)", lambda value: ("delete_state", ("r",), {"expected_revision": value})),
    ]
)


async def _refuses_all(here: Handles, places: dict[str, Place], bad: Iterable[Any]) -> None:
    """Each bad value in each place is refused, and nothing changes."""
    await fill(here.one)
    before = await everything(here.two)
    for value in bad:
        for place, made in places.items():
            await refused(here.one, made(value), f"{value!r:.60} in {place}")
    same(before, await everything(here.two))


class Which(str, Enum):  # noqa: UP042 - what users have
    RUN = "r"


class ArgumentsPart:
    @on_fresh_data
    async def test_g5_a_bad_identifier_is_refused_in_every_place(self, here: Handles) -> None:
        await _refuses_all(here, IDENTIFIERS | OPTIONAL_IDENTIFIERS, make.BAD_IDENTIFIERS)

    @on_fresh_data
    async def test_g5_none_is_no_identifier_where_one_is_required(self, here: Handles) -> None:
        await _refuses_all(here, IDENTIFIERS, [None])

    @on_fresh_data
    async def test_g5_a_bad_identifier_within_a_trace_is_refused(self, here: Handles) -> None:
        def node(key: str) -> Place:
            return lambda value: ("save_trace", ("r", {"children": [{"span_id": "s", "name": "n", key: value}]}), {})

        texts = [bad for bad in make.BAD_IDENTIFIERS if isinstance(bad, str)]
        await _refuses_all(here, dict(_fields("trace", node, ("span_id", "name", "status", "parent_span_id"))), texts)

    @on_fresh_data
    async def test_g5_identifiers_are_compared_byte_for_byte(self, here: Handles) -> None:
        similar = (
            *make.RUN_IDS,
            "r ",
            " r",
            "r\n",
            "r\t",
            "r\u00a0",
            "r\u200b",
            "r.",
            "\uff52",
            "i",
            "I",
            "\u0130",
            "\u0131",
        )
        for run_id in similar:
            await here.one.save_state(run_id, plain_state(pipeline_id=run_id, pipeline_name=run_id, task_id=run_id))
            await here.one.set_system_state(run_id, run_id)
        for run_id in similar:
            assert (await loaded(here.two, run_id))["task_id"] == run_id
            assert await ids(here.two, pipeline_name=run_id) == await ids(here.two, pipeline_id=run_id) == [run_id]
            kept = await here.two.get_system_state(run_id)
            assert kept is not None
            assert kept["value"] == run_id
        await here.one.delete_run("r")
        assert set(await ids(here.two)) == set(similar) - {"r"}

    @on_fresh_data
    async def test_g5_the_longest_and_strangest_identifiers_are_taken(self, here: Handles) -> None:
        for run_id in (
            "\U0001f600" * 255,
            "x" * 255,
            " ",
            "\n",
            "%",
            "_",
            "'",
            '"',
            "\\",
            "\u2028",
            "\ufffe",
            "a/../b",
        ):
            await here.one.save_state(run_id, plain_state(pipeline_name=run_id, parent_run_id=run_id))
            await here.one.save_step_result(
                {"run_id": run_id, "step_name": run_id, "step_index": 0, "record_id": run_id}
            )
            await here.one.save_spans(run_id, [{"span_id": run_id, "name": run_id}])
            assert await ids(here.two, parent_run_id=run_id, pipeline_name=run_id) == [run_id]
            assert [span["name"] for span in await here.two.get_spans(run_id, name=run_id)] == [run_id]
            assert [step["record_id"] for step in await here.two.list_run_steps(run_id)] == [run_id]

    @on_fresh_data
    async def test_g5_an_enum_of_text_is_an_identifier(self, here: Handles) -> None:
        await here.one.save_state(Which.RUN, plain_state(pipeline_id=Which.RUN))
        assert (await row_of(here.two, "r"))["pipeline_id"] == "r"
        assert type((await loaded(here.two, Which.RUN))["run_id"]) is str

    @on_fresh_data
    async def test_g5_free_text_is_any_text_and_a_row_shows_what_it_can(self, here: Handles) -> None:
        awkward = "a\x00b\ud800c\ud83d\ude00\U0001f600"
        shown = "a\ufffdb\ufffdc\ufffd\ufffd\U0001f600"
        await here.one.save_state("r", plain_state(error_message=awkward, background_error=awkward))
        await here.one.save_run_start({"run_id": "recorded", "error_message": awkward})
        await here.one.persist_evaluation("r", 1, awkward)
        state = await loaded(here.two)
        same([awkward, awkward], [state["error_message"], state["background_error"]])
        for row in await here.two.list_runs():
            same(shown, row["error_message"])
        same(shown, (await row_of(here.two))["background_error"])
        same(awkward, (await here.two.list_evaluations())[0]["feedback"])

    @on_fresh_data
    async def test_g5_text_and_flags_are_never_cast(self, here: Handles) -> None:
        await _refuses_all(here, TEXTS, make.BAD_TEXTS)
        await _refuses_all(here, FLAGS, make.BAD_FLAGS)
        await _refuses_all(here, STATUSES, [bad for bad in make.BAD_STATUSES if bad is not None])

    @on_fresh_data
    async def test_g6_a_bad_timestamp_is_refused_in_every_place(self, here: Handles) -> None:
        await _refuses_all(here, TIMESTAMPS, make.BAD_TIMESTAMPS)

    @on_fresh_data
    async def test_g6_one_instant_in_many_forms(self, here: Handles) -> None:
        forms = (
            *make.INSTANTS[:5], "2024-02-29t12:00z", "2024-02-29 12:00:00.0", "2024-02-29T12:00:00.000000-00:00",
            "2024-02-29T17:30:00+0530", "2024-03-01T11:59+23:59", datetime(2024, 2, 29, 12, tzinfo=UTC, fold=1),
        )  # fmt: skip
        for number, form in enumerate(forms):
            run_id = f"r{number}"
            await here.one.save_state(run_id, plain_state(created_at=form, updated_at=form))
            state = await loaded(here.two, run_id)
            same([NOON, NOON], [state["created_at"], state["updated_at"]])
            same(
                [NOON] * 3,
                [(await row_of(here.two, run_id))[key] for key in ("created_at", "updated_at", "start_time")],
            )
        assert await here.two.count_runs(created_after=NOON - timedelta(microseconds=1)) == len(forms)
        assert await here.two.count_runs(created_after=NOON) == await here.two.count_runs(updated_before=NOON) == 0

    def test_g6_any_instant_is_kept_to_the_microsecond(self, state_harness: Harness) -> None:
        with beside_the_oracle(state_harness) as machine:
            backend = machine.backends[0]
            zones = st.timedeltas(timedelta(hours=-23), timedelta(hours=23)).map(
                lambda offset: timezone(timedelta(minutes=offset // timedelta(minutes=1)))
            )
            moments = st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29), timezones=zones)  # noqa: DTZ001

            @examples(25)
            @given(st.lists(moments, min_size=4, max_size=4))
            def holds(given_: list[datetime]) -> None:
                wanted = [moment.astimezone(UTC) for moment in given_]
                first, second, third, fourth = given_
                machine.runner.run(backend.delete_run("r"))
                state = plain_state(created_at=first, updated_at=second)
                machine.runner.run(backend.save_state("r", state))
                step = STEP | {"created_at": third.isoformat(), "end_time": fourth}
                machine.runner.run(backend.save_step_result(step))
                found = machine.runner.run(loaded(machine.backends[1]))
                saved = machine.runner.run(machine.backends[1].list_run_steps("r"))[0]
                same(wanted, [found["created_at"], found["updated_at"], saved["created_at"], saved["end_time"]])
                row = machine.runner.run(row_of(machine.backends[1]))
                same([wanted[0], max(wanted[1:3])], [row["created_at"], row["updated_at"]])

            holds()

    @on_fresh_data
    async def test_g6_the_first_and_the_last_instant(self, here: Handles) -> None:
        first, last = "0001-01-02T00:00:00Z", "9999-12-30T23:59:59.999999Z"
        await here.one.save_state("first", plain_state(created_at=first, updated_at=first))
        await here.one.save_state("last", plain_state(created_at=last, updated_at=last))
        assert await ids(here.two) == ["last", "first"]
        same(datetime(1, 1, 2, tzinfo=UTC), (await loaded(here.two, "first"))["created_at"])
        same(datetime(9999, 12, 30, 23, 59, 59, 999999, tzinfo=UTC), (await row_of(here.two, "last"))["updated_at"])

    @on_fresh_data
    async def test_g6_every_method_returns_aware_utc_datetimes(self, here: Handles) -> None:
        await fill(here.one)
        await here.one.save_run_end("r", {"end_time": "2024-02-29T12:00"})
        await here.one.save_step_result(STEP | {"step_index": 1, "start_time": NOON, "end_time": "2024-02-29T12:00"})
        await here.one.set_system_state("k", 1)
        found = await everything(here.two)
        row, state, steps, spans, _ = found["run r"]
        same([START, START, NOON], [row["created_at"], row["updated_at"], row["end_time"]])
        same([START, START], [state["created_at"], state["updated_at"]])
        same([START, None, None], [steps[0]["created_at"], steps[0]["start_time"], steps[0]["end_time"]])
        same([START, NOON, NOON], [steps[1]["created_at"], steps[1]["start_time"], steps[1]["end_time"]])
        same([START], [span["created_at"] for span in spans][:1])
        same(START, found["evaluations"][0]["created_at"])
        same(START, found["system"][0]["updated_at"])
        same([NOON], [row["end_time"] for row in await collect(here.two.iter_runs())])

    @on_fresh_data
    async def test_g7_a_bad_number_is_refused_in_every_place(self, here: Handles) -> None:
        await _refuses_all(here, NUMBERS, make.BAD_NUMBERS)

    @on_fresh_data
    async def test_g7_a_bad_counter_is_refused_in_every_place(self, here: Handles) -> None:
        await _refuses_all(here, COUNTERS, make.BAD_COUNTERS)

    @on_fresh_data
    async def test_g7_rows_show_counters_as_int_and_amounts_as_float_and_documents_what_was_given(
        self, here: Handles
    ) -> None:
        counters: dict[str, Any] = {"current_step_index": 2.0, "total_steps": -(2**63)}
        amounts: dict[str, Any] = {"execution_time_ms": 3, "memory_usage_mb": 2**53 + 1}
        await here.one.save_state("r", plain_state(**counters, **amounts))
        state = await loaded(here.two)
        same(counters | amounts, {key: state[key] for key in counters | amounts})
        wanted = {"current_step_index": 2, "total_steps": -(2**63)}
        for row in (await row_of(here.two), dict((await here.two.list_runs())[0])):
            same(wanted, {key: row[key] for key in wanted})
            same([3.0, float(2**53 + 1)], [row["execution_time_ms"], row["memory_usage_mb"]])
        await here.one.save_run_end("r", {"total_cost": 1, "total_steps": 2**63 - 1, "memory_usage_mb": 5e-324})
        row = await row_of(here.two)
        same([1.0, 2**63 - 1, 5e-324], [row["total_cost"], row["total_steps"], row["memory_usage_mb"]])
        await here.one.save_step_result(STEP | {"tokens": 7.0, "cost": 1, "duration_ms": 2})
        step = (await here.two.list_run_steps("r"))[0]
        same([7.0, 1, 2], [step["token_counts"], step["cost_usd"], step["execution_time_ms"]])

    @on_fresh_data
    async def test_g7_averages_are_right_to_nine_digits(self, here: Handles) -> None:
        for times, start in (([0.1, 0.2, 1e9, 3, 7e-5, 123456.789], 0.1), ([1e-5, 2e-5, 4e-5], 0.0)):
            for number, value in enumerate(times):
                await here.one.save_run_start({"run_id": f"r{number}", "execution_time_ms": value})
                await here.one.save_spans("r0", [{"span_id": f"s{number}", "start_time": start, "end_time": value}])
            stats = await here.two.get_workflow_stats()
            same(sum(times) / len(times), stats["average_execution_time_ms"], approx=["$"])
            spans = (await here.two.get_span_statistics())["avg_duration_by_name"]["span"]
            total = sum(value - start for value in times)
            same([total, total / len(times)], [spans["total"], spans["average"]], approx=["$.*"])
            for number in range(len(times)):
                await here.one.delete_run(f"r{number}")

    @on_fresh_data
    async def test_g8_a_bad_page_is_refused(self, here: Handles) -> None:
        await _refuses_all(here, PAGES, BAD_PAGES)
        await refused(here.one, ("iter_runs", (), {"page_size": 0}), "a page of nothing")
        for place in ("list_runs(offset)", "list_workflows(offset)", "list_background_tasks(offset)"):
            await refused(here.one, PAGES[place](None), f"None in {place}")

    @on_fresh_data
    async def test_g8_every_limit_and_offset_is_a_slice_of_all(self, here: Handles) -> None:
        for number in range(5):
            await here.one.save_state(
                f"r{number}", plain_state(pipeline_id="p", is_background_task=True, metadata={"a": 1})
            )
            await here.one.persist_evaluation(f"r{number}", number)
        wanted = [f"r{number}" for number in (4, 3, 2, 1, 0)]
        for limit in (None, 0, 1, 2, 4, 5, 6, 10**30):
            for offset in (0, 1, 4, 5, 9, 10**30):
                page = wanted[offset:][:limit]
                for rows in (
                    await here.two.list_runs(limit=limit, offset=offset),
                    await here.two.list_runs("running", "p", limit, offset, {"a": 1}),
                    await here.two.list_workflows("running", "p", limit, offset),
                    await here.two.list_background_tasks(limit=limit, offset=offset),
                ):
                    assert [row["run_id"] for row in rows] == page, (limit, offset)
            evaluations = await here.two.list_evaluations(limit)
            assert [found["run_id"] for found in evaluations] == wanted[:limit]

    @on_fresh_data
    async def test_g8_no_limit_is_no_hidden_one(self, here: Handles) -> None:
        many = 1100
        task = plain_state(is_background_task=True, status="failed")
        spans = [{"span_id": f"s{number}", "end_time": 1} for number in range(many)]
        await asyncio.gather(
            here.one.save_spans("r0", spans),
            *(here.one.save_state(f"r{number}", task) for number in range(many)),
            *(here.one.save_step_result(STEP | {"run_id": "r0", "output": number}) for number in range(many)),
            *(here.one.persist_evaluation("r0", number) for number in range(many)),
        )
        lists: list[Any] = [
            await here.two.list_runs(),
            await here.two.list_runs(metadata_filter={}, offset=0),
            await here.two.list_workflows(),
            await here.two.list_background_tasks(),
            await here.two.get_failed_workflows(),
            await here.two.get_failed_background_tasks(),
            await here.two.list_evaluations(None),
            await here.two.list_run_steps("r0"),
            await here.two.get_spans("r0"),
        ]
        assert [len(rows) for rows in lists] == [many] * len(lists)
        assert len([row async for row in here.two.iter_runs()]) == await here.two.count_runs() == many
        assert len(await here.two.list_runs(limit=many - 1)) == len(await here.two.list_runs(offset=1)) == many - 1
