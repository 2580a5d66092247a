"""How do the tests of the suite get handles onto SQLite files, and look into them behind the backend's back?"""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

from flujo_core.uri import file_path, parse_uri

from .harness import Tables, UriHarness


class SQLiteHarness(UriHarness):
    """``uri`` is such as ``sqlite:////tmp/x/{namespace}.db``."""

    async def raw(self, namespace: str) -> Tables:
        return await asyncio.to_thread(_tables, file_path(parse_uri(self.uri(namespace))))


def _tables(path: Path) -> Tables:
    if not path.exists():
        return {}
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA query_only = ON")
        connection.execute("BEGIN")  # one view of all tables
        names = [row["name"] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        return {name: [dict(row) for row in connection.execute(f'SELECT * FROM "{name}"')] for name in names}
