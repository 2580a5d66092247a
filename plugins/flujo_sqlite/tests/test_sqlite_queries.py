"""What do calls cost SQLite, which indexes serve them, and does the guide's SQLite section hold as printed?"""

from __future__ import annotations

import asyncio
import random
import re
import shutil
import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest
from sqlite_migrations import LATEST

from flujo_core import open_backend
from flujo_core.store import RunQuery
from flujo_sqlite import SQLiteBackend
from flujo_sqlite import queries as sql
from flujo_sqlite.store import SQLiteStore

Result = TypeVar("Result")
Raw = sqlite3.Connection

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def state(step: int = 0, **more: Any) -> Any:
    return {
        "pipeline_id": "p",
        "pipeline_name": "name",
        "pipeline_version": "1",
        "current_step_index": step,
        **more,
    }


def with_backend(path: Path, use: Callable[[SQLiteBackend], Awaitable[Result]], **settings: Any) -> Result:
    async def main() -> Result:
        async with SQLiteBackend(path, **settings) as backend:
            return await use(backend)

    return asyncio.run(main())


async def in_writer(backend: SQLiteBackend, work: Callable[[Raw], Result]) -> Result:
    writer = cast(SQLiteStore, await backend._store())._writer
    assert writer is not None
    return await writer.run(work)


def rows(path: Path, statement: str) -> list[Any]:
    """What another program sees in the file. Only while this process has it not open."""
    connection = sqlite3.connect(path)
    try:
        return connection.execute(statement).fetchall()
    finally:
        connection.close()


# --- S8: what a save writes -------------------------------------------------------------------------------------------

KIB = "x" * 1024


async def written(backend: SQLiteBackend, history: Sequence[Any]) -> tuple[int, int]:
    """Rows and bytes of the log that saving this history writes."""
    path = backend.path.with_name(f"{backend.path.name}-wal")
    # What the log had is in the file now, and the log begins anew.
    assert (await in_writer(backend, lambda raw: raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()))[0] == 0
    before = await in_writer(backend, lambda raw: raw.total_changes)
    await backend.save_state("r", state(len(history), step_history=list(history)))
    after = await in_writer(backend, lambda raw: raw.total_changes)
    return after - before, path.stat().st_size


def test_s8_an_append_writes_the_entry_and_the_head(tmp_path: Path) -> None:
    async def use(backend: SQLiteBackend) -> list[tuple[int, int]]:
        history: list[Any] = []
        costs = []
        for number in range(300):
            history.append({"number": number, "text": KIB})
            if number % 25:
                await backend.save_state("r", state(number, step_history=history))
            else:
                costs.append(await written(backend, history))
        assert (await in_writer(backend, lambda raw: raw.execute("PRAGMA freelist_count").fetchone()))[0] == 0
        loaded: Any = await backend.load_state("r")
        assert loaded["step_history"] == history
        return costs

    costs = with_backend(tmp_path / "x.db", use, synchronous="normal")
    # The row of the run and one entry, the last time as the first.
    assert {changes for changes, _ in costs[1:]} == {2}
    # A handful of pages, of which rewriting 300 KiB would be 75.
    assert max(size for _, size in costs[6:]) < 14 * 4096
    assert (tmp_path / "x.db").stat().st_size < 3 * 300 * 1100 + 150_000


def test_s8_other_changes_write_what_changed(tmp_path: Path) -> None:
    async def use(backend: SQLiteBackend) -> None:
        history: list[Any] = [{"number": number, "flag": 1} for number in range(100)]
        await written(backend, history)
        assert (await written(backend, history))[0] == 1
        # 1 → True → 1.0 are equal to Python, and three values to us.
        for value in (True, 1.0, 1):
            history[50] = {"number": 50, "flag": value}
            assert (await written(backend, history))[0] == 2
            loaded: Any = await backend.load_state("r")
            assert repr(loaded["step_history"]) == repr(history)
        history[3], history[4] = history[4], history[3]
        assert (await written(backend, history))[0] == 3
        del history[90:]
        assert (await written(backend, history))[0] == 1 + 10
        del history[0]
        # All move up.
        assert (await written(backend, history))[0] == 1 + 89 + 1
        loaded = await backend.load_state("r")
        assert loaded["step_history"] == history

    with_backend(tmp_path / "x.db", use)


