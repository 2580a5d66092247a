"""Does the DuckDB backend keep the contract?"""

from __future__ import annotations

import asyncio
from pathlib import Path

import duckdb
import pytest

from flujo_conformance import Harness, StateBackendSuite, Tables, UriHarness
from flujo_core.uri import file_path, parse_uri
from flujo_duckdb.connection import CONFIG


class DuckDBHarness(UriHarness):
    async def database(self) -> str:
        return f"DuckDB {duckdb.__version__}"

    async def raw(self, namespace: str) -> Tables:
        return await asyncio.to_thread(_tables, file_path(parse_uri(self.uri(namespace))))


def _tables(path: Path) -> Tables:
    if not path.exists():
        return {}
    with duckdb.connect(path, config=CONFIG) as connection:
        connection.execute("BEGIN")  # one view of all tables
        names = connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()
        return {name: _rows(connection, f'SELECT * FROM "{name}"') for (name,) in names}


def _rows(connection: duckdb.DuckDBPyConnection, statement: str) -> list[dict[str, object]]:
    rows = connection.execute(statement).fetchall()
    return [dict(zip([column[0] for column in connection.description or ()], row, strict=True)) for row in rows]


class TestDuckDB(StateBackendSuite):
    @pytest.fixture
    def state_harness(self, tmp_path: Path) -> Harness:
        return DuckDBHarness(f"duckdb:///{tmp_path.resolve()}/{{namespace}}.duckdb")
