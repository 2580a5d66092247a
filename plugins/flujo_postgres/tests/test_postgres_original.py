"""Is a database of the original system taken over with all that it holds, or left as it is?"""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from original_system import LATE, TABLES, Rows, check, dated, definitions, same, some_rows
from postgres_support import LATEST, Place, in_loop

from flujo_conformance.postgres_server import Server
from flujo_core.errors import MigrationError, MigrationLockError, SchemaOutdatedError, UnsupportedStorageError
from flujo_postgres import PostgresBackend
from flujo_sqlite import SQLiteBackend

pytest_plugins = ["postgres_support"]

STATE: Any = {"pipeline_id": "p", "pipeline_name": "n", "pipeline_version": "1", "current_step_index": 0}
ITS_VERSIONS = (
    "CREATE TABLE flujo_schema_versions (version integer PRIMARY KEY, applied_at timestamptz DEFAULT now())",
    "INSERT INTO flujo_schema_versions (version) VALUES (1), (2), (3), (4), (5)",
    "CREATE TABLE memories (id bigserial PRIMARY KEY, content text)",
    "INSERT INTO memories (content) VALUES ('kept')",
    "CREATE INDEX idx_workflow_state_metadata_gin ON workflow_state USING GIN (metadata)",
)


def random_rows(runs: int, seed: int = 0) -> Rows:
    return dated(some_rows(random.Random(seed).choice, [f"run{number:05d}" for number in range(runs)]))


async def make(
    place: Place,
    rows: Rows,
    *more: str,
    without: Mapping[str, Sequence[str]] | None = None,
    keys: bool = False,
) -> None:
    """A database of the original's, in the place's schema. ``keys``: with its foreign keys, which refuse orphans."""
    connection = await place.connect()
    try:
        await connection.execute(f'CREATE SCHEMA IF NOT EXISTS "{place.schema}"; SET TIME ZONE UTC')
        versions = ITS_VERSIONS if "metadata" not in (without or {}).get("workflow_state", ()) else ITS_VERSIONS[:4]
        for statement in [*definitions(postgres=True, keys=keys, without=without), *versions]:
            await connection.execute(statement)
        for table in ("runs", *(table for table in TABLES if table != "runs")):
            kept = [column for column in TABLES[table] if column[0] not in (without or {}).get(table, ())]
            names = [name for name, *_ in kept]
            marks = [f"${number}::text::{_cast(kind)}" for number, (_, kind, _) in enumerate(kept, 1)]
            statement = f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join(marks)})"
            await connection.executemany(statement, [[_text(row.get(name)) for name in names] for row in rows[table]])
        for statement in more:
            await connection.execute(statement)
    finally:
        await connection.close()


def _cast(kind: str) -> str:
    return {"serial": "integer", "double": "double precision"}.get(kind.split(maxsplit=1)[0], kind.split(maxsplit=1)[0])


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else str(value)


def without_late(rows: Rows) -> Rows:
    return {
        table: [{k: v for k, v in row.items() if k not in LATE.get(table, ())} for row in rows[table]] for table in rows
    }


async def dump(place: Place) -> list[Any]:
    """All rows and definitions, of the place's schema and of those beside that belong to it."""
    found: list[Any] = []
    like = f"{place.schema}%"
    tables = "SELECT table_schema, table_name FROM information_schema.tables WHERE table_schema LIKE $1 ORDER BY 1, 2"
    for schema, table in await place.fetch(tables, like):
        rows = await place.fetch(f'SELECT t::text FROM "{schema}"."{table}" t ORDER BY 1')
        found.append((schema, table, [tuple(row) for row in rows]))
    for catalog in (
        "SELECT schemaname, indexname, indexdef FROM pg_indexes WHERE schemaname LIKE $1 ORDER BY 1, 2",
        "SELECT table_schema, table_name, column_name FROM information_schema.columns WHERE table_schema LIKE $1",
        "SELECT nspname FROM pg_namespace WHERE nspname LIKE $1 ORDER BY 1",
    ):
        found += sorted(tuple(row) for row in await place.fetch(catalog, like))
    return found


# --- taken over -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("old", [False, True], ids=["full", "without late columns"])
@pytest.mark.parametrize("how", ["opening", "migrate"])
@in_loop
async def test_all_that_it_holds_is_found_again(place: Place, how: str, old: bool) -> None:
    rows = random_rows(200)
    await make(place, rows, without=LATE if old else None)
    before = await dump(place)
    if how == "migrate":
        await asked(place, lambda backend: backend.migrate())
    async with place.backend() as backend:
        await check(backend, without_late(rows) if old else rows)
        assert (await backend.schema_status()).state == "current"
        assert await backend.save_state(rows["workflow_state"][0]["run_id"], STATE) == 2
        await backend.save_step_result({"run_id": "new", "step_name": "s", "step_index": 0})
    # The original's are in the schema beside, with its versions and indexes; what is not its stays.
    aside = f"{place.schema}_flujo_original"
    for schema, table, content in [one for one in before if isinstance(one[-1], list)]:
        assert schema == place.schema
        where = schema if table == "memories" else aside
        found = await place.fetch(f'SELECT t::text FROM "{where}"."{table}" t ORDER BY 1')
        assert [tuple(row) for row in found] == content
    versions = await place.fetch(f'SELECT version FROM "{aside}".flujo_schema_versions ORDER BY version')
    assert [row[0] for row in versions] == [1, 2, 3, 4, 5]
    indexes = await place.fetch("SELECT indexname FROM pg_indexes WHERE schemaname = $1", aside)
    assert {"idx_workflow_state_status", "idx_steps_run_id"} <= {row[0] for row in indexes}
    ours = await place.fetch("SELECT tablename FROM pg_tables WHERE schemaname = $1", place.schema)
    assert not {row[0] for row in ours} & {"runs", "steps", "traces", "spans", "evaluations", "system_state"}


