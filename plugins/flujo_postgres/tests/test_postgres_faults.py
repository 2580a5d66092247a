"""What becomes of a write when the connection, the server or the caller goes away in the middle of it?"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from postgres_support import Place, in_loop, state

from flujo_conformance.postgres_server import PostgresServer
from flujo_core.errors import (
    FlujoStateError,
    OutcomeUnknownError,
    StateConflictError,
    StorageError,
    StorageTimeoutError,
    StorageUnavailableError,
)
from flujo_core.uri import parse_uri
from flujo_postgres import PostgresBackend, PostgresSettings
from flujo_postgres import connection as connection_module
from flujo_postgres.connection import Connections, Target

pytest_plugins = ["postgres_support"]

END_ALL = (
    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name = $1"
)


class Proxy:
    """Between a backend and its server. Armed, it acts once, on a message that contains the needle: forwards it and
    drops the reply, or drops it too; both connections are closed."""

    def __init__(self, uri: str) -> None:
        parts = urlsplit(uri)
        self._server = parts.hostname, parts.port
        self._uri = parts
        self._writers: set[asyncio.StreamWriter] = set()
        self.needle = b""
        self.forward = True
        self.hits = 0
        self.dead = False
        """Whether connections are closed at once, the others too, from the first hit on if ``dies``."""
        self.dies = False
        self._tasks: set[asyncio.Task[None]] = set()

    def arm(self, needle: bytes, *, forward: bool, dies: bool = False) -> None:
        self.needle, self.forward, self.dies, self.hits = needle, forward, dies, 0

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        """The URI through which the server is reached."""
        listener = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        try:
            # Without TLS, so that the messages can be read; the test server has none anyhow.
            yield self._uri._replace(netloc=f"{self._uri.username}:{self._uri.password}@127.0.0.1:{port}").geturl()
        finally:
            listener.close()
            self.cut()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        if self.dead:
            writer.transport.abort()
            return
        upstream, server = await asyncio.open_connection(*self._server)
        both = (writer, server)
        self._writers.update(both)
        lost = asyncio.Event()
        try:
            await asyncio.gather(self._requests(reader, server, lost, both), self._replies(upstream, writer, lost))
        except OSError:
            pass
        finally:
            for end in both:
                end.transport.abort()
                self._writers.discard(end)

    async def _requests(
        self, reader: asyncio.StreamReader, server: asyncio.StreamWriter, lost: asyncio.Event, both: tuple[Any, ...]
    ) -> None:
        statements: dict[bytes, bytes] = {}
        while data := await reader.read(1 << 20):
            if self._meant(data, statements):
                self.needle, self.hits, self.dead = b"", self.hits + 1, self.dies
                lost.set()
                if self.forward:
                    server.write(data)
                    # The server has answered, into the void, when it has nothing more to do.
                    await asyncio.sleep(0.1)
                for end in self._writers.copy() if self.dead else both:
                    end.transport.abort()
                return
            server.write(data)
        for end in both:
            end.transport.abort()

    def _meant(self, data: bytes, statements: dict[bytes, bytes]) -> bool:
        """Whether this executes the statement: a prepared one comes first as text, then by its name."""
        if data[:1] == b"P":
            name, _, text = data[5:].partition(b"\0")
            statements[name] = text
        if not self.needle:
            return False
        if data[:1] == b"B":
            return any(name in data and self.needle in text for name, text in statements.items())
        return data[:1] == b"Q" and self.needle in data

    async def _replies(self, upstream: asyncio.StreamReader, writer: asyncio.StreamWriter, lost: asyncio.Event) -> None:
        while data := await upstream.read(1 << 20):
            if lost.is_set():
                continue
            writer.write(data)
        writer.transport.abort()


async def revision(place: Place, run_id: str) -> int:
    rows = await place.fetch("SELECT revision FROM workflow_state WHERE run_id = $1", run_id)
    return int(rows[0][0]) if rows else 0


# --- lost answers (G9) --------------------------------------------------------------------------------------------

TRACE = {"span_id": "root", "name": "run", "start_time": 1.0, "status": "completed"}
UPDATE, INSERT, BATCH, COMMIT = b'UPDATE "', b"INSERT INTO", b"WITH ", b"COMMIT;"


@pytest.mark.parametrize("forward", [True, False], ids=["reply lost", "request lost"])
@in_loop
async def test_g9_a_save_whose_answer_is_lost_is_applied_once(place: Place, forward: bool) -> None:
    proxy = Proxy(place.uri)
    async with proxy.listening() as uri, place.at(uri).backend() as backend:
        assert await backend.save_state("old", state(0)) == 1
        for needle, run_id, before in ((UPDATE, "old", 1), (INSERT, "new", 0)):
            proxy.arm(needle, forward=forward)
            assert await backend.save_state(run_id, state("through")) == before + 1
            assert proxy.hits == 1
            assert await revision(place, run_id) == before + 1
            # What the backend now expects to be stored is what is stored.
            assert await backend.save_state(run_id, state("after")) == before + 2
        loaded = await backend.load_state("old")
        assert loaded is not None
        assert loaded["pipeline_context"] == {"value": "after"}


@pytest.mark.parametrize("forward", [True, False], ids=["reply lost", "request lost"])
@in_loop
async def test_g9_every_write_whose_answer_is_lost_is_applied_once(place: Place, forward: bool) -> None:
    proxy = Proxy(place.uri)
    async with proxy.listening() as uri, place.at(uri).backend() as backend:
        await backend.save_state("run", state(0))

        proxy.arm(BATCH, forward=forward)
        await backend.save_step_result({"run_id": "run", "step_name": "s", "step_index": 0})
        assert proxy.hits == 1
        assert len(await backend.list_run_steps("run")) == 1

        proxy.arm(BATCH, forward=forward)
        await backend.persist_evaluation("run", 0.5)
        assert proxy.hits == 1
        assert len(await backend.list_evaluations()) == 1

        proxy.arm(BATCH, forward=forward)
        await backend.save_spans("run", [{"span_id": "a"}, {"span_id": "b"}])
        assert proxy.hits == 1
        assert len(await backend.get_spans("run")) == 2

        proxy.arm(BATCH, forward=forward)
        revisions = await asyncio.gather(*(backend.save_state(run_id, state(1)) for run_id in ("run", "b", "b", "c")))
        assert proxy.hits == 1
        assert revisions == [2, 1, 2, 1]
        assert [await revision(place, run_id) for run_id in ("run", "b", "c")] == [2, 2, 1]

        proxy.arm(b"flujo_system_state", forward=forward)
        await backend.set_system_state("key", 1)
        assert proxy.hits == 1
        found = await backend.get_system_state("key")
        assert found is not None
        assert found["value"] == 1

        proxy.arm(COMMIT, forward=forward)
        await backend.save_trace("run", TRACE)
        assert proxy.hits == 1
        assert await backend.get_trace("run") == TRACE

        proxy.arm(BATCH, forward=forward)
        assert await backend.delete_run("run") is True
        assert proxy.hits == 1
        assert await place.fetch("SELECT 1 FROM workflow_state WHERE run_id = 'run'") == []


@in_loop
async def test_g9_a_batch_whose_look_at_what_others_wrote_fails_is_not_applied_twice(place: Place) -> None:
    proxy = Proxy(place.uri)
    async with proxy.listening() as uri, place.at(uri).backend() as backend, place.backend() as other:
        for run_id in ("a", "b"):
            await backend.save_state(run_id, state(0))
        await other.save_state("b", state(1))
        # The statement that tells what is stored of "b" finds no server; "a" has been written by then.
        proxy.arm(b"SELECT w.run_id, w.operation_id", forward=False)
        together = asyncio.gather(*(backend.save_state(run_id, state(2)) for run_id in ("a", "b")))
        assert await together == [2, 3]
        assert proxy.hits == 1


@in_loop
async def test_g10_a_run_that_somebody_else_made_is_not_removed_unseen(place: Place) -> None:
    async with place.backend() as backend, place.backend() as other:
        assert await other.save_state("run", state(0)) == 1
        saves = [backend.save_state("run", state(1)), backend.delete_run("run"), backend.save_state("run", state(2))]
        assert await asyncio.gather(*saves) == [2, True, 1]


@in_loop
async def test_g9_an_expected_revision_survives_a_lost_answer(place: Place) -> None:
    proxy = Proxy(place.uri)
    async with proxy.listening() as uri, place.at(uri).backend() as backend:
        await backend.save_state("run", state(0))
        proxy.arm(UPDATE, forward=True)
        assert await backend.save_state("run", state(1), expected_revision=1) == 2
        proxy.arm(UPDATE, forward=True)
        with pytest.raises(StateConflictError):
            await backend.save_state("run", state(2), expected_revision=1)
        assert await revision(place, "run") == 2


WRITES: dict[str, tuple[bytes, Callable[[PostgresBackend], Awaitable[object]]]] = {
    "save_state": (UPDATE, lambda backend: backend.save_state("run", state(1))),
    "save_step_result": (
        BATCH,
        lambda backend: backend.save_step_result({"run_id": "run", "step_name": "s", "step_index": 0}),
    ),
    "save_trace": (COMMIT, lambda backend: backend.save_trace("run", TRACE)),
    "delete_run": (BATCH, lambda backend: backend.delete_run("run")),
    "set_system_state": (b"flujo_system_state", lambda backend: backend.set_system_state("key", 1)),
}


@pytest.mark.parametrize("write", WRITES)
@in_loop
async def test_g9_without_an_answer_and_without_a_server_the_outcome_is_unknown(place: Place, write: str) -> None:
    proxy = Proxy(place.uri)
    settings = {"lock_timeout": 0.6, "connect_timeout": 0.3, "acquire_timeout": 0.3}
    needle, call = WRITES[write]
    async with proxy.listening() as uri, place.at(uri).backend(**settings) as backend:
        await backend.save_state("run", state(0))
        proxy.arm(needle, forward=True, dies=True)
        began = monotonic()
        with pytest.raises(OutcomeUnknownError):
            await call(backend)
        assert monotonic() - began < 2
        # Nothing more is sent: that is told as what it is.
        with pytest.raises((StorageUnavailableError, StorageTimeoutError)):
            await call(backend)
        with pytest.raises((StorageUnavailableError, StorageTimeoutError)):
            await backend.load_state("run")
        proxy.dead = False
        await backend.save_state("run", state(2))
        loaded = await backend.load_state("run")
        assert loaded is not None
        assert loaded["pipeline_context"] == {"value": 2}


@in_loop
async def test_g9_connections_ended_under_load_lose_and_double_nothing(place: Place) -> None:
    runs, ended, saving = [f"run{number}" for number in range(12)], 0, True

    async def reaper() -> None:
        nonlocal ended
        connection = await place.connect()
        try:
            while saving:
                await asyncio.sleep(random.uniform(0.01, 0.1))
                ended += await connection.fetchval(END_ALL, "target")
        finally:
            await connection.close()

    async def writer(backend: PostgresBackend, run_id: str) -> None:
        # Nobody else writes these runs, so that each outcome can be told.
        for number in range(1, 31):
            assert await backend.save_state(run_id, state(number)) == number
            if run_id < "run2":  # some write alone, most in batches
                await asyncio.sleep(0.002)

    async with place.at(place.uri + "?application_name=target").backend() as backend:
        task = asyncio.create_task(reaper())
        await asyncio.gather(*(writer(backend, run_id) for run_id in runs))
        saving = False
        await task
        assert ended >= 3
        for run_id in runs:
            assert await revision(place, run_id) == 30


@pytest.mark.parametrize("error", [asyncpg.InternalClientError("cannot switch to state 12"), ConnectionResetError()])
@in_loop
async def test_g9_a_connection_that_broke_in_a_command_is_not_used_again(place: Place, error: Exception) -> None:
    """It may look open to asyncpg, and would come first out of the pool for ever."""
    settings = PostgresSettings(pool_max_size=1)
    connections = Connections(Target.of(parse_uri(place.uri), settings), settings)
    await connections.open()
    async with connections.acquire() as connection:
        before = connection.get_server_pid()
    with pytest.raises(type(error)):
        async with connections.acquire():
            raise error
    async with connections.acquire() as connection:
        after = connection.get_server_pid()
        assert after != before
    with pytest.raises(ValueError, match="ours"):
        async with connections.acquire():
            raise ValueError("ours")
    async with connections.acquire() as connection:
        assert connection.get_server_pid() == after
    await connections.close()


@contextlib.asynccontextmanager
async def pool_of(place: Place, size: int) -> AsyncIterator[Connections]:
    settings = PostgresSettings(pool_max_size=size)
    connections = Connections(Target.of(parse_uri(place.uri), settings), settings)
    await connections.open()
    try:
        yield connections
    finally:
        await connections.close()


@in_loop
async def test_g12_the_connection_out_of_the_pool_serves_whoever_comes(place: Place) -> None:
    order: list[int] = []

    async def use(connections: Connections, number: int) -> int:
        async with connections.acquire() as connection:
            await asyncio.sleep(0.01)
            order.append(number)
            return int(connection.get_server_pid())

    async with pool_of(place, 1) as connections:
        first = await use(connections, 0)
        pids = await asyncio.gather(*(use(connections, number) for number in range(1, 20)))
        assert ({first, *pids}, order) == ({first}, list(range(20)))
    order.clear()
    async with pool_of(place, 3) as connections:
        pids = await asyncio.gather(*(use(connections, number) for number in range(20)))
        assert len(set(pids)) == 3
        assert await use(connections, 20) in pids


@in_loop
async def test_g12_without_use_it_goes_back(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "_KEPT", 0.05)
    async with pool_of(place, 2) as connections:
        async with connections.acquire():
            pass
        assert connections._pool.get_idle_size() == 0
        await asyncio.sleep(0.2)
        assert connections._pool.get_idle_size() == 1
        async with connections.acquire() as connection:
            assert await connection.fetchval("SELECT 1") == 1


@pytest.mark.parametrize("spoiled", ["SELECT pg_terminate_backend(pg_backend_pid())", "BEGIN"])
@in_loop
async def test_g9_what_was_spoiled_is_not_kept(place: Place, spoiled: str) -> None:
    async with pool_of(place, 1) as connections:
        with contextlib.suppress(asyncpg.PostgresError):
            async with connections.acquire() as connection:
                await connection.execute(spoiled)
        async with connections.acquire() as connection:
            assert not connection.is_in_transaction()
            assert await connection.fetchval("SELECT 1") == 1


@in_loop
async def test_g9_what_broke_while_it_was_kept_is_not_used(place: Place) -> None:
    async with pool_of(place, 1) as connections:
        async with connections.acquire() as connection:
            pid = connection.get_server_pid()
        await place.fetch(f"SELECT pg_terminate_backend({pid})")
        await asyncio.sleep(0.1)
        async with connections.acquire() as connection:
            assert connection.get_server_pid() != pid
            assert await connection.fetchval("SELECT 1") == 1


def test_g9_a_backend_recovers_from_a_restart_of_the_server(own_server: PostgresServer) -> None:
    place = Place(own_server.create_database(), "restart")

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        async with place.backend() as backend:
            saved, stop = dict.fromkeys(("a", "b", "c"), 0), False

            async def writer(run_id: str) -> None:
                while not stop:
                    saved[run_id] = await backend.save_state(run_id, state(0))
                    await asyncio.sleep(0.001)

            writers = [asyncio.create_task(writer(run_id)) for run_id in saved]
            await asyncio.sleep(0.1)
            await loop.run_in_executor(None, own_server.restart)
            await asyncio.sleep(0.3)
            before_kill = dict(saved)
            await loop.run_in_executor(None, own_server.kill)
            await loop.run_in_executor(None, own_server.restart)
            await asyncio.sleep(0.3)
            stop = True
            await asyncio.gather(*writers)
            for run_id, number in saved.items():
                assert number > before_kill[run_id] > 0
                loaded = await backend.load_state(run_id)
                assert loaded is not None
                assert loaded["revision"] == number

    asyncio.run(scenario())


# --- cancelled calls (G9) -----------------------------------------------------------------------------------------


@in_loop
async def test_g9_a_cancelled_save_is_old_or_new_and_no_connection_is_lost(place: Place) -> None:
    uri = place.uri + "?application_name=cancelled"
    async with place.at(uri).backend(pool_max_size=1) as backend:
        await backend.save_state("run", state(0, step_history=[0]))
        last = 0
        for number in range(1, 120):
            value = state(number, step_history=[number] * (number % 3))
            task = asyncio.create_task(backend.save_state("run", value))
            for _ in range(number % 12):
                await asyncio.sleep(0)
            await asyncio.sleep(number % 5 * 0.0003)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
                last = number
            loaded = await backend.load_state("run")
            assert loaded is not None
            found = loaded["pipeline_context"]["value"]
            assert last <= found <= number
            assert loaded["step_history"] == ([found] * (found % 3) if found else [0])
            last = found
        for number in range(60):
            reading = asyncio.create_task(backend.list_runs(metadata_filter={"a": 1}, limit=3))
            await asyncio.sleep(number % 10 * 0.0003)
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reading
        assert await backend.count_runs() == 1
        states = await place.fetch("SELECT state FROM pg_stat_activity WHERE application_name = 'cancelled'")
        assert [row[0] for row in states] == ["idle"]


# --- deadlines (G12) ----------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def holding(place: Place, statement: str, *values: Any) -> AsyncIterator[Any]:
    """A transaction of somebody else's in which the statement was executed."""
    connection = await place.connect()
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.execute(statement, *values)
        yield transaction
    finally:
        await connection.close()


