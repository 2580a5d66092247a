"""Which fixtures does the kit bring? Name this module in ``pytest_plugins`` of the topmost conftest.py to have them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from . import _explain_assertions
from .harness import Harness
from .postgres_server import URI_VARIABLE, PostgresServer, Server, provided_server

# Before a test imports a module of the suite.
_explain_assertions()

VERSION_VARIABLE = "FLUJO_TEST_POSTGRES_VERSION"


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """One PostgreSQL server for all tests: FLUJO_TEST_POSTGRES_URI, else a temporary one, of version 18 if
    FLUJO_TEST_POSTGRES_VERSION names no other."""
    version = int(os.environ.get(VERSION_VARIABLE, "18"))
    with provided_server() if os.environ.get(URI_VARIABLE) else PostgresServer(version) as server:
        yield server


@pytest.fixture(scope="class")
def postgres_harness(postgres_server: Server) -> Iterator[Harness]:
    """A harness for a database of the test class's own."""
    from .postgres_harness import PostgresHarness

    uri = postgres_server.create_database()
    yield PostgresHarness(uri)
    postgres_server.drop_database(uri)
