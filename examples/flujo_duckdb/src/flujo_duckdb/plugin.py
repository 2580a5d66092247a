"""What is the DuckDB backend? Imports no driver."""

from __future__ import annotations

from flujo_core.hookspec import BackendSpec, hookimpl


@hookimpl
def flujo_state_backend() -> BackendSpec:
    return BackendSpec(
        api_version=1,
        name="duckdb",
        schemes=("duckdb",),
        backend="flujo_duckdb.backend:DuckDBBackend",
        settings="flujo_duckdb.settings:DuckDBSettings",
        drivers=("duckdb",),
        install="pip install duckdb",
        # Whoever opens the file for writing has it alone.
        shared=False,
    )
