"""What do migrations make of files, for which roles, in which schema, and for old and new code at once?"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from postgres_migrations import INDEX, NO_BREAK, dump, leases, recorded, versions, with_files, write
from postgres_support import LATEST, OWN, VERSIONS, Place, in_loop, state

from flujo_core.errors import (
    FlujoStateError,
    MigrationError,
    SchemaMissingError,
    SchemaOutdatedError,
    SchemaTooNewError,
    UnsupportedStorageError,
)
from flujo_core.migrations import parse_migration
from flujo_postgres import PostgresBackend
from flujo_postgres.store import PostgresStore

pytest_plugins = ["postgres_support", "postgres_migrations"]


@pytest.fixture
def newer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """From its call on, opening a backend is what newer code does: Flujo's own migrations, and the files given."""

    def become(**files: str) -> None:
        package = f"newer_{secrets.token_hex(4)}"
        own = {str(step): step.sql for step in OWN}
        write(tmp_path / package, **own, **files)
        (tmp_path / package / "__init__.py").touch()
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(PostgresStore, "migrations", package)

    return become


# --- statements that fail ---------------------------------------------------------------------------------------------


@in_loop
async def test_a_statement_that_fails_undoes_its_file(place: Place, tmp_path: Path) -> None:
    folder = write(
        tmp_path / "mine",
        _001_fine="CREATE TABLE counted (amount INT PRIMARY KEY)",
        _002_not="INSERT INTO counted VALUES (4711);\nCREATE TABLE more ();\nINSERT INTO counted VALUES (4711)",
    )
    with pytest.raises(MigrationError, match=r"002_not failed and was undone: duplicate key.*mend") as caught:
        await with_files(place, folder).migrate()
    assert NO_BREAK.fullmatch(str(caught.value))
    assert "4711" not in str(caught.value)
    assert await place.fetch("SELECT FROM counted") == []
    assert ("more",) not in {(name,) for _, name, _, _ in await dump(place)}
    assert await versions(place, "deployment") == [1]
    # The application doesn't start with half of its schema, and says why.
    with pytest.raises(MigrationError, match="002_not"):
        await with_files(place, folder).list_runs()
    with pytest.raises(SchemaOutdatedError, match="002_not"):
        await with_files(place, folder, auto_migrate=False).list_runs()


