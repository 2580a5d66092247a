"""How do the tests of the suite get handles onto SQLite files, and look into them behind the backend's back?"""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from flujo_core import StateBackend
from flujo_core.uri import file_path, parse_uri

from .harness import Tables, UriHarness


class SQLiteHarness(UriHarness):
    """``uri`` is such as ``sqlite:////tmp/x/{namespace}.db``."""

    def __init__(self, uri: str, **settings: Any) -> None:
        super().__init__(uri, **settings)
        self._paths: set[Path] = set()

    def open(self, namespace: str, **settings: Any) -> StateBackend:
        self._paths.add(self._path(namespace))
        return super().open(namespace, **settings)

    def _path(self, namespace: str) -> Path:
        return file_path(parse_uri(self.uri(namespace)))

    async def remove(self) -> None:
        for path in self._paths:
            for suffix in ("", "-wal", "-shm"):
                Path(f"{path}{suffix}").unlink(missing_ok=True)

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
