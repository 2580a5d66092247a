"""What does a database say of itself, and of which tables is it made? For the adapters, in any environment."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from importlib.resources import files
from typing import Final

POSTGRES_SIZE: Final = "SELECT pg_database_size(current_database())"
POSTGRES_SETTINGS: Final = (
    "SELECT name, setting FROM pg_settings "
    "WHERE name IN ('server_version', 'fsync', 'synchronous_commit', 'full_page_writes') ORDER BY name DESC"
)
SYNCHRONOUS: Final = ("off", "normal", "full", "extra")
"""What SQLite's numbers mean."""


def sqlite_size(place: str) -> int:
    """In bytes, the log of what was written last included."""
    with closing(sqlite3.connect(place.removeprefix("sqlite:///"))) as raw:
        raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        pages, size = (raw.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
        return int(pages * size)


def sqlite_settings(place: str, synchronous: str) -> dict[str, str]:
    """The file tells its journal; how it is synced is each connection's own."""
    with closing(sqlite3.connect(place.removeprefix("sqlite:///"))) as raw:
        journal = str(raw.execute("PRAGMA journal_mode").fetchone()[0])
    return {"SQLite": sqlite3.sqlite_version, "journal_mode": journal, "synchronous": synchronous}


def migrations(package: str) -> list[str]:
    """The texts of a plugin's migrations: a driver alone gets the same tables and indexes."""
    found = (file for file in (files(package) / "migrations").iterdir() if file.name.endswith(".sql"))
    return [file.read_text(encoding="utf-8") for file in sorted(found, key=lambda file: file.name)]