@in_loop
async def test_a_step_has_its_time(place: Place, tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", _001_slow="SELECT pg_sleep(30)")
    await place.backend().migrate()
    began = time.monotonic()
    with pytest.raises(MigrationError, match=r"001_slow did not end within 0\.3 s \(migration_timeout\)") as caught:
        await with_files(place, folder, migration_timeout=0.3).migrate()
    assert time.monotonic() - began < 5
    assert "it was undone" in str(caught.value)
    assert NO_BREAK.fullmatch(str(caught.value))
    assert await versions(place, "deployment") == []
    assert await leases(place) == 0


# --- the deployment's own files ---------------------------------------------------------------------------------------

GUIDE = """
BEGIN;
ALTER TABLE workflow_state ADD COLUMN custom_field TEXT DEFAULT 'mine';
INSERT INTO flujo_schema_versions (version, applied_at)
VALUES (3, NOW())
ON CONFLICT (version) DO NOTHING;
COMMIT;
"""
ADDED = "ALTER TABLE workflow_state ADD COLUMN added INT;\n"
NEXT = LATEST + 1
ADDING = f"{NEXT:03}_added"
"""The migration of newer code."""


def guide(number: int) -> str:
    """The guide's file as it would be with another number."""
    return GUIDE.replace("VALUES (3,", f"VALUES ({number},")


@pytest.mark.parametrize("number", [3, NEXT], ids=["which is there", "which comes later"])
@in_loop
async def test_a_file_of_the_guide_is_the_deployments_beside_flujos_of_its_number(
    place: Place, tmp_path: Path, newer: Callable[..., None], number: int
) -> None:
    file, text = f"{number:03}_custom_field", guide(number)
    folder = write(tmp_path / "mine", **{file: text})
    report = await with_files(place, folder).migrate()
    assert [(step.series, str(step)) for step in report.steps] == [
        *(("flujo", str(step)) for step in OWN),
        ("deployment", file),
    ]
    assert report.to_version == LATEST
    [row] = await place.fetch("SELECT * FROM flujo_deployment_versions")
    assert (row["version"], row["name"], row["min_code"]) == (number, "custom_field", 0)
    assert row["checksum"] == parse_migration(f"{file}.sql", text).checksum
    assert row["duration_ms"] > 0
    assert row["applied_at"] is not None
    assert [row[0] for row in await place.fetch("SELECT version FROM flujo_schema_versions ORDER BY 1")] == VERSIONS
    async with with_files(place, folder, auto_migrate=False) as backend:
        await backend.save_state("run", state(0))
    newer(**{ADDING: ADDED})
    report = await with_files(place, folder).migrate()
    assert [(step.series, str(step)) for step in report.steps] == [("flujo", ADDING)]
    assert await versions(place) == [*VERSIONS, NEXT]
    assert await versions(place, "deployment") == [number]
    assert await place.fetch("SELECT custom_field, added FROM workflow_state") == [("mine", None)]


@in_loop
async def test_a_version_written_by_hand_is_none_of_flujos(place: Place, newer: Callable[..., None]) -> None:
    async with place.backend() as backend:
        await backend.save_state("run", state(0))
    connection = await place.connect()
    await connection.execute(guide(NEXT))
    await connection.close()
    status = await place.backend().schema_status()
    assert (status.state, status.current_version, status.pending) == ("current", LATEST, ())
    for auto_migrate in (True, False):
        async with place.backend(auto_migrate=auto_migrate) as backend:
            await backend.save_state("run", state(1))
    newer(**{ADDING: ADDED})
    assert [str(step) for step in (await place.backend().migrate()).steps] == [ADDING]
    [row] = await place.fetch("SELECT * FROM flujo_schema_versions WHERE version = $1", NEXT)
    assert row["checksum"] == parse_migration(f"{ADDING}.sql", ADDED).checksum
    assert (await place.backend().schema_status()).current_version == NEXT


@in_loop
async def test_tables_of_others_are_not_taken_for_ours(place: Place) -> None:
    await place.fetch(f"CREATE SCHEMA {place.schema}")
    await place.fetch("CREATE TABLE flujo_schema_versions (version INT, installed_on TEXT)")
    for auto_migrate in (True, False):
        with pytest.raises(UnsupportedStorageError, match="flujo_schema_versions that this library did not make"):
            await place.backend(auto_migrate=auto_migrate).list_runs()


def fresh(place: Place) -> Place:
    return Place(place.uri, f"t_{secrets.token_hex(4)}")


@pytest.mark.parametrize("by_hand", [False, True])
@in_loop
async def test_the_script_does_what_the_run_does(place: Place, tmp_path: Path, by_hand: bool) -> None:
    folder = write(tmp_path / "mine", _003_custom_field=GUIDE, _004_index=INDEX)
    migrated = fresh(place)
    await with_files(migrated, folder).migrate()
    if by_hand:
        await place.backend().migrate(target_version=1)
        await place.fetch("INSERT INTO flujo_schema_versions (version, applied_at) VALUES (2, 'yesterday')")
    script = await with_files(place, folder).migration_script()
    connection = await asyncpg.connect(place.uri)
    try:
        for statement in script:
            await connection.execute(statement)
    finally:
        await connection.close()
    assert (await with_files(place, folder).schema_status()).state == "current"
    assert await recorded(place) == await recorded(migrated)
    assert [row for row in await dump(migrated) if "flujo_migration_leases" not in row] == await dump(place)
    assert (await with_files(place, folder).migrate()).steps == ()


# --- who may do what --------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def role(place: Place, *grants: str) -> AsyncIterator[Place]:
    """The place as a role sees it that may do only this."""
    name, parts = f"r_{secrets.token_hex(4)}", urlsplit(place.uri)
    await place.fetch(f"CREATE ROLE {name} LOGIN PASSWORD 'x'")
    for grant in grants:
        await place.fetch(f"GRANT {grant} TO {name}")
    try:
        yield place.at(parts._replace(netloc=f"{name}:x@{parts.hostname}:{parts.port}").geturl())
    finally:
        await place.fetch(f"DROP OWNED BY {name}")
        await place.fetch(f"DROP ROLE {name}")


async def relations(place: Place) -> set[tuple[str, str]]:
    """Every table, index, sequence and type that is no system's, wherever it is."""
    rows = await place.fetch(
        "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"
    )
    return {(row[0], row[1]) for row in rows}


@in_loop
async def test_without_auto_migrate_no_right_to_create_is_needed(place: Place, tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", _003_custom_field=GUIDE, _004_index=INDEX)
    # With the right to write in the tables that are there, and to nothing else.
    everything = f"SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {place.schema}"
    await place.backend().migrate(target_version=1)
    usage = f"USAGE ON SCHEMA {place.schema}"
    async with role(place, usage, everything) as worker:
        backend = with_files(worker, folder, auto_migrate=False)
        with pytest.raises(SchemaOutdatedError, match=rf"version 1.*needs {LATEST}.*flujo migrate"):
            await backend.list_runs()
        await place.backend().migrate()
        with pytest.raises(SchemaOutdatedError, match=r"lacks .*003_custom_field, 004_index"):
            await backend.list_runs()
        with pytest.raises(
            MigrationError, match=r"003_custom_field failed and was undone: permission denied"
        ) as caught:
            await with_files(worker, folder).list_runs()
        assert NO_BREAK.fullmatch(str(caught.value))
    await with_files(place, folder).migrate()
    async with role(place, usage, everything) as worker:
        for auto_migrate in (False, True):
            async with with_files(worker, folder, auto_migrate=auto_migrate) as backend:
                await backend.save_state("run", state(0))
    assert await versions(place) == VERSIONS


@in_loop
async def test_to_look_needs_the_right_to_read(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, begun = asyncpg.Connection.execute, []

    async def execute(connection: Any, statement: str, *values: Any, **options: Any) -> Any:
        begun.extend([statement] if statement.startswith("BEGIN") else [])
        return await real(connection, statement, *values, **options)

    monkeypatch.setattr(asyncpg.Connection, "execute", execute)
    folder = write(tmp_path / "mine", _003_custom_field=GUIDE, _004_index=INDEX)
    everywhere = await relations(place)
    for step in (0, *VERSIONS):
        if step:
            await place.backend().migrate(target_version=step)
        before, rows = await relations(place), await recorded(place)
        grants = [f"USAGE ON SCHEMA {place.schema}", f"SELECT ON ALL TABLES IN SCHEMA {place.schema}"] if step else []
        async with role(place, *grants) as reader:
            user = urlsplit(reader.uri).username
            await place.fetch(f"ALTER ROLE {user} SET default_transaction_read_only = on")
            begun.clear()
            for who in (reader, place):
                backend = with_files(who, folder, auto_migrate=False)
                pending = [*VERSIONS[step:], 3, 4]
                assert [one.version for one in (await backend.schema_status()).pending] == pending
                assert [one.version for one in (await backend.migrate(dry_run=True)).steps] == pending
                assert len(await backend.migration_script()) > len(pending)
                ours = await who.backend(auto_migrate=False).migration_script()
                assert bool(ours) is (step < LATEST)
            assert begun
            assert all("READ ONLY" in statement for statement in begun)
        assert (await relations(place), await recorded(place)) == (before, rows)
    assert everywhere <= await relations(place)


@pytest.mark.parametrize("migrated", [True, False])
@in_loop
async def test_a_role_without_any_right_is_told_so_in_one_line(place: Place, migrated: bool) -> None:
    if migrated:
        await place.backend().migrate()
    async with role(place) as nobody:
        backends = nobody.backend(), nobody.backend(auto_migrate=False)
        calls: list[Callable[[], Awaitable[Any]]] = [backends[0].list_runs, backends[0].migrate, backends[1].list_runs]
        if migrated:
            # Of an empty database it can be told without any right.
            calls += [backends[1].schema_status, backends[1].migration_script]
        for call in calls:
            with pytest.raises(FlujoStateError) as caught:
                await call()
            assert NO_BREAK.fullmatch(str(caught.value))
            missing = isinstance(caught.value, SchemaMissingError) and not migrated
            assert missing or "permission denied" in str(caught.value)


@in_loop
async def test_everything_is_in_the_schema(place: Place, tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", _003_custom_field=GUIDE, _004_index=INDEX)
    before = await relations(place)
    schemas = {row[0] for row in await place.fetch("SELECT nspname FROM pg_namespace")}
    for tenant in (Place(place.uri, "tenant_a"), Place(place.uri, 'Tenant "B"')):
        async with with_files(tenant, folder) as backend:
            await backend.save_state("run", state(tenant.schema))
            await backend.save_step_result({"run_id": "run", "step_name": "s", "step_index": 0})
    made = {(name, relation) for name, relation in await relations(place) - before if not name.startswith("pg_")}
    assert {name for name, _ in made} == {"tenant_a", 'Tenant "B"'}
    for tenant_name in ("tenant_a", 'Tenant "B"'):
        names = {relation for name, relation in made if name == tenant_name}
        assert {
            "flujo_schema_versions", "flujo_deployment_versions", "flujo_migration_leases", "idx_task",
            "workflow_state", "idx_workflow_state_metadata_gin",
        } <= names  # fmt: skip
    after = {row[0] for row in await place.fetch("SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_'")}
    assert after - schemas == {"tenant_a", 'Tenant "B"'}
    for name in ("tenant_a", '"Tenant ""B"""'):
        await place.fetch(f"DROP SCHEMA {name} CASCADE")


# --- old and new code on one database ---------------------------------------------------------------------------------


async def both_work(old: PostgresBackend, new: PostgresBackend, number: int) -> None:
    """Through lone statements and through transactions."""
    for one, other in ((old, new), (new, old)):
        revision = await one.save_state("run", state(number))
        loaded = await other.load_state("run")
        assert loaded is not None
        assert (loaded["revision"], loaded["pipeline_context"]) == (revision, {"value": number})
        await one.save_step_result({"run_id": "run", "step_name": "s", "step_index": number})
        assert {run["run_id"] for run in await other.list_runs(metadata_filter={"a": 1})} == set()
        assert len(await other.list_run_steps("run")) > 0


@in_loop
async def test_old_code_goes_on_with_what_newer_code_says_it_can_use(
    place: Place, newer: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    async with place.backend() as old:
        await old.save_state("run", state(0))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PostgresStore, "migrations", PostgresStore.migrations)
            newer(**{ADDING: ADDED + "CREATE INDEX idx_added ON workflow_state (added)"})
            async with place.backend() as new:
                await both_work(old, new, 1)
                # As the package is a class variable, code that is opened now is old again.
                PostgresStore.migrations = "flujo_postgres.migrations"
                for auto_migrate in (True, False):
                    async with place.backend(auto_migrate=auto_migrate) as restarted:
                        await both_work(restarted, new, 2)
                        assert f"schema version {NEXT}, this code knows {LATEST}" in caplog.text
                        caplog.clear()
                status = await place.backend().schema_status()
                assert (status.state, status.pending) == ("newer", ())
                assert (await place.backend().migrate()).steps == ()
    assert await versions(place) == [*VERSIONS, NEXT]


@in_loop
async def test_old_code_is_refused_where_newer_code_says_so(place: Place, newer: Callable[..., None]) -> None:
    async with place.backend() as old:
        await old.save_state("run", state(0))
    newer(**{ADDING: f"-- min_code={NEXT}\n{ADDED}"})
    async with place.backend() as new:
        await new.save_state("run", state(1))
        PostgresStore.migrations = "flujo_postgres.migrations"
        for auto_migrate in (True, False):
            with pytest.raises(SchemaTooNewError, match=rf"version {NEXT}, this code knows {LATEST}"):
                await place.backend(auto_migrate=auto_migrate).save_state("run", state(2))
        with pytest.raises(SchemaTooNewError):
            await place.backend().migrate()
        assert (await place.backend().schema_status()).state == "too new"
        loaded = await new.load_state("run")
        assert loaded is not None
        assert loaded["revision"] == 2


@in_loop
async def test_old_and_new_code_start_together_on_an_empty_database(place: Place, newer: Callable[..., None]) -> None:
    old = [place.backend() for _ in range(3)]
    tasks = [asyncio.create_task(backend.save_run_start({"run_id": f"o{n}"})) for n, backend in enumerate(old)]
    await asyncio.sleep(0)
    newer(**{ADDING: ADDED})
    new = [place.backend() for _ in range(3)]
    tasks += [asyncio.create_task(backend.save_run_start({"run_id": f"n{n}"})) for n, backend in enumerate(new)]
    await asyncio.gather(*tasks)
    for backend in (*old, *new):
        assert len(await backend.list_runs()) == 6
        await backend.shutdown()
    assert await versions(place) == [*VERSIONS, NEXT]
