"""Where is the SQLite backend? Installed with the facade."""

from __future__ import annotations

from flujo_sqlite import SQLiteBackend

__all__ = ["SQLiteBackend"]