def test_s8_two_handles_in_turn_always_load_what_was_saved(tmp_path: Path) -> None:
    chance = random.Random(3)

    def changed(history: list[Any], step: int) -> list[Any]:
        new = list(history)
        match chance.randrange(5):
            case 0 if new:
                new[chance.randrange(len(new))] = {"edited": step}
            case 1 if new:
                del new[chance.randrange(len(new)) :]
            case 2:
                chance.shuffle(new)
            case _:
                new += [{"step": step}] * chance.randrange(1, 4)
        return new

    async def main() -> None:
        async with SQLiteBackend(tmp_path / "x.db") as one, SQLiteBackend(tmp_path / "x.db") as two:
            history: list[Any] = []
            for step in range(80):
                history = changed(history, step)
                writer, reader = (one, two) if chance.random() < 0.5 else (two, one)
                assert await writer.save_state("r", state(step, step_history=history)) == step + 1
                loaded: Any = await reader.load_state("r")
                assert (loaded["current_step_index"], loaded["step_history"]) == (step, history)

    asyncio.run(main())


def test_s8_a_save_costs_the_same_with_many_runs(tmp_path: Path) -> None:
    async def use(backend: SQLiteBackend) -> None:
        alone = await written(backend, [1, 2, 3])
        await asyncio.gather(*(backend.save_state(f"other {number}", state()) for number in range(1000)))
        assert (await written(backend, [1, 2, 3]))[0] <= alone[0]
        assert (await written(backend, [1, 2, 3]))[1] < 14 * 4096

    with_backend(tmp_path / "x.db", use)


# --- M4, R6, R7: plans ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Raw]:
    """A connection to a database with a few hundred runs, as a reader of the store has it."""
    path = tmp_path_factory.mktemp("plans") / "x.db"

    async def fill(backend: SQLiteBackend) -> None:
        chance = random.Random(1)
        saves = [
            backend.save_state(
                f"r{number:04}",
                state(
                    pipeline_id=f"p{number % 5}",
                    pipeline_name=f"n{number % 7}",
                    status=chance.choice(["running", "paused", "completed", "failed"]),
                    metadata={"batch": number % 50, "common": True, "tags": ["a", number % 3]},
                    created_at=NOW + timedelta(minutes=number),
                    is_background_task=number % 9 == 0,
                    parent_run_id=f"r{number // 10:04}" if number % 2 else None,
                ),
            )
            for number in range(400)
        ]
        await asyncio.gather(*saves)

    with_backend(path, fill)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.create_function("flujo_contains", 2, lambda metadata, filter_: True, deterministic=True)
    yield connection
    connection.close()


def plan(raw: Raw, query: RunQuery, terms: Sequence[int] | None = None, *, count: bool = False) -> list[str]:
    statement, values = sql.select_runs(query, sql.terms_of(query) if terms is None else terms, count=count)
    return [row[3] for row in raw.execute(f"EXPLAIN QUERY PLAN {statement}", values)]


AFTER = (NOW, "r0100")

NEWEST_FIRST: dict[str, tuple[RunQuery, str]] = {
    "all": (RunQuery(), "created_at"),
    "all, second page": (RunQuery(after=AFTER), "created_at"),
    "created after": (RunQuery(created_after=NOW), "created_at"),
    "created between": (RunQuery(created_after=NOW, created_before=NOW), "created_at"),
    "status": (RunQuery(statuses=("failed",)), "status"),
    "status, second page": (RunQuery(statuses=("failed",), after=AFTER), "status"),
    "status, created after": (RunQuery(statuses=("failed",), created_after=NOW), "status"),
    "pipeline_name": (RunQuery(pipeline_name="n1"), "pipeline_name"),
    "pipeline_name, second page": (RunQuery(pipeline_name="n1", after=AFTER), "pipeline_name"),
    "pipeline_id": (RunQuery(pipeline_id="p1"), "pipeline_id"),
    "pipeline_id, second page": (RunQuery(pipeline_id="p1", after=AFTER), "pipeline_id"),
    "parent_run_id": (RunQuery(parent_run_id="r0001"), "parent_run_id"),
    "parent_run_id, second page": (RunQuery(parent_run_id="r0001", after=AFTER), "parent_run_id"),
    "created before, second page": (RunQuery(created_before=NOW + timedelta(days=1), after=AFTER), "created_at"),
    "statuses": (RunQuery(statuses=("completed", "failed")), "created_at"),
    "statuses, second page": (RunQuery(statuses=("completed", "failed"), after=AFTER), "created_at"),
    "background": (RunQuery(is_background_task=True), "background"),
    "background, second page": (RunQuery(is_background_task=True, after=AFTER), "background"),
    "background, status": (RunQuery(is_background_task=True, statuses=("running",)), "background_status"),
    "failed lately": (RunQuery(statuses=("failed",), order="updated_at", updated_from=NOW), "updated_at"),
    "updated": (RunQuery(order="updated_at", updated_from=NOW), "updated_at"),
    "updated, second page": (RunQuery(order="updated_at", after=AFTER), "updated_at"),
}


