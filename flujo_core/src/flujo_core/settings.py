"""Which settings does every backend have?

A plugin subclasses `BackendSettings`; the field names are the allow-list of options that a URI's query,
``open_backend(uri, …)`` and the plugin's table in ``flujo.toml`` may give. Durations are seconds. Every wait has one,
and the error that ends it names it (G12).
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field


class BackendSettings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, allow_inf_nan=False)

    connection_options: ClassVar[frozenset[str]] = frozenset()
    """Query options of the URI that are the driver's and no settings, such as ``sslmode``; they stay in the URI."""

    auto_migrate: bool = Field(default=True, description="create or upgrade the tables on first use")
    migrations_dir: Path | None = Field(
        default=None, description="folder of the deployment's own migrations, applied after Flujo's"
    )
    migration_lock_wait: float = Field(
        default=60.0, ge=0, description="longest wait for another process that migrates, in seconds"
    )
    migration_timeout: float = Field(default=3600.0, gt=0, description="longest time of one migration, in seconds")
    max_document_bytes: int = Field(
        default=64 * 1024 * 1024, gt=0, description="largest document, in bytes of encoded UTF-8"
    )
    connect_timeout: float = Field(default=10.0, gt=0, description="longest wait for a connection to open, in seconds")
    lock_timeout: float = Field(default=10.0, gt=0, description="longest wait for another writer's lock, in seconds")
    command_timeout: float = Field(default=60.0, gt=0, description="longest wait for one command, in seconds")
    close_timeout: float = Field(default=10.0, gt=0, description="longest wait of shutdown(), in seconds")
