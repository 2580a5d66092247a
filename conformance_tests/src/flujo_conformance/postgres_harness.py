"""How do the tests of the suite get handles onto a PostgreSQL database? A schema for each namespace."""

from __future__ import annotations

from typing import Any

import asyncpg

from flujo_core import StateBackend, open_backend

from .harness import Harness

EMPTY = """
DO $$
DECLARE name text;
BEGIN
    FOR name IN SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = '{schema}' AND c.relkind = 'r' AND c.relname <> 'flujo_schema_versions'
    LOOP
        EXECUTE format('DELETE FROM {schema}.%I', name);
    END LOOP;
END $$
"""


class PostgresHarness(Harness):
    """``uri`` is a database that the tests have to themselves."""

    def __init__(self, uri: str, **settings: Any) -> None:
        self._uri = uri
        self._settings = settings

    def open(self, namespace: str) -> StateBackend:
        return open_backend(self._uri, schema=f"suite_{namespace}", **self._settings)

    async def wipe(self, namespace: str) -> None:
        """Deletes rows in one round trip; making the schema anew would take longer than most tests."""
        connection = await asyncpg.connect(self._uri)
        try:
            await connection.execute(EMPTY.format(schema=f"suite_{namespace}"))
        finally:
            await connection.close()