@in_loop
async def test_in_public_with_foreign_keys(server: Server) -> None:
    uri = server.create_database()
    try:
        place, rows = Place(uri), random_rows(2000, seed=1)
        known = {row["run_id"] for row in rows["runs"]}
        for table in ("steps", "traces", "spans", "evaluations"):
            rows[table] = [row for row in rows[table] if row["run_id"] in known]
            rows = dated(rows)
        await make(place, rows, keys=True)
        async with _Shut(PostgresBackend(uri)) as backend:
            began = time.perf_counter()
            report = await backend.migrate()
            print(f"2,000 runs: {time.perf_counter() - began:.2f} s")
            assert (report.original, report.from_version, report.to_version) == (True, 0, LATEST)
            assert [step.version for step in report.steps] == list(range(1, LATEST + 1))
            await check(backend, rows)
        beside = await place.fetch("SELECT count(*) FROM flujo_original.workflow_state")
        assert beside[0][0] == len(rows["workflow_state"])
        assert (await place.fetch("SELECT content FROM memories"))[0][0] == "kept"
    finally:
        server.drop_database(uri)


class _Shut:
    """A backend that is only opened by what the test calls."""

    def __init__(self, backend: PostgresBackend) -> None:
        self._backend = backend

    async def __aenter__(self) -> PostgresBackend:
        return self._backend

    async def __aexit__(self, *_: object) -> None:
        await self._backend.shutdown()


async def asked(place: Place, use: Callable[[PostgresBackend], Awaitable[Any]], **settings: Any) -> Any:
    async with _Shut(place.backend(**settings)) as backend:
        return await use(backend)


@in_loop
async def test_sqlite_gives_the_same_answers(place: Place, tmp_path: Path) -> None:
    rows = random_rows(300, seed=3)
    await make(place, rows)
    with closing(sqlite3.connect(tmp_path / "x.db")) as connection, connection:
        for statement in definitions(postgres=False):
            connection.execute(statement)
        for table, columns in TABLES.items():
            names = [name for name, *_ in columns]
            values = [[row.get(name) for name in names] for row in rows[table]]
            marks = ", ".join("?" * len(names))
            connection.executemany(f"INSERT INTO {table} ({', '.join(names)}) VALUES ({marks})", values)
    async with place.backend() as ours, SQLiteBackend(tmp_path / "x.db") as other:
        assert same(await check(ours, rows), await check(other, rows))
        assert same(await ours.list_runs(), await other.list_runs())
        assert same(await ours.list_evaluations(None), await other.list_evaluations(None))
        assert same(await ours.get_workflow_stats(), await other.get_workflow_stats())
        assert same(await ours.get_span_statistics(), await other.get_span_statistics())


@in_loop
async def test_numbers_of_documents_are_exact(place: Place) -> None:
    empty: Rows = {table: [] for table in TABLES}
    context = '{"a": 1, "b": 1.0, "c": 1.50, "d": 123456789012345678901234567890, "e": "\\\\ud83d\\\\ude00"}'
    values = f"('r', 'p', 'n', '1', 0, '{context}', 'running', now(), now())"
    await make(
        place,
        empty,
        "INSERT INTO workflow_state (run_id, pipeline_id, pipeline_name, pipeline_version, current_step_index, "
        f"pipeline_context, status, created_at, updated_at) VALUES {values}",
    )
    async with place.backend() as backend:
        state = await backend.load_state("r")
    assert state is not None
    assert same(state["pipeline_context"], {**json.loads(context), "e": state["pipeline_context"]["e"]})


# --- not touched ------------------------------------------------------------------------------------------------------


@in_loop
async def test_a_look_changes_nothing(place: Place) -> None:
    await make(place, random_rows(5))
    before = await dump(place)
    report = await asked(place, lambda backend: backend.migrate(dry_run=True))
    assert (report.original, report.dry_run, report.to_version) == (True, True, LATEST)
    status = await asked(place, lambda backend: backend.schema_status())
    assert (status.state, len(status.pending)) == ("original", LATEST)
    with pytest.raises(SchemaOutdatedError, match=r"was made by the original Flujo; run `flujo migrate`"):
        await asked(place, lambda backend: backend.list_runs(), auto_migrate=False)
    with pytest.raises(MigrationError, match="SQL alone can't take over"):
        await asked(place, lambda backend: backend.migration_script())
    with pytest.raises(MigrationError, match="not by 1"):
        await asked(place, lambda backend: backend.migrate(1))
    assert await dump(place) == before


