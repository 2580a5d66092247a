"""Where is the PostgreSQL backend? In a plugin that the extra ``postgres`` installs."""

from __future__ import annotations

from flujo_core.errors import BackendNotInstalledError

__all__ = ["PostgresBackend"]


class _PostgresNotInstalledError(BackendNotInstalledError, ImportError):
    """An ImportError too, because an import statement raises it."""


try:
    from flujo_postgres import PostgresBackend
except ModuleNotFoundError as error:
    if error.name not in {"flujo_postgres", "asyncpg"}:
        raise
    raise _PostgresNotInstalledError(
        f"the PostgreSQL backend needs {error.name}, which is not installed: pip install 'flujo[postgres]'"
    ) from error
