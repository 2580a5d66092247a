"""Does a URI reach the server that libpq would reach, and are databases refused that can't be used (D3, D5)?"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from postgres_support import LATEST, VERSIONS, Place, in_loop, state

from flujo_conformance.postgres_server import PostgresServer, Server
from flujo_core import StateBackend, open_backend
from flujo_core.errors import (
    ConfigurationError,
    FlujoStateError,
    MigrationError,
    SchemaMissingError,
    SchemaOutdatedError,
    SchemaTooNewError,
    StorageTimeoutError,
    StorageUnavailableError,
    UnsupportedStorageError,
)
from flujo_postgres import PostgresBackend

pytest_plugins = ["postgres_support"]

AWKWARD = "a:b/c@d?e#f%g h&i+k'l\"m\\nü"


class Address:
    """The parts of a test database's URI."""

    def __init__(self, uri: str) -> None:
        parts = urlsplit(uri)
        self.login = f"{parts.username}:{parts.password}"
        self.user, self.password = str(parts.username), str(parts.password)
        self.host, self.port, self.database = str(parts.hostname), int(parts.port or 5432), parts.path[1:]


@pytest.fixture(scope="module")
def address(database: str) -> Address:
    return Address(database)


@pytest.fixture(scope="module")
def dead_port() -> Iterator[int]:
    """A port where nobody listens: it is bound, and so stays free."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port where connections are accepted by the kernel, and nobody ever answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(50)
        yield listening.getsockname()[1]


async def reached(uri: str, place: Place, **settings: Any) -> dict[str, str]:
    """Save through the URI, and what the server says of the connection."""
    async with PostgresBackend(uri, schema=place.schema, **settings) as backend:
        await backend.save_state("run", state(0))
        rows = await place.fetch(
            "SELECT application_name AS name, usename AS user, host(client_addr) AS address FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        assert await place.fetch("SELECT 1 FROM workflow_state WHERE run_id = 'run'")
        return dict(rows[0])


# --- D3: the grammar ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form",
    [
        "postgres://{login}@{host}:{port}/{database}",
        "postgresql://{login}@{host}:{port}/{database}",
        "postgresql:///?user={user}&password={password}&host={host}&port={port}&dbname={database}",
        "postgresql://{login}@{host}/{database}?port={port}",
        "postgresql://nobody:wrong@{host}:1/nowhere?port={port}&user={user}&password={password}&dbname={database}",
        "postgresql://{login}@127.0.0.1:{dead},{host}:{port}/{database}",
        "postgresql://{login}@/{database}?host=127.0.0.1,{host}&port={dead},{port}",
        "postgresql://{login}@{host}:{port}/{database}?sslmode=disable&target_session_attrs=read-write",
        "postgresql://{login}@127.0.0.1:{dead},{host}:{port}/{database}?target_session_attrs=prefer-standby",
    ],
)
@in_loop
async def test_d3_all_forms_of_a_uri(place: Place, address: Address, dead_port: int, form: str) -> None:
    uri = form.format(dead=dead_port, **vars(address))
    assert await reached(uri, place) == {"name": "flujo", "user": address.user, "address": "127.0.0.1"}


@in_loop
async def test_d3_a_silent_host_leaves_time_for_the_next(place: Place, address: Address, silent_port: int) -> None:
    uri = f"postgresql://{address.login}@127.0.0.1:{silent_port},{address.host}:{address.port}/{address.database}"
    began = monotonic()
    await reached(uri, place, connect_timeout=1)
    assert monotonic() - began < 3


@in_loop
async def test_d3_user_password_and_database_of_any_characters(place: Place, address: Address) -> None:
    user, password, database = (f"{AWKWARD}{part}{secrets.token_hex(3)}" for part in ("u", "=p,", "=d,"))
    role = '"' + user.replace('"', '""') + '"'
    name = '"' + database.replace('"', '""') + '"'
    await place.fetch(f"CREATE ROLE {role} LOGIN PASSWORD '{password.replace(chr(39), chr(39) * 2)}'")
    await place.fetch(f"CREATE DATABASE {name} OWNER {role}")
    try:
        parts = [quote(part, safe="") for part in (user, password, database)]
        uri = f"postgresql://{parts[0]}:{parts[1]}@{address.host}:{address.port}/{parts[2]}"
        async with PostgresBackend(uri) as backend:
            assert await backend.save_state("run", state(0)) == 1
            assert parts[1] not in repr(backend)
    finally:
        await place.fetch(f"DROP DATABASE {name} WITH (FORCE)")
        await place.fetch(f"DROP ROLE {role}")


def test_d3_the_folder_of_a_socket(own_server: PostgresServer) -> None:
    place = Place(own_server.create_database(), "sockets")
    address, folder = Address(place.uri), own_server.socket_dir
    for uri in (
        f"postgresql://{address.login}@/{address.database}?host={folder}&port={address.port}",
        f"postgresql://{address.login}@{quote(folder, safe='')}:{address.port}/{address.database}",
    ):
        assert asyncio.run(reached(uri, place))["address"] is None


@in_loop
async def test_d3_application_name(place: Place, address: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await reached(place.uri + "?application_name=mine%20%26%20yours", place))["name"] == "mine & yours"
    monkeypatch.setenv("PGAPPNAME", "from the environment")
    assert (await reached(place.uri, place))["name"] == "from the environment"
    assert (await reached(place.uri + "?application_name=mine", place))["name"] == "mine"


@in_loop
async def test_d3_missing_parts_come_from_variables_and_the_password_file(
    place: Place, address: Address, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    variables = {"HOST": address.host, "PORT": address.port, "USER": address.user, "DATABASE": address.database}
    for name, value in variables.items():
        monkeypatch.setenv(f"PG{name}", str(value))
    monkeypatch.setenv("PGPASSWORD", address.password)
    assert (await reached("postgresql://", place))["user"] == address.user
    assert (await reached("postgresql:///", place))["user"] == address.user
    # What the URI says wins.
    with pytest.raises(StorageUnavailableError, match="nowhere"):
        await reached("postgresql:///nowhere", place)
    monkeypatch.delenv("PGPASSWORD")
    passfile = tmp_path / "pass file"
    passfile.write_text(f"{address.host}:{address.port}:*:{address.user}:{address.password}\n")
    passfile.chmod(0o600)
    await reached(f"postgresql://?passfile={quote(str(passfile))}", place)
    monkeypatch.setenv("PGPASSFILE", str(passfile))
    await reached("postgresql://", place)


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("conect_timeout=3", ["conect_timeout", "did you mean 'connect_timeout'", "sslmode", "pool_max_size"]),
        ("options=-csearch_path%3Dx", ["options", "known:"]),
        ("service=x", ["service", "known:"]),
        ("port=abc", ["port = 'abc'", "1 to 65535"]),
        ("port=0", ["port = '0'"]),
        ("port=1,2", ["2 ports for 1 hosts"]),
        ("sslmode=nope", ["sslmode = 'nope'", "verify-full"]),
        ("target_session_attrs=nope", ["target_session_attrs = 'nope'", "read-write"]),
        ("host=a,,b", ["host", "empty"]),
        ("pool_max_size=0", ["pool_max_size"]),
        ("pool_max_size=many", ["pool_max_size"]),
        ("pool_min_size=5&pool_max_size=4", ["pool_min_size=5", "pool_max_size=4"]),
        ("connect_timeout=0", ["connect_timeout"]),
        ("connect_timeout=inf", ["connect_timeout"]),
        ("auto_migrate=maybe", ["auto_migrate", "true/false"]),
        ("schema=", ["schema"]),
        (f"schema={'x' * 64}", ["schema", "63 bytes"]),
        (f"schema={quote('ü' * 32)}", ["schema", "63 bytes"]),
    ],
)
def test_d3_wrong_options_are_our_error(query: str, names: list[str]) -> None:
    uri = f"postgresql://user:hidden-word@host/db?{query}"
    for make in (PostgresBackend, open_backend):
        with pytest.raises(ConfigurationError) as caught:
            make(uri)
        for name in names:
            assert name in str(caught.value)
        assert "hidden-word" not in str(caught.value)


def test_d3_settings_in_code() -> None:
    backend = PostgresBackend("postgresql://host/db?pool_max_size=3", pool_min_size=2)
    assert (backend.settings.model_dump()["pool_min_size"], backend.settings.model_dump()["pool_max_size"]) == (2, 3)
    assert (
        PostgresBackend("postgresql://h/d?pool_max_size=3", pool_max_size=4).settings.model_dump()["pool_max_size"] == 4
    )
    for settings in ({"pool_min_size": 11}, {"pool_min_size": -1}, {"pool_max_size": True}, {"sslmode": "require"}):
        with pytest.raises(ConfigurationError, match=next(iter(settings))):
            PostgresBackend("postgresql://h/d", **settings)
    with pytest.raises(ConfigurationError, match="dsn"):
        PostgresBackend(Path("x"))  # type: ignore[arg-type]


@in_loop
async def test_d3_pool_sizes_are_kept(place: Place) -> None:
    count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'sizes'"
    async with place.at(place.uri + "?application_name=sizes").backend(pool_min_size=2, pool_max_size=3) as backend:
        assert [row[0] for row in await place.fetch(count)] == [2]
        await asyncio.gather(*(backend.load_state(f"run{number}") for number in range(50)))
        assert [row[0] for row in await place.fetch(count)] == [3]


@in_loop
async def test_d3_connect_timeout_is_kept(place: Place, address: Address, silent_port: int) -> None:
    choices: list[tuple[str, dict[str, Any]]] = [("?connect_timeout=0.5", {}), ("", {"connect_timeout": 0.5})]
    for query, settings in choices:
        backend = PostgresBackend(f"postgresql://u:p@127.0.0.1:{silent_port}/d{query}", **settings)
        began = monotonic()
        with pytest.raises(StorageTimeoutError, match=rf"127\.0\.0\.1:{silent_port}.*0\.5 s \(connect_timeout\)"):
            await backend.load_state("run")
        assert 0.4 < monotonic() - began < 1.5


@in_loop
async def test_d3_a_connection_that_can_not_be_secured_is_refused(place: Place, tmp_path: Path) -> None:
    with pytest.raises(StorageUnavailableError, match="SSL"):
        await reached(place.uri + "?sslmode=require", place)
    missing = tmp_path / "root.crt"
    with pytest.raises(ConfigurationError, match=r"sslrootcert.*root\.crt"):
        await reached(place.uri + f"?sslmode=verify-ca&sslrootcert={quote(str(missing))}", place)
    missing.write_text("no certificate")
    with pytest.raises(FlujoStateError):
        await reached(place.uri + f"?sslmode=verify-ca&sslrootcert={quote(str(missing))}", place)


@pytest.mark.parametrize(
    "schema", ['quo"te', "Upper Case", "snö{s}", "x" * 63, "ü" * 31, "select", "a.b", "'; DROP TABLE x; --", "%s$1"]
)
@in_loop
async def test_d3_schemas_of_any_name(database: str, schema: str) -> None:
    place = Place(database, schema)
    async with place.backend() as backend:
        await backend.save_state("run", state(0, metadata={"a": 1}))
        await backend.save_step_result({"run_id": "run", "step_name": "s", "step_index": 0})
        assert len(await backend.list_runs(metadata_filter={"a": 1}, limit=5)) == 1
        assert (await backend.schema_status()).state == "current"
    tables = await place.fetch("SELECT tablename FROM pg_tables WHERE schemaname = $1", schema)
    assert ("workflow_state",) in [tuple(row) for row in tables]
    async with PostgresBackend(f"{database}?schema={quote(schema, safe='')}") as again:
        assert await again.load_state("run") is not None


@in_loop
async def test_d3_schemas_see_nothing_of_each_other(place: Place) -> None:
    other = Place(place.uri, place.schema + "_2")
    async with place.backend() as one, other.backend() as two:
        await one.save_state("run", state("one"))
        await two.save_state("run", state("two"))
        await two.save_state("run2", state("two"))
        await one.set_system_state("key", 1)
        assert [run["run_id"] for run in await one.list_runs()] == ["run"]
        assert await two.get_system_state("key") is None
        assert await two.delete_run("run")
        assert await one.load_state("run") is not None


@pytest.mark.parametrize("lock_timeout", ["0", "1"])
@in_loop
async def test_d3_settings_of_the_role_change_nothing(place: Place, address: Address, lock_timeout: str) -> None:
    role = f"r_{secrets.token_hex(4)}"
    await place.fetch(f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
    await place.fetch(f"GRANT CREATE ON DATABASE {address.database} TO {role}")
    for name, value in {
        "search_path": "nowhere",
        "timezone": "'Asia/Kathmandu'",
        "datestyle": "'SQL, DMY'",
        "intervalstyle": "'sql_standard'",
        "bytea_output": "escape",
        "standard_conforming_strings": "on",
        "extra_float_digits": "-15",
        "default_transaction_isolation": "'serializable'",
        "default_transaction_deferrable": "on",
        "lock_timeout": lock_timeout,
        "client_min_messages": "debug1",
    }.items():
        await place.fetch(f"ALTER ROLE {role} SET {name} = {value}")
    try:
        uri = f"postgresql://{role}:x@{address.host}:{address.port}/{address.database}"
        places = [place.at(uri).backend() for _ in range(4)]
        await asyncio.gather(
            *(backend.save_state("run", state(1.1, execution_time_ms=0.1 + 0.2)) for backend in places)
        )
        await asyncio.gather(*(backend.save_state(f"r{number}", state(0)) for number in range(9) for backend in places))
        loaded = await places[0].load_state("run")
        assert loaded is not None
        assert (loaded["revision"], loaded["execution_time_ms"]) == (4, 0.1 + 0.2)
        assert {run["revision"] for run in await places[1].list_runs()} == {4}
        assert (await places[0].get_workflow_stats())["average_execution_time_ms"] == pytest.approx(0.3)
        for backend in places:
            await backend.shutdown()
    finally:
        await place.fetch(f"DROP OWNED BY {role}")
        await place.fetch(f"DROP ROLE {role}")


# --- D5: what may be opened ---------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def role_with(place: Place, *grants: str) -> Any:
    """The place as a role sees it that was granted only this on the schema."""
    role, address = f"r_{secrets.token_hex(4)}", Address(place.uri)
    await place.fetch(f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
    for grant in grants:
        await place.fetch(f"GRANT {grant} TO {role}")
    try:
        yield place.at(f"postgresql://{role}:x@{address.host}:{address.port}/{address.database}")
    finally:
        await place.fetch(f"DROP OWNED BY {role}")
        await place.fetch(f"DROP ROLE {role}")


async def relations(place: Place) -> list[tuple[Any, ...]]:
    rows = await place.fetch(
        "SELECT oid, relname, relnamespace FROM pg_class UNION ALL SELECT oid, nspname, 0 FROM pg_namespace"
    )
    return sorted(tuple(row) for row in rows)


@in_loop
async def test_d5_without_auto_migrate_nothing_is_created(place: Place) -> None:
    before = await relations(place)
    backend = place.backend(auto_migrate=False)
    with pytest.raises(SchemaMissingError, match="flujo migrate"):
        await backend.list_runs()
    assert (await backend.schema_status()).state == "missing"
    assert (await backend.migrate(dry_run=True)).to_version == LATEST
    assert await relations(place) == before

    await backend.migrate(target_version=1)
    with pytest.raises(SchemaOutdatedError, match=rf"version 1.*needs {LATEST}.*flujo migrate"):
        await backend.list_runs()
    await backend.migrate()
    async with role_with(
        place,
        f"USAGE ON SCHEMA {place.schema}",
        f"SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {place.schema}",
    ) as unprivileged:
        async with unprivileged.backend(auto_migrate=False) as worker:
            await worker.save_state("run", state(0))
            await worker.save_step_result({"run_id": "run", "step_name": "s", "step_index": 0})
            assert await worker.delete_run("run")
        async with unprivileged.backend() as worker:  # there is nothing to migrate
            await worker.save_state("run", state(0))
    async with (
        role_with(place, f"USAGE ON SCHEMA {place.schema}", f"SELECT ON ALL TABLES IN SCHEMA {place.schema}") as reader,
        reader.backend(auto_migrate=False) as reading,
    ):
        assert len(await reading.list_runs(metadata_filter={})) == 1
        assert await reading.load_state("run") is not None
        assert (await reading.migrate(dry_run=True)).steps == ()
        with pytest.raises(FlujoStateError, match="grant"):
            await reading.save_state("run", state(1))

    insert = "INSERT INTO flujo_schema_versions"
    await place.fetch(f"{insert} (version, applied_at) VALUES ($1, now())", LATEST + 1)
    for choice in (True, False):
        async with place.backend(auto_migrate=choice) as ours:
            assert (await ours.schema_status()).state == "current"
    await place.fetch(f"{insert} (version, checksum, min_code) VALUES ($1, 'x', $1)", LATEST + 2)
    for choice in (True, False):
        with pytest.raises(SchemaTooNewError, match=rf"version {LATEST + 2}.*knows {LATEST}"):
            await place.backend(auto_migrate=choice).list_runs()
    with pytest.raises(SchemaTooNewError):
        await backend.migrate()


@in_loop
async def test_d5_migrations_may_be_previewed_repeated_and_stopped_half_way(place: Place) -> None:
    backend = place.backend(auto_migrate=False)
    before = await relations(place)
    preview = await backend.migrate(dry_run=True)
    assert [step.version for step in preview.steps] == VERSIONS
    assert await relations(place) == before
    for target in (0, LATEST + 1, -1, True):
        with pytest.raises(MigrationError, match="target version"):
            await backend.migrate(target_version=target)
    assert await relations(place) == before
    assert [step.version for step in (await backend.migrate(target_version=1)).steps] == [1]
    async with role_with(
        place, f"USAGE ON SCHEMA {place.schema}", f"SELECT ON {place.schema}.flujo_schema_versions"
    ) as reader:
        report = await reader.backend().migrate(dry_run=True)
        assert [step.version for step in report.steps] == VERSIONS[1:]
        with pytest.raises(FlujoStateError):
            await reader.backend().migrate()
    report = await backend.migrate()
    assert (report.from_version, report.to_version) == (1, LATEST)
    assert [step.version for step in report.steps] == VERSIONS[1:]
    after = await relations(place)
    assert (await backend.migrate()).steps == ()
    assert (await backend.migrate(dry_run=True)).steps == ()
    with pytest.raises(MigrationError, match="below"):
        await backend.migrate(target_version=1)
    assert await relations(place) == after


@in_loop
async def test_d5_a_failed_migration_is_undone(place: Place) -> None:
    before_all = await relations(place)
    await place.fetch(f'CREATE SCHEMA "{place.schema}"')
    await place.fetch("CREATE TABLE workflow_spans (mine int)")
    before = await relations(place)
    backend = place.backend()
    with pytest.raises(MigrationError, match=r"001_init failed and was undone.*workflow_spans"):
        await backend.save_state("run", state(0))
    assert await relations(place) == before
    await place.fetch(f'DROP SCHEMA "{place.schema}" CASCADE')
    assert await relations(place) == before_all
    async with backend:
        await backend.save_state("run", state(0))


@in_loop
async def test_d5_a_foreign_table_is_not_taken_over(place: Place) -> None:
    await place.fetch(f'CREATE SCHEMA "{place.schema}"')
    await place.fetch("CREATE TABLE workflow_state (run_id text)")
    with pytest.raises(UnsupportedStorageError, match="workflow_state"):
        await place.backend().list_runs()


OPENER = """
import asyncio, sys
from flujo_postgres import PostgresBackend

