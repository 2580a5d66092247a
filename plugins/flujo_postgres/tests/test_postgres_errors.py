"""Does every failure come as an error of ours that says where and what to do, and never shows a password (G11)?"""

from __future__ import annotations

import asyncio
import io
import logging
import socket
import string
import traceback
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlsplit

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from postgres_support import Place, in_loop, state

from flujo_conformance.postgres_server import PostgresServer
from flujo_core import open_backend
from flujo_core.errors import (
    ConfigurationError,
    FlujoStateError,
    SchemaTooNewError,
    StorageError,
    StorageTimeoutError,
    StorageUnavailableError,
)
from flujo_postgres import PostgresBackend, PostgresSettings
from flujo_postgres.errors import is_lost, translated

pytest_plugins = ["postgres_support"]

SECRET = "Kx7-secret-w0rd"


@pytest.fixture(scope="module")
def dead_port() -> Iterator[int]:
    """A port where nobody listens: it is bound, and so stays free."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.fixture(scope="module")
def silent_port() -> Iterator[int]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(50)
        yield listening.getsockname()[1]


def everything_said(error: BaseException) -> str:
    """All that a program may log of an error: its own text, and that of all errors behind it."""
    said, seen, todo = [], set(), [error]
    while todo:
        one = todo.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        said += [str(one), repr(one), repr(one.args), repr(vars(one)), *traceback.format_exception(one)]
        said += getattr(one, "__notes__", [])
        todo += [behind for behind in (one.__cause__, one.__context__) if behind is not None]
    return "\n".join(said)


class Heard:
    """Everything that is logged, asyncio's debug mode included."""

    def __enter__(self) -> Heard:
        self._stream = io.StringIO()
        self._handler = logging.StreamHandler(self._stream)
        root = logging.getLogger()
        self._level = root.level
        root.addHandler(self._handler)
        root.setLevel(logging.DEBUG)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger().removeHandler(self._handler)
        logging.getLogger().setLevel(self._level)

    def __str__(self) -> str:
        return self._stream.getvalue()


def fail(uri: str, **options: Any) -> tuple[FlujoStateError, str]:
    """The error of using a backend, and everything that was said meanwhile."""

    async def use(backend: Any) -> None:
        try:
            await backend.save_state("run", state(0))
        finally:
            await backend.shutdown()

    shown = ""
    with Heard() as heard:
        try:
            backend = PostgresBackend(uri, **options)
            shown = repr(backend) + str(backend) + repr(backend.settings) + backend.settings.model_dump_json()
            asyncio.run(use(backend), debug=True)
        except FlujoStateError as error:
            return error, everything_said(error) + shown + str(heard)
    raise AssertionError("there was no error")


def spellings(password: str) -> set[str]:
    return {password, quote(password), quote(password, safe=""), repr(password)[1:-1]}


FAILURES = {
    "refused": ("postgresql://user:{pw}@127.0.0.1:{dead}/db", StorageUnavailableError, "127.0.0.1:{dead}"),
    "silent": ("postgresql://u:{pw}@127.0.0.1:{silent}/d?connect_timeout=0.2", StorageTimeoutError, ":{silent}/d"),
    "wrong password": ("postgresql://{user}:{pw}@{host}:{port}/{db}", StorageUnavailableError, "{host}:{port}"),
    "wrong password in the query": (
        "postgresql://{user}@{host}:{port}/{db}?password={pw}", StorageUnavailableError, "check user, password",
    ),
    "unknown role": ("postgresql://nobody:{pw}@{host}:{port}/{db}", StorageUnavailableError, "nobody@{host}:{port}"),
    "unknown host": ("postgresql://u:{pw}@no-such-host.invalid/db", StorageUnavailableError, "no-such-host.invalid"),
    "host name too long": ("postgresql://u:{pw}@" + "x" * 70 + ".invalid/db", FlujoStateError, "x" * 70),
    "no socket": ("postgresql://u:{pw}@/db?host=/no/such/folder", StorageUnavailableError, "@/db?host=/no/such/folder"),
    "no TLS": ("postgresql://{user}:{pw}@{host}:{port}/{db}?sslmode=require", StorageUnavailableError, "SSL"),
    "bad port": ("postgresql://u:{pw}@h/db?port=x", ConfigurationError, "port"),
    "bad sslmode": ("postgresql://u:{pw}@h/db?sslmode=x", ConfigurationError, "sslmode"),
    "unknown option": ("postgresql://u:{pw}@h/db?paswword={pw}", ConfigurationError, "known:"),
    "no certificate": ("postgresql://u:{pw}@h/d?sslrootcert=/none&sslpassword={pw}", ConfigurationError, "sslrootcert"),
    "bad TLS version": (
        "postgresql://u:{pw}@h/db?sslmode=require&ssl_min_protocol_version=9", ConfigurationError, "TLS version",
    ),
    "several hosts": ("postgresql://u:{pw}@127.0.0.1:{dead},127.0.0.2:{dead}/db", StorageUnavailableError, "127.0.0.2"),
}  # fmt: skip


def formatted(text: str, uri: str, password: str, **ports: int) -> str:
    parts = urlsplit(uri)
    names = {"user": parts.username, "host": parts.hostname, "port": parts.port, "db": parts.path[1:]}
    return text.format(pw=quote(password, safe=""), **names, **ports)


@pytest.mark.parametrize("failure", FAILURES)
def test_g11_a_failed_connection_is_told_without_the_password(
    failure: str, database: str, dead_port: int, silent_port: int
) -> None:
    template, kind, place = FAILURES[failure]
    ports = {"dead": dead_port, "silent": silent_port}
    error, said = fail(formatted(template, database, SECRET, **ports))
    assert type(error) is kind or kind is FlujoStateError
    assert formatted(place, database, SECRET, **ports) in str(error)
    assert "\n" not in str(error)
    assert not [spelling for spelling in spellings(SECRET) if spelling in said]