LOCK = "SELECT 1 FROM workflow_state WHERE run_id = 'held' FOR UPDATE"


async def timed(work: Any) -> float:
    began = monotonic()
    await work
    return monotonic() - began


@pytest.mark.parametrize("call", ["save_state", "save_step_result", "save_trace", "delete_run"])
@in_loop
async def test_g12_a_locked_run_is_waited_for_up_to_lock_timeout(place: Place, call: str) -> None:
    async with place.backend(lock_timeout=0.7) as backend:
        await backend.save_state("held", state(0))

        def work() -> Any:
            if call == "save_state":
                return backend.save_state("held", state(1))
            if call == "delete_run":
                return backend.delete_run("held")
            if call == "save_trace":
                return backend.save_trace("held", TRACE)
            return backend.save_step_result({"run_id": "held", "step_name": "s", "step_index": 0})

        async with holding(place, LOCK):
            began = monotonic()
            with pytest.raises(StorageTimeoutError, match="lock_timeout"):
                await work()
            assert 0.6 < monotonic() - began < 1.7
        async with holding(place, LOCK) as transaction:
            task = asyncio.create_task(work())
            await asyncio.sleep(0.3)
            assert not task.done()
            await transaction.rollback()
            await task
        if call != "delete_run":
            assert await revision(place, "held") == (2 if call == "save_state" else 1)


