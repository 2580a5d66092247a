"""Do the server's own operators, planner and JSON types agree with what the library means (M1, M4, G3)?"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from postgres_support import Place, in_loop, state

import flujo_conformance.containment
import flujo_core.containment
from flujo_core.codec import encode_plain
from flujo_core.store import RunQuery
from flujo_postgres import queries as sql

pytest_plugins = ["postgres_support"]

# --- M1: containment ----------------------------------------------------------------------------------------------

SCALARS: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        1.0,
        0.0,
        -0.0,
        0.1,
        1e300,
        5e-324,
        -5e-324,
        1e16,
        10**16,
        2**53,
        2.0**53,
        2**53 + 1,
    ),
    *(
        10**400,
        -(10**400),
        1.7976931348623157e308,
        123456789.123456789,
        "",
        "a",
        "1",
        "é",
        "true",
        "a" * 300,
        "\\",
        '"',
    ),
]
KEYS = ["a", "b", "a.b", "", "$", "é"]


def value(draw: random.Random, depth: int) -> Any:
    kind = draw.random()
    if depth == 0 or kind < 0.4:
        return draw.choice(SCALARS[: draw.choice([6, len(SCALARS)])])
    if kind < 0.7:
        return [value(draw, depth - 1) for _ in range(draw.randrange(4))]
    return {draw.choice(KEYS): value(draw, depth - 1) for _ in range(draw.randrange(4))}


def part(draw: random.Random, whole: Any) -> Any:
    """Something that the whole contains, most of the time."""
    if draw.random() < 0.08:
        return value(draw, 1)
    if isinstance(whole, dict):
        return {key: part(draw, item) for key, item in whole.items() if draw.random() < 0.7}
    if isinstance(whole, list):
        items = [part(draw, draw.choice(whole)) for _ in range(draw.randrange(len(whole) + 2)) if whole]
        draw.shuffle(items)
        return items
    return whole


@pytest.mark.parametrize(
    "contains", [flujo_core.containment.contains, flujo_conformance.containment.contains], ids=["core", "kit"]
)
@in_loop
async def test_m1_containment_is_that_of_the_server(place: Place, contains: Callable[[Any, Any], bool]) -> None:
    draw = random.Random(20)
    pairs: list[tuple[dict[str, Any], dict[str, Any]]] = []
    while len(pairs) < 8000:
        whole = {draw.choice(KEYS): value(draw, 3) for _ in range(draw.randrange(1, 4))}
        other = part(draw, whole) if draw.random() < 0.7 else {draw.choice(KEYS): value(draw, 2)}
        if isinstance(other, dict):
            pairs.append((whole, other))
    rows = await place.fetch(
        "SELECT a @> b FROM unnest($1::text[]::jsonb[], $2::text[]::jsonb[]) AS pairs (a, b)",
        [encode_plain(whole) for whole, _ in pairs],
        [encode_plain(other) for _, other in pairs],
    )
    answers = [row[0] for row in rows]
    assert 2000 < sum(answers) < 6500, "both answers are tried"
    different = [pair for pair, answer in zip(pairs, answers, strict=True) if contains(*pair) != answer]
    assert different == []


@in_loop
async def test_m1_a_list_filter_finds_what_the_operator_finds(place: Place) -> None:
    """Through the whole library, with numbers that other databases round."""
    documents: dict[str, dict[str, Any]] = {
        "float": {"n": 1.0},
        "int": {"n": 1},
        "true": {"n": True},
        "text": {"n": "1"},
        "big": {"n": 2**53 + 1},
        "huge": {"n": 10**400},
        "tiny": {"n": 5e-324},
        "zero": {"n": -0.0},
        "list": {"n": [1, [2, 3], {"a": None}]},
        "deep": {"n": {"a.b": {"$": []}}},
    }
    async with place.backend() as backend:
        for name, metadata in documents.items():
            await backend.save_state(name, state(0, metadata=metadata))
        for wanted in [*documents.values(), {}, {"n": 0}, {"n": []}, {"n": {}}, {"n": 2**53}, {"n": [[3]]}, {"n": [3]}]:
            expected = {
                name for name, metadata in documents.items() if flujo_core.containment.contains(metadata, wanted)
            }
            for limit in (None, 20):
                assert {
                    run["run_id"] for run in await backend.list_runs(metadata_filter=wanted, limit=limit)
                } == expected
            assert await backend.count_runs(metadata_filter=wanted) == len(expected)


# --- M4: plans ----------------------------------------------------------------------------------------------------

ROWS = 20_000
FILL = """
INSERT INTO workflow_state (run_id, operation_id, listed, pipeline_id, pipeline_name, pipeline_version, status,
    created_at, updated_at, current_step_index, total_steps, is_background_task, parent_run_id, revision, run, metadata)