PASSWORDS = st.text(string.ascii_letters + string.digits + string.punctuation + " äß€😀", min_size=1, max_size=30).map(
    lambda text: f"{text}Zq9{text}"
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(password=PASSWORDS, failure=st.sampled_from(sorted(set(FAILURES) - {"silent", "unknown host"})))
def test_g11_no_password_is_ever_shown(password: str, failure: str, database: str, dead_port: int) -> None:
    _, said = fail(formatted(FAILURES[failure][0], database, password, dead=dead_port, silent=1))
    assert not [spelling for spelling in spellings(password) if spelling in said]


@in_loop
async def test_g11_a_missing_database_is_named(place: Place) -> None:
    backend = place.at(place.uri.rpartition("/")[0] + "/no%20where").backend()
    with pytest.raises(StorageUnavailableError, match=r"no%20where has no such database.*\"no where\" does not exist"):
        await backend.list_runs()


@in_loop
async def test_g11_the_role_of_a_session_is_told_what_it_lacks(place: Place) -> None:
    async with place.backend() as backend:
        await backend.save_state("run", state(0))
        await place.fetch("CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'not today'; END $$")
        await place.fetch("CREATE TRIGGER no BEFORE UPDATE ON workflow_state FOR EACH ROW EXECUTE FUNCTION no()")
        for call in (
            backend.save_state("run", state(1)),
            backend.save_step_result({"run_id": "run", "step_name": "s", "step_index": 0}),
        ):
            with pytest.raises(StorageError, match=r"refused the command .not today"):
                await call
        # One bad write in a batch fails alone.
        results = await asyncio.gather(
            *(backend.save_state(run_id, state(1)) for run_id in ("new1", "run", "new2")), return_exceptions=True
        )
        assert [results[0], results[2]] == [1, 1]
        assert isinstance(results[1], StorageError)
        assert (await backend.list_run_steps("run")) == []


def test_g11_a_server_that_stops_is_told_by_reads_and_writes() -> None:
    with PostgresServer(settings={"fsync": "off"}) as server:
        place = Place(server.create_database())

        async def scenario() -> None:
            async with place.backend(connect_timeout=0.4, lock_timeout=0.4) as backend:
                await backend.save_state("run", state(0))
                server.kill()
                await asyncio.sleep(
                    0.1
                )  # till the end of the idle connection is noticed: what is sent on it is unknown
                for call in (
                    backend.save_state("run", state(1)),
                    backend.save_state("new", state(1)),
                    backend.load_state("run"),
                    backend.list_runs(),
                    backend.list_runs(metadata_filter={"a": 1}),
                    backend.set_system_state("key", 1),
                    backend.migrate(),
                ):
                    with pytest.raises(
                        StorageUnavailableError, match=rf"127\.0\.0\.1:{server.port}.*check host"
                    ) as caught:
                        await call
                    assert server.password not in everything_said(caught.value)

        asyncio.run(scenario())


def test_g11_settings_and_backends_show_no_password() -> None:
    for uri in (
        f"postgresql://user:{SECRET}@host:5/db",
        f"postgresql://user@host/db?password={SECRET}",
        f"postgresql:///db?user=u&password={SECRET}&sslpassword={SECRET}",
    ):
        for backend in (PostgresBackend(uri), open_backend(uri)):
            for shown in (repr(backend), str(backend), repr(backend.settings), f"{vars(backend)}"):
                assert SECRET not in shown
    assert isinstance(open_backend("postgres://h/d").settings, PostgresSettings)


def test_g11_what_an_error_of_the_driver_means() -> None:
    data_error = asyncpg.exceptions._base.DataError("value out of int64 range")
    assert not is_lost(data_error)
    assert not is_lost(TimeoutError())
    assert not is_lost(asyncpg.UniqueViolationError("x"))
    for error in (
        asyncpg.InterfaceError("connection is closed"),
        asyncpg.AdminShutdownError("x"),
        asyncpg.IdleInTransactionSessionTimeoutError("x"),
        asyncpg.InternalClientError("got result for unknown protocol state 3"),
        ConnectionResetError(),
    ):
        assert is_lost(error)
        assert type(translated(error, "there")) is StorageUnavailableError
    assert type(translated(asyncpg.DiskFullError("x"), "there")) is StorageError
    assert str(translated(asyncpg.UniqueViolationError("first\nsecond"), "there")) == (
        "there refused the command (first)"
    )


@in_loop
async def test_d6_a_document_in_a_newer_format_is_not_misread(place: Place) -> None:
    async with place.backend() as backend, place.backend() as other:
        await backend.save_state("run", state(0))
        await backend.save_step_result({"run_id": "run", "step_name": "s", "step_index": 0})
        await backend.set_system_state("key", 1)
        await backend.persist_evaluation("run", 1.0)
        for table, column in (
            ("workflow_state", "snapshot"),
            ("workflow_state", "run"),
            ("workflow_steps", "document"),
            ("workflow_evaluations", "document"),
            ("flujo_system_state", "document"),
        ):
            [[document]] = await place.fetch(f"SELECT {column}::text FROM {table}")
            newer = document.replace('{"format":1,', '{"format":2,', 1)
            await place.fetch(f"UPDATE {table} SET {column} = $1", newer)
        for call in (
            backend.load_state("run"),
            backend.list_runs(),
            backend.list_run_steps("run"),
            backend.list_evaluations(),
            backend.get_system_state("key"),
            other.save_state("run", state(1)),
        ):
            with pytest.raises(SchemaTooNewError):
                await call
