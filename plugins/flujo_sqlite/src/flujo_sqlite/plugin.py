"""What is the SQLite backend? Imports no driver."""

from __future__ import annotations

from flujo_core.hookspec import BackendSpec, hookimpl


@hookimpl
def flujo_state_backend() -> BackendSpec:
    return BackendSpec(
        api_version=1,
        name="sqlite",
        schemes=("sqlite",),
        backend="flujo_sqlite.backend:SQLiteBackend",
        settings="flujo_sqlite.settings:SQLiteSettings",
        drivers=("aiosqlite",),
        install="pip install flujo-sqlite",
    )
