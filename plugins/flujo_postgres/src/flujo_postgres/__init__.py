"""Flujo state in a PostgreSQL database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .settings import PostgresSettings as PostgresSettings

if TYPE_CHECKING:
    from .backend import PostgresBackend as PostgresBackend


def __getattr__(name: str) -> Any:
    # Late, because the plugin and the settings are wanted without the driver.
    if name == "PostgresBackend":
        from .backend import PostgresBackend

        return PostgresBackend
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
