"""How do the tests of the suite get handles onto a PostgreSQL database? A schema for each namespace."""

from __future__ import annotations

import secrets
from typing import Any

import asyncpg

from flujo_core import StateBackend, open_backend
from flujo_core.registry import find_plugin, load_settings
from flujo_core.settings_validation import setting_fields

from .harness import Harness, Tables

TABLES = """
SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relkind = 'r'
"""
SCHEMAS = "SELECT nspname FROM pg_namespace WHERE starts_with(nspname, $1)"
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
        self._server = _without_options_of_the_plugin(uri)
        self._settings = settings
        self._own = f"suite_{secrets.token_hex(3)}_"
        """How the names of its schemas begin: nobody else's are touched."""

    def open(self, namespace: str, **settings: Any) -> StateBackend:
        return open_backend(self._uri, **{"schema": self._own + namespace, **self._settings, **settings})

    async def wipe(self, namespace: str) -> None:
        """Deletes rows in one round trip; making the schema anew would take longer than most tests."""
        connection = await asyncpg.connect(self._server)
        try:
            await connection.execute(EMPTY.format(schema=self._own + namespace))
        finally:
            await connection.close()

    async def database(self) -> str:
        connection = await asyncpg.connect(self._server)
        try:
            return f"PostgreSQL {str(await connection.fetchval('SHOW server_version')).split()[0]}"
        finally:
            await connection.close()

    async def raw(self, namespace: str) -> Tables:
        connection = await asyncpg.connect(self._server)
        try:
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                names = [row["relname"] for row in await connection.fetch(TABLES, self._own + namespace)]
                return {
                    name: [
                        dict(row) for row in await connection.fetch(f'SELECT * FROM {self._own}{namespace}."{name}"')
                    ]
                    for name in names
                }
        finally:
            await connection.close()

    async def remove(self) -> None:
        connection = await asyncpg.connect(self._server)
        try:
            for row in await connection.fetch(SCHEMAS, self._own):
                await connection.execute(f'DROP SCHEMA "{row["nspname"]}" CASCADE')
        finally:
            await connection.close()


def _without_options_of_the_plugin(uri: str) -> str:
    """What the driver understands too."""
    address, _, query = uri.partition("?")
    fields = setting_fields(load_settings(find_plugin("postgres")))
    kept = [option for option in query.split("&") if option and option.partition("=")[0] not in fields]
    return f"{address}?{'&'.join(kept)}" if kept else address
