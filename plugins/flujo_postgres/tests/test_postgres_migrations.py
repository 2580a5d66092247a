"""Does every migration end as a whole and once, whoever is killed, cut off or in the way, and whoever else migrates?"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from postgres_support import Place, in_loop, state
from test_postgres_faults import Proxy

from flujo_core.errors import (
    FlujoStateError,
    MigrationError,
    MigrationLockError,
    SchemaMissingError,
    SchemaOutdatedError,
    SchemaTooNewError,
    UnsupportedStorageError,
)
from flujo_core.migrations import TABLE_OF, parse_migration
from flujo_postgres import PostgresBackend, concurrently, schema
from flujo_postgres.concurrently import index_of
from flujo_postgres.store import PostgresStore

pytest_plugins = ["postgres_support"]

OWN = Path(schema.__file__).with_name("migrations")
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


async def relations(place: Place) -> set[tuple[str, str]]:
    """Every table, index, sequence and type that is no system's, wherever it is."""
    rows = await place.fetch(
        "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"
    )
    return {(row[0], row[1]) for row in rows}


async def until(condition: Callable[[], Awaitable[Any]]) -> Any:
    """What the condition tells when it tells something; nothing here takes longer than ten seconds."""
    async with asyncio.timeout(10):
        while not (found := await condition()):
            await asyncio.sleep(0.01)
        return found


async def waiting(place: Place, statement: str) -> Any:
    """The server process in which a statement waits for a lock."""
    rows = await place.fetch(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' "
        "AND query LIKE $1 AND pid <> pg_backend_pid()",
        f"%{statement}%{place.schema}%",
    )
    return rows[0][0] if rows else None


def with_files(place: Place, folder: Path | None, **settings: Any) -> PostgresBackend:
    return place.backend(migrations_dir=folder, **settings)


def write(folder: Path, **files: str) -> Path:
    """A folder with migrations: ``_003_name="…"``."""
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name.removeprefix('_')}.sql").write_text(text)
    return folder


@pytest.fixture
def newer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """From its call on, opening a backend is what newer code does: Flujo's own migrations, and the files given."""

    def become(**files: str) -> None:
        package = f"newer_{secrets.token_hex(4)}"
        own = {path.stem: path.read_text() for path in OWN.glob("*.sql")}
        write(tmp_path / package, **own, **files)
        (tmp_path / package / "__init__.py").touch()
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(PostgresStore, "migrations", package)

    return become


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


# --- processes that are killed ----------------------------------------------------------------------------------------

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


def fresh(place: Place) -> Place:
    return Place(place.uri, f"t_{secrets.token_hex(4)}")


class Watched(Place):
    """A place that is looked at again and again, by one connection; statements name the schema."""

    def __init__(self, place: Place, connection: Any) -> None:
        super().__init__(place.uri, f"t_{secrets.token_hex(4)}")
        self._connection = connection

    async def fetch(self, statement: str, *values: Any) -> list[Any]:
        found: list[Any] = await self._connection.fetch(statement, *values)
        return found


async def kill_at_each_statement(
    children: Children, place: Place, folder: Path | None, prepare: Callable[[Place], Awaitable[None]]
) -> list[int]:
    """Kill a migrating process before each of its statements, and run again. How many steps each one left applied, and
    all of them for the one that was not killed.

    Where nothing at all was left, the next process that is killed is the one that runs again, and gets further.
    """
    connection = await place.connect()
    undisturbed = Watched(place, connection)
    await prepare(undisturbed)
    before = (await recorded(undisturbed), await dump(undisturbed))
    steps = (await with_files(undisturbed, folder).migrate()).steps
    after = (await recorded(undisturbed), await dump(undisturbed))
    left: list[int] = []
    killed = None
    while True:
        if killed is None:
            killed = Watched(place, connection)
            await prepare(killed)
        code = children.run(killed, folder, lease=0.2, kill_before=len(left))
        now = (await recorded(killed), await dump(killed))
        assert now[0] == after[0][: len(now[0])]
        left.append(len(now[0]) - len(before[0]))
        if code == 0:
            assert now == after
            break
        assert code == KILLED
        if now == before:
            continue
        for step in steps[left[-1] :]:
            # Of a step in a transaction there is all or nothing; of another one an index may be there.
            assert not step.transaction or not {name for _, _, name, _ in now[1]} & MARKS[step.name]
        assert len((await with_files(killed, folder).migrate()).steps) == len(steps) - left[-1]
        assert (await recorded(killed), await dump(killed)) == after
        assert await leases(killed) == 0
        killed = None
    assert left == sorted(left)
    assert set(left) == set(range(len(steps) + 1))
    await connection.close()
    return left