async def main(uri, schema, number):
    async with PostgresBackend(uri, schema=schema) as backend:
        await backend.save_run_start({"run_id": number})

print(flush=True)
sys.stdin.readline()
asyncio.run(main(*sys.argv[1:]))
"""


@in_loop
async def test_d5_many_open_an_empty_schema_at_once(place: Place) -> None:
    command = [sys.executable, "-c", OPENER, place.uri, place.schema]
    processes = [
        subprocess.Popen([*command, f"p{number}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for number in range(3)
    ]
    backends: list[StateBackend] = [place.backend() for _ in range(6)]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    await asyncio.gather(*(backend.save_run_start({"run_id": f"t{n}"}) for n, backend in enumerate(backends)))
    for process in processes:
        await asyncio.to_thread(process.communicate)
        assert process.returncode == 0
    assert len(await backends[0].list_runs()) == 9
    rows = await place.fetch("SELECT version FROM flujo_schema_versions ORDER BY 1")
    assert [row[0] for row in rows] == VERSIONS
    for backend in backends:
        await backend.shutdown()


@in_loop
async def test_d5_a_database_in_another_encoding_is_refused(server: Server) -> None:
    uri = await asyncio.to_thread(server.create_database, options="ENCODING 'SQL_ASCII' TEMPLATE template0 LOCALE 'C'")
    backend = PostgresBackend(uri)
    with pytest.raises(UnsupportedStorageError, match=r"SQL_ASCII.*UTF8"):
        await backend.save_state("run", state(0))
    await asyncio.to_thread(server.drop_database, uri)


def test_d5_a_standby_is_refused(own_server: PostgresServer) -> None:
    """A server with standby.signal is one, also without a primary to follow."""
    uri = own_server.create_database()
    place = Place(uri, "primary")

    async def save() -> None:
        async with place.backend() as backend:
            await backend.save_state("run", state(0))

    asyncio.run(save())
    signal = Path(own_server.socket_dir, "data", "standby.signal")
    signal.touch()
    own_server.restart()
    try:
        with pytest.raises(UnsupportedStorageError, match=r"standby.*target_session_attrs=read-write"):
            asyncio.run(place.backend().list_runs())
        with pytest.raises(StorageUnavailableError, match="target_session_attrs"):
            asyncio.run(place.at(uri + "?target_session_attrs=read-write").backend().list_runs())
    finally:
        signal.unlink()
        own_server.restart()
    asyncio.run(save())


# --- two versions of the server -----------------------------------------------------------------------------------


def test_d5_an_older_server_serves_as_well() -> None:
    with PostgresServer(16, settings={"fsync": "off"}) as older:
        place = Place(older.create_database(), "smoke")

        async def scenario() -> None:
            async with place.backend() as backend:
                assert await backend.save_state("run", state(0, metadata={"a": [1, 2]}, step_history=[1, 2])) == 1
                await backend.save_step_result({"run_id": "run", "step_name": "s", "step_index": 0, "cost_usd": 0.5})
                await backend.save_spans("run", [{"span_id": "a", "start_time": 1.0, "end_time": 2.0}])
                await backend.set_system_state("key", None)
                revisions = await asyncio.gather(*(backend.save_state(f"r{n % 5}", state(n)) for n in range(20)))
                assert sorted(revisions) == sorted([1, 2, 3, 4] * 5)
                assert await backend.save_state("run", state(1, step_history=[1])) == 2
                assert len(await backend.list_runs(metadata_filter={"a": [2]}, limit=3)) == 0
                assert len(await backend.list_runs(limit=3)) == 3
                assert (await backend.get_workflow_stats())["total_workflows"] == 6
                assert await backend.delete_run("run")

        asyncio.run(scenario())
