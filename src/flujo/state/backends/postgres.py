"""Where is the PostgreSQL backend? In a plugin that the extra ``postgres`` installs."""

from __future__ import annotations

from flujo_core.errors import BackendNotInstalledError

__all__ = ["PostgresBackend"]


try:
    from flujo_postgres import PostgresBackend
except ModuleNotFoundError as error:
    if error.name not in {"flujo_postgres", "asyncpg"}:
        raise
    raise BackendNotInstalledError(
        f"the PostgreSQL backend needs {error.name}, which is not installed: pip install 'flujo[postgres]'"
    ) from error