MARKS = {
    "init": {"workflow_state", "run_id", "flujo_system_state_pkey"},
    "metadata_index": {"idx_workflow_state_metadata_gin"},
    "counted": {"counted", "amount"},
}
"""Names that each step in a transaction makes."""


@in_loop
async def test_killed_before_each_statement_of_flujos_own_migrations(place: Place, children: Children) -> None:
    async def prepare(where: Place) -> None:
        pass

    left = await kill_at_each_statement(children, place, None, prepare)
    assert len(left) > 80


@in_loop
async def test_killed_before_each_statement_of_steps_of_both_kinds(
    place: Place, children: Children, tmp_path: Path
) -> None:
    folder = write(
        tmp_path / "mine",
        _007_counted="CREATE TABLE counted (amount INT);\nINSERT INTO counted VALUES (1);\n",
        _008_index=INDEX,
    )
    prepared: list[Place] = []

    async def prepare(where: Place) -> None:
        await where.backend().migrate()
        prepared.append(where)

    left = await kill_at_each_statement(children, place, folder, prepare)
    assert len(left) > 70
    for where in prepared:
        assert await Place(where.uri, where.schema).fetch("SELECT amount FROM counted") == [(1,)]


@contextlib.asynccontextmanager
async def writer(place: Place, statement: str = "LOCK workflow_state IN ROW EXCLUSIVE MODE") -> AsyncIterator[Any]:
    """Another session with a transaction open, for which an index has to wait."""
    connection = await place.connect()
    try:
        await connection.execute(f"BEGIN; {statement}")
        yield connection
    finally:
        connection.terminate()


async def index_states(place: Place, name: str = "idx_task") -> list[bool]:
    rows = await place.fetch(
        "SELECT indisvalid FROM pg_index JOIN pg_class c ON c.oid = indexrelid WHERE relname = $1 "
        "AND relnamespace = to_regnamespace($2)",
        name,
        place.schema,
    )
    return [row[0] for row in rows]


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


@pytest.mark.parametrize("server_notices", [True, False], ids=["and its statement", "its statement goes on"])
@in_loop
async def test_killed_during_the_build(
    place: Place, children: Children, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server_notices: bool
) -> None:
    builds = Builds(monkeypatch)
    folder = write(tmp_path / "mine", _001_index=INDEX)
    await place.backend().migrate()
    async with writer(place):
        children.begin(place, folder)
        pid = await until(lambda: waiting(place, "CREATE INDEX"))
        children.kill()
        assert await index_states(place) == [False]
        if server_notices:
            await place.fetch("SELECT pg_terminate_backend($1)", pid)
            await until(lambda: gone(place, pid))
        told: list[str] = []
        again = asyncio.create_task(
            with_files(place, folder).migrate(told=lambda now: told.append(now.doing)), name="again"
        )
        await until(lambda: waiting(place, "DROP INDEX") if server_notices else _first(told, "waits"))
        if not server_notices:
            await asyncio.sleep(0.5)  # longer than the lease of the one that is gone
            assert not again.done()
            # Nor does anybody stand in its way: the two would wait for each other.
            assert not await waiting(place, "DROP INDEX")
        assert await index_states(place) == [False]
    assert [str(step) for step in (await again).steps] == ["001_index"]
    # What the server finished for the one that is gone is not made again.
    assert builds.count == server_notices
    assert await index_states(place) == [True]
    assert await versions(place, "deployment") == [1]
    assert await leases(place) == 0


