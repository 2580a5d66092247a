"""Does every migration end as a whole and once, whoever is killed, cut off or in the way?"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from postgres_migrations import (
    INDEX,
    KILLED,
    NO_BREAK,
    Builds,
    Children,
    dump,
    heard,
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
from postgres_support import VERSIONS, Place, in_loop, state
from test_postgres_faults import Proxy

from flujo_core.errors import MigrationLockError
from flujo_core.migrations import Migration
from flujo_postgres import concurrently, schema

pytest_plugins = ["postgres_support", "postgres_migrations"]


# --- killed before each statement -------------------------------------------------------------------------------------


class Watched(Place):
    """A place that is looked at again and again, by one connection; statements name the schema."""

    def __init__(self, place: Place, connection: Any) -> None:
        super().__init__(place.uri, f"t_{secrets.token_hex(4)}")
        self._connection = connection

    async def fetch(self, statement: str, *values: Any) -> list[Any]:
        found: list[Any] = await self._connection.fetch(statement, *values)
        return found


async def dump_after(place: Place, folder: Path | None, step: Migration) -> list[tuple[str, ...]]:
    """What is there when all steps up to this one have been applied, and no later one."""
    if step.series == "flujo":
        await place.backend().migrate(target_version=step.version)
    else:
        assert folder is not None
        texts = {path.stem: path.read_text() for path in folder.glob("*.sql") if path.stem <= str(step)}
        await with_files(place, write(folder.with_name(f"up_to_{step}"), **texts)).migrate()
    return await dump(place)


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
    steps = (await with_files(undisturbed, folder).migrate(dry_run=True)).steps
    stages = [before[1], *[await dump_after(undisturbed, folder, step) for step in steps]]
    after = (await recorded(undisturbed), stages[-1])
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
        there = stages[left[-1]]
        assert set(there) <= set(now[1])
        if now[1] != there:
            # Of a step in a transaction there is all or nothing; of another one an index may be there.
            assert not steps[left[-1]].transaction
            assert {row[:3] for row in now[1]} <= {row[:3] for row in stages[left[-1] + 1]}
        assert len((await with_files(killed, folder).migrate()).steps) == len(steps) - left[-1]
        assert (await recorded(killed), await dump(killed)) == after
        assert await leases(killed) == 0
        killed = None
    assert left == sorted(left)
    assert set(left) == set(range(len(steps) + 1))
    await connection.close()
    return left


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


# --- killed at other moments ------------------------------------------------------------------------------------------


async def gone(place: Place, pid: int) -> bool:
    return not await place.fetch("SELECT 1 FROM pg_stat_activity WHERE pid = $1", pid)


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
        await until(lambda: waiting(place, "DROP INDEX") if server_notices else heard(told, "waits"))
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


async def two_wait(place: Place) -> bool:
    rows = await place.fetch(
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' "
        "AND query LIKE $1",
        f"%CREATE INDEX%{place.schema}%",
    )
    return len(rows) == 2


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
    await until(lambda: heard(told, "waits"))
    await asyncio.sleep(0.2)
    assert not waiter.done()
    with pytest.raises(MigrationLockError, match=r"another process is migrating.*nothing was changed"):
        await place.backend(migration_lock_wait=0).migrate()
    assert await dump(place) == []
    children.kill()
    assert [step.version for step in (await waiter).steps] == VERSIONS


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
            await until(lambda: heard(told[1:], "waits"))
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