SELECT 'run' || n, '\\x00', true, 'p' || n % 50, 'P' || n % 50, '1',
    (ARRAY['completed', 'completed', 'completed', 'running', 'failed'])[1 + n % 5], now() - n * interval '1 minute',
    now() - n * interval '1 minute', 0, 0, n % 100 = 0, CASE WHEN n % 10 = 0 THEN 'parent' || n % 1000 END, 1, '{}',
    jsonb_build_object('batch', 'b' || n % 2000, 'half', n % 2, 'user', jsonb_build_object('id', n % 5000))
FROM generate_series(1, $1) n
"""
NOW = datetime.now(UTC)
QUERIES: dict[str, tuple[RunQuery, str]] = {
    "newest": (RunQuery(limit=50), "idx_workflow_state_created_at"),
    "status": (RunQuery(statuses=("running",), limit=50), "idx_workflow_state_status"),
    "pipeline_name": (RunQuery(pipeline_name="P7", limit=50), "idx_workflow_state_pipeline_name"),
    "pipeline_id": (RunQuery(pipeline_id="p7", limit=50), "idx_workflow_state_pipeline_id"),
    "parent": (RunQuery(parent_run_id="parent500", limit=50), "idx_workflow_state_parent_run_id"),
    "next page": (RunQuery(after=(NOW, "run9000"), limit=50), "idx_workflow_state_created_at"),
    "failed": (RunQuery(statuses=("failed",), updated_from=NOW, order="updated_at", limit=50), "idx_workflow_state"),
    "rare metadata": (RunQuery(metadata_filter={"batch": "b77"}, limit=50), "idx_workflow_state_metadata_gin"),
    "nested metadata": (RunQuery(metadata_filter={"user": {"id": 77}}), "idx_workflow_state_metadata_gin"),
    "metadata and status": (
        RunQuery(metadata_filter={"batch": "b77"}, statuses=("running",), limit=50),
        "idx_workflow_state_metadata_gin",
    ),
    "metadata, next page": (
        RunQuery(metadata_filter={"batch": "b77"}, after=(NOW, "run9000"), limit=50),
        "idx_workflow_state_metadata_gin",
    ),
}


@pytest.fixture(scope="module")
def filled(database: str) -> Place:
    place = Place(database, "filled")

    async def fill() -> None:
        async with place.backend():
            pass
        await place.fetch(FILL, ROWS)
        await place.fetch("VACUUM ANALYZE workflow_state")

    asyncio.run(fill())
    return place


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for below in plan.get("Plans", ()) for node in nodes(below))]


@pytest.mark.parametrize("name", QUERIES)
@in_loop
async def test_m4_lists_use_an_index_on_the_tenth_call_as_on_the_first(filled: Place, name: str) -> None:
    query, index = QUERIES[name]
    connection = await filled.connect()
    try:
        selects = [sql.select_runs(query)]
        if query.metadata_filter:
            selects.append(sql.select_newest(query))
        for number, (text, values) in enumerate(selects):
            await connection.execute(sql.CUSTOM_PLANS if query.metadata_filter else "BEGIN")
            if query.metadata_filter and number == 0:
                # A walk through the newest runs is ruled out also where it looks cheap, as it does among many rows.
                await connection.execute("SET LOCAL enable_sort = off")
            statement = await connection.prepare("EXPLAIN (FORMAT JSON) " + sql.in_schema(text, filled.schema))
            for _ in range(10):
                [[plan]] = await statement.fetch(*values)
                found = nodes(json.loads(plan)[0]["Plan"])
                assert "Seq Scan" not in {node["Node Type"] for node in found}
                if number == 0:
                    used = {node.get("Index Name", "") for node in found}
                    assert any(one.startswith(index) for one in used), used
            await connection.execute("ROLLBACK")
    finally:
        await connection.close()


@in_loop
async def test_m4_a_count_by_status_reads_nothing_but_the_index(filled: Place) -> None:
    text, values = sql.select_runs(RunQuery(statuses=("failed",)), count=True)
    connection = await filled.connect()
    try:
        statement = await connection.prepare("EXPLAIN (FORMAT JSON) " + sql.in_schema(text, filled.schema))
        for _ in range(10):
            [[plan]] = await statement.fetch(*values)
            assert "Index Only Scan" in {node["Node Type"] for node in nodes(json.loads(plan)[0]["Plan"])}
    finally:
        await connection.close()


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("lock", ["locked", "waited"])
@in_loop
async def test_s8_a_batch_finds_its_runs_by_their_ids(filled: Place, lock: str, mode: str) -> None:
    """However many there are, and for the tables of records too once they are large."""
    connection = await filled.connect()
    try:
        await connection.execute(f"SET plan_cache_mode = {mode}; SET enable_seqscan = off")
        records = ("cut_history", "history", "steps", "spans", "evaluations")
        names = (lock, "wiped", *sql.WIPED, *sql.UPDATES.values(), "inserted", *records)
        statement = await connection.prepare(f"EXPLAIN (FORMAT JSON) {sql.in_schema(sql.batch(names), filled.schema)}")
        values = [
            "1000" if kind.name == "text" else ["run7"] if kind.name == "text[]" else []
            for kind in statement.get_parameters()
        ]
        [[plan]] = await statement.fetch(*values)
        assert "Seq Scan" not in {node["Node Type"] for node in nodes(json.loads(plan)[0]["Plan"])}
        await connection.execute("SET enable_seqscan = on")
        [[plan]] = await statement.fetch(*values)
        found = nodes(json.loads(plan)[0]["Plan"])
        assert "workflow_state" not in {node.get("Relation Name") for node in found if node["Node Type"] == "Seq Scan"}
    finally:
        await connection.close()


@in_loop
async def test_m4_the_backend_sends_these_queries(filled: Place) -> None:
    """What the plans above are of is what `list_runs` asks: the index answers for it."""
    counted = (
        "SELECT seq_scan, (SELECT sum(idx_scan) FROM pg_stat_user_indexes i WHERE i.relid = t.relid "
        "AND indexrelname = 'idx_workflow_state_metadata_gin') FROM pg_stat_user_tables t "
        f"WHERE schemaname = '{filled.schema}' AND relname = 'workflow_state'"
    )
    [[sequential, by_index]] = await filled.fetch(counted)
    async with filled.backend() as backend:
        # None matches, so that no document is read.
        for number in range(12):
            assert await backend.list_runs(metadata_filter={"batch": f"none{number}"}, limit=10) == []
    # A session that ends tells what it did, a little later.
    for _ in range(200):
        [[later, used]] = await filled.fetch(counted)
        if used >= by_index + 12:
            break
        await asyncio.sleep(0.02)
    assert used >= by_index + 12
    assert later == sequential


# --- G3: what lies in the columns ---------------------------------------------------------------------------------


@in_loop
async def test_g3_every_stored_document_casts_to_jsonb(place: Place) -> None:
    odd: list[Any] = [
        float("nan"), float("inf"), -float("inf"), "\0", "a\0b", "\ud800", "\udc00\ud800", "\ud83d\ude00", 10**4000,
        -(10**4299), 5e-324, 1e300, -0.0, {"\0": 1, "\ud800": {"\0\ud800": [float("nan")]}}, "\\u0000", "\x7f\x01",
        {"$flujo": 1}, {"$": "nan"}, {"__flujo__": [1]},
    ]  # fmt: skip
    node = {"span_id": "a", "name": "n", "attributes": {"odd": odd}, "children": []}
    async with place.backend() as backend:
        for number, one in enumerate(odd):
            run_id = f"run{number}"
            await backend.save_run_start({"run_id": run_id, "odd": one, "error_message": "\0\ud800"})
            await backend.save_state(
                run_id, state(one, step_history=[one, odd], last_step_output=one, error_message="\0")
            )
            await backend.save_step_result({"run_id": run_id, "step_name": "s", "step_index": 0, "output": one})
            await backend.set_system_state(run_id, one)
            loaded = await backend.load_state(run_id)
            assert loaded is not None
            assert repr(loaded["pipeline_context"]["value"]) == repr(one)
        await backend.save_trace("run0", node)
        await backend.persist_evaluation("run0", 1.0, feedback="\0\ud800", metadata={"a": "b"})
    columns = await place.fetch(
        "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = $1 "
        "AND data_type IN ('json', 'jsonb')",
        place.schema,
    )
    assert len(columns) >= 9
    for table, column in columns:
        [[count]] = await place.fetch(f"SELECT count({column}::jsonb::text) FROM {table}")
        assert count > 0, f"{table}.{column}"
    [[texts]] = await place.fetch(
        "SELECT count(DISTINCT snapshot->'value'->>'pipeline_name') FROM workflow_state WHERE run->>'format' = '1'"
    )
    assert texts == 1


@in_loop
async def test_m4_matches_beyond_the_newest_runs_are_found_too(place: Place) -> None:
    """The newest runs are looked through first; what they hold is the answer only if it fills the page."""
    newest, sql.NEWEST = sql.NEWEST, 10  # type: ignore[misc]
    try:
        async with place.backend() as backend:

            def contained(wanted: dict[str, Any], n: int) -> bool:
                metadata = {"seventh": n % 7 == 0, "new": n >= 35}
                return all(metadata[key] is value for key, value in wanted.items())

            for number in range(40):
                created = datetime(2026, 1, 1, 0, number, tzinfo=UTC)
                metadata = {"seventh": number % 7 == 0, "new": number >= 35}
                await backend.save_state(f"r{number:02}", state(created_at=created, metadata=metadata))
            for wanted in ({"seventh": True}, {"new": True}, {"seventh": True, "new": True}, {"new": 1}):
                rows = await backend.list_runs(metadata_filter=wanted)
                numbers = [n for n in reversed(range(40)) if contained(wanted, n)]
                assert [row["run_id"] for row in rows] == [f"r{n:02}" for n in numbers]
                for limit in range(1, 8):
                    for offset in range(8):
                        page = await backend.list_runs(metadata_filter=wanted, limit=limit, offset=offset)
                        assert page == rows[offset : offset + limit]
                pages = [row async for row in backend.iter_runs(metadata_filter=wanted, page_size=2)]
                assert pages == rows
    finally:
        sql.NEWEST = newest  # type: ignore[misc]