async def gone(place: Place, pid: int) -> bool:
    return not await place.fetch("SELECT 1 FROM pg_stat_activity WHERE pid = $1", pid)


async def _first(told: list[str], word: str) -> bool:
    return word in told


@in_loop
async def test_killed_between_the_build_and_the_record(
    place: Place, children: Children, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "mine", _001_index=INDEX)
    await place.backend().migrate()
    children.begin(place, folder, stop_before="DELETE FROM")
    assert "leases" in children.hears("stopped")
    assert await index_states(place) == [True]
    assert await leases(place) == 1
    children.kill()
    builds = Builds(monkeypatch)
    assert len((await with_files(place, folder).migrate()).steps) == 1
    assert builds.count == 0
    assert await versions(place, "deployment") == [1]


@pytest.mark.parametrize("victim", ["ours", "that of the one that is gone"])
@in_loop
async def test_killed_while_its_statement_waits_for_the_table(
    place: Place, children: Children, tmp_path: Path, victim: str
) -> None:
    """The server builds the index for a process that is gone, while the next one waits to build it too: a deadlock."""
    folder = write(tmp_path / "mine", _001_index=INDEX)
    await place.backend().migrate()
    database = urlsplit(place.uri).path[1:]
    if victim != "ours" and not (await place.fetch("SELECT rolsuper FROM pg_roles WHERE rolname = current_user"))[0][0]:
        pytest.skip("only a superuser may choose the victim of a deadlock")
    try:
        async with writer(place, "LOCK workflow_state IN SHARE UPDATE EXCLUSIVE MODE"):
            children.begin(place, folder)
            await until(lambda: waiting(place, "CREATE INDEX"))
            children.kill()
            assert await index_states(place) == []
            if victim != "ours":
                await place.fetch(f"ALTER DATABASE {database} SET deadlock_timeout = '30s'")
            again = asyncio.create_task(with_files(place, folder).migrate())
            await until(lambda: two_wait(place))
        assert [str(step) for step in (await again).steps] == ["001_index"]
    finally:
        if victim != "ours":
            await place.fetch(f"ALTER DATABASE {database} RESET deadlock_timeout")
    assert await index_states(place) == [True]
    assert await versions(place, "deployment") == [1]
    assert await leases(place) == 0


async def two_wait(place: Place) -> bool:
    rows = await place.fetch(
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' "
        "AND query LIKE $1",
        f"%CREATE INDEX%{place.schema}%",
    )
    return len(rows) == 2


