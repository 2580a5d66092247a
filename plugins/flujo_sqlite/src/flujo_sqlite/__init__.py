"""Flujo state in an SQLite file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .settings import SQLiteSettings as SQLiteSettings

if TYPE_CHECKING:
    from .backend import SQLiteBackend as SQLiteBackend


def __getattr__(name: str) -> Any:
    # Late, because the plugin and the settings are wanted without the driver.
    if name == "SQLiteBackend":
        from .backend import SQLiteBackend

        return SQLiteBackend
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
