"""How many bytes does a peer's database have?"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Final

POSTGRES: Final = "SELECT pg_database_size(current_database())"


def sqlite(place: str) -> int:
    with closing(sqlite3.connect(place.removeprefix("sqlite:///"))) as raw:
        raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        pages, size = (raw.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
        return int(pages * size)