@pytest.mark.parametrize("together", [True, False], ids=["one batch", "one after the other"])
@in_loop
async def test_g12_a_locked_run_does_not_hold_up_the_others(place: Place, together: bool) -> None:
    async with place.backend(lock_timeout=3) as backend:
        for run_id in ("held", "a", "b"):
            await backend.save_state(run_id, state(0))
        async with holding(place, LOCK) as transaction:
            stuck = asyncio.create_task(backend.save_state("held", state(1)))
            later = asyncio.create_task(backend.save_state("held", state(2)))
            if not together:
                await asyncio.sleep(0.01)
            times = await asyncio.gather(
                *(timed(backend.save_state(run_id, state(1))) for run_id in ("a", "b", "new")),
                timed(backend.save_step_result({"run_id": "a", "step_name": "s", "step_index": 0})),
            )
            assert max(times) < 1
            assert await timed(backend.save_state("a", state(2))) < 1
            assert not stuck.done()
            assert not later.done()
            await transaction.rollback()
            assert [await stuck, await later] == [2, 3]
        loaded = await backend.load_state("held")
        assert loaded is not None
        assert loaded["pipeline_context"] == {"value": 2}


@in_loop
async def test_g12_somebody_elses_new_run_is_waited_for_up_to_lock_timeout(place: Place) -> None:
    async with place.backend(lock_timeout=0.5) as backend:
        await backend.save_state("pattern", state(0))
        twin = (
            "CREATE TEMP TABLE twin ON COMMIT DROP AS SELECT * FROM workflow_state; "
            "UPDATE twin SET run_id = 'held'; INSERT INTO workflow_state SELECT * FROM twin"
        )
        async with holding(place, twin):
            began = monotonic()
            with pytest.raises(StorageTimeoutError, match="lock_timeout"):
                await backend.save_state("held", state(1))
            assert monotonic() - began < 1.5
        assert await backend.save_state("held", state(1)) == 1


