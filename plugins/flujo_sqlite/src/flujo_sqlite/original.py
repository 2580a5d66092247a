"""How is a file of the original system taken over? In the thread of a connection of its own."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from flujo_core.errors import MigrationError
from flujo_core.migrations import Migration
from flujo_core.original import CHUNK, at_once, selection, transfer
from flujo_core.store import APPLIED, Change, Migrated

from . import queries as sql
from . import schema
from .backup import ORIGINAL, back_up
from .changes import apply

Result = TypeVar("Result")


def take_over(raw: sqlite3.Connection, path: Path, steps: Sequence[Migration], patience: float) -> Migrated:
    """All of it in one transaction. The rows are read from the backup, so that the file has room for ours at once."""
    backup: Path | None = None
    try:
        with schema.transaction(raw):
            if not schema.is_original(raw, path):
                return "changed"
            tables = schema.original_tables(raw)
            backup = back_up(path, ORIGINAL, patience)
            dangling = schema.Dangling(raw)
            for table in tables:
                raw.execute(f"DROP TABLE {table}")
            for number, step in enumerate(steps):
                schema.run(raw, path, step, schema.applied(raw) if number else [])
            with closing(sqlite3.connect(f"{backup.absolute().as_uri()}?mode=ro", uri=True)) as source:
                taking = _Taking(raw, source, tables)
                at_once(transfer(taking, tables, str(path), datetime.now(UTC)))
            dangling.refuse_more(raw, steps[0], path)
            backup = None
            raw.execute("COMMIT")
            return "applied"
    finally:
        if backup is not None:
            # The file is as it was.
            with suppress(OSError):
                backup.unlink()


class _Taking:
    """Implements `flujo_core.original.Taking`; nothing in it waits."""

    def __init__(self, raw: sqlite3.Connection, source: sqlite3.Connection, tables: Mapping[str, set[str]]) -> None:
        self._raw = raw
        self._source = source
        self._columns = {table: selection(table, columns) for table, columns in tables.items()}
        self._rows: dict[str, sqlite3.Cursor] = {}

    async def read(self, table: str) -> list[dict[str, Any]]:
        columns = self._columns[table]
        if table not in self._rows:
            # SQLite sorts in temporary files what has no index.
            order = [column for column in ("run_id", "key", "id") if column in columns]
            statement = f"SELECT {', '.join(columns)} FROM {table} ORDER BY {', '.join(order)}"
            self._rows[table] = self._source.execute(statement)
        try:
            return [dict(zip(columns, row, strict=True)) for row in self._rows[table].fetchmany(CHUNK)]
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorcode", None) is not None:
                raise
            raise MigrationError(f"{table} holds text that is not UTF-8") from None

    async def apart(self, work: Callable[[], Result]) -> Result:
        return work()

    async def count_original(self, table: str) -> int:
        return int(self._source.execute(f"SELECT count(*) FROM {table}").fetchone()[0])

    async def put(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if apply(self._raw, change) != APPLIED:
                raise MigrationError(f"run {change.run_id!r} came twice; this is a bug of the backend")

    async def put_system_state(self, key: str, document: str) -> None:
        self._raw.execute(sql.PUT_SYSTEM_STATE, (key, document))

    async def count(self, table: str) -> int:
        return int(self._raw.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
