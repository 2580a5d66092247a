"""What becomes of the rows of the original system? Converted, and found again by the public methods."""

from __future__ import annotations

import asyncio
import math
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from original_system import LATE, NOW, TABLES, Rows, check, some_rows

from flujo_core.backend import StateBackend
from flujo_core.errors import MigrationError, UnsupportedStorageError
from flujo_core.memory import MemoryStore, _Data
from flujo_core.migrations import Migration, SchemaStatus, plan, taking_over
from flujo_core.original import COLUMNS, convert, recognised, selection, transfer
from flujo_core.settings import BackendSettings
from flujo_core.store import APPLIED, Store

RUN: dict[str, Any] = {
    "run_id": "r",
    "pipeline_id": "p",
    "pipeline_name": "P",
    "pipeline_version": "1",
    "status": "running",
    "created_at": "2024-05-01T12:00:00",
    "updated_at": "2024-05-01T13:00:00",
}
STATE = {**RUN, "current_step_index": 1, "pipeline_context": "{}"}


def moment(hour: int, microsecond: int = 0) -> datetime:
    return datetime(2024, 5, 1, hour, microsecond=microsecond, tzinfo=UTC)


def _place(row: dict[str, Any]) -> tuple[str, int]:
    return str(row.get("run_id")), row.get("id", 0)


class Taken:
    """A place in memory into which rows of the original are put."""

    def __init__(self, rows: Rows, chunk: int = 3) -> None:
        self.rows = {table: sorted(found, key=_place) for table, found in rows.items()}
        self.chunk = chunk
        data = _Data()
        self.store: Store = MemoryStore(data)
        self.backend = StateBackend(lambda: MemoryStore(data), BackendSettings(), clock=lambda: NOW)
        self.data, self.places = data, dict.fromkeys(rows, 0)
        self.put_at_a_time: list[int] = []

    async def read(self, table: str) -> list[dict[str, Any]]:
        place = self.places[table]
        self.places[table] += self.chunk
        return self.rows[table][place : place + self.chunk]

    async def apart(self, work: Any) -> Any:
        return work()

    async def count_original(self, table: str) -> int:
        return len(self.rows[table])

    async def put(self, changes: Any) -> None:
        self.put_at_a_time.append(len(changes))
        assert set(await self.store.commit(changes)) == {APPLIED}

    async def put_system_state(self, key: str, document: str) -> None:
        await self.store.put_system_state(key, document)

    async def count(self, table: str) -> int:
        if table == "flujo_system_state":
            return len(self.data.system)
        if table == "workflow_state":
            return len(self.data.runs)
        name = table.removeprefix("workflow_")
        parts = [getattr(run, name.removesuffix("s") if name == "traces" else name) for run in self.data.runs.values()]
        return sum(part is not None if name == "traces" else len(part) for part in parts)


def taken(rows: dict[str, Any], chunk: int = 3) -> Taken:
    place = Taken({table: list(rows.get(table, [])) for table in TABLES}, chunk)
    asyncio.run(transfer(place, list(TABLES), "here", NOW))
    return place


def ask(place: Taken, method: str, *values: Any, **named: Any) -> Any:
    async def main() -> Any:
        async with place.backend as backend:
            return await getattr(backend, method)(*values, **named)

    return asyncio.run(main())


def refusal(**rows: Any) -> str:
    with pytest.raises(MigrationError) as caught:
        convert(rows, NOW)
    text = str(caught.value)
    assert "\n" not in text
    return text


# --- all of it --------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data(), st.integers(1, 4))
def test_everything_is_found_again(data: st.DataObject, chunk: int) -> None:
    rows = some_rows(lambda pool: data.draw(st.sampled_from(list(pool))), ["a", "b", "ü"], sqlite=True)
    place = taken(rows, chunk)

    async def main() -> None:
        async with place.backend as backend:
            await check(backend, rows)

    asyncio.run(main())


