"""How is a database of the original system taken over? Its tables move into a schema beside, where they stay."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from flujo_core.errors import MigrationError
from flujo_core.migrations import VERSIONS_TABLE, Migration
from flujo_core.original import CHUNK, COLUMNS, selection, transfer
from flujo_core.store import Change, Migrated

from . import queries as sql
from . import schema
from .changes import Changes, milliseconds
from .connection import CANCEL_TIMEOUT

Result = TypeVar("Result")
_AS_DOUBLE: Final = {"real": "::text::double precision", "numeric": "::double precision"}
"""The shortest text of a number of single precision is what was meant; another system wrote it with more digits."""


async def take_over(connection: Any, place: schema.Place, steps: Sequence[Migration], changes: Changes) -> Migrated:
    """All of it in one transaction."""

    async def work() -> Migrated:
        if not await connection.fetchval(schema.LOCK, place.schema):
            return "busy"
        found = await schema.layout(connection, place)
        if not schema.is_original(found, place):
            return "changed"
        tables = [table for table in (*COLUMNS, VERSIONS_TABLE) if table in found]
        names = [f"{sql.quoted(place.schema)}.{table}" for table in tables]
        await connection.execute(f"LOCK TABLE {', '.join(names)} IN ACCESS EXCLUSIVE MODE")
        if await schema.layout(connection, place) != found:
            return "changed"
        await _check_referrers(connection, place, names)
        await connection.execute("SET LOCAL extra_float_digits = 1")
        aside = await _set_aside(connection, place, names, steps[0])
        for step in steps:
            await schema.run(connection, place, step)
        taking = _Taking(connection, place, changes, found, aside)
        await transfer(taking, [table for table in COLUMNS if table in found], place.shown, datetime.now(UTC))
        return "applied"

    async def bounded() -> Migrated:
        async with asyncio.timeout(place.limit):
            return await work()

    return await schema.in_transaction(connection, place, steps[0], bounded)


async def _check_referrers(connection: Any, place: schema.Place, names: Sequence[str]) -> None:
    """They would follow the tables: a view would show what no longer changes, a foreign key refuse what is new."""
    tables = [await connection.fetchval("SELECT to_regclass($1)::oid", name) for name in names]
    referrer = await connection.fetchval(sql.REFERRERS, tables)
    if referrer is not None:
        raise MigrationError(
            f"{place.shown} can't be taken over from the original Flujo, and nothing was changed: {referrer} refers "
            "to its tables; drop it first, and make it anew afterwards"
        )


async def _set_aside(connection: Any, place: schema.Place, names: Sequence[str], step: Migration) -> str:
    """Move the tables with their indexes and sequences; the schema in which they are then, quoted."""
    suffix = "flujo_original"
    if place.schema != "public":
        # A name has at most 63 bytes; the server would cut the end off.
        suffix = f"{place.schema.encode()[: 62 - len(suffix)].decode(errors='ignore')}_{suffix}"
    aside = sql.quoted(suffix)
    if await connection.fetchval("SELECT 1 FROM pg_namespace WHERE nspname = $1", suffix):
        raise MigrationError(
            f"{place.shown}: the tables of the original Flujo move into the schema {suffix}, which is there already; "
            "rename or drop it"
        )
    with schema.needing("CREATE on the database", place, step):
        await connection.execute(f"CREATE SCHEMA {aside}")
    for name in names:
        await connection.execute(f"ALTER TABLE {name} SET SCHEMA {aside}")
    return aside


def _key(table: str) -> str:
    return "key" if table == "system_state" else "run_id"


class _Taking:
    """Implements `flujo_core.original.Taking`."""

    def __init__(
        self, connection: Any, place: schema.Place, changes: Changes, found: Mapping[str, Mapping[str, str]], aside: str
    ) -> None:
        self._connection = connection
        self._place = place
        self._changes = changes
        self._found = found
        self._aside = aside
        self._patience = place.limit + CANCEL_TIMEOUT
        self._cursors: dict[str, Any] = {}

    async def read(self, table: str) -> list[dict[str, Any]]:
        if table not in self._cursors:
            self._cursors[table] = await self._connection.cursor(self._selection(table), timeout=self._patience)
        try:
            return [dict(row) for row in await self._cursors[table].fetch(CHUNK, timeout=self._patience)]
        except (OverflowError, ValueError):
            await self._name_moment(table)
            raise

    async def _name_moment(self, table: str) -> None:
        """The driver's error doesn't say which time it is that Python knows no date for."""
        key, kinds = _key(table), self._found[table]
        for column in [name for name, kind in kinds.items() if kind.startswith(("timestamp", "date"))]:
            row = await self._connection.fetchrow(
                f"SELECT {key}::text, {column}::text FROM {self._aside}.{table} WHERE isfinite({column}) "
                f"AND ({column} < '0001-01-02' OR {column} >= '9999-12-31') ORDER BY 1 LIMIT 1",
                timeout=self._patience,
            )
            if row is not None:
                what = "key" if key == "key" else "run"
                raise MigrationError(
                    f"{table}, {what} {row[0]!r:.120}: {column} is {row[1]}, outside 0001-01-02 to 9999-12-30 UTC"
                ) from None

    def _selection(self, table: str) -> str:
        kinds = self._found[table]
        columns = selection(table, kinds)
        shown = [f"{column}{_AS_DOUBLE.get(kinds[column], '')} AS {column}" for column in columns]
        order = [f'{_key(table)}::text COLLATE "C"', *(["id"] if "id" in columns else [])]
        return f"SELECT {', '.join(shown)} FROM {self._aside}.{table} ORDER BY {', '.join(order)}"

    async def apart(self, work: Callable[[], Result]) -> Result:
        return await asyncio.to_thread(work)

    async def count_original(self, table: str) -> int:
        return await self._count(f"{self._aside}.{table}")

    async def put(self, changes: Sequence[Change]) -> None:
        written = await self._changes.apply(self._connection.fetch, changes, 0)
        for change in changes:
            if change.run_id not in written:
                raise MigrationError(f"run {change.run_id!r} came twice; this is a bug of the backend")

    async def put_system_state(self, key: str, document: str) -> None:
        statement = self._place.sql(sql.PUT_SYSTEM_STATE)
        await self._connection.execute(statement, key, document, milliseconds(self._place.limit))

    async def count(self, table: str) -> int:
        return await self._count(f"{sql.quoted(self._place.schema)}.{table}")

    async def _count(self, table: str) -> int:
        return int(await self._connection.fetchval(f"SELECT count(*) FROM {table}", timeout=self._patience))
