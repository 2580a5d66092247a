"""How do the tests of the suite get handles onto SQLite files, and look into them behind the backend's back?"""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from glob import escape, glob
from pathlib import Path

from flujo_core.uri import file_path, parse_uri

from .harness import Tables, UriHarness


class SQLiteHarness(UriHarness):
    """``uri`` is such as ``sqlite:////tmp/x/{namespace}.db``."""

    def _path(self, namespace: str) -> Path:
        return file_path(parse_uri(self.uri(namespace)))

    async def remove(self) -> None:
        # By name: copies of the harness in other processes made some of them.
        path = str(file_path(parse_uri(self._uri.replace("{namespace}", self._own))))
        pattern = escape(path).replace(self._own, f"*_{self._own}_*") + "*"
        for made in glob(pattern):  # noqa: PTH207 - which of the path's parts holds the namespace is the URI's matter
            Path(made).unlink(missing_ok=True)

    async def database(self) -> str:
        return f"SQLite {sqlite3.sqlite_version}"

    async def raw(self, namespace: str) -> Tables:
        return await asyncio.to_thread(_tables, self._path(namespace))


def _tables(path: Path) -> Tables:
    if not path.exists():
        return {}
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA query_only = ON")
        connection.execute("BEGIN")  # one view of all tables
        names = [row["name"] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        return {name: [dict(row) for row in connection.execute(f'SELECT * FROM "{name}"')] for name in names}