def test_some_runs_are_put_at_a_time_and_in_byte_order() -> None:
    runs = [{**RUN, "run_id": f"run{number}"} for number in range(450)] + [
        {**RUN, "run_id": "𐀀"},
        {**RUN, "run_id": "￿"},
    ]
    place = taken({"runs": runs}, chunk=7)
    assert place.put_at_a_time == [200, 200, 52]
    changes = convert({"runs": runs}, NOW)
    assert [one.run_id for one in changes] == sorted((row["run_id"] for row in runs), key=str.encode)
    steps = [
        {"id": number, "run_id": f"run{number % 4}", "step_name": "s", "step_index": number} for number in range(9000)
    ]
    place = taken({"runs": runs, "steps": steps}, chunk=100)
    assert place.put_at_a_time[0] == 1
    assert [step["step_index"] for step in ask(place, "list_run_steps", "run3")] == list(range(3, 9000, 4))


def test_what_is_not_all_there_is_refused() -> None:
    class Forgetful(Taken):
        async def put(self, changes: Any) -> None:
            for change in changes:
                change.steps.clear()
            await super().put(changes)

    class Hasty(Taken):
        async def read(self, table: str) -> list[dict[str, Any]]:
            return (await super().read(table))[:1]

    rows: Rows = {table: [] for table in TABLES}
    rows["runs"] = [{**RUN, "run_id": f"r{number}"} for number in range(4)]
    rows["steps"] = [{"id": 1, "run_id": "r1", "step_name": "s", "step_index": 0}]
    for kind in (Forgetful, Hasty):
        with pytest.raises(
            MigrationError, match=r"here can't be taken over .*nothing was changed.*rows were taken over"
        ):
            asyncio.run(transfer(kind(rows), list(TABLES), "here", NOW))


# --- two tables that name a run ---------------------------------------------------------------------------------------


def test_the_later_one_is_the_last_word_and_the_snapshot_has_the_status() -> None:
    state = {**STATE, "status": "paused", "error_message": "old", "total_steps": 3, "updated_at": "2024-05-01 14:00"}
    record = {
        **RUN,
        "status": "failed",
        "error_message": "new",
        "pipeline_name": "Other",
        "updated_at": "2024-05-01 15:00",
    }
    record["created_at"] = "2024-05-01T11:00:00Z"
    row = ask(taken({"workflow_state": [state], "runs": [record]}), "list_runs")[0]
    assert row["status"] == "paused"
    assert (row["error_message"], row["total_steps"], row["pipeline_name"]) == ("new", 3, "P")
    assert (row["created_at"], row["updated_at"]) == (moment(11), moment(15))
    record["updated_at"] = "2024-05-01 13:59"
    assert ask(taken({"workflow_state": [state], "runs": [record]}), "list_runs")[0]["error_message"] == "old"


def test_the_record_says_which_pipeline_it_is_where_the_snapshot_does_not_know() -> None:
    state = {**STATE, "pipeline_id": "", "pipeline_name": "unknown", "pipeline_version": "7"}
    record = {**RUN, "pipeline_id": "real", "pipeline_name": "Real", "pipeline_version": "8"}
    row = ask(taken({"workflow_state": [state], "runs": [record]}), "list_runs")[0]
    assert [row[f"pipeline_{part}"] for part in ("id", "name", "version")] == ["real", "Real", "7"]


def test_a_run_of_which_only_steps_are_known_is_a_placeholder() -> None:
    step = {"id": 1, "run_id": "r", "step_name": "s", "step_index": 0}
    late = {**step, "id": 2, "created_at": "2024-05-01T15:00:00"}
    evaluation = {"id": 1, "run_id": "r", "score": 1.0, "created_at": "2024-05-01T14:00:00"}
    place = taken({"steps": [step, late], "evaluations": [evaluation]})
    assert ask(place, "list_runs") == []
    assert ask(place, "get_run_details", "r")["created_at"] == moment(14)
    assert ask(taken({"steps": [step]}), "get_run_details", "r")["created_at"] == NOW
    assert ask(taken({"traces": [{"run_id": "r", "trace_data": None}]}), "get_run_details", "r") is not None


