"""Where do the tests of the PostgreSQL backend run? In a database for each module and a schema for each test.

A pytest plugin of the test modules that name it. PYTEST_DONT_REWRITE: they import it as well, and sooner.
"""

from __future__ import annotations

import asyncio
import functools
import secrets
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, ParamSpec

import asyncpg
import pytest

from flujo_conformance.postgres_server import PostgresServer, Server, provided_server
from flujo_core.migrations import read_migrations
from flujo_postgres import PostgresBackend

Parameters = ParamSpec("Parameters")

OWN = read_migrations("flujo_postgres.migrations")
LATEST = len(OWN)
VERSIONS = [*range(1, LATEST + 1)]
"""Those of Flujo's series, all of which a migrated database has."""


class Place:
    """A schema of a test's own."""

    def __init__(self, uri: str, schema: str = "public") -> None:
        self.uri = uri
        self.schema = schema

    def backend(self, **settings: Any) -> PostgresBackend:
        return PostgresBackend(self.uri, **{"schema": self.schema, **settings})

    def at(self, uri: str) -> Place:
        return Place(uri, self.schema)

    async def fetch(self, statement: str, *values: Any) -> list[Any]:
        """What a connection of the test's own reads; unqualified tables are those of the schema."""
        connection = await self.connect()
        try:
            found: list[Any] = await connection.fetch(statement, *values)
            return found
        finally:
            await connection.close()

    async def connect(self) -> Any:
        return await asyncpg.connect(
            self.uri, server_settings={"search_path": '"' + self.schema.replace('"', '""') + '"'}
        )


def state(value: Any = None, **more: Any) -> dict[str, Any]:
    """A small snapshot."""
    return {
        "pipeline_id": "p",
        "pipeline_name": "P",
        "pipeline_version": "1",
        "current_step_index": 0,
        "pipeline_context": {"value": value},
        **more,
    }


def in_loop(test: Callable[Parameters, Awaitable[None]]) -> Callable[Parameters, None]:
    """A test that is a coroutine, in a loop of its own."""

    @functools.wraps(test)
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(60):
                await test(*args, **kwargs)

        asyncio.run(bounded())

    return run


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with provided_server() as provided:
        yield provided


@pytest.fixture(scope="module")
def database(server: Server) -> Iterator[str]:
    """The URI of a database of the module's own."""
    uri = server.create_database()
    yield uri
    server.drop_database(uri)


@pytest.fixture
def place(database: str) -> Place:
    return Place(database, f"t_{secrets.token_hex(4)}")


@pytest.fixture(scope="session")
def own_server() -> Iterator[PostgresServer]:
    """A server that tests may restart, and whose folder they know."""
    with PostgresServer() as started:
        yield started
