"""Does a step outside of a transaction, such as CREATE INDEX CONCURRENTLY, run once, whoever else wants it?"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from postgres_migrations import (
    INDEX,
    NO_BREAK,
    Builds,
    Children,
    heard,
    index_states,
    leases,
    until,
    versions,
    waiting,
    with_files,
    write,
    writer,
)
from postgres_support import Place, in_loop

from flujo_core.errors import MigrationError
from flujo_core.migrations import Migration, record_statement
from flujo_postgres import concurrently, schema
from flujo_postgres.concurrently import index_of

pytest_plugins = ["postgres_support", "postgres_migrations"]


# --- who builds it ----------------------------------------------------------------------------------------------------


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
async def test_a_step_that_is_recorded_just_before_its_lease_is_taken_is_not_run_again(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has the lease finishes without the lock, so it may do that after another process has looked."""
    folder = write(tmp_path / "mine", _001_index=INDEX)
    await with_files(place, folder).migrate()
    folder = write(folder, _002_other=INDEX.replace("idx_task", "idx_other"))
    make_tables = schema.make_tables

    async def late(connection: Any, at: Any, step: Migration, leases: bool) -> None:
        await make_tables(connection, at, step, leases)
        if not await place.fetch("SELECT 1 FROM pg_indexes WHERE indexname = 'idx_other'"):
            await place.fetch("CREATE INDEX idx_other ON workflow_state (task_id, run_id)")
            await place.fetch(record_statement(step, "flujo_deployment_versions"))

    monkeypatch.setattr(concurrently, "make_tables", late)
    assert (await with_files(place, folder).migrate()).steps == ()
    assert await versions(place, "deployment") == [1, 2]
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
        await until(lambda: heard(told, "waits"))
        assert await waiting(place, "CREATE INDEX") == pid
    assert (await task).steps == ()
    assert await asyncio.to_thread(children.hears, "ended") == 0
    assert await index_states(place) == [True]
    assert await versions(place, "deployment") == [1]


HEARTBEAT = (
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '%UPDATE%leases SET expires%' "
    "AND pid <> pg_backend_pid()"
)


async def gone_or_idle(place: Place, pid: int) -> bool:
    return not await place.fetch("SELECT 1 FROM pg_stat_activity WHERE pid = $1 AND state = 'active'", pid)


async def another(place: Place, pid: int) -> bool:
    return any(row[0] != pid for row in await place.fetch(HEARTBEAT))


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


# --- which index it is ------------------------------------------------------------------------------------------------


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
        index = index_of(text)
        assert (index and index.name) == name
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
