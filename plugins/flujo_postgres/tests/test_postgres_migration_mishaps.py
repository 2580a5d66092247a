"""Is a file that would do harm refused before it does, and does an accident leave nothing behind?"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from original_system import TABLES
from postgres_migrations import (
    INDEX,
    NO_BREAK,
    Children,
    index_states,
    leases,
    recorded,
    until,
    versions,
    waiting,
    with_files,
    write,
    writer,
)
from postgres_support import Place, in_loop
from test_postgres_original import make, random_rows

from flujo_core.errors import FlujoStateError, MigrationError
from flujo_core.migrations import parse_migration
from flujo_postgres import PostgresBackend, schema
from flujo_postgres.concurrently import index_of
from flujo_postgres.connection import Connections
from flujo_postgres.queries import quoted
from flujo_postgres.refused import check, check_repeatable

pytest_plugins = ["postgres_support", "postgres_migrations"]


async def refused(backend: PostgresBackend, match: str) -> str:
    async with asyncio.timeout(10):
        with pytest.raises(MigrationError, match=match) as caught:
            await backend.migrate()
    assert type(caught.value) is MigrationError
    assert NO_BREAK.fullmatch(str(caught.value))
    await backend.shutdown()
    return str(caught.value)


# --- what is refused before it runs -----------------------------------------------------------------------------------

TO_CLIENT = (
    "COPY counted FROM STDIN",
    "COPY counted (amount) FROM STDIN WITH (FORMAT csv)",
    "copy /* from '/tmp/x' */ counted to stdout",
    "COPY (SELECT '/tmp' AS \"FROM '\") TO STDOUT",
)
OF_SESSION = (
    "SET lock_timeout = 0",
    "SET SESSION lock_timeout = 0",
    'SET "lock_timeout" = 0',
    "-- SET LOCAL\nset role nobody",
    "SET SESSION AUTHORIZATION nobody",
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "SET TIME ZONE UTC",
    "RESET ALL",
    "RESET lock_timeout",
)


@pytest.mark.parametrize("statement", [*TO_CLIENT, *OF_SESSION])
@in_loop
async def test_what_would_hang_or_outlive_the_file_is_refused(place: Place, tmp_path: Path, statement: str) -> None:
    wanted = "COPY from or to the client" if statement in TO_CLIENT else "write SET LOCAL"
    folder = write(tmp_path / "mine", _001_bad=f"CREATE TABLE counted (amount INT);\n{statement}")
    await refused(with_files(place, folder), rf"migration 001_bad has .*{wanted}")
    assert await place.fetch("SELECT to_regclass('counted')") == [(None,)]
    assert await versions(place, "deployment") == []
    write(folder, _001_bad=f"-- transaction=false\n{statement} -- {{schema}}")
    await refused(with_files(place, folder), wanted)


def test_what_is_not_refused() -> None:
    check(
        (
            "COPY counted FROM '/data/from stdin' -- FROM STDIN",
            "COPY counted FROM PROGRAM 'cat stdin' WITH (DELIMITER E'\\' FROM STDIN')",
            "COPY (SELECT $a$ TO STDOUT $a$) TO '/tmp/x'",
            "SET LOCAL lock_timeout = 0",
            "SET CONSTRAINTS ALL DEFERRED",
            "SET TRANSACTION READ WRITE",
            "UPDATE counted SET amount = 1",
        ),
        "it",
    )


def test_which_statements_may_run_again() -> None:
    for accepted in (
        "CREATE UNIQUE INDEX CONCURRENTLY i ON t (a)",
        "-- why\ndrop index concurrently if exists i",
        "REINDEX TABLE CONCURRENTLY t",
        "REINDEX (VERBOSE) INDEX CONCURRENTLY i",
        "REINDEX (CONCURRENTLY, VERBOSE) TABLE t",
        "VACUUM (ANALYZE) t",
        "ANALYZE",
        "REFRESH MATERIALIZED VIEW CONCURRENTLY v",
        "ALTER TYPE \"My s\".kind ADD VALUE IF NOT EXISTS 'x'",
    ):
        check_repeatable(accepted, "it")
    for other in (
        "CREATE INDEX i ON t (a)",
        "DROP INDEX CONCURRENTLY i",
        "REINDEX TABLE t",
        "ALTER TYPE kind ADD VALUE 'x'",
        "INSERT INTO t SELECT 1",
        "CALL vacuum()",
        "ALTER TABLE t ADD c INT -- VACUUM",
    ):
        with pytest.raises(MigrationError, match=r"it has transaction=false.*only these.*REINDEX … CONCURRENTLY"):
            check_repeatable(other, "it")


@in_loop
async def test_a_statement_that_may_not_run_twice_does_not_run_once(place: Place, tmp_path: Path) -> None:
    await place.backend().migrate()
    await place.fetch("CREATE TABLE counted (amount INT)")
    folder = write(tmp_path / "mine", _001_more="-- transaction=false\nINSERT INTO {schema}.counted VALUES (1)")
    await refused(with_files(place, folder), "001_more has transaction=false.*CREATE INDEX CONCURRENTLY")
    assert await place.fetch("SELECT FROM counted") == []


# --- what a file does to its session ----------------------------------------------------------------------------------


@in_loop
async def test_what_a_file_does_to_its_session_ends_with_it(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []
    real = Connections.open

    async def open_(self: Any) -> None:
        await real(self)
        opened.append(self._pool)

    monkeypatch.setattr(Connections, "open", open_)
    hidden = "SELECT set_config('lock_timeout', '1ms', false), set_config('application_name', 'changed', false)"
    folder = write(tmp_path / "mine", _001_hidden=f"{hidden};\nCREATE TEMPORARY TABLE workflow_state (x INT)")
    async with with_files(place, folder, pool_max_size=1) as backend:
        assert await backend.list_runs() == []
        [pool] = opened
        assert await pool.fetchval("SELECT current_setting('lock_timeout')") == "0"
        assert await pool.fetchval("SELECT current_setting('application_name')") == "flujo"
        assert await pool.fetchval("SELECT to_regclass('pg_temp.workflow_state')") is None
    left = "SELECT pid FROM pg_stat_activity WHERE application_name = 'changed' AND datname = current_database()"
    await until(lambda: nothing(place, left))


async def nothing(place: Place, statement: str) -> bool:
    return not await place.fetch(statement)


@contextlib.asynccontextmanager
async def role(place: Place, *grants: str) -> AsyncIterator[str]:
    name = f"r_{secrets.token_hex(4)}"
    await place.fetch(f"CREATE ROLE {name} LOGIN PASSWORD 'x'")
    for grant in grants:
        await place.fetch(f"GRANT {grant} TO {name}")
    try:
        yield name
    finally:
        await place.fetch(f"DROP OWNED BY {name}")
        await place.fetch(f"DROP ROLE {name}")


def as_role(place: Place, name: str) -> Place:
    parts = urlsplit(place.uri)
    return place.at(parts._replace(netloc=f"{name}:x@{parts.hostname}:{parts.port}").geturl())


@pytest.mark.parametrize("what", ["ROLE", "SESSION AUTHORIZATION"])
@in_loop
async def test_the_record_is_written_by_who_began_the_file(place: Place, tmp_path: Path, what: str) -> None:
    await place.backend().migrate()
    async with role(place, f"USAGE, CREATE ON SCHEMA {place.schema}") as name:
        folder = write(
            tmp_path / "mine",
            _001_as=f"SET LOCAL {what} {name};\nCREATE TABLE counted (amount INT);\nSET LOCAL search_path = nowhere",
        )
        await with_files(place, folder).migrate()
        assert await versions(place, "deployment") == [1]
        query = "SELECT tableowner::text FROM pg_tables WHERE tablename = 'counted' AND schemaname = $1"
        [(owner,)] = await place.fetch(query, place.schema)
        assert owner == name


@in_loop
async def test_a_role_that_was_set_for_the_login_is_kept(place: Place, tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", _001_one="CREATE TABLE counted (amount INT)")
    await place.backend().migrate()
    async with role(place, f"USAGE, CREATE ON SCHEMA {place.schema}") as owner, role(place, owner) as login:
        await place.fetch(f"GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA {place.schema} TO {owner}")
        await place.fetch(f"ALTER ROLE {login} SET role = '{owner}'")
        await place.fetch(f"ALTER ROLE {login} NOINHERIT")
        await with_files(as_role(place, login), folder).migrate()
        assert await versions(place, "deployment") == [1]


@in_loop
async def test_a_connection_of_a_pooler_is_who_it_was(place: Place) -> None:
    await place.backend().migrate()
    connection = await place.connect()
    async with role(place, f"USAGE, CREATE ON SCHEMA {place.schema}") as name:
        step = parse_migration("001_as.sql", f"SELECT set_config('role', '{name}', false)", "deployment")
        where = schema.Place("here", place.schema, 60)
        expected = await schema.read_applied(connection, where)
        assert await schema.migrate(connection, where, step, expected) == "applied"
        assert await connection.fetchval("SELECT current_user = session_user")
        await connection.close()


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE flujo_schema_versions RENAME TO mine",
        "DELETE FROM flujo_schema_versions",
        "UPDATE flujo_schema_versions SET min_code = 99 WHERE version = 2",
        "UPDATE flujo_schema_versions SET checksum = 'x' WHERE version = 1",
        "INSERT INTO flujo_deployment_versions (version, checksum) VALUES (2, 'x')",
        "ALTER TABLE flujo_schema_versions DROP COLUMN duration_ms",
        "CREATE RULE mine AS ON INSERT TO flujo_deployment_versions DO INSTEAD NOTHING",
    ],
)
@in_loop
async def test_a_file_leaves_the_records_alone(place: Place, tmp_path: Path, statement: str) -> None:
    await place.backend().migrate()
    before = await recorded(place)
    folder = write(tmp_path / "mine", _001_bad=f"CREATE TABLE counted (amount INT);\n{statement}")
    await refused(with_files(place, folder), "001_bad (changed what records the migrations; it was undone|failed and)")
    assert await recorded(place) == before
    assert await place.fetch("SELECT to_regclass('counted')") == [(None,)]


# --- a step outside of a transaction ----------------------------------------------------------------------------------


class Ran:
    """How often a statement was run in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
        self.count = 0
        real = asyncpg.Connection.execute

        async def execute(connection: Any, statement: str, *values: Any, **options: Any) -> Any:
            result = await real(connection, statement, *values, **options)
            self.count += part in statement
            return result

        monkeypatch.setattr(asyncpg.Connection, "execute", execute)


