"""What do the tests of PostgreSQL's migrations share? Looks at the schema, files to apply, and processes to kill.

A pytest plugin of the test modules that name it. PYTEST_DONT_REWRITE: they import it as well, and sooner.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from postgres_support import Place

from flujo_core.migrations import TABLE_OF
from flujo_postgres import PostgresBackend

INDEX = "-- transaction=false\nCREATE INDEX CONCURRENTLY idx_task ON {schema}.workflow_state (task_id, run_id)"
NO_BREAK = re.compile(r"[^\n]*")


# --- what is in the database ------------------------------------------------------------------------------------------

DUMP = """
SELECT 'column' AS kind, c.relname AS owner, a.attname AS name,
    concat_ws(' ', a.attnum, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attcollation::regcollation,
    pg_get_expr(d.adbin, d.adrelid)) AS what
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid AND c.relkind = 'r' AND a.attnum > 0
LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum WHERE c.relnamespace = to_regnamespace($1)
UNION ALL SELECT 'index', c.relname, i.relname,
    concat_ws(' ', pg_get_indexdef(i.oid), x.indisvalid, x.indisready, x.indislive)
FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class c ON c.oid = x.indrelid
WHERE c.relnamespace = to_regnamespace($1)
UNION ALL SELECT 'constraint', c.relname, k.conname, pg_get_constraintdef(k.oid)
FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid WHERE c.relnamespace = to_regnamespace($1)
ORDER BY 1, 2, 3
"""


async def dump(place: Place) -> list[tuple[str, ...]]:
    """The schema as the catalogs tell it, the same wherever it is."""
    rows = await place.fetch(DUMP, f'"{place.schema}"')
    return [tuple(str(value).replace(place.schema, "SCHEMA") for value in row) for row in rows]


async def recorded(place: Place) -> list[tuple[Any, ...]]:
    """Series, version, name and checksum of what is recorded."""
    found: list[tuple[Any, ...]] = []
    for series, table in TABLE_OF.items():
        if (await place.fetch("SELECT to_regclass($1)", f'"{place.schema}".{table}'))[0][0] is not None:
            rows = await place.fetch(f'SELECT version, name, checksum FROM "{place.schema}".{table} ORDER BY version')
            found += [(series, *row) for row in rows]
    return found


async def versions(place: Place, series: str = "flujo") -> list[int]:
    return [version for name, version, _, _ in await recorded(place) if name == series]


async def leases(place: Place) -> int:
    if not await place.fetch(
        "SELECT 1 FROM pg_tables WHERE tablename LIKE '%leases' AND schemaname = $1", place.schema
    ):
        return 0
    return int((await place.fetch(f'SELECT count(*) FROM "{place.schema}".flujo_migration_leases'))[0][0])


async def index_states(place: Place, name: str = "idx_task") -> list[bool]:
    rows = await place.fetch(
        "SELECT indisvalid FROM pg_index JOIN pg_class c ON c.oid = indexrelid WHERE relname = $1 "
        "AND relnamespace = to_regnamespace($2)",
        name,
        place.schema,
    )
    return [row[0] for row in rows]


# --- what happens there -----------------------------------------------------------------------------------------------


async def until(condition: Callable[[], Awaitable[Any]]) -> Any:
    """What the condition tells when it tells something; nothing here takes longer than ten seconds."""
    async with asyncio.timeout(10):
        while not (found := await condition()):
            await asyncio.sleep(0.01)
        return found


async def heard(told: list[str], word: str) -> bool:
    return word in told


async def waiting(place: Place, statement: str) -> Any:
    """The server process in which a statement waits for a lock."""
    rows = await place.fetch(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' "
        "AND query LIKE $1 AND pid <> pg_backend_pid()",
        f"%{statement}%{place.schema}%",
    )
    return rows[0][0] if rows else None


@contextlib.asynccontextmanager
async def writer(place: Place, statement: str = "LOCK workflow_state IN ROW EXCLUSIVE MODE") -> AsyncIterator[Any]:
    """Another session with a transaction open, for which an index has to wait."""
    connection = await place.connect()
    try:
        await connection.execute(f"BEGIN; {statement}")
        yield connection
    finally:
        connection.terminate()


class Builds:
    """How often an index was asked for in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        kind = asyncpg.pool.PoolConnectionProxy
        real = kind.execute

        async def execute(connection: Any, statement: str, *values: Any, **options: Any) -> Any:
            self.count += "CREATE INDEX CONCURRENTLY" in statement
            return await real(connection, statement, *values, **options)

        monkeypatch.setattr(kind, "execute", execute)


