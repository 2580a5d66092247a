"""Does the oracle say what the contract says? Every answer below was worked out by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from flujo_conformance.compare import difference
from flujo_conformance.model import ModelBackend
from flujo_conformance.strategies import INVALID_STATES, plain_state
from flujo_core.errors import InvalidStateError, RunNotFoundError, StateConflictError

START = datetime(2024, 5, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)

ROW_KEYS = [
    "run_id", "pipeline_id", "pipeline_name", "pipeline_version", "status", "created_at", "updated_at", "start_time",
    "end_time", "current_step_index", "total_steps", "error_message", "execution_time_ms", "memory_usage_mb",
    "total_cost", "metadata", "is_background_task", "parent_run_id", "task_id", "background_error", "revision",
]  # fmt: skip


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def backend(clock: Clock) -> ModelBackend:
    return ModelBackend(clock)


def row(backend: ModelBackend, run_id: str = "r") -> dict[str, Any]:
    details = backend.get_run_details(run_id)
    assert details is not None
    return details


def loaded(backend: ModelBackend, run_id: str = "r") -> dict[str, Any]:
    state = backend.load_state(run_id)
    assert state is not None
    return state


def ids(rows: list[dict[str, Any]]) -> list[str]:
    return [each["run_id"] for each in rows]


# Snapshots


def test_model_counts_revisions_and_starts_again_after_delete(backend: ModelBackend) -> None:
    assert backend.save_state("r", plain_state()) == 1
    assert backend.save_state("r", plain_state(), expected_revision=1) == 2
    with pytest.raises(StateConflictError) as caught:
        backend.save_state("r", plain_state(status="failed"), expected_revision=0)
    assert (caught.value.expected, caught.value.actual) == (0, 2)
    assert loaded(backend)["status"] == "running"
    with pytest.raises(StateConflictError):
        backend.delete_state("r", expected_revision=1)
    backend.delete_state("r", expected_revision=2)
    backend.delete_state("r", expected_revision=0)
    assert backend.load_state("r") is None
    assert backend.save_state("r", plain_state(), expected_revision=0) == 1


@pytest.mark.parametrize("revision", [-1, True, 1.0, "1"])
def test_model_refuses_expected_revisions_that_are_none(backend: ModelBackend, revision: Any) -> None:
    with pytest.raises(InvalidStateError):
        backend.save_state("r", plain_state(), expected_revision=revision)
    with pytest.raises(InvalidStateError):
        backend.delete_state("r", expected_revision=revision)


def test_model_loads_what_was_saved_and_defaults_for_the_rest(backend: ModelBackend) -> None:
    given = {"mine": (1, 1.0, True), "revision": 99, **plain_state(), "step_history": None, "last_step_output": ""}
    backend.save_state("r", given)
    expected = {
        "mine": [1, 1.0, True],
        "pipeline_id": "p",
        "pipeline_name": "p",
        "pipeline_version": "1",
        "current_step_index": 0,
        "step_history": [],
        "last_step_output": "",
        "run_id": "r",
        "pipeline_context": {},
        "status": "running",
        "created_at": START,
        "updated_at": START,
        "total_steps": 0,
        "error_message": None,
        "execution_time_ms": None,
        "memory_usage_mb": None,
        "metadata": {},
        "is_background_task": False,
        "parent_run_id": None,
        "task_id": None,
        "background_error": None,
        "revision": 1,
    }
    assert difference(backend.load_state("r"), expected) is None


def test_model_keeps_numbers_exact_in_the_snapshot_and_typed_in_the_row(backend: ModelBackend) -> None:
    backend.save_state("r", plain_state(current_step_index=2.0, total_steps=-1, execution_time_ms=5))
    state = {key: loaded(backend)[key] for key in ("current_step_index", "total_steps", "execution_time_ms")}
    assert difference(state, {"current_step_index": 2.0, "total_steps": -1, "execution_time_ms": 5}) is None
    shown = {key: row(backend)[key] for key in ("current_step_index", "total_steps", "execution_time_ms")}
    assert difference(shown, {"current_step_index": 2, "total_steps": -1, "execution_time_ms": 5.0}) is None


def test_model_fixes_created_at_once_and_takes_updated_at_from_each_save(backend: ModelBackend, clock: Clock) -> None:
    backend.save_state("r", plain_state(created_at="2024-04-01T00:00:00+02:00"))
    clock.now += MINUTE
    backend.save_state("r", plain_state(created_at=START, updated_at=START - DAY))
    assert loaded(backend)["created_at"] == datetime(2024, 3, 31, 22, tzinfo=UTC)
    assert loaded(backend)["updated_at"] == row(backend)["updated_at"] == START - DAY
    backend.save_state("r", plain_state(updated_at=None))
    assert loaded(backend)["updated_at"] == clock.now


def test_model_returns_fresh_objects_and_captures_arguments(backend: ModelBackend) -> None:
    context: dict[str, Any] = {"a": [1]}
    backend.save_state("r", plain_state(pipeline_context=context, metadata=context))
    context["a"].append(2)
    loaded(backend)["pipeline_context"]["a"].append(3)
    row(backend)["metadata"]["a"].append(4)
    assert loaded(backend)["pipeline_context"] == row(backend)["metadata"] == {"a": [1]}


@pytest.mark.parametrize("way", INVALID_STATES)
def test_model_refuses_invalid_states_and_writes_nothing(backend: ModelBackend, way: str) -> None:
    backend.save_state("r", plain_state())
    with pytest.raises(InvalidStateError) as caught:
        backend.save_state("r", INVALID_STATES[way]())
    assert str(caught.value.path).startswith("$")
    assert loaded(backend)["revision"] == 1


def test_model_forgets_a_run_that_only_had_snapshots(backend: ModelBackend) -> None:
    backend.save_state("only", plain_state())
    backend.delete_state("only")
    assert backend.get_run_details("only") is None
    with pytest.raises(RunNotFoundError):
        backend.save_run_end("only", {})

    backend.save_state("more", plain_state(status="paused", total_steps=3))
    backend.persist_evaluation("more", 1)
    before = row(backend, "more")
    backend.delete_state("more")
    assert difference(row(backend, "more"), before | {"revision": 0}) is None  # paused: the last snapshot's
    assert backend.delete_run("more") is True
    assert backend.delete_run("more") is False
    assert backend.list_evaluations() == []


# Runs


def test_model_row_of_a_run_that_said_nothing(backend: ModelBackend) -> None:
    backend.save_run_start({"run_id": "r"})
    [listed] = backend.list_runs()
    expected: dict[str, Any] = dict.fromkeys(ROW_KEYS)
    expected |= {"run_id": "r", "pipeline_id": "unknown", "pipeline_name": "unknown", "pipeline_version": "latest"}
    expected |= {"status": "running", "current_step_index": 0, "total_steps": 0, "metadata": {}, "revision": 0}
    expected |= {"created_at": START, "updated_at": START, "start_time": START, "is_background_task": False}
    assert difference(listed, expected) is None
    assert difference(row(backend), {**expected, "final_context": None}) is None


def test_model_lays_records_over_the_snapshot_until_the_next_save(backend: ModelBackend) -> None:
    backend.save_state("r", plain_state(total_steps=1, error_message="snapshot", metadata={"from": "snapshot"}))
    backend.save_run_end("r", {"total_steps": 2, "error_message": None})
    assert (row(backend)["total_steps"], row(backend)["error_message"]) == (2, None)
    assert row(backend)["metadata"] == {"from": "snapshot"}
    backend.save_state("r", plain_state(error_message="again"))
    assert (row(backend)["total_steps"], row(backend)["error_message"]) == (2, "again")
    assert row(backend)["metadata"] == {}
    backend.save_run_start({"run_id": "r", "total_steps": None})
    assert row(backend)["total_steps"] == 0


def test_model_effective_status(backend: ModelBackend) -> None:
    backend.save_run_start({"run_id": "r"})
    backend.save_state("r", plain_state(status="paused"))
    backend.save_run_end("r", {"status": "completed"})
    assert row(backend)["status"] == "paused"
    assert row(backend)["end_time"] is None
    backend.delete_state("r")
    assert row(backend)["status"] == "completed"
    assert row(backend)["end_time"] == row(backend)["updated_at"]
    backend.save_run_start({"run_id": "r"})
    assert row(backend)["status"] == "completed"  # a repetition changes only what it contains


def test_model_fixes_each_part_of_the_identity_once(backend: ModelBackend) -> None:
    backend.save_run_start({"run_id": "r", "pipeline_id": "id", "pipeline_version": "latest"})
    assert row(backend)["pipeline_name"] == "id"
    backend.save_state("r", plain_state(pipeline_id="other", pipeline_name="name", pipeline_version="2"))
    backend.save_run_start({"run_id": "r", "pipeline_name": "late", "pipeline_version": "3"})
    assert [row(backend)[f"pipeline_{part}"] for part in ("id", "name", "version")] == ["id", "name", "2"]
    assert loaded(backend)["pipeline_id"] == "other"
    assert backend.count_runs(pipeline_id="id", pipeline_name="name") == 1
    assert backend.count_runs(pipeline_id="other") == 0


def test_model_end_of_an_unknown_run(backend: ModelBackend) -> None:
    with pytest.raises(RunNotFoundError):
        backend.save_run_end("r", {"status": "completed"})
    backend.save_spans("r", [{"span_id": "s"}])
    with pytest.raises(RunNotFoundError):
        backend.save_run_end("r", {})
    with pytest.raises(InvalidStateError):
        backend.save_run_end("r", {"status": "done"})


def test_model_keeps_other_keys_of_records_for_the_details_alone(backend: ModelBackend) -> None:
    backend.save_run_start({"run_id": "r", "mine": {"a": 1.0}, "revision": 7, "cost_usd": 1})
    backend.save_run_end("r", {"mine": [-0.0], "final_context": {}, "cost_usd": 2, "start_time": START - DAY})
    extra = {key: value for key, value in row(backend).items() if key not in ROW_KEYS}
    assert difference(extra, {"final_context": {}, "mine": [-0.0], "cost_usd": 1}) is None
    assert (row(backend)["total_cost"], row(backend)["revision"], row(backend)["start_time"]) == (2.0, 0, START)
    assert list(backend.list_runs()[0]) == ROW_KEYS


def test_model_start_time_is_another_name_of_created_at(backend: ModelBackend) -> None:
    backend.save_run_start({"run_id": "r", "start_time": START - DAY})
    assert row(backend)["created_at"] == START - DAY
    backend.save_run_start({"run_id": "s", "start_time": "2024-05-01 14:00+02", "created_at": START})
    with pytest.raises(InvalidStateError):
        backend.save_run_start({"run_id": "t", "start_time": START, "created_at": START + MINUTE})


def test_model_shows_what_a_column_cannot_hold_as_replacement_characters(backend: ModelBackend) -> None:
    backend.save_state("r", plain_state(error_message="a\x00\ud83d\ude00\U0001f600"))
    assert row(backend)["error_message"] == "a\ufffd\ufffd\ufffd\U0001f600"
    assert loaded(backend)["error_message"] == "a\x00\ud83d\ude00\U0001f600"


def test_model_background_by_field_or_metadata(backend: ModelBackend) -> None:
    backend.save_run_start({"run_id": "field", "is_background_task": True})
    backend.save_run_start({"run_id": "key", "metadata": {"is_background_task": True}})
    backend.save_run_start({"run_id": "both", "is_background_task": False, "metadata": {"is_background_task": 1}})
    assert ids(backend.list_background_tasks()) == ["key", "field"]
    assert backend.count_runs(is_background_task=False) == 1


# Steps


def test_model_steps_are_appended_replaced_and_ordered(backend: ModelBackend) -> None:
    for index, name, record_id in ((1, "b", None), (0, "a", "x"), (0, "a2", None), (0, "a3", "x")):
        backend.save_step_result({"run_id": "r", "step_name": name, "step_index": index, "record_id": record_id})
    assert [step["step_name"] for step in backend.list_run_steps("r")] == ["a3", "a2", "b"]
    assert backend.list_run_steps("unknown") == []


def test_model_step_has_every_key_and_synonyms_under_the_first_name(backend: ModelBackend) -> None:
    given = {"run_id": "r", "step_name": "a", "step_index": 0, "cost": 1, "cost_usd": None, "tokens": 3, "mine": "\x00"}
    backend.save_step_result(given)
    expected = {
        "step_name": "a", "step_index": 0, "status": "completed", "output": None, "raw_response": None, "cost_usd": 1,
        "token_counts": 3, "execution_time_ms": None, "created_at": START, "step_run_id": None, "record_id": None,
        "start_time": None, "end_time": None, "input": None, "error": None, "mine": "\x00", "run_id": "r",
    }  # fmt: skip
    assert difference(backend.list_run_steps("r"), [expected], ordered=False) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"cost": 1, "cost_usd": 1.0},
        {"step_index": -1},
        {"step_index": True},
        {"token_counts": 1.5},
        {"status": ""},
        {"step_name": None},
        {"record_id": ""},
        {"created_at": "today"},
        {"cost": "1"},
    ],
)
def test_model_refuses_wrong_steps(backend: ModelBackend, wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidStateError):
        backend.save_step_result({"run_id": "r", "step_name": "a", "step_index": 0} | wrong)
    assert backend.get_run_details("r") is None


def test_model_adds_costs_exactly(backend: ModelBackend) -> None:
    for cost in (1e16, 1, -1e16, 0.1):
        backend.save_step_result({"run_id": "r", "step_name": "a", "step_index": 0, "cost_usd": cost})
    assert row(backend)["total_cost"] == 1.1
    backend.save_run_start({"run_id": "r", "total_cost": 7})
    assert row(backend)["total_cost"] == 7.0
    backend.save_run_end("r", {"total_cost": None})
    assert row(backend)["total_cost"] == 1.1


def test_model_placeholder_is_seen_in_details_only(backend: ModelBackend, clock: Clock) -> None:
    step = {"run_id": "r", "step_name": "a", "step_index": 0}
    backend.save_step_result(step | {"created_at": START - DAY})
    assert (row(backend)["created_at"], row(backend)["updated_at"]) == (START - DAY, START - DAY)
    backend.save_step_result(step | {"created_at": START - 2 * DAY})
    assert row(backend)["updated_at"] == START - DAY
    assert backend.list_runs() == backend.iter_runs() == []
    assert backend.count_runs() == backend.get_workflow_stats()["total_workflows"] == 0
    backend.delete_state("r")
    backend.save_run_start({"run_id": "r", "created_at": START - 9 * DAY})
    assert row(backend)["created_at"] == START - 9 * DAY
    assert ids(backend.list_runs()) == ["r"]
    assert len(backend.list_run_steps("r")) == 2


# Lists


def test_model_lists_newest_first_ties_by_id_descending(backend: ModelBackend) -> None:
    for run_id, age in (("a", 1), ("A", 0), ("b", 0), ("caf\u00e9", 0), ("cafe\u0301", 0)):
        backend.save_run_start({"run_id": run_id, "created_at": START - age * DAY})
    newest = ["caf\u00e9", "cafe\u0301", "b", "A", "a"]
    assert ids(backend.list_runs()) == ids(backend.iter_runs(page_size=1)) == newest
    assert ids(backend.list_runs(offset=3)) == ["A", "a"]
    assert ids(backend.list_runs(limit=1, offset=1)) == ["cafe\u0301"]
    assert backend.list_runs(limit=0) == backend.list_runs(offset=9) == []


@pytest.mark.parametrize("number", [-1, True, 1.0, "1"])
def test_model_refuses_wrong_pages(backend: ModelBackend, number: Any) -> None:
    with pytest.raises(InvalidStateError):
        backend.list_runs(limit=number)
    with pytest.raises(InvalidStateError):
        backend.list_workflows(offset=number)
    with pytest.raises(InvalidStateError):
        backend.list_evaluations(limit=number)
    with pytest.raises(InvalidStateError):
        backend.iter_runs(page_size=number if number != 1 else 0)


def test_model_all_filters_hold_and_bounds_are_strict(backend: ModelBackend) -> None:
    backend.save_run_start({"run_id": "a", "parent_run_id": "p", "metadata": {"k": [1, {"x": "y"}]}})
    backend.save_run_start({"run_id": "b", "created_at": START - DAY, "updated_at": START + DAY})
    assert ids(backend.list_runs(metadata_filter={"k": [{"x": "y"}]}, parent_run_id="p")) == ["a"]
    assert ids(backend.list_runs(created_after=START - DAY)) == ["a"]
    assert ids(backend.list_runs(created_before="2024-05-01T12:00Z")) == ["b"]
    assert ids(backend.list_runs(updated_after=START)) == ["b"]
    assert backend.list_runs(updated_before=START) == []
    assert backend.count_runs("running", "unknown", {}) == 2
    refused: list[dict[str, Any]] = [{"status": "done"}, {"metadata_filter": []}, {"metadata_filter": {"a": "\x00"}}]
    for wrong in refused:
        with pytest.raises(InvalidStateError):
            backend.count_runs(**wrong)
    with pytest.raises(InvalidStateError):
        backend.list_runs(is_background_task=1)


# Administration


def test_model_statistics(backend: ModelBackend) -> None:
    old = {"created_at": START - DAY - MINUTE}
    backend.save_run_start({"run_id": "a", "execution_time_ms": 1, "is_background_task": True} | old)
    backend.save_run_start({"run_id": "b", "execution_time_ms": 2.5, "status": "failed", "created_at": START - DAY})
    backend.save_run_start({"run_id": "c", "status": "failed"})
    expected = {
        "total_workflows": 3,
        "status_counts": {"running": 1, "failed": 2},
        "recent_workflows_24h": 2,
        "average_execution_time_ms": 1.75,
        "background_status_counts": {"running": 1},
    }
    assert difference(backend.get_workflow_stats(), expected, ordered=False) is None


def test_model_failed_inside_the_window_last_updated_first(backend: ModelBackend) -> None:
    for run_id, age in (("a", 2), ("b", 1), ("c", 1), ("d", 0)):
        failed = {"run_id": run_id, "status": "failed", "updated_at": START - age * DAY, "is_background_task": True}
        backend.save_run_start(failed | {"parent_run_id": "d"} if run_id == "c" else failed)
    assert ids(backend.get_failed_workflows()) == ["d", "c", "b"]
    assert ids(backend.get_failed_workflows(hours_back=0)) == ["d"]
    assert (
        ids(backend.get_failed_workflows(1e300)) == ids(backend.get_failed_workflows(10**400)) == ["d", "c", "b", "a"]
    )
    assert ids(backend.get_failed_background_tasks("d")) == ["c"]
    for wrong in (-1, float("nan"), float("inf"), True, "24", None):
        with pytest.raises(InvalidStateError):
            backend.get_failed_workflows(wrong)  # type: ignore[arg-type]


def test_model_removes_whole_runs_that_are_old_in_both_ways(backend: ModelBackend) -> None:
    long_ago = {"created_at": START - 40 * DAY, "updated_at": START - 40 * DAY}
    backend.save_run_start({"run_id": "old"} | long_ago)
    backend.save_run_start({"run_id": "updated"} | long_ago | {"updated_at": START - 30 * DAY})
    backend.save_run_start({"run_id": "done", "status": "completed"} | long_ago)
    for run_id in ("old", "stray", "updated"):
        step_at = START - (31 if run_id == "stray" else 40) * DAY
        backend.save_step_result({"run_id": run_id, "step_name": "a", "step_index": 0, "created_at": step_at})
    assert backend.cleanup_old_workflows(statuses=[]) == 0
    assert backend.cleanup_old_workflows(statuses={"completed"}) == 1
    assert backend.cleanup_old_workflows(30.0) == 2
    assert ids(backend.list_runs()) == ["updated"]
    assert backend.list_run_steps("old") == []
    for wrong in ("failed", ["done"], 1):
        with pytest.raises(InvalidStateError):
            backend.cleanup_old_workflows(statuses=wrong)
    with pytest.raises(InvalidStateError):
        backend.cleanup_old_workflows(-0.5)


def test_model_fails_stale_background_tasks(backend: ModelBackend, clock: Clock) -> None:
    backend.save_state("saved", plain_state(is_background_task=True))
    backend.save_run_start({"run_id": "recorded", "is_background_task": True})
    backend.save_state("foreground", plain_state())
    clock.now += DAY
    assert backend.cleanup_stale_background_tasks() == 0
    clock.now += MINUTE
    assert backend.cleanup_stale_background_tasks() == 2
    assert loaded(backend, "saved")["revision"] == 2
    for run_id in ("saved", "recorded"):
        assert row(backend, run_id)["status"] == "failed"
        assert row(backend, run_id)["background_error"]
        assert row(backend, run_id)["updated_at"] == clock.now
    assert row(backend, "foreground")["status"] == "running"


def test_model_system_state_and_evaluations(backend: ModelBackend, clock: Clock) -> None:
    assert backend.get_system_state("k") is None
    backend.set_system_state("k", None)
    backend.set_system_state("k", {"a": (1, 2.0)})
    expected = {"key": "k", "value": {"a": [1, 2.0]}, "updated_at": START}
    assert difference(backend.get_system_state("k"), expected) is None

    backend.persist_evaluation("a", 1, "first \ud800")
    backend.persist_evaluation("a", 0.5, step_name="s", metadata={"nan": float("nan")})
    backend.persist_evaluation("b", 2)
    clock.now -= MINUTE
    backend.persist_evaluation("c", 3)
    assert [(each["run_id"], each["score"]) for each in backend.list_evaluations()] == [
        ("b", 2.0), ("a", 0.5), ("a", 1.0), ("c", 3.0),
    ]  # fmt: skip
    assert difference(backend.list_evaluations(run_id="a", limit=1), [
        {"run_id": "a", "step_name": "s", "score": 0.5, "feedback": None, "metadata": {"nan": float("nan")},
         "created_at": START},
    ]) is None  # fmt: skip
    for wrong in (float("nan"), True, "1", None):
        with pytest.raises(InvalidStateError):
            backend.persist_evaluation("d", wrong)  # type: ignore[arg-type]
    assert backend.get_run_details("d") is None
