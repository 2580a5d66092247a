"""How is a file of the original system taken over? In the thread of a connection of its own."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

from flujo_core.errors import MigrationError
from flujo_core.migrations import Migration
from flujo_core.original import CHUNK, at_once, selection, transfer
from flujo_core.store import APPLIED, Change, Migrated

from . import queries as sql
from . import schema
from .backup import ORIGINAL, Keep, Stopped, stop_when
from .changes import apply
from .errors import is_refused

Result = TypeVar("Result")
_DROP: Final = "drop it first, and make it anew after"


def take_over(
    raw: sqlite3.Connection, path: Path, steps: Sequence[Migration], keep: Keep, stopped: Stopped
) -> Migrated:
    """All of it in one transaction. The rows are read from the backup, so that the file has room for ours at once."""
    backup: Path | None = None
    try:
        with schema.transaction(raw):
            if not schema.is_original(raw, path):
                return "changed"
            tables = schema.original_tables(raw)
            users = Users(raw, tables, path)
            backup = keep(ORIGINAL)
            dangling = schema.Dangling(raw)
            for table in tables:
                raw.execute(f"DROP TABLE {table}")
            users.refuse_broken()
            for step in steps:
                schema.run(raw, path, step, schema.applied(raw))
            with closing(sqlite3.connect(f"{backup.absolute().as_uri()}?mode=ro", uri=True)) as source:
                stop_when(stopped, source)
                taking = _Taking(raw, source, tables, stopped)
                at_once(transfer(taking, tables, str(path), datetime.now(UTC)))
            dangling.refuse_more(raw, steps[0], path)
            try:
                raw.execute("COMMIT")
            finally:
                if not raw.in_transaction:  # it has happened, or nobody knows
                    backup = None
            return "applied"
    finally:
        if backup is not None:
            # The file is as it was.
            with suppress(OSError):
                backup.unlink()


class Users:
    """Views, triggers and foreign keys of others that use the original's tables: they would break without a word, or
    vanish with the tables. SQLite doesn't say what a view or a trigger uses, so it is tried before and after the
    tables are dropped; what didn't work before is nobody's concern here."""

    def __init__(self, raw: sqlite3.Connection, tables: Collection[str], path: Path) -> None:
        self._raw = raw
        self._path = path
        for name, table in raw.execute(sql.REFERENCES).fetchall():
            if name.lower() not in tables and table.lower() in tables:
                raise self._refusal(f"the table {name} has a foreign key to {table}; make it anew without that first")
        probes = {f"the view {name} reads its tables": [f"SELECT * FROM {_quoted(name)}"] for name in _views(raw)}
        for name, table in raw.execute(sql.TRIGGERS).fetchall():
            if table.lower() in tables:
                raise self._refusal(f"the trigger {name} is on {table}; {_DROP}")
            probes[f"{table} has a trigger (such as {name}) that uses its tables"] = self._writes(table)
        self._probes = {what: [one for one in probes[what] if self._works(one, "before")] for what in probes}

    def refuse_broken(self) -> None:
        """After the tables were dropped."""
        for what, statements in self._probes.items():
            if not all(self._works(one, "after") for one in statements):
                raise self._refusal(f"{what}; {_DROP}")

    def _writes(self, table: str) -> list[str]:
        """Statements that fire every trigger on a table or a view."""
        same = ", ".join(f"{_quoted(name)} = {_quoted(name)}" for name in schema.columns(self._raw, table))
        table = _quoted(table)
        return [f"INSERT INTO {table} DEFAULT VALUES", f"UPDATE {table} SET {same}", f"DELETE FROM {table}"]

    def _works(self, statement: str, when: str) -> bool:
        """Whether it could be run; it is not."""
        try:
            # A text of its own each time: one that is explained again is not compiled again.
            self._raw.execute(f"EXPLAIN /* {when} */ {statement}").close()
        except sqlite3.Error as error:
            if not is_refused(error):
                raise
            return False
        return True

    def _refusal(self, what: str) -> MigrationError:
        return MigrationError(
            f"{self._path} can't be taken over from the original Flujo, and nothing was changed: {what}"
        )


def _views(raw: sqlite3.Connection) -> list[str]:
    return [name for (name,) in raw.execute(sql.VIEWS)]


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


class _Taking:
    """Implements `flujo_core.original.Taking`; nothing in it waits."""

    def __init__(
        self, raw: sqlite3.Connection, source: sqlite3.Connection, tables: Mapping[str, set[str]], stopped: Stopped
    ) -> None:
        self._raw = raw
        self._source = source
        self._stopped = stopped
        self._columns = {table: selection(table, columns) for table, columns in tables.items()}
        self._rows: dict[str, sqlite3.Cursor] = {}

    async def read(self, table: str) -> list[dict[str, Any]]:
        if self._stopped():
            raise MigrationError("it was stopped")  # an interrupt between two short statements does nothing
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