@in_loop
async def test_g12_a_slow_command_is_stopped_at_command_timeout(place: Place) -> None:
    async with place.backend(command_timeout=0.4, pool_max_size=3) as backend:
        await backend.save_state("run", state(0))
        calls: list[Any] = [
            lambda: backend.save_state("run", state(1)),
            lambda: backend.save_state("new", state(1)),
            lambda: backend.load_state("run"),
            lambda: backend.list_runs(metadata_filter={"a": 1}),
        ]
        async with holding(place, "LOCK TABLE workflow_state IN ACCESS EXCLUSIVE MODE"):
            for call in calls:
                began = monotonic()
                with pytest.raises(StorageTimeoutError, match=r"0\.4 s \(command_timeout\)"):
                    await call()
                assert 0.3 < monotonic() - began < 1.6
        assert await revision(place, "run") == 1
        assert await backend.save_state("run", state(2)) == 2


@in_loop
async def test_g12_an_exhausted_pool_is_waited_for_up_to_acquire_timeout(place: Place) -> None:
    async with place.backend(pool_max_size=1, acquire_timeout=0.4) as backend:
        await backend.save_state("run", state(0))
        async with holding(place, "LOCK TABLE workflow_state IN ACCESS EXCLUSIVE MODE"):
            stuck = asyncio.create_task(backend.load_state("run"))
            await asyncio.sleep(0.05)
            for call in (backend.load_state("run"), backend.save_state("run", state(1))):
                began = monotonic()
                with pytest.raises(StorageTimeoutError, match=r"acquire_timeout.*pool_max_size, now 1"):
                    await call
                assert 0.3 < monotonic() - began < 1.4
        await stuck
        assert await revision(place, "run") == 1