@pytest.mark.parametrize("given", ["success", "SUCCEEDED", "done", " Completed "])
def test_words_for_a_status_are_understood(given: str) -> None:
    for table, row in (("workflow_state", STATE), ("runs", RUN)):
        assert ask(taken({table: [{**row, "status": given}]}), "list_runs")[0]["status"] == "completed"


# --- values -----------------------------------------------------------------------------------------------------------


def test_documents_are_read_as_json_reads_them() -> None:
    text = '{"a": 1, "b": 1.0, "c": -0.0, "d": 1e300, "e": NaN, "f": -Infinity, "g": "\\ud800", "$flujo": "nan"}'
    state = ask(taken({"workflow_state": [{**STATE, "pipeline_context": text}]}), "load_state", "r")
    context = state["pipeline_context"]
    assert list(context) == ["a", "b", "c", "d", "e", "f", "g", "$flujo"]
    assert type(context["a"]) is int
    assert type(context["b"]) is float
    assert math.copysign(1, context["c"]) == -1
    assert math.isnan(context["e"])
    assert (context["d"], context["f"], context["g"], context["$flujo"]) == (1e300, -math.inf, "\ud800", "nan")


def test_numbers_of_any_length_and_documents_of_any_size_are_kept() -> None:
    number = 7**4000
    text = f'{{"n": {number:d}, "long": "{"x" * (65 * 2**20)}"}}'
    change = convert({"workflow_state": [{**STATE, "pipeline_context": text}]}, NOW)[0]
    assert isinstance(change.snapshot, str)
    assert str(number) in change.snapshot


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("2024-05-01T12:00:00.1234569", moment(12, 123456)),
        ("2024-05-01 14:30:00.123456789+02:30", moment(12, 123456)),
        (" 2024-05-01T12:00Z\n", moment(12)),
        (datetime(2024, 5, 1, 12), moment(12)),  # noqa: DTZ001 - naive is what it is about
    ],
)
def test_times_mean_utc_to_the_microsecond(given: Any, wanted: datetime) -> None:
    place = taken({"workflow_state": [{**STATE, "created_at": given, "updated_at": given}]})
    assert ask(place, "load_state", "r")["created_at"] == ask(place, "load_state", "r")["updated_at"] == wanted


def test_a_span_that_came_twice_is_there_once() -> None:
    spans = [{"id": number, "run_id": "r", "span_id": "s", "name": f"n{number}"} for number in (1, 2)]
    (change,) = convert({"runs": [RUN], "spans": spans}, NOW)
    assert [(span.span_id, span.name, span.sequence) for span in change.spans] == [("s", "n2", 1)]


@pytest.mark.parametrize(
    ("table", "row", "wanted"),
    [
        (
            "workflow_state",
            {**STATE, "status": "exploded"},
            "workflow_state, run 'r': status is 'exploded', not one of",
        ),
        ("runs", {**RUN, "status": "exploded"}, "runs, run 'r': status is 'exploded', not one of"),
        (
            "workflow_state",
            {**STATE, "pipeline_context": "{broken"},
            "run 'r': pipeline_context is '{broken', not a dict",
        ),
        ("workflow_state", {**STATE, "pipeline_context": "[1]"}, "pipeline_context is [1], not a dict"),
        ("workflow_state", {**STATE, "step_history": '{"a": 1}'}, "step_history is {'a': 1}, not a list"),
        ("workflow_state", {**STATE, "metadata": '{"a": [NaN]}'}, "$.metadata.a[0] is nan"),
        ("workflow_state", {**STATE, "created_at": "yesterday"}, "run 'r': created_at is 'yesterday'"),
        ("runs", {**RUN, "updated_at": 1714564800}, "runs, run 'r': updated_at is 1714564800"),
        ("workflow_state", {**STATE, "is_background_task": 2}, "is_background_task is 2"),
        ("workflow_state", {**STATE, "pipeline_context": '{"a":' * 500 + "1" + "}" * 500}, "nested deeper than 200"),
        ("workflow_state", {**STATE, "pipeline_context": "[" * 200_000 + "]" * 200_000}, "pipeline_context is nested"),
        ("workflow_state", {**STATE, "run_id": "x" * 256}, "256 characters"),
        ("runs", {**RUN, "run_id": ""}, "runs, run '': run_id is ''"),
        (
            "steps",
            {"id": 1, "run_id": "r", "step_name": "s", "step_index": None},
            "steps, run 'r': step_index is required",
        ),
        ("steps", {"id": 1, "run_id": "r", "step_name": "s", "step_index": -1}, "steps, run 'r': step_index is -1"),
        ("traces", {"run_id": "r", "trace_data": "broken"}, "traces, run 'r': trace is a str"),
        ("spans", {"id": 1, "run_id": "r", "span_id": None}, "spans, run 'r': spans[0].span_id is None"),
        ("evaluations", {"id": 1, "run_id": "r", "score": None}, "evaluations, run 'r': score is None"),
    ],
)
def test_what_breaks_a_rule_is_refused_by_name(table: str, row: dict[str, Any], wanted: str) -> None:
    assert wanted in refusal(**{table: [row]})


