"""Which settings has the PostgreSQL backend?"""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from flujo_core.settings import BackendSettings


class PostgresSettings(BackendSettings):
    model_config = ConfigDict(populate_by_name=True)

    connection_options: ClassVar[frozenset[str]] = frozenset(
        {
            "user", "password", "host", "port", "dbname", "passfile", "application_name", "target_session_attrs",
            "sslmode", "sslrootcert", "sslcert", "sslkey", "sslpassword", "sslcrl", "sslnegotiation",
            "ssl_min_protocol_version", "ssl_max_protocol_version",
        }
    )  # fmt: skip

    pool_min_size: int = Field(default=1, ge=0, description="connections that are kept open")
    pool_max_size: int = Field(default=10, ge=1, description="most connections that are open at the same time")
    acquire_timeout: float = Field(
        default=10.0, gt=0, description="longest wait for a free connection of the pool, in seconds"
    )
    schema_name: str = Field(default="public", alias="schema", min_length=1, description="the schema of all tables")
    statement_cache_size: int = Field(
        default=100, ge=0, description="prepared statements kept for each connection; 0 for poolers that need it"
    )

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.pool_min_size > self.pool_max_size:
            raise ValueError(f"pool_min_size={self.pool_min_size} is over pool_max_size={self.pool_max_size}")
        return self

    @field_validator("schema_name")
    @classmethod
    def _is_identifier(cls, name: str) -> str:
        # The server cuts a longer one off, and then finds nothing under the whole name.
        if len(name.encode("utf-8", "replace")) > 63 or "\0" in name:
            raise ValueError("should be at most 63 bytes of UTF-8, without NUL")
        return name