@in_loop
async def test_killed_while_it_drops_an_invalid_index(place: Place, children: Children, tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", _001_index=INDEX)
    await place.backend().migrate()
    async with writer(place):
        builder = await place.connect()
        build = asyncio.create_task(builder.execute(INDEX.replace("{schema}", place.schema)))
        pid = await until(lambda: waiting(place, "CREATE INDEX"))
        await place.fetch("SELECT pg_terminate_backend($1)", pid)
        with pytest.raises(asyncpg.PostgresError):
            await build
        children.begin(place, folder)
        pid = await until(lambda: waiting(place, "DROP INDEX"))
        children.kill()
        await place.fetch("SELECT pg_terminate_backend($1)", pid)
        await until(lambda: gone(place, pid))
    assert len((await with_files(place, folder).migrate()).steps) == 1
    assert await index_states(place) == [True]


@in_loop
async def test_the_holder_of_the_lock_is_killed(place: Place, children: Children) -> None:
    children.begin(place, stop_before="CREATE TABLE workflow_traces")
    assert "workflow_traces" in await asyncio.to_thread(children.hears, "stopped")
    told: list[str] = []
    waiter = asyncio.create_task(place.backend().migrate(told=lambda now: told.append(now.doing)))
    await until(lambda: _first(told, "waits"))
    await asyncio.sleep(0.2)
    assert not waiter.done()
    with pytest.raises(MigrationLockError, match=r"another process is migrating.*nothing was changed"):
        await place.backend(migration_lock_wait=0).migrate()
    assert await dump(place) == []
    children.kill()
    assert [step.version for step in (await waiter).steps] == [1, 2]


# --- lost answers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("forward", [True, False], ids=["reply lost", "request lost"])
@pytest.mark.parametrize("which", ["in a transaction", "lease", "record"])
@in_loop
async def test_a_commit_whose_answer_is_lost_counts_if_it_is_recorded(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str, forward: bool
) -> None:
    file = "CREATE TABLE counted (amount INT)" if which == "in a transaction" else INDEX
    folder = write(tmp_path / "mine", _001_one=file)
    await place.backend().migrate()
    proxy = Proxy(place.uri)
    module, name = {
        "in a transaction": (schema, "record"),
        "lease": (concurrently, "make_tables"),
        "record": (concurrently, "record"),
    }[which]
    real, hits = getattr(module, name), 0

    async def then_arm(*args: Any) -> None:
        nonlocal hits
        await real(*args)
        hits += 1
        if hits == 1:
            proxy.arm(b"COMMIT;", forward=forward)

    monkeypatch.setattr(module, name, then_arm)
    async with proxy.listening() as uri:
        report = await with_files(place.at(uri), folder).migrate()
    assert proxy.hits == 1
    assert hits == (2 if which == "lease" or not forward else 1)
    assert [str(step) for step in report.steps] == ["001_one"]
    assert await versions(place, "deployment") == [1]
    assert await leases(place) == 0


@in_loop
async def test_a_connection_that_is_lost_in_a_step_is_replaced(place: Place, tmp_path: Path) -> None:
    folder = write(
        tmp_path / "mine",
        _001_slow="CREATE TABLE counted AS SELECT 1 AS a;\nSELECT pg_sleep(0.4);\nALTER TABLE counted ADD more INT",
    )
    await place.backend().migrate()
    task = asyncio.create_task(with_files(place, folder).migrate())
    ended = await until(
        lambda: place.fetch(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
            "AND query LIKE 'SELECT pg_sleep(0.4)%' AND state = 'active'"
        )
    )
    assert len(ended) == 1
    assert len((await task).steps) == 1
    assert await versions(place, "deployment") == [1]
    assert await place.fetch("SELECT a, more FROM counted") == [(1, None)]


# --- those who are in the way -----------------------------------------------------------------------------------------


@in_loop
async def test_a_locked_table_is_waited_for(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "_PATIENCE", 0.1)
    folder = write(
        tmp_path / "mine", _001_alter="CREATE TABLE counted (amount INT);\nALTER TABLE workflow_state ADD mine INT"
    )
    async with place.backend() as backend:
        await backend.save_state("run", state(0))
        told: list[str] = []
        async with writer(place, "LOCK workflow_state IN ACCESS EXCLUSIVE MODE"):
            began = time.monotonic()
            with pytest.raises(
                MigrationLockError, match=r"001_alter could not begin within 0\.5 s.*another session holds a lock"
            ) as caught:
                await with_files(place, folder, migration_lock_wait=0.5).migrate()
            assert 0.5 <= time.monotonic() - began < 5
            assert NO_BREAK.fullmatch(str(caught.value))
            assert await versions(place, "deployment") == []
            waiter = asyncio.create_task(with_files(place, folder).migrate(told=lambda now: told.append(now.doing)))
            await until(lambda: _first(told[1:], "waits"))
            # A look at the columns would wait for that lock too.
            assert await place.fetch("SELECT to_regclass('counted')") == [(None,)]
        assert len((await waiter).steps) == 1
        assert told[0] == "runs"
        assert told[-1] == "done"
        # A backend that was open all the time goes on.
        assert await backend.save_state("run", state(1)) == 2
    assert await versions(place, "deployment") == [1]


@in_loop
async def test_the_victim_of_a_deadlock_tries_again(place: Place, tmp_path: Path) -> None:
    folder = write(
        tmp_path / "mine",
        _001_both="LOCK workflow_spans;\nALTER TABLE workflow_traces ADD mine INT",
    )
    await place.backend().migrate()
    async with writer(place, "LOCK workflow_traces") as other:
        task = asyncio.create_task(with_files(place, folder).migrate())
        await until(
            lambda: place.fetch(
                "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = to_regclass('workflow_traces')"
            )
        )
        # The one that waits longer looks first, and is the victim.
        await other.execute("LOCK workflow_spans")
        await other.execute("COMMIT")
    assert len((await task).steps) == 1
    assert await versions(place, "deployment") == [1]


@in_loop
async def test_of_many_one_builds_the_index_however_long_it_takes(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "mine", _001_index=INDEX)
    await place.backend().migrate()
    builds = Builds(monkeypatch)
    monkeypatch.setattr(concurrently, "LEASE", 0.9)
    told: list[tuple[int, str]] = []
    async with writer(place):
        tasks = [
            asyncio.create_task(
                with_files(place, folder).migrate(told=lambda now, one=one: told.append((one, now.doing)))  # type: ignore[misc]
            )
            for one in range(3)
        ]
        pid = await until(lambda: waiting(place, "CREATE INDEX"))
        await asyncio.sleep(2)
        assert await waiting(place, "CREATE INDEX") == pid
        assert len({one for one, doing in told if doing == "waits"}) == 2
    reports = await asyncio.gather(*tasks)
    assert builds.count == 1
    assert sorted(len(report.steps) for report in reports) == [0, 0, 1]
    assert await index_states(place) == [True]
    assert await versions(place, "deployment") == [1]
    assert await leases(place) == 0


@in_loop
async def test_two_processes_and_one_index(place: Place, children: Children, tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", _001_index=INDEX)
    await place.backend().migrate()
    async with writer(place):
        children.begin(place, folder, lease=5)
        pid = await until(lambda: waiting(place, "CREATE INDEX"))
        told: list[str] = []
        task = asyncio.create_task(with_files(place, folder).migrate(told=lambda now: told.append(now.doing)))
        await until(lambda: _first(told, "waits"))
        assert await waiting(place, "CREATE INDEX") == pid
    assert (await task).steps == ()
    assert await asyncio.to_thread(children.hears, "ended") == 0
    assert await index_states(place) == [True]
    assert await versions(place, "deployment") == [1]


HEARTBEAT = (
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '%UPDATE%leases SET expires%' "
    "AND pid <> pg_backend_pid()"
)


@pytest.mark.parametrize("what", ["lease", "connection"])
@in_loop
async def test_who_loses_the_lease_stops_building(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    folder = write(tmp_path / "mine", _001_index=INDEX)
    await place.backend().migrate()
    builds = Builds(monkeypatch)
    monkeypatch.setattr(concurrently, "LEASE", 1.2)
    async with writer(place):
        task = asyncio.create_task(with_files(place, folder).migrate())
        pid = await until(lambda: waiting(place, "CREATE INDEX"))
        if what == "lease":
            await place.fetch("UPDATE flujo_migration_leases SET holder = 'other', expires_at = now() + '1 s'")
            await until(lambda: gone_or_idle(place, pid))
            assert [row[0] for row in await place.fetch("SELECT holder FROM flujo_migration_leases")] == ["other"]
        else:
            # A heartbeat whose connection breaks finds another one in time.
            first = (await until(lambda: place.fetch(HEARTBEAT)))[0][0]
            await place.fetch("SELECT pg_terminate_backend($1)", first)
            await until(lambda: another(place, first))
            await asyncio.sleep(0.8)
            assert await waiting(place, "CREATE INDEX") == pid
    assert len((await task).steps) == 1
    assert builds.count == (2 if what == "lease" else 1)
    assert await index_states(place) == [True]
    assert await versions(place, "deployment") == [1]
    assert await leases(place) == 0


async def gone_or_idle(place: Place, pid: int) -> bool:
    return not await place.fetch("SELECT 1 FROM pg_stat_activity WHERE pid = $1 AND state = 'active'", pid)


async def another(place: Place, pid: int) -> bool:
    return any(row[0] != pid for row in await place.fetch(HEARTBEAT))


@in_loop
async def test_one_that_is_cancelled_lets_the_next_one_begin_at_once(place: Place, tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", _001_index=INDEX)
    await place.backend().migrate()
    async with writer(place):
        task = asyncio.create_task(with_files(place, folder).migrate())
        pid = await until(lambda: waiting(place, "CREATE INDEX"))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: gone_or_idle(place, pid))
        assert await leases(place) == 0
    assert len((await with_files(place, folder, migration_lock_wait=0).migrate()).steps) == 1


# --- statements that fail ---------------------------------------------------------------------------------------------


@in_loop
async def test_an_invalid_index_is_dropped_and_built_again(place: Place, tmp_path: Path) -> None:
    folder = write(
        tmp_path / "mine",
        _001_table="CREATE TABLE counted (amount INT);\nINSERT INTO counted VALUES (4711), (4711)",
        _002_unique="-- CREATE INDEX CONCURRENTLY counted_amount ON another: a comment is no statement\n"
        "-- transaction=false\nCREATE UNIQUE INDEX CONCURRENTLY counted_amount ON {schema}.counted (amount)",
    )
    backend = with_files(place, folder)
    for _ in range(2):
        with pytest.raises(
            MigrationError, match=r"002_unique failed: could not create unique index.*flujo migrate"
        ) as caught:
            await backend.migrate()
        assert type(caught.value) is MigrationError
        assert NO_BREAK.fullmatch(str(caught.value))
        assert "4711" not in str(caught.value), "that is what is stored"
        assert await index_states(place, "counted_amount") == [False]
        assert await versions(place, "deployment") == [1]
        assert await leases(place) == 0
    await place.fetch("DELETE FROM counted WHERE ctid = (SELECT min(ctid) FROM counted)")
    assert [str(step) for step in (await backend.migrate()).steps] == ["002_unique"]
    assert await index_states(place, "counted_amount") == [True]
    assert await versions(place, "deployment") == [1, 2]


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


@pytest.mark.parametrize("transaction", [True, False])
@in_loop
async def test_a_step_has_its_time(place: Place, tmp_path: Path, transaction: bool) -> None:
    file = "SELECT pg_sleep(30)" if transaction else "-- transaction=false\nSELECT pg_sleep(30) -- {schema}"
    folder = write(tmp_path / "mine", _001_slow=file)
    await place.backend().migrate()
    began = time.monotonic()
    with pytest.raises(MigrationError, match=r"001_slow did not end within 0\.3 s \(migration_timeout\)") as caught:
        await with_files(place, folder, migration_timeout=0.3).migrate()
    assert time.monotonic() - began < 5
    assert ("it was undone" in str(caught.value)) is transaction
    assert NO_BREAK.fullmatch(str(caught.value))
    assert await versions(place, "deployment") == []
    assert await leases(place) == 0


def test_which_index_a_statement_builds() -> None:
    for text, name in (
        ("create index concurrently idx ON t (a)", "idx"),
        ("-- CREATE INDEX CONCURRENTLY other ON t\nCREATE UNIQUE INDEX CONCURRENTLY if not exists IdX_Ä ON t", "idx_Ä"),
        ('/* why */ CREATE INDEX -- x\n CONCURRENTLY /* y */ "A ""b""" ON t (a)', 'A "b"'),
        (f"CREATE INDEX CONCURRENTLY {'i' * 70} ON t (a)", "i" * 63),
        ("CREATE INDEX idx ON t (a)", None),
        ("-- CREATE INDEX CONCURRENTLY other ON t\nVACUUM t", None),
        ("REINDEX INDEX CONCURRENTLY idx", None),
    ):
        assert index_of(text) == name
    for nameless in ("CREATE INDEX CONCURRENTLY ON t (a)", 'CREATE INDEX CONCURRENTLY U&"a" ON t (a)'):
        with pytest.raises(MigrationError, match="without a plain name"):
            index_of(nameless)


@in_loop
async def test_a_statement_by_itself_says_where(place: Place, tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", _001_index=INDEX.replace("{schema}.", ""))
    await place.backend().migrate()
    with pytest.raises(MigrationError, match=r"001_index.*\{schema\}\.some_table"):
        await with_files(place, folder).migrate()
    assert await versions(place, "deployment") == []


# --- the deployment's own files ---------------------------------------------------------------------------------------

GUIDE = """
BEGIN;
ALTER TABLE workflow_state ADD COLUMN custom_field TEXT DEFAULT 'mine';
INSERT INTO flujo_schema_versions (version, applied_at)
VALUES (3, NOW())
ON CONFLICT (version) DO NOTHING;
COMMIT;
"""
THIRD = "ALTER TABLE workflow_state ADD COLUMN third INT;\n"


@in_loop
async def test_a_file_of_the_guide_is_the_deployments_and_flujos_003_comes_later(
    place: Place, tmp_path: Path, newer: Callable[..., None]
) -> None:
    folder = write(tmp_path / "mine", _003_custom_field=GUIDE)
    report = await with_files(place, folder).migrate()
    assert [(step.series, str(step)) for step in report.steps] == [
        ("flujo", "001_init"),
        ("flujo", "002_metadata_index"),
        ("deployment", "003_custom_field"),
    ]
    assert report.to_version == 2
    [row] = await place.fetch("SELECT * FROM flujo_deployment_versions")
    assert (row["version"], row["name"], row["min_code"]) == (3, "custom_field", 0)
    assert row["checksum"] == parse_migration("003_custom_field.sql", GUIDE).checksum
    assert row["duration_ms"] > 0
    assert row["applied_at"] is not None
    assert [row[0] for row in await place.fetch("SELECT version FROM flujo_schema_versions ORDER BY 1")] == [1, 2]
    async with with_files(place, folder, auto_migrate=False) as backend:
        await backend.save_state("run", state(0))
    newer(_003_third=THIRD)
    report = await with_files(place, folder).migrate()
    assert [(step.series, str(step)) for step in report.steps] == [("flujo", "003_third")]
    assert await versions(place) == [1, 2, 3]
    assert await versions(place, "deployment") == [3]
    assert await place.fetch("SELECT custom_field, third FROM workflow_state") == [("mine", None)]


@in_loop
async def test_a_version_written_by_hand_is_none_of_flujos(place: Place, newer: Callable[..., None]) -> None:
    async with place.backend() as backend:
        await backend.save_state("run", state(0))
    connection = await place.connect()
    await connection.execute(GUIDE)
    await connection.close()
    status = await place.backend().schema_status()
    assert (status.state, status.current_version, status.pending) == ("current", 2, ())
    for auto_migrate in (True, False):
        async with place.backend(auto_migrate=auto_migrate) as backend:
            await backend.save_state("run", state(1))
    newer(_003_third=THIRD)
    assert [str(step) for step in (await place.backend().migrate()).steps] == ["003_third"]
    [row] = await place.fetch("SELECT * FROM flujo_schema_versions WHERE version = 3")
    assert row["checksum"] == parse_migration("003_third.sql", THIRD).checksum
    assert (await place.backend().schema_status()).current_version == 3


@in_loop
async def test_tables_of_others_are_not_taken_for_ours(place: Place) -> None:
    await place.fetch(f"CREATE SCHEMA {place.schema}")
    await place.fetch("CREATE TABLE flujo_schema_versions (version INT, installed_on TEXT)")
    for auto_migrate in (True, False):
        with pytest.raises(UnsupportedStorageError, match="flujo_schema_versions that this library did not make"):
            await place.backend(auto_migrate=auto_migrate).list_runs()


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


@in_loop
async def test_without_auto_migrate_no_right_to_create_is_needed(place: Place, tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", _003_custom_field=GUIDE, _004_index=INDEX)
    # With the right to write in the tables that are there, and to nothing else.
    everything = f"SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {place.schema}"
    await place.backend().migrate(target_version=1)
    usage = f"USAGE ON SCHEMA {place.schema}"
    async with role(place, usage, everything) as worker:
        backend = with_files(worker, folder, auto_migrate=False)
        with pytest.raises(SchemaOutdatedError, match=r"version 1.*needs 2.*flujo migrate"):
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
    assert await versions(place) == [1, 2]


@in_loop
async def test_to_look_needs_the_right_to_read(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, begun = asyncpg.Connection.execute, []

    async def execute(connection: Any, statement: str, *values: Any, **options: Any) -> Any:
        begun.extend([statement] if statement.startswith("BEGIN") else [])
        return await real(connection, statement, *values, **options)

    monkeypatch.setattr(asyncpg.Connection, "execute", execute)
    folder = write(tmp_path / "mine", _003_custom_field=GUIDE, _004_index=INDEX)
    everywhere = await relations(place)
    for step in (0, 1, 2):
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
                pending = [*range(step + 1, 3), 3, 4]
                assert [one.version for one in (await backend.schema_status()).pending] == pending
                assert [one.version for one in (await backend.migrate(dry_run=True)).steps] == pending
                assert len(await backend.migration_script()) > len(pending)
                ours = await who.backend(auto_migrate=False).migration_script()
                assert bool(ours) is (step < 2)
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
            newer(_003_third=THIRD + "CREATE INDEX idx_third ON workflow_state (third)")
            async with place.backend() as new:
                await both_work(old, new, 1)
                # As the package is a class variable, code that is opened now is old again.
                PostgresStore.migrations = "flujo_postgres.migrations"
                for auto_migrate in (True, False):
                    async with place.backend(auto_migrate=auto_migrate) as restarted:
                        await both_work(restarted, new, 2)
                        assert "schema version 3, this code knows 2" in caplog.text
                        caplog.clear()
                status = await place.backend().schema_status()
                assert (status.state, status.pending) == ("newer", ())
                assert (await place.backend().migrate()).steps == ()
    assert await versions(place) == [1, 2, 3]


@in_loop
async def test_old_code_is_refused_where_newer_code_says_so(place: Place, newer: Callable[..., None]) -> None:
    async with place.backend() as old:
        await old.save_state("run", state(0))
    newer(_003_third=f"-- min_code=3\n{THIRD}")
    async with place.backend() as new:
        await new.save_state("run", state(1))
        PostgresStore.migrations = "flujo_postgres.migrations"
        for auto_migrate in (True, False):
            with pytest.raises(SchemaTooNewError, match=r"version 3, this code knows 2"):
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
    newer(_003_third=THIRD)
    new = [place.backend() for _ in range(3)]
    tasks += [asyncio.create_task(backend.save_run_start({"run_id": f"n{n}"})) for n, backend in enumerate(new)]
    await asyncio.gather(*tasks)
    for backend in (*old, *new):
        assert len(await backend.list_runs()) == 6
        await backend.shutdown()
    assert await versions(place) == [1, 2, 3]