@in_loop
async def test_g12_shutdown_is_bounded_by_close_timeout(place: Place) -> None:
    backend = place.backend(close_timeout=0.5)
    await backend.save_state("run", state(0))
    async with holding(place, "LOCK TABLE workflow_state IN ACCESS EXCLUSIVE MODE"):
        stuck = asyncio.create_task(backend.load_state("run"))
        await asyncio.sleep(0.05)
        began = monotonic()
        with pytest.raises(StorageTimeoutError, match="close_timeout"):
            await backend.shutdown()
        assert monotonic() - began < 1.5
        with pytest.raises(StorageError):
            await stuck
    assert await backend.load_state("run") is not None
    await backend.shutdown()


# --- loops, threads and processes (G2) ----------------------------------------------------------------------------


def test_g2_one_backend_serves_one_loop_after_the_other(place: Place) -> None:
    place = place.at(place.uri + "?application_name=loops")
    backend = place.backend()
    for number in range(1, 4):
        assert asyncio.run(backend.save_state("run", state(number))) == number

    async def close() -> int:
        await backend.load_state("run")
        connections = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'loops'"
        for _ in range(100):  # the server notices a closed connection a little later
            [[count]] = await place.at(place.uri.partition("?")[0]).fetch(connections)
            if count == 1:
                break
            await asyncio.sleep(0.02)
        await backend.shutdown()
        return int(count)

    assert asyncio.run(close()) == 1, "connections of closed loops are still open"


