"""Which migrations has the file, and how is one applied? In the thread of a connection of its own."""

from __future__ import annotations

import sqlite3
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Final

from flujo_core.errors import MigrationError, UnsupportedStorageError
from flujo_core.migrations import (
    TABLE_OF,
    VERSION_COLUMNS,
    VERSIONS_TABLE,
    AppliedMigration,
    Migration,
    Series,
    record_statement,
)
from flujo_core.original import COLUMNS, recognised
from flujo_core.scripts import keywords
from flujo_core.store import Migrated

from . import queries as sql
from .backup import Keep
from .errors import is_refused

APPLICATION_ID: Final = 0x464C554A
"""``FLUJ``, what the ``file`` command and SQLite's header call the format."""


def refuse_foreign(raw: sqlite3.Connection, path: Path) -> None:
    """Raise for a file that this library can't keep its tables in; one with other tables beside is fine."""
    encoding = raw.execute("PRAGMA encoding").fetchone()[0]
    if encoding != "UTF-8":
        # Ids are compared byte for byte, which has another order there.
        raise UnsupportedStorageError(f"{path} stores text as {encoding}, not as UTF-8; name another file")
    tables = _tables(raw)
    for table in TABLE_OF.values():
        if table in tables and not _is_ours(raw, table):
            raise UnsupportedStorageError(
                f"{path} has a table {table} that this library did not make; name another file"
            )
    is_original(raw, path)


def is_of_others(raw: sqlite3.Connection, path: Path) -> bool:
    """Whether it has tables, none of them ours. It may be refused yet, so nothing in it is changed but by a migration.
    Raises as `refuse_foreign` does."""
    refuse_foreign(raw, path)
    tables = _tables(raw)
    return bool(tables) and VERSIONS_TABLE not in tables


def is_original(raw: sqlite3.Connection, path: Path) -> bool:
    """Raises for tables that are neither the original's nor ours."""
    return VERSIONS_TABLE not in _tables(raw) and recognised(original_tables(raw), str(path))


def original_tables(raw: sqlite3.Connection) -> dict[str, set[str]]:
    """The tables of the original's names, with their columns."""
    return {table: columns(raw, table) for table in COLUMNS if table in _tables(raw)}


def columns(raw: sqlite3.Connection, table: str) -> set[str]:
    return {name.lower() for (name,) in raw.execute(sql.COLUMNS, (table,))}


def _is_ours(raw: sqlite3.Connection, table: str) -> bool:
    return columns(raw, table) >= VERSION_COLUMNS


def _tables(raw: sqlite3.Connection) -> set[str]:
    return {name.lower() for (name,) in raw.execute(sql.TABLES)}


def applied(raw: sqlite3.Connection) -> list[AppliedMigration]:
    tables = _tables(raw)
    return [
        AppliedMigration.of_row(row, series)
        for series, table in TABLE_OF.items()
        if table in tables
        for row in raw.execute(sql.VERSIONS.format(table=f"main.{table}"))
    ]


def migrate(
    raw: sqlite3.Connection, path: Path, step: Migration, expected: Sequence[AppliedMigration], keep: Keep
) -> Migrated:
    """All of it in one transaction, the numbers in the file's header too."""
    with transaction(raw):
        refuse_foreign(raw, path)
        if applied(raw) != list(expected):
            return "changed"
        if expected and _rewrites(step):
            keep(str(step))
        run(raw, path, step, expected)
        raw.execute("COMMIT")
        return "applied"


@contextmanager
def transaction(raw: sqlite3.Connection) -> Iterator[None]:
    """Undone unless the block commits."""
    # Has no effect inside a transaction: a table that is made anew would take the rows along that refer to it.
    raw.execute("PRAGMA foreign_keys = OFF")
    try:
        raw.execute("BEGIN IMMEDIATE")
        yield
    finally:
        if raw.in_transaction:
            raw.execute("ROLLBACK")


