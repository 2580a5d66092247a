"""Does everything work through PgBouncer in transaction mode? Run by ``make test-pgbouncer``, for few have the program.

There each transaction may get another connection of the server: what relied on a session would fail or stay behind.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest
from postgres_support import VERSIONS, Place, in_loop, state

pytest_plugins = ["postgres_support"]

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
INDEX = "-- transaction=false\nCREATE INDEX CONCURRENTLY idx_task ON {schema}.workflow_state (task_id)"
CONFIGURATION = """
[databases]
* = host={host} port={port} user={user} password={password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 4
"""


@pytest.fixture(scope="module")
def bouncer(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URI of the module's database through PgBouncer, which has fewer connections than the tests."""
    assert PROGRAM is not None, "pgbouncer is not installed"
    parts = urlsplit(database)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    file = tmp_path_factory.mktemp("pgbouncer") / "pgbouncer.ini"
    values = {"host": parts.hostname, "port": parts.port, "user": parts.username, "password": parts.password}
    file.write_text(CONFIGURATION.format(listen=port, **values))
    command = [PROGRAM, str(file)]
    if os.geteuid() == 0:  # it refuses to be root, and reads its file before it becomes somebody else
        command[1:1] = ["-u", pwd.getpwnam("nobody").pw_name]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            for _ in range(200):
                with socket.socket() as tried:
                    if tried.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert process.poll() is None, process.stderr and process.stderr.read()
                time.sleep(0.05)
            yield parts._replace(netloc=f"{parts.username}@127.0.0.1:{port}").geturl()
        finally:
            process.terminate()


async def left_behind(place: Place) -> list[tuple[str, str]]:
    """Locks of sessions, and settings that a connection of the pooler kept."""
    rows = await place.fetch(
        "SELECT 'lock', mode FROM pg_locks WHERE locktype = 'advisory' UNION ALL "
        "SELECT 'transaction', query FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'"
    )
    return [(row[0], row[1]) for row in rows]


@in_loop
async def test_many_migrate_and_save_through_the_pooler(place: Place, bouncer: str, tmp_path: Path) -> None:
    (tmp_path / "001_field.sql").write_text("ALTER TABLE workflow_state ADD COLUMN mine INT;\nSELECT pg_sleep(0.2)")
    (tmp_path / "002_index.sql").write_text(INDEX)
    through = place.at(bouncer)
    backends = [
        through.backend(migrations_dir=tmp_path, statement_cache_size=0, pool_max_size=4, migration_lock_wait=20)
        for _ in range(4)
    ]
    await asyncio.gather(*(backend.save_state(f"r{n}", state(n)) for n, backend in enumerate(backends)))
    for table, expected in (("flujo_schema_versions", VERSIONS), ("flujo_deployment_versions", [1, 2])):
        rows = await place.fetch(f"SELECT version FROM {table} ORDER BY version")
        assert [row[0] for row in rows] == expected
    assert await place.fetch("SELECT holder FROM flujo_migration_leases") == []
    assert (await place.fetch("SELECT indisvalid FROM pg_index WHERE indexrelid = 'idx_task'::regclass")) == [(True,)]
    for backend in backends:
        await asyncio.gather(*(backend.save_state("shared", state(n)) for n in range(5)))
        await backend.save_step_result({"run_id": "shared", "step_name": "s", "step_index": 0})
        assert len(await backend.list_runs()) == 5
        assert await backend.list_runs(metadata_filter={"a": 1}) == []
        status = await backend.schema_status()
        assert (status.state, status.pending) == ("current", ())
        assert (await backend.migrate()).steps == ()
    assert [row[0] for row in await place.fetch("SELECT revision FROM workflow_state WHERE run_id = 'shared'")] == [20]
    for backend in backends:
        await backend.shutdown()
    assert await left_behind(place) == []


@in_loop
async def test_the_connections_of_the_pooler_keep_nothing(place: Place, bouncer: str) -> None:
    names = ("search_path", "lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout")
    connections = [await asyncpg.connect(bouncer, statement_cache_size=0) for _ in range(4)]
    try:
        others = Place(bouncer, f"{place.schema}_b").backend(statement_cache_size=0)
        await others.migrate()

        async def kept(connection: asyncpg.Connection) -> list[str]:
            # In a transaction each client has a server connection to itself, so that all of them are looked at.
            async with connection.transaction():
                found = [str(await connection.fetchval(f"SELECT current_setting('{name}')")) for name in names]
                await connection.fetchval("SELECT pg_sleep(0.3)")
                return found

        for found in await asyncio.gather(*(kept(connection) for connection in connections)):
            assert found == ['"$user", public', "0", "0", "0"]
    finally:
        for connection in connections:
            await connection.close()
        await place.fetch(f"DROP SCHEMA {place.schema}_b CASCADE")