def test_g2_one_backend_serves_several_threads(place: Place) -> None:
    backend = place.backend(pool_max_size=2)
    failures: list[BaseException] = []

    async def work(name: str) -> None:
        for number in range(1, 11):
            assert await backend.save_state(name, state(number)) == number
            await backend.save_step_result({"run_id": "shared", "step_name": name, "step_index": number})
        await backend.shutdown()

    def thread(name: str) -> None:
        try:
            asyncio.run(work(name))
        except BaseException as error:  # noqa: BLE001 - shown by the assertion
            failures.append(error)

    threads = [threading.Thread(target=thread, args=(f"thread{number}",)) for number in range(5)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert failures == []

    async def count() -> int:
        async with backend:
            return len(await backend.list_run_steps("shared"))

    assert asyncio.run(count()) == 50


def test_g2_a_fork_has_connections_of_its_own(place: Place) -> None:
    place = place.at(place.uri + "?application_name=forked")
    backend = place.backend()
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(backend.save_state("parent", state(0)))

        async def pids() -> set[int]:
            other = place.at(place.uri.partition("?")[0])
            return {
                row[0]
                for row in await other.fetch("SELECT pid FROM pg_stat_activity WHERE application_name = 'forked'")
            }

        before = loop.run_until_complete(pids())
        ours, theirs = socket.socketpair()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                asyncio.events._set_running_loop(None)

                async def child_work() -> None:
                    await backend.save_state("child", state(1))
                    theirs.send(repr(sorted(await pids())).encode())
                    await backend.shutdown()

                asyncio.run(child_work())
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        during = set(map(int, ours.recv(1000).decode().strip("[]").split(",")))
        assert before < during
        assert loop.run_until_complete(backend.save_state("parent", state(1))) == 2
        assert loop.run_until_complete(pids()) == before
        assert loop.run_until_complete(backend.load_state("child")) is not None
        loop.run_until_complete(backend.shutdown())
        ours.close()
        theirs.close()
    finally:
        loop.close()


# --- several backends (S6, G10) -----------------------------------------------------------------------------------


@in_loop
async def test_s6_of_concurrent_saves_with_one_expected_revision_one_wins(place: Place) -> None:
    async with place.backend() as one, place.backend() as other:
        await one.save_state("run", state(0))
        for expected in range(1, 201):
            saves = [
                backend.save_state("run", state(number), expected_revision=expected)
                for number, backend in enumerate((one, other) * 4)
            ]
            results = await asyncio.gather(*saves, return_exceptions=True)
            assert [result for result in results if not isinstance(result, StateConflictError)] == [expected + 1]
            loaded = await other.load_state("run")
            assert loaded is not None
            assert loaded["pipeline_context"] == {"value": results.index(expected + 1)}


@in_loop
async def test_g10_batches_of_two_pools_on_the_same_runs_never_deadlock(place: Place) -> None:
    async with place.backend() as one, place.backend() as other:
        runs, saves = [f"run{number}" for number in range(20)], 15

        async def write(backend: Any) -> None:
            for _ in range(saves):
                random.shuffle(runs)
                await asyncio.gather(
                    *(backend.save_state(run_id, state(0)) for run_id in list(runs)),
                    *(
                        backend.save_step_result({"run_id": run_id, "step_name": "s", "step_index": 0})
                        for run_id in runs
                    ),
                )

        await asyncio.gather(write(one), write(other))
        rows = await place.fetch("SELECT DISTINCT revision FROM workflow_state")
        assert [row[0] for row in rows] == [2 * saves]
        assert [row[0] for row in await place.fetch("SELECT count(*) FROM workflow_steps")] == [2 * saves * len(runs)]
        assert (await place.fetch("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"))[0][
            0
        ] == 0


@in_loop
async def test_g11_an_error_of_a_call_under_way_is_of_our_tree(place: Place) -> None:
    """The schema vanishes under an open backend."""
    async with place.backend() as backend:
        await backend.save_state("run", state(0))
        await place.fetch(f"DROP SCHEMA {place.schema} CASCADE")
        for call in (backend.save_state("run", state(1)), backend.load_state("run"), backend.set_system_state("k", 1)):
            with pytest.raises(FlujoStateError, match="flujo migrate"):
                await call