def run(raw: sqlite3.Connection, path: Path, step: Migration, before: Sequence[AppliedMigration]) -> None:
    """One step and its record, on top of those that are applied."""
    # The numbers in the header of a file that has other tables belong to whoever made those.
    whole = not _tables(raw) or raw.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID
    table = f"main.{TABLE_OF[step.series]}"  # a temporary table of this name would come first
    raw.execute(sql.CREATE_VERSIONS.format(table=table))
    dangling = Dangling(raw)
    started = perf_counter()
    for statement in step.statements:
        _execute(raw, statement, step, path)
    dangling.refuse_more(raw, step, path)
    duration = (perf_counter() - started) * 1000
    record = (step.version, step.name, step.checksum, duration, step.code_version, step.min_code)
    wanted = {**_known(before), (step.series, step.version): (step.checksum, step.min_code)}
    try:
        raw.execute(sql.RECORD_VERSION.format(table=table), record)
        found = _known(applied(raw))
    except sqlite3.Error as error:
        if not is_refused(error):
            raise
        found = None
    if found != wanted:
        # Nobody could open the file any more.
        raise MigrationError(f"{path}: migration {step} changed what records the migrations; it was undone")
    if whole and step.series == "flujo":
        # A record that is repaired may be an older one.
        latest = max([step.version, *(row.version for row in before if row.series == "flujo" and row.checksum)])
        raw.execute(f"PRAGMA user_version = {latest}")
        raw.execute(f"PRAGMA application_id = {APPLICATION_ID}")


def _known(rows: Sequence[AppliedMigration]) -> dict[tuple[Series, int], tuple[str | None, int]]:
    """What decides whether a file can be opened."""
    return {(row.series, row.version): (row.checksum, row.min_code) for row in rows}


def _execute(raw: sqlite3.Connection, statement: str, step: Migration, path: Path) -> None:
    try:
        # To its last row: SQLite goes on only as far as it is asked to.
        deque(raw.execute(statement), maxlen=0)
    except sqlite3.Error as error:
        if not is_refused(error):
            raise
        raise MigrationError(f"{path}: migration {step} failed and was undone: {error}; mend what it says") from None
    if not raw.in_transaction:
        raise MigrationError(f"{path}: migration {step} ended its transaction itself: {statement:.60}")


_Rows = Counter[tuple[str, int | None, str | None]]
"""Table, row id and parent. The number of the key is left out: a column that is added shifts it."""


class Dangling:
    """Rows that refer to nothing, before a step: those don't hinder it, more of them do."""

    def __init__(self, raw: sqlite3.Connection) -> None:
        self._schema = raw.execute("PRAGMA schema_version").fetchone()[0]
        self._rows = _dangling(raw)

    def refuse_more(self, raw: sqlite3.Connection, step: Migration, path: Path) -> None:
        before, now = self._rows, _dangling(raw)
        if raw.execute("PRAGMA schema_version").fetchone()[0] != self._schema:
            # A table that was made anew has other row ids.
            before, now = _without_row_ids(before), _without_row_ids(now)
        for table, _, parent in now - before:
            what = f"refer to nothing in {parent}" if parent else "can't be checked, for their foreign key is wrong"
            raise MigrationError(f"{path}: migration {step} was undone: it leaves rows in {table} that {what}")


def _without_row_ids(rows: _Rows) -> _Rows:
    return Counter((table, None, parent) for table, _, parent in rows.elements())


def _dangling(raw: sqlite3.Connection) -> _Rows:
    found: _Rows = Counter()
    for (table,) in raw.execute(sql.REFERRING_TABLES).fetchall():
        try:
            found.update(raw.execute(sql.DANGLING, (table,)).fetchall())
        except sqlite3.Error as error:
            if not is_refused(error):
                raise
            found[table, None, None] = 1  # its key doesn't fit the parent; with all tables at once none is checked
    return found


def _rewrites(step: Migration) -> bool:
    """Whether it may change or remove rows; whatever is not known to leave them as they are."""
    return not all(
        words[:1] == ["CREATE"]
        or words[:2] == ["DROP", "INDEX"]
        or (words[:2] == ["ALTER", "TABLE"] and words[3:4] == ["ADD"])
        for words in map(keywords, step.statements)
    )


def script(step: Migration) -> list[str]:
    table = TABLE_OF[step.series]
    return [
        "PRAGMA foreign_keys = OFF",
        "BEGIN IMMEDIATE",
        sql.CREATE_VERSIONS.format(table=table).strip(),
        *step.statements,
        record_statement(step, table),
        *(_header(step) if step.series == "flujo" else []),
        "COMMIT",
    ]


def _header(step: Migration) -> list[str]:
    return [
        f"-- this and the next only in a file without tables of others\nPRAGMA user_version = {step.version}",
        f"PRAGMA application_id = {APPLICATION_ID}",
    ]
