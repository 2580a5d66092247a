"""Where is the server, and how are its connections made?"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import weakref
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

import asyncpg

from flujo_core.config import split_options
from flujo_core.errors import (
    ConfigurationError,
    FlujoStateError,
    StorageTimeoutError,
    StorageUnavailableError,
    UnsupportedStorageError,
)
from flujo_core.uri import StateUri, mask_uri

from .errors import translated
from .settings import PostgresSettings

OLDEST = 130000
"""server_version_num of the oldest PostgreSQL that is supported."""
_FACTS = (
    "SELECT current_setting('server_version_num')::int, current_setting('server_version'), "
    "current_setting('server_encoding'), pg_is_in_recovery()"
)


@dataclass(frozen=True, slots=True, repr=False)
class Target:
    """A DSN for the driver, and how messages call it."""

    dsn: str
    shown: str

    @classmethod
    def of(cls, uri: StateUri, settings: PostgresSettings) -> Target:
        """Leaves out the settings that are ours; the rest is libpq's grammar, which asyncpg reads itself."""
        _, options = split_options(type(settings), uri)
        options.setdefault("application_name", "flujo")
        user = "" if uri.user is None else quote(uri.user, safe="")
        password = "" if uri.password is None else f":{quote(uri.password, safe='')}"
        login = f"{user}{password}@" if user or password else ""
        dsn = f"postgresql://{login}{','.join(uri.hosts)}{uri.path}?{urlencode(options)}"
        return cls(dsn, mask_uri(f"postgresql://{user + '@' if user else ''}{','.join(uri.hosts)}{uri.path}"))

    def __repr__(self) -> str:
        return f"Target({self.shown!r})"


class Connections:
    """The pool of one store."""

    def __init__(self, target: Target, settings: PostgresSettings) -> None:
        self._target = target
        self._settings = settings
        self._pool: Any = None
        self._made: weakref.WeakSet[Any] = weakref.WeakSet()

    @property
    def shown(self) -> str:
        return self._target.shown

    async def open(self) -> None:
        settings = self._settings
        try:
            self._pool = asyncpg.create_pool(
                self._target.dsn,
                min_size=settings.pool_min_size,
                max_size=settings.pool_max_size,
                timeout=settings.connect_timeout,
                command_timeout=settings.command_timeout,
                statement_cache_size=settings.statement_cache_size,
                init=self._remember,
                # No statement of ours leaves anything behind in a session, and asyncpg's reset query costs a lone save
                # a third of its speed.
                reset=_keep,
            )
            async with asyncio.timeout(settings.connect_timeout):
                await self._pool
            version, text, encoding, standby = await self._pool.fetchrow(_FACTS)
        except Exception as error:
            raise self._cannot_connect(error) from None
        if version < OLDEST:
            raise UnsupportedStorageError(f"{self.shown} is PostgreSQL {text}; Flujo needs 13 or newer")
        if encoding != "UTF8":
            raise UnsupportedStorageError(
                f"{self.shown} has encoding {encoding}; create the database with ENCODING 'UTF8'"
            )
        if standby:
            raise UnsupportedStorageError(
                f"{self.shown} is a standby; name the primary, or add target_session_attrs=read-write"
            )

    def _cannot_connect(self, error: Exception) -> FlujoStateError:
        if isinstance(error, FlujoStateError):
            return error
        if isinstance(error, TimeoutError):
            return StorageTimeoutError(
                f"{self.shown} did not answer within {self._settings.connect_timeout:g} s (connect_timeout)"
            )
        if isinstance(error, ValueError):
            return ConfigurationError(f"{self.shown}: {str(error).splitlines()[0]}")
        return translated(error, self.shown)

    async def _remember(self, connection: Any) -> None:
        self._made.add(connection)

    @contextlib.asynccontextmanager
    async def acquire(self) -> AsyncIterator[Any]:
        """A connection for the length of the block. Errors of the driver come as they are."""
        limit = self._settings.acquire_timeout
        if self._pool is None:
            raise StorageUnavailableError(f"{self.shown}: the backend was shut down meanwhile; call again")
        try:
            connection = await self._pool.acquire(timeout=limit)
        except TimeoutError:
            raise StorageTimeoutError(
                f"{self.shown}: no connection became free within {limit:g} s (acquire_timeout); "
                f"raise pool_max_size, now {self._settings.pool_max_size}, or run less at the same time"
            ) from None
        try:
            yield connection
        finally:
            await self._pool.release(connection)

    async def close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close()

    def abandon(self) -> None:
        """Tell the server that nobody is there any more; the loop that could close the connections is gone."""
        self._pool = None
        for connection in list(self._made):
            transport = getattr(connection, "_transport", None)
            sock = transport.get_extra_info("socket") if transport is not None else None
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)


async def _keep(connection: Any) -> None:
    pass
