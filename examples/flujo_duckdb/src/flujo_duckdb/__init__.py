"""Flujo state in a DuckDB file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .settings import DuckDBSettings as DuckDBSettings

if TYPE_CHECKING:
    from .backend import DuckDBBackend as DuckDBBackend


def __getattr__(name: str) -> Any:
    # Late, because the plugin and the settings are wanted without the driver.
    if name == "DuckDBBackend":
        from .backend import DuckDBBackend

        return DuckDBBackend
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