# --- files, and who applies them --------------------------------------------------------------------------------------


def write(folder: Path, **files: str) -> Path:
    """A folder with migrations: ``_003_name="…"``."""
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name.removeprefix('_')}.sql").write_text(text)
    return folder


def with_files(place: Place, folder: Path | None, **settings: Any) -> PostgresBackend:
    return place.backend(migrations_dir=folder, **settings)


CHILDREN = """
import asyncio, json, os, signal, sys, time
from pathlib import Path
import asyncpg, asyncpg.pool
from flujo_postgres import PostgresBackend, concurrently

def say(**words):
    os.write(1, json.dumps(words).encode() + b"\\n")

def watched(method):
    async def call(self, statement, *values, **options):
        global count
        if "UPDATE" in statement and "leases SET expires_at" in statement and "INSERT" not in statement:
            return await method(self, statement, *values, **options)  # the heartbeat comes when it comes
        if count == job.get("kill_before"):
            os.kill(os.getpid(), signal.SIGKILL)
        if job.get("stop_before", "\\0") in statement:
            say(stopped=statement)
            time.sleep(60)
        count += 1
        return await method(self, statement, *values, **options)
    return call

for kind in (asyncpg.Connection, asyncpg.pool.PoolConnectionProxy):
    for name in ("execute", "fetch", "fetchrow", "fetchval"):
        setattr(kind, name, watched(getattr(kind, name)))

def migrate():
    signal.alarm(60)  # whatever becomes of the tests
    concurrently.LEASE = job["lease"]
    folder = job["folder"] and Path(job["folder"])
    backend = PostgresBackend(job["uri"], schema=job["schema"], migrations_dir=folder, migration_lock_wait=job["wait"])
    try:
        asyncio.run(backend.migrate())
    except Exception as error:
        say(error=repr(error))

for line in sys.stdin:
    job, count = json.loads(line), 0
    child = os.fork()
    if child == 0:
        try:
            migrate()
        finally:
            os._exit(0)
    say(pid=child)
    say(ended=os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
KILLED = -signal.SIGKILL


class Children:
    """Processes that migrate, one at a time: forks of one that has imported everything."""

    def __init__(self) -> None:
        self._parent = subprocess.Popen([sys.executable, "-c", CHILDREN], stdin=-1, stdout=-1, text=True)
        self._told: dict[str, Any] = {}

    def begin(
        self, place: Place, folder: Path | None = None, *, lease: float = 0.3, wait: float = 30, **job: Any
    ) -> None:
        """``kill_before``: SIGKILL before the statement of this number; ``stop_before``: stop before a statement."""
        assert self._parent.stdin is not None
        job |= {
            "uri": place.uri,
            "schema": place.schema,
            "folder": folder and str(folder),
            "lease": lease,
            "wait": wait,
        }
        self._told = {}
        self._parent.stdin.write(json.dumps(job) + "\n")
        self._parent.stdin.flush()

    def hears(self, word: str) -> Any:
        """What the child tells under a word, or that it ended."""
        assert self._parent.stdout is not None
        while word not in self._told:
            line = self._parent.stdout.readline()
            assert line, "the parent of the children is gone"
            self._told.update(json.loads(line))
        return self._told[word]

    def kill(self) -> None:
        os.kill(self.hears("pid"), signal.SIGKILL)
        assert self.hears("ended") == KILLED

    def run(self, place: Place, folder: Path | None = None, **job: Any) -> int:
        """Its exit code."""
        self.begin(place, folder, **job)
        code = self.hears("ended")
        assert "error" not in self._told, self._told
        return int(code)

    def close(self) -> None:
        self._parent.communicate(timeout=70)


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    made = Children()
    yield made
    made.close()
