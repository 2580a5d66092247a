"""How is the PostgreSQL backend made?"""

from __future__ import annotations

from functools import partial
from typing import Any, Self

from flujo_core import StateBackend
from flujo_core.config import settings_from_uri
from flujo_core.errors import ConfigurationError
from flujo_core.settings import BackendSettings
from flujo_core.uri import mask_uri, parse_uri

from .connection import Target
from .settings import PostgresSettings
from .store import PostgresStore


class PostgresBackend(StateBackend):
    """State in one PostgreSQL database, for any number of processes and hosts.

    ``dsn`` is ``postgres://user:password@host:5432/database?options`` in libpq's grammar (D3); what is missing
    comes from libpq's defaults and the ``PG*`` variables. ``settings`` are those of `PostgresSettings`. Raises
    `ConfigurationError` for a DSN or a setting that makes no sense.
    """

    def __init__(
        self, dsn: str, *, auto_migrate: bool = True, pool_min_size: int = 1, pool_max_size: int = 10, **settings: Any
    ) -> None:
        if not isinstance(dsn, str):
            raise ConfigurationError(f"dsn is a {type(dsn).__name__}, not a str like postgres://user@host/database")
        uri = parse_uri(dsn)
        if uri.scheme not in ("postgres", "postgresql"):
            raise ConfigurationError(f"{uri} is not a PostgreSQL URI; write postgres://user@host/database")
        given = {"auto_migrate": auto_migrate, "pool_min_size": pool_min_size, "pool_max_size": pool_max_size}
        # A default of this signature is no wish of the caller: an option in the DSN is.
        wishes = {name: value for name, value in given.items() if value != _DEFAULTS[name] or name not in uri.options}
        self._become(dsn, settings_from_uri(PostgresSettings, uri, {**wishes, **settings}))

    def _become(self, dsn: str, settings: PostgresSettings) -> None:
        self._shown = mask_uri(dsn)
        target = Target.of(parse_uri(dsn), settings)
        StateBackend.__init__(self, partial(PostgresStore, target, settings), settings)

    @classmethod
    def from_uri(cls, uri: str, settings: BackendSettings) -> Self:
        assert isinstance(settings, PostgresSettings)
        backend = cls.__new__(cls)
        backend._become(uri, settings)
        return backend

    def __repr__(self) -> str:
        return f"PostgresBackend({self._shown!r})"


_DEFAULTS = {"auto_migrate": True, "pool_min_size": 1, "pool_max_size": 10}
