"""Does everything work that the guide prints for PostgreSQL?"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from postgres_support import VERSIONS, Place, in_loop

from flujo_core import open_backend
from flujo_core.config import resolve_configuration
from flujo_postgres import PostgresBackend
from flujo_sqlite import SQLiteBackend

pytest_plugins = ["postgres_support"]

STATE = {
    "run_id": "run_123",
    "pipeline_id": "data_processing",
    "pipeline_name": "Data Processing Pipeline",
    "pipeline_version": "1.0.0",
    "current_step_index": 2,
    "pipeline_context": {"input_data": "sample.csv"},
    "status": "running",
    "created_at": datetime.now(UTC),
    "updated_at": datetime.now(UTC),
    "total_steps": 5,
    "metadata": {
        "batch_id": "batch-001",
        "priority": "high",
        "user": {"id": 123, "role": "admin", "name": "x"},
        "tags": ["production", "urgent", "x"],
    },
}


@pytest.fixture
def guide(database: str) -> Iterator[Place]:
    """The schema "public", as in the guide, with the guide's run in it; emptied afterwards."""
    place = Place(database)

    async def save() -> None:
        async with PostgresBackend(database, auto_migrate=True, pool_min_size=1, pool_max_size=10) as backend:
            await backend.save_state("run_123", STATE)

    asyncio.run(save())
    yield place
    asyncio.run(place.fetch("DROP SCHEMA public CASCADE"))
    asyncio.run(place.fetch("CREATE SCHEMA public"))


@pytest.mark.parametrize("version", [18, 16])
def test_d3_the_facade_has_the_backend(version: int) -> None:
    from flujo.state.backends.postgres import PostgresBackend as FacadeBackend

    backend = FacadeBackend(f"postgres://user:password@localhost:54{version}/flujo_db", pool_max_size=5)
    assert isinstance(backend, PostgresBackend)
    assert "user:***@localhost" in repr(backend)