@in_loop
async def test_a_statement_that_is_done_is_not_repeated_for_its_record(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await place.backend().migrate()
    folder = write(tmp_path / "mine", _001_vacuum="-- transaction=false\nVACUUM {schema}.workflow_state")
    await with_files(place, write(tmp_path / "none", _001_vacuum="SELECT 1")).migrate()
    await place.fetch("DELETE FROM flujo_deployment_versions")
    monkeypatch.setattr(schema, "_PATIENCE", 0.05)
    ran = Ran(monkeypatch, "VACUUM")
    async with writer(place, "LOCK flujo_deployment_versions IN SHARE MODE"):
        task = asyncio.create_task(with_files(place, folder, migration_lock_wait=0).migrate())
        await until(lambda: waiting(place, "INSERT INTO"))
        await asyncio.sleep(0.5)
        assert not task.done()
    assert len((await task).steps) == 1
    assert ran.count == 1
    assert await leases(place) == 0


@in_loop
async def test_one_that_is_cancelled_before_its_record_is_only_recorded_later(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await place.backend().migrate()
    await with_files(place, write(tmp_path / "none", _001_index="SELECT 1")).migrate()
    await place.fetch("DELETE FROM flujo_deployment_versions")
    folder = write(tmp_path / "mine", _001_index=INDEX)
    ran = Ran(monkeypatch, "CREATE INDEX")
    async with writer(place, "LOCK flujo_deployment_versions IN SHARE MODE"):
        task = asyncio.create_task(with_files(place, folder).migrate())
        await until(lambda: waiting(place, "INSERT INTO"))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert len((await with_files(place, folder, migration_lock_wait=0).migrate()).steps) == 1
    assert ran.count == 1
    assert await leases(place) == 0


@pytest.mark.parametrize("table", ["workflow_state", "other"])
@in_loop
async def test_an_index_of_others_is_not_taken_for_the_steps(place: Place, tmp_path: Path, table: str) -> None:
    await place.backend().migrate()
    await place.fetch("CREATE TABLE other (amount INT)")
    column = "amount" if table == "other" else "run_id"
    await place.fetch(f"CREATE INDEX idx_task ON {table} ({column})")
    folder = write(tmp_path / "mine", _001_index=INDEX)
    for _ in range(2):
        await refused(with_files(place, folder), "001_index failed: .*already exists")
        assert await versions(place, "deployment") == []
        assert await leases(place) == 0
    assert await index_states(place) == [True]
    if table == "other":
        write(folder, _001_index=INDEX.replace("CONCURRENTLY", "CONCURRENTLY IF NOT EXISTS"))
        await refused(with_files(place, folder), "an index idx_task already, of another table")


@in_loop
async def test_an_invalid_index_of_another_table_stays(place: Place, tmp_path: Path) -> None:
    await place.backend().migrate()
    await place.fetch("CREATE TABLE other (amount INT)")
    await place.fetch("INSERT INTO other VALUES (1), (1)")
    with pytest.raises(asyncpg.UniqueViolationError):
        await place.fetch("CREATE UNIQUE INDEX CONCURRENTLY idx_task ON other (amount)")
    await refused(with_files(place, write(tmp_path / "mine", _001_index=INDEX)), "already exists")
    assert await index_states(place) == [False]


@in_loop
async def test_an_index_of_a_table_in_another_schema(place: Place, children: Children, tmp_path: Path) -> None:
    await place.backend().migrate()
    other = f'Else "{place.schema}"'
    name = quoted(other)
    await place.fetch(f"CREATE SCHEMA {name}")
    await place.fetch(f'CREATE TABLE {name}."Counted" (amount INT)')
    statement = f'CREATE INDEX CONCURRENTLY idx ON ONLY {name} . /* here */ "Counted" (amount) -- {{schema}}'
    folder = write(tmp_path / "mine", _001_index=f"-- transaction=false\n{statement}")
    # Killed with the index built, then run again.
    children.begin(place, folder, stop_before="DELETE FROM")
    await asyncio.to_thread(children.hears, "stopped")
    await asyncio.to_thread(children.kill)
    assert await index_states(Place(place.uri, name), "idx") == [True]
    assert len((await with_files(place, folder).migrate()).steps) == 1
    assert await versions(place, "deployment") == [1]
    await place.fetch(f"DROP SCHEMA {name} CASCADE")


def test_of_which_table_an_index_is() -> None:
    for text, table in (
        ("t (a)", '"t"'),
        ("ONLY T(a)", '"t"'),
        ('S . /* x */ "T ""q"""(a)', '"s"."T ""q"""'),
        ('"a.b".c USING btree (a)', '"a.b"."c"'),
    ):
        index = index_of(f"CREATE INDEX CONCURRENTLY i ON {text}")
        assert index is not None
        assert index.table == table


# --- what messages say ------------------------------------------------------------------------------------------------


@in_loop
async def test_a_limit_of_the_files_own_is_not_called_ours(place: Place, tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", _001_slow="SET LOCAL statement_timeout = 50;\nSELECT pg_sleep(30)")
    said = await refused(with_files(place, folder), r"001_slow was stopped: .*statement timeout; it was undone")
    assert "migration_timeout" not in said


@in_loop
async def test_a_statement_by_itself_has_its_time(place: Place, tmp_path: Path) -> None:
    await place.backend().migrate()
    folder = write(tmp_path / "mine", _001_slow=INDEX)
    async with writer(place):
        began = time.monotonic()
        await refused(
            with_files(place, folder, migration_timeout=0.3),
            r"001_slow did not end within 0\.3 s \(migration_timeout\); run",
        )
        assert time.monotonic() - began < 5
        assert await leases(place) == 0


@in_loop
async def test_a_role_is_told_which_right_it_lacks(place: Place, tmp_path: Path) -> None:
    async with role(place) as name:
        nobody = as_role(place, name)
        await refused(nobody.backend(), "permission denied.*the role needs CREATE on the database")
        await place.fetch(f"CREATE SCHEMA {place.schema}")
        await place.fetch(f"GRANT USAGE ON SCHEMA {place.schema} TO {name}")
        await refused(nobody.backend(), f"permission denied.*the role needs CREATE on the schema {place.schema}")
        # Tables that are there need no right to create.
        folder = write(tmp_path / "mine", _001_index=INDEX)
        await with_files(place, folder).migrate()
        await place.fetch("DELETE FROM flujo_deployment_versions")
        await place.fetch(f"GRANT ALL ON ALL TABLES IN SCHEMA {place.schema} TO {name}")
        with pytest.raises(FlujoStateError, match="001_index failed: must be owner"):
            await with_files(nobody, folder).migrate()


# --- taking over ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "wanted"),
    [
        ("CREATE VIEW seen AS SELECT run_id FROM workflow_state", r"view .*seen"),
        ("CREATE MATERIALIZED VIEW seen AS SELECT run_id FROM steps", r"materialized view .*seen"),
        ("CREATE TABLE mine (run_id TEXT REFERENCES runs (run_id))", r"constraint mine_run_id_fkey on table .*mine"),
        ("CREATE TABLE mine (a INT); CREATE RULE also AS ON INSERT TO mine DO DELETE FROM spans", r"table .*mine"),
    ],
)
@in_loop
async def test_what_refers_to_the_originals_tables_is_named(place: Place, statement: str, wanted: str) -> None:
    await make(place, {table: [] for table in TABLES}, *statement.split("; "), keys=True)
    said = await refused(place.backend(), f"nothing was changed: {wanted} refers to its tables; drop it first")
    assert place.schema in said
    await place.fetch(f"DROP {'TABLE mine' if 'mine' in said else said.split(': ')[-1].split(' refers')[0]} CASCADE")
    backend = place.backend()
    assert (await backend.migrate()).original
    await backend.shutdown()


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ("UPDATE runs SET updated_at = '0044-03-15 BC' WHERE run_id = 'run00001'", r"runs, run 'run00001': updated_at"),
        ("UPDATE steps SET created_at = '12345-01-01'", r"steps, run 'run.*': created_at is 12345"),
        ("UPDATE system_state SET updated_at = '0044-03-15 BC'", r"system_state, key '.*': updated_at is 0044-03-15"),
    ],
)
@in_loop
async def test_a_time_beyond_the_calendar_is_named(place: Place, change: str, wanted: str) -> None:
    await make(place, random_rows(3), change)
    await refused(place.backend(), f"nothing was changed: {wanted}.*outside 0001-01-02 to 9999-12-30")