@pytest.mark.parametrize(
    ("change", "kind", "wanted"),
    [
        ("ALTER TABLE spans ADD colour text", UnsupportedStorageError, "a table spans .*an unknown column colour"),
        (
            "ALTER TABLE workflow_state DROP pipeline_context",
            UnsupportedStorageError,
            "lacks the column pipeline_context",
        ),
        ("UPDATE runs SET status = 'exploded' WHERE run_id > 'run00198'", MigrationError, r"runs, run .*'exploded'"),
        (
            "UPDATE workflow_state SET pipeline_context = '[1]'",
            MigrationError,
            r"pipeline_context is \[1\], not a dict",
        ),
        ("UPDATE steps SET run_id = NULL WHERE id = 1", MigrationError, "steps has a row whose run_id is None"),
        ("UPDATE runs SET updated_at = 'infinity'", MigrationError, "runs, run .*updated_at is .*outside"),
        ('CREATE SCHEMA "{s}_flujo_original"', MigrationError, "which is there already; rename or drop it"),
    ],
)
@in_loop
async def test_what_cannot_be_understood_is_refused_as_a_whole(
    place: Place, change: str, kind: type[Exception], wanted: str
) -> None:
    await make(place, random_rows(200), change.replace("{s}", place.schema))
    before = await dump(place)
    for use in (lambda b: b.migrate(), lambda b: b.list_runs()):  # type: Any
        with pytest.raises(kind, match=wanted) as caught:
            await asked(place, use)
        assert "\n" not in str(caught.value)
    assert await dump(place) == before


@in_loop
async def test_a_session_that_uses_a_table_is_waited_for(place: Place) -> None:
    rows = random_rows(5)
    await make(place, rows)
    other = await place.connect()
    transaction = other.transaction()
    await transaction.start()
    await other.fetch("SELECT * FROM spans")
    with pytest.raises(MigrationLockError, match=r"could not begin within 0.1 s .*holds a lock"):
        await asked(place, lambda backend: backend.migrate(), migration_lock_wait=0.1)
    assert (await asked(place, lambda backend: backend.schema_status())).state == "original"
    waiting = asyncio.create_task(asked(place, lambda backend: backend.migrate()))
    await asyncio.sleep(0.5)
    await transaction.rollback()
    await other.close()
    assert (await waiting).steps
    await asked(place, lambda backend: check(backend, rows))


@in_loop
async def test_a_long_name_of_a_schema(place: Place) -> None:
    long = Place(place.uri, place.schema + "ä" * ((63 - len(place.schema)) // 2))
    rows = random_rows(5)
    await make(long, rows)
    await asked(long, lambda backend: check(backend, rows))
    names = [
        row[0] for row in await long.fetch("SELECT nspname FROM pg_namespace WHERE nspname LIKE $1", f"{place.schema}%")
    ]
    assert [name for name in names if name.endswith("_flujo_original")]


# --- in several processes ---------------------------------------------------------------------------------------------

MIGRATE = """
import asyncio, os, sys
from flujo_core import original as core
from flujo_postgres import PostgresBackend, original

left = int(sys.argv[3])
plain = original._Taking.put

async def put(self, changes):
    global left
    if left == 0:
        os.kill(os.getpid(), 9)
    left -= 1
    await plain(self, changes)

async def main():
    backend = PostgresBackend(sys.argv[1], schema=sys.argv[2])
    print("ready", flush=True)
    sys.stdin.readline()
    report = await backend.migrate()
    print(len(report.steps), flush=True)
    await backend.shutdown()

original._Taking.put, core._MOST_RUNS = put, 50
asyncio.run(main())
"""


def start(place: Place, puts: int = -1) -> subprocess.Popen[str]:
    """A process that migrates when told to, and is killed before it puts a batch of runs."""
    command = [sys.executable, "-c", MIGRATE, place.uri, place.schema, str(puts)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@in_loop
async def test_of_several_at_once_one_takes_it_over(place: Place) -> None:
    rows = random_rows(300)
    await make(place, rows)
    processes = [start(place) for _ in range(4)]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    found = [process.communicate(timeout=60)[0] for process in processes]
    assert sorted(found) == ["0\n", "0\n", "0\n", f"{LATEST}\n"]
    await asked(place, lambda backend: check(backend, rows))


@in_loop
async def test_one_that_is_killed_leaves_the_original_whole(place: Place) -> None:
    rows = random_rows(200)
    await make(place, rows)
    before = await dump(place)
    for puts in (0, 3):
        process = start(place, puts)
        process.communicate("\n", timeout=60)
        assert process.returncode == -9
        assert await dump(place) == before
    assert (await asked(place, lambda backend: backend.migrate())).original
    await asked(place, lambda backend: check(backend, rows))
