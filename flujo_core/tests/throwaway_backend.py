"""A backend that opens nothing, for `throwaway_plugins`: each plugin gets a copy of this module."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import Field, SecretStr, model_validator

from flujo_core.settings import BackendSettings


class Settings(BackendSettings):
    connection_options: ClassVar[frozenset[str]] = frozenset({"sslmode", "connect_timeout"})

    pool_min_size: int = Field(default=1, ge=0)
    pool_max_size: int | None = 10
    schema_name: str = Field(default="public", alias="schema")
    api_token: SecretStr = SecretStr("")
    key: SecretStr = Field(default=SecretStr(""), max_length=9)
    password: str = Field(default="", max_length=3)
    replica: bool = False

    @model_validator(mode="after")
    def _sizes(self) -> Self:
        if self.pool_max_size is not None and self.pool_max_size < self.pool_min_size:
            raise ValueError("pool_max_size should be at least pool_min_size")
        return self


class Backend:
    def __init__(self, uri: str, settings: BackendSettings) -> None:
        self.uri, self.settings = uri, settings

    @classmethod
    def from_uri(cls, uri: str, settings: BackendSettings) -> Backend:
        return cls(uri, settings)
