"""What is the PostgreSQL backend? Imports no driver."""

from __future__ import annotations

from flujo_core.hookspec import BackendSpec, hookimpl


@hookimpl
def flujo_state_backend() -> BackendSpec:
    return BackendSpec(
        api_version=1,
        name="postgres",
        schemes=("postgres", "postgresql"),
        backend="flujo_postgres.backend:PostgresBackend",
        settings="flujo_postgres.settings:PostgresSettings",
        drivers=("asyncpg",),
        install="pip install 'flujo[postgres]'",
    )