def test_rows_without_a_run_are_refused() -> None:
    for run_id in (None, b"r"):
        with pytest.raises(MigrationError, match=r"steps has a row whose run_id is .*not a text"):
            taken({"steps": [{"id": 1, "run_id": run_id, "step_name": "s", "step_index": 0}]})
    with pytest.raises(MigrationError, match=r"system_state, key '': key is ''"):
        taken({"system_state": [{"key": "", "value": "1"}]})


# --- which database it is ---------------------------------------------------------------------------------------------

LAYOUT = {table: [name for name, *_ in columns] for table, columns in TABLES.items()}


def test_the_fingerprint_fits_the_original_only() -> None:
    assert {table: set(columns) for table, columns in LAYOUT.items()} == {
        table: set(columns) for table, columns in COLUMNS.items()
    }
    assert recognised(LAYOUT, "here")
    assert not recognised({}, "here")
    assert not recognised({"runs": ["whatever"], "steps": []}, "here")
    old = {table: [name for name in names if name not in LATE.get(table, ())] for table, names in LAYOUT.items()}
    assert recognised(old, "here")
    assert recognised({"workflow_state": old["workflow_state"], "memories": ["anything"]}, "here")
    assert selection("runs", {"status", "run_id", "x"}) == ("run_id", "status")


@pytest.mark.parametrize("table", sorted(COLUMNS))
def test_another_column_or_no_key_is_refused_by_name(table: str) -> None:
    with pytest.raises(UnsupportedStorageError, match=f"here has a table {table} .* an unknown column surprise;"):
        recognised({**LAYOUT, table: [*LAYOUT[table], "surprise"]}, "here")
    key = "key" if table == "system_state" else "run_id"
    with pytest.raises(UnsupportedStorageError, match=f"here has a table {table} .* lacks the column {key};"):
        recognised({**LAYOUT, table: [name for name in LAYOUT[table] if name != key]}, "here")


def test_the_plan_takes_over_first_and_never_half() -> None:
    own = tuple(Migration(number, "x", "", ("SELECT 1",)) for number in (1, 2, 3))
    theirs = Migration(1, "y", "", ("SELECT 1",), "deployment")
    status = SchemaStatus("here", (*own, theirs), (), original=True)
    assert (status.state, status.pending) == ("original", (*own, theirs))
    assert taking_over(status) == own
    apart = Migration(3, "x", "", ("SELECT 1",), transaction=False)
    assert taking_over(SchemaStatus("here", (*own[:2], apart), (), original=True)) == own[:2]
    assert plan(status, 3) == own
    for target in (1, 2):
        with pytest.raises(MigrationError, match=f"original Flujo; it is taken over by version 3, not by {target}"):
            plan(status, target)