@in_loop
async def test_d1_the_configuration_file_and_the_variables(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FLUJO_STATE_URI", "FLUJO_AUTO_MIGRATE", "FLUJO_CONFIG_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    table = (
        f'[state.postgres]\npool_min_size = 2\npool_max_size = 10\nauto_migrate = false\nschema = "{place.schema}"\n'
    )
    Path("flujo.toml").write_text(f'[state]\nuri = "{place.uri}"\n\n{table}')
    settings: Any = resolve_configuration().settings
    assert (settings.pool_min_size, settings.pool_max_size, settings.auto_migrate) == (2, 10, False)
    monkeypatch.setenv("FLUJO_AUTO_MIGRATE", "true")
    async with open_backend() as backend:
        assert isinstance(backend, PostgresBackend)
        assert await backend.save_state("run_123", STATE) == 1
    Path("flujo.toml").write_text(table)
    monkeypatch.setenv("FLUJO_STATE_URI", place.uri)
    async with open_backend() as backend:
        assert await backend.save_state("run_123", STATE) == 2


@in_loop
async def test_r6_the_basic_usage(guide: Place) -> None:
    async with guide.backend() as backend:
        loaded = await backend.load_state("run_123")
        assert loaded is not None
        assert loaded["metadata"] == STATE["metadata"]
        runs = await backend.list_runs(
            status="running",
            pipeline_name="Data Processing Pipeline",
            limit=10,
            offset=0,
            metadata_filter={"batch_id": "batch-001"},
        )
        assert [run["run_id"] for run in runs] == ["run_123"]
        for wanted, count in (
            ({"batch_id": "batch-001", "priority": "high"}, 1),
            ({"user": {"id": 123, "role": "admin"}, "tags": ["urgent", "production"]}, 1),
            ({"user": {"id": 124}}, 0),
        ):
            assert len(await backend.list_runs(metadata_filter=wanted)) == count


@in_loop
async def test_d5_the_statements_of_the_guide(guide: Place) -> None:
    versions = await guide.fetch("SELECT version, applied_at FROM flujo_schema_versions ORDER BY version")
    assert [row[0] for row in versions] == VERSIONS
    assert len(await guide.fetch("SELECT version FROM flujo_schema_versions WHERE version = 2")) == 1

    [row] = await guide.fetch(
        """
        SELECT
            pipeline_name,
            status,
            COUNT(*) as count,
            AVG(EXTRACT(EPOCH FROM (updated_at - created_at))) as avg_duration_seconds
        FROM workflow_state
        WHERE created_at > NOW() - INTERVAL '7 days'
        GROUP BY pipeline_name, status
        ORDER BY count DESC
        """
    )
    assert (row["pipeline_name"], row["status"], row["count"]) == ("Data Processing Pipeline", "running", 1)
    assert 0 <= row["avg_duration_seconds"] < 1

    [row] = await guide.fetch(
        """
        SELECT run_id, pipeline_name, metadata
        FROM workflow_state
        WHERE metadata @> '{"batch_id": "batch-001"}'::jsonb
        """
    )
    assert (row["run_id"], row["pipeline_name"]) == ("run_123", "Data Processing Pipeline")

    sizes = await guide.fetch(
        """
        SELECT schemaname, tablename, pg_size_pretty(pg_total_relation_size(schemaname||'.'||tablename)) AS size
        FROM pg_tables
        WHERE schemaname = 'public'
        """
    )
    assert {"workflow_state", "flujo_schema_versions"} <= {row["tablename"] for row in sizes}


@in_loop
async def test_d5_the_guides_002_by_hand_before_the_librarys_own(place: Place) -> None:
    backend = place.backend()
    await backend.migrate(target_version=1)
    await place.fetch(
        "CREATE INDEX IF NOT EXISTS idx_workflow_state_metadata_gin ON workflow_state USING GIN (metadata)"
    )
    await place.fetch("INSERT INTO flujo_schema_versions (version, applied_at) VALUES (2, NOW())")
    assert [step.version for step in (await backend.migrate()).steps] == VERSIONS[1:]
    assert await backend.save_state("run_123", STATE) == 1
    await backend.shutdown()


@in_loop
async def test_d5_a_migration_of_the_users_own(guide: Place) -> None:
    """As the guide shows them: an index that may be there, a column, a version of one's own."""
    connection = await guide.connect()
    try:
        async with guide.backend() as backend:  # it goes on while the table changes
            await backend.save_state("run_123", STATE)
            await connection.execute(
                """
                BEGIN;
                CREATE INDEX IF NOT EXISTS idx_workflow_state_metadata_gin ON workflow_state USING GIN (metadata);
                INSERT INTO flujo_schema_versions (version, applied_at)
                VALUES (2, NOW())
                ON CONFLICT (version) DO NOTHING;
                COMMIT;
                """
            )
            await connection.execute(
                """
                BEGIN;
                ALTER TABLE workflow_state ADD COLUMN custom_field TEXT DEFAULT 'mine';
                INSERT INTO flujo_schema_versions (version, applied_at)
                VALUES (3, NOW())
                ON CONFLICT (version) DO NOTHING;
                COMMIT;
                """
            )
            assert await backend.save_state("run_123", {**STATE, "current_step_index": 3}) == 3
            assert await backend.save_state("run_124", {**STATE, "run_id": "run_124"}) == 1
            await backend.save_step_result({"run_id": "run_123", "step_name": "s", "step_index": 0})
    finally:
        await connection.close()
    for auto_migrate in (True, False):
        async with guide.backend(auto_migrate=auto_migrate) as again:
            assert (await again.migrate()).steps == ()
            await again.save_state("run_124", {**STATE, "run_id": "run_124"})
            assert len(await again.list_runs(metadata_filter={"batch_id": "batch-001"})) == 2
    rows = await guide.fetch("SELECT run_id, custom_field FROM workflow_state ORDER BY run_id")
    assert [tuple(row) for row in rows] == [("run_123", "mine"), ("run_124", "mine")]


@in_loop
async def test_s2_the_path_from_sqlite(guide: Place, tmp_path: Path) -> None:
    async with SQLiteBackend(tmp_path / "old.db") as sqlite_backend, guide.backend() as postgres_backend:
        for number in range(5):
            run_id = f"moved{number}"
            saved = {
                **STATE,
                "run_id": run_id,
                "step_history": [number, {"a": float("nan")}],
                "own key": 10**30 + number,
            }
            await sqlite_backend.save_state(run_id, saved)
        runs = await sqlite_backend.list_runs()
        for run in runs:
            state = await sqlite_backend.load_state(run["run_id"])
            assert state is not None
            await postgres_backend.save_state(run["run_id"], state)
        assert len(runs) == 5
        for run in runs:
            old = await sqlite_backend.load_state(run["run_id"])
            new = await postgres_backend.load_state(run["run_id"])
            assert repr(old) == repr(new)
        moved = await postgres_backend.list_runs(metadata_filter={"batch_id": "batch-001"})
        assert [run["run_id"] for run in moved if run["run_id"] != "run_123"] == [run["run_id"] for run in runs]