@pytest.mark.parametrize("name", NEWEST_FIRST)
def test_m4_a_newest_first_list_follows_an_index(file: Raw, name: str) -> None:
    query, index = NEWEST_FIRST[name]
    (step,) = plan(file, RunQuery(**{**vars_of(query), "limit": 100}))
    expected = f"w USING INDEX idx_workflow_state_{index}"
    assert re.fullmatch(f"(SEARCH|SCAN) {expected}( .*)?", step)
    if query.after or query.created_after or index not in {"created_at", "updated_at", "background"}:
        # It begins where the answer begins.
        assert step.startswith("SEARCH")
    if query.after:
        assert f"({query.order},run_id)<(?,?)" in step


def vars_of(query: RunQuery) -> dict[str, Any]:
    return {name: getattr(query, name) for name in query.__slots__}


@pytest.mark.parametrize(
    "query",
    [
        RunQuery(pipeline_name="n1", statuses=("failed",)),
        RunQuery(pipeline_name="n1", statuses=("failed",), created_after=NOW, after=AFTER),
        RunQuery(is_background_task=True, parent_run_id="r0001"),
        RunQuery(
            statuses=("completed", "failed", "cancelled"), created_before=NOW, updated_before=NOW, placeholders=True
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("limit", [None, 10])
def test_m4_filters_together_need_no_sort_and_no_whole_table(file: Raw, query: RunQuery, limit: int | None) -> None:
    steps = plan(file, RunQuery(**{**vars_of(query), "limit": limit}))
    assert all("USING INDEX idx_workflow_state_" in step for step in steps)
    assert "TEMP B-TREE" not in " ".join(steps)


METADATA_FILTERS: list[dict[str, Any]] = [
    {"batch": 7},
    {"common": True},
    {"common": True, "batch": 7},
    {"tags": ["a", 2]},
    {"tags": []},
    {"nobody": {"has": "this"}},
]


@pytest.mark.parametrize("wanted", METADATA_FILTERS, ids=str)
@pytest.mark.parametrize("more", [{}, {"statuses": ("failed",)}, {"pipeline_name": "n1"}, {"after": AFTER}], ids=str)
def test_m4_a_metadata_filter_walks_the_runs_of_one_term(
    file: Raw, wanted: dict[str, Any], more: dict[str, Any]
) -> None:
    steps = plan(file, RunQuery(metadata_filter=wanted, limit=50, **more))
    assert steps[0].startswith("SEARCH t USING PRIMARY KEY (term=?")
    if "after" in more:
        assert "(term=? AND (created_at,run_id)<(?,?))" in steps[0]
    assert all(step.startswith(("SEARCH ", "CORRELATED SCALAR SUBQUERY ")) for step in steps)
    assert "TEMP B-TREE" not in " ".join(steps)


@pytest.mark.parametrize(
    "query",
    [
        RunQuery(statuses=("failed",)),
        RunQuery(pipeline_name="n1"),
        *(RunQuery(metadata_filter=f) for f in METADATA_FILTERS),
    ],
    ids=str,
)
def test_m4_a_count_follows_an_index(file: Raw, query: RunQuery) -> None:
    steps = plan(file, query, count=True)
    assert all(step.startswith(("SEARCH ", "CORRELATED SCALAR SUBQUERY ")) for step in steps)


def test_m4_a_count_by_status_reads_nothing_but_the_index(file: Raw) -> None:
    (step,) = plan(file, RunQuery(statuses=("failed",)), count=True)
    assert step.startswith("SEARCH w USING COVERING INDEX idx_workflow_state_status ")


def test_r7_pages_with_a_bound_of_time_leave_nothing_out(tmp_path: Path) -> None:
    async def use(backend: SQLiteBackend) -> None:
        saves = [
            backend.save_state(f"r{number:02}", state(created_at=NOW + timedelta(minutes=number // 4)))
            for number in range(40)
        ]
        await asyncio.gather(*saves)
        before = NOW + timedelta(minutes=7)
        expected = [f"r{number:02}" for number in range(27, -1, -1)]
        for page_size in (1, 3, 4, 100):
            found = [run["run_id"] async for run in backend.iter_runs(created_before=before, page_size=page_size)]
            assert found == expected
        # A page may also begin behind the bound.
        store = await backend._store()
        for after in (before, before + timedelta(days=1)):
            documents = await store.list_runs(RunQuery(created_before=before, after=(after, "r99")))
            assert len(documents) == 28

    with_backend(tmp_path / "x.db", use)


@pytest.mark.parametrize(
    ("statement", "values"),
    [
        (sql.LOAD, ("r", "r")),
        (sql.STORED_RUN, ("r",)),
        (sql.STORED_HISTORY, ("r",)),
        (sql.OLD_TERMS, ("r",)),
        (sql.RUN_DETAILS, ("r",)),
        (sql.DETAILS, ("r",)),
        (sql.STEP_COST, ("r", "record")),
        (sql.LIST_STEPS, ("r",)),
        (sql.SPANS, ("r", None, None)),
        (sql.TRACE, ("r",)),
        (sql.GET_SYSTEM_STATE, ("key",)),
        (sql.COUNT_TERM, (1, 64)),
        (sql.DELETE_TERM, (1, "", "r")),
        (sql.CUT_HISTORY, ("r", 3)),
        (sql.DROP_TRACE_SPANS, ("r",)),
        (sql.EVALUATIONS.format(where=""), (20,)),
        *((statement, ("r",)) for statement in sql.WIPE),
    ],
)
def test_m4_what_is_of_one_run_is_found_by_key(file: Raw, statement: str, values: tuple[Any, ...]) -> None:
    steps = [row[3] for row in file.execute(f"EXPLAIN QUERY PLAN {statement}", values)]
    # SCAN (subquery), and of the evaluations the newest, in the order of their index.
    assert not [step for step in steps if re.match(r"SCAN (?!\(|CONSTANT)(?!.*USING INDEX)", step)]


def test_no_statement_numbers_its_marks() -> None:
    """Python 3.12.0 to 3.12.3 take ``?1`` for a name, and warn."""
    assert not re.search(r"\?[0-9]", Path(sql.__file__).read_text())


def test_m4_the_rarest_term_leads_and_costs_no_look_at_the_others(file: Raw) -> None:
    from flujo_sqlite.store import _rarest_first

    for wanted, runs in (
        ({"common": True, "batch": 7}, 8),
        ({"common": True, "nobody": 1}, 0),
        ({"tags": ["a", 2]}, 133),
    ):
        terms = sql.terms_of(RunQuery(metadata_filter=wanted))
        assert len(terms) >= 2
        for order in (terms, terms[::-1]):
            counts = [file.execute(sql.COUNT_TERM, (term, -1)).fetchone()[0] for term in _rarest_first(file, order)]
            assert counts == sorted(counts)
            assert counts[0] == runs


def test_m4_terms_follow_the_metadata(tmp_path: Path) -> None:
    async def use(backend: SQLiteBackend) -> None:
        count = "SELECT count(*) FROM workflow_metadata_terms"
        await backend.save_state("r", state(metadata={"a": 1, "tags": ["x", "y"]}))
        with_terms = await in_writer(backend, lambda raw: raw.execute(count).fetchone()[0])
        before = await in_writer(backend, lambda raw: raw.total_changes)
        # Unchanged metadata writes no term, a changed scalar two.
        await backend.save_state("r", state(metadata={"a": 1, "tags": ["x", "y"]}))
        assert await in_writer(backend, lambda raw: raw.total_changes) == before + 1
        await backend.save_state("r", state(metadata={"a": 2, "tags": ["y", "x"]}))
        assert await in_writer(backend, lambda raw: raw.total_changes) == before + 1 + 1 + 2
        assert await in_writer(backend, lambda raw: raw.execute(count).fetchone()[0]) == with_terms
        await backend.save_state("r", state())
        assert await backend.list_runs(metadata_filter={"tags": []}) == []
        await backend.delete_state("r")
        assert await in_writer(backend, lambda raw: raw.execute(count).fetchone()[0]) == 0

    with_backend(tmp_path / "x.db", use)


# --- the guide's section on SQLite, in the order of its text ----------------------------------------------------------


def guide_state(now: datetime) -> Any:
    return {
        "run_id": "run_123",
        "pipeline_id": "data_processing",
        "pipeline_name": "Data Processing Pipeline",
        "pipeline_version": "1.0.0",
        "current_step_index": 2,
        "pipeline_context": {"input_data": "sample.csv"},
        "status": "running",
        "created_at": now,
        "updated_at": now,
        "total_steps": 5,
    }


def test_d2_guide_the_constructor_takes_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with_backend(Path("workflow_state.db"), lambda backend: backend.save_state("r", state()))
    with_backend(tmp_path / "var" / "lib" / "workflow_state.db", lambda backend: backend.save_state("r", state()))
    assert (tmp_path / "workflow_state.db").is_file()
    assert (tmp_path / "var" / "lib" / "workflow_state.db").is_file()


@pytest.mark.parametrize(
    "form", ["sqlite:///./workflow_state.db", "sqlite:///workflow_state.db", "sqlite:///{folder}/workflow_state.db"]
)
@pytest.mark.parametrize("source", ["argument", "environment", "file"])
def test_d1_guide_uris_name_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, source: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FLUJO_STATE_URI", raising=False)
    monkeypatch.delenv("FLUJO_CONFIG_PATH", raising=False)
    uri = form.replace("{folder}", str(tmp_path))
    if source == "environment":
        monkeypatch.setenv("FLUJO_STATE_URI", uri)
    elif source == "file":
        Path("flujo.toml").write_text(f'[state]\nuri = "{uri}"  # where the state is\n')

    async def main() -> None:
        async with open_backend(uri) if source == "argument" else open_backend() as backend:
            assert await backend.save_state("r", state()) == 1

    asyncio.run(main())
    assert (tmp_path / "workflow_state.db").is_file()


def test_s1_guide_save_load_and_list_with_filters(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    given = guide_state(now)

    async def use(backend: SQLiteBackend) -> None:
        await backend.save_state("run_123", given)
        loaded: Any = await backend.load_state("run_123")
        assert {name: loaded[name] for name in given} == given
        assert loaded["revision"] == 1
        filters: Any = {
            "status": "running",
            "pipeline_name": "Data Processing Pipeline",
            "limit": 10,
            "offset": 0,
        }
        assert await backend.list_runs(**filters, metadata_filter={"batch_id": "batch-001"}) == []
        await backend.save_state(
            "run_124", {**given, "run_id": "run_124", "metadata": {"batch_id": "batch-001", "n": 1}}
        )
        (row,) = await backend.list_runs(**filters, metadata_filter={"batch_id": "batch-001"})
        assert (row["run_id"], row["metadata"], row["created_at"]) == (
            "run_124",
            {"batch_id": "batch-001", "n": 1},
            now,
        )
        assert [row["run_id"] for row in await backend.list_runs(**filters)] == ["run_124", "run_123"]
        assert await backend.list_runs(status="failed", limit=50) == []
        assert len(await backend.list_runs(limit=100, offset=0)) == 2

    with_backend(tmp_path / "workflow_state.db", use)


def test_d5_guide_migrations_are_automatic(tmp_path: Path) -> None:
    path = tmp_path / "existing_workflow_state.db"
    with_backend_unopened(path, lambda backend: backend.migrate(1))
    assert [row[0] for row in rows(path, "SELECT version FROM flujo_schema_versions")] == [1]
    assert with_backend(path, lambda backend: backend.save_state("r", state(metadata={"a": 1}))) == 1
    assert [row[0] for row in rows(path, "SELECT version FROM flujo_schema_versions")] == [*range(1, LATEST + 1)]
    assert len(with_backend(path, lambda backend: backend.list_runs(metadata_filter={"a": 1}))) == 1


def with_backend_unopened(path: Path, use: Callable[[SQLiteBackend], Awaitable[Result]]) -> Result:
    async def main() -> Result:
        return await use(SQLiteBackend(path))

    return asyncio.run(main())


def test_g9_guide_wal_mode_is_on_without_configuration(tmp_path: Path) -> None:
    with_backend(tmp_path / "x.db", lambda backend: backend.save_state("r", state()))
    assert rows(tmp_path / "x.db", "PRAGMA journal_mode") == [("wal",)]


def test_m4_guide_the_indexes_exist_under_their_names(file: Raw) -> None:
    found = {
        name: (table, first)
        for name, table, first in file.execute(
            "SELECT m.name, m.tbl_name, i.name FROM sqlite_master m, pragma_index_info(m.name) i "
            "WHERE m.type = 'index' AND i.seqno = 0"
        )
    }
    for column in ("status", "pipeline_id", "created_at", "updated_at"):
        assert found[f"idx_workflow_state_{column}"] == ("workflow_state", column)


def test_a3_guide_cleanup_removes_what_is_old_and_keeps_the_rest(tmp_path: Path) -> None:
    async def use(backend: SQLiteBackend) -> None:
        now = datetime.now(UTC)
        for age in (100, 91, 89, 1):
            moment = now - timedelta(days=age)
            await backend.save_state(f"{age} days", state(created_at=moment, updated_at=moment, metadata={"age": age}))
        assert await backend.cleanup_old_workflows(days_old=90) == 2
        assert [row["run_id"] for row in await backend.list_runs()] == ["1 days", "89 days"]
        assert await backend.cleanup_old_workflows(days_old=30) == 1

    with_backend(tmp_path / "x.db", use)
    for table in ("workflow_state", "workflow_metadata_terms"):
        assert rows(tmp_path / "x.db", f"SELECT DISTINCT run_id FROM {table}") == [("1 days",)]


def test_d2_guide_a_copy_of_the_file_is_a_backup(tmp_path: Path) -> None:
    path, backup = tmp_path / "workflow_state.db", tmp_path / "workflow_state_backup_20260301.db"

    async def fill(backend: SQLiteBackend) -> None:
        await asyncio.gather(*(backend.save_state(f"r{number}", state(number)) for number in range(50)))

    with_backend(path, fill)
    shutil.copy(path, backup)
    with_backend(path, lambda backend: backend.delete_run("r7"))
    loaded: Any = with_backend(backup, lambda backend: backend.load_state("r7"))
    assert loaded["current_step_index"] == 7
    assert len(with_backend(backup, lambda backend: backend.list_runs())) == 50
    assert rows(backup, "PRAGMA integrity_check") == [("ok",)]


def test_d2_guide_the_size_of_the_file_is_the_size_of_the_database(tmp_path: Path) -> None:
    path = tmp_path / "workflow_state.db"
    with_backend(path, lambda backend: backend.save_state("r", state(large="x" * 3_000_000)))
    assert 3 <= path.stat().st_size / 1_000_000 < 4


def test_r6_guide_runs_listed_in_one_file_are_saved_in_another(tmp_path: Path) -> None:
    async def main() -> None:
        async with SQLiteBackend(tmp_path / "dev.db") as source, SQLiteBackend(tmp_path / "prod.db") as target:
            for number in range(5):
                await source.save_state(f"r{number}", state(number, step_history=[{"entry": number}]))
            for run in await source.list_runs():
                found: Any = await source.load_state(run["run_id"])
                await target.save_state(run["run_id"], found)
            assert await target.list_runs() == await source.list_runs()
            for number in range(5):
                assert await target.load_state(f"r{number}") == await source.load_state(f"r{number}")

    asyncio.run(main())
