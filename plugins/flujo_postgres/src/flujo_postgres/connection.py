"""Where is the server, and how are its connections made?"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import weakref
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import quote, unquote, urlencode

import asyncpg

from flujo_core.config import split_options
from flujo_core.errors import (
    ConfigurationError,
    FlujoStateError,
    StorageTimeoutError,
    StorageUnavailableError,
    UnsupportedStorageError,
)
from flujo_core.uri import StateUri, mask_uri, mask_value

from .errors import NOT_YET, NoAnswer, is_lost, translated
from .settings import PostgresSettings

OLDEST = 130000
"""server_version_num of the oldest PostgreSQL that is supported."""
CANCEL_TIMEOUT = 1.0
"""Seconds in which the server stops a command that was given up; a connection on which it doesn't is closed."""
_KEPT = 10.0
"""Seconds that a connection stays out of the pool without use."""
_FACTS = (
    "SELECT current_setting('server_version_num')::int, current_setting('server_version'), "
    "current_setting('server_encoding'), pg_is_in_recovery()"
)


_CHOICES = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "sslnegotiation": ("postgres", "direct"),
    "target_session_attrs": ("any", "primary", "standby", "prefer-standby", "read-write", "read-only"),
}
_HOST = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(?::([0-9]*))?")


@dataclass(frozen=True, slots=True, repr=False)
class Target:
    """Where to connect: the options of libpq, and how messages call the place."""

    hosts: tuple[tuple[str, str], ...]
    """(host, port) in the order in which they are tried; an empty port is the default. None: libpq's default place."""
    options: Mapping[str, str]
    shown: str

    @classmethod
    def of(cls, uri: StateUri, settings: PostgresSettings) -> Target:
        """Leaves out the settings that are ours. As in libpq, an option of the query wins over the same part before it.

        What can be told without looking at files and variables is checked here; asyncpg reads the rest.
        """
        _, options = split_options(type(settings), uri)
        before = {"user": uri.user, "password": uri.password, "dbname": unquote(uri.path.removeprefix("/"))}
        options = {**{name: value for name, value in before.items() if value}, **options}
        for name, choices in _CHOICES.items():
            if name in options and options[name] not in choices:
                raise _bad_option(name, options[name], f"should be one of {', '.join(choices)}")
        hosts = _hosts(uri, options.pop("host", None), options.pop("port", None))
        return cls(hosts, options, _shown(hosts, options))

    def addresses(self) -> list[str]:
        """A DSN for each host. All is in the query, where asyncpg takes any character; a path would win over dbname."""
        options = dict(self.options)
        options.setdefault("application_name", os.environ.get("PGAPPNAME") or "flujo")
        places: list[dict[str, str]] = [{"host": host, "port": port} for host, port in self.hosts] or [{}]
        return [f"postgresql://?{urlencode(_without_blanks({**place, **options}))}" for place in places]

    def check_files(self) -> None:
        """A missing certificate would look like a server that is missing: both are an OSError."""
        for name in ("sslrootcert", "sslcert", "sslkey", "sslcrl"):
            path = self.options.get(name)
            if path and not Path(path).is_file():
                raise _bad_option(name, path, "is no file that can be read")

    def __repr__(self) -> str:
        return f"Target({self.shown!r})"


def _hosts(uri: StateUri, host: str | None, port: str | None) -> tuple[tuple[str, str], ...]:
    found: list[tuple[str, str]] = []
    if host is not None:
        # As written: a colon in it belongs to an IPv6 address.
        found = [(f"[{name}]" if ":" in name and name[0] not in "/[" else name, "") for name in host.split(",")]
    else:
        for text in uri.hosts:
            parts = _HOST.fullmatch(text)
            assert parts is not None, "parse_uri has looked at it"
            found.append((unquote(parts[1]), parts[2] or ""))
    if any(not name for name, _ in found) and len(found) > 1:
        raise _bad_option("host", ",".join(name for name, _ in found), "has an empty host between its commas")
    found = [(name or "localhost", number) for name, number in found]
    if port is None:
        ports = [number for _, number in found]
    else:
        ports = port.split(",")
        if not found:
            found = [(os.environ.get("PGHOST") or "localhost", "")]
        if len(ports) == 1:
            ports *= len(found)
        elif len(ports) != len(found):
            raise _bad_option("port", port, f"has {len(ports)} ports for {len(found)} hosts")
    for number in ports:
        if number and not (number.isascii() and number.isdigit() and 1 <= int(number[:9]) <= 65535):
            raise _bad_option("port", number, "should be a number from 1 to 65535")
    return tuple((name, number) for (name, _), number in zip(found, ports, strict=True))


def _bad_option(name: str, value: str, why: str) -> ConfigurationError:
    return ConfigurationError(f"option in the URI: {name} = {mask_value(name, value)!r} {why}")


def _shown(hosts: tuple[tuple[str, str], ...], options: Mapping[str, str]) -> str:
    user = f"{quote(options['user'], safe='')}@" if "user" in options else ""
    database = quote(options.get("dbname", ""), safe="")
    if any(host.startswith("/") for host, _ in hosts):
        query = f"host={','.join(quote(host) for host, _ in hosts)}"
        return mask_uri(f"postgresql://{user}/{database}?{query}")
    places = [f"{quote(host, safe='[]:')}{':' if port else ''}{port}" for host, port in hosts]
    place = ",".join(places) or quote(os.environ.get("PGHOST", ""), safe="[]:,")
    return mask_uri(f"postgresql://{user}{place}/{database}".removesuffix("/"))


def _without_blanks(options: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in options.items() if value}


class Connections:
    """The pool of one store.

    One connection may stay out of it between two uses, for the next one: to take one from asyncpg's pool and to give it
    back costs a lone save a fifth of its time. Whoever waits for the pool gets it first, and after `_KEPT` seconds
    without use it goes back.
    """

    def __init__(self, target: Target, settings: PostgresSettings) -> None:
        self._target = target
        self._settings = settings
        self._pool: Any = None
        self._closed = False
        self._kept: Any = None
        self._keeping: asyncio.TimerHandle | None = None
        self._giving_back: asyncio.Task[None] | None = None
        self._waiting = 0
        """How many wait for a connection of the pool."""
        self._made: weakref.WeakSet[Any] = weakref.WeakSet()

    @property
    def shown(self) -> str:
        return self._target.shown

    async def open(self) -> None:
        settings, pool = self._settings, None
        try:
            self._target.check_files()
            pool = asyncpg.create_pool(
                connect=self.connect,
                min_size=settings.pool_min_size,
                max_size=settings.pool_max_size,
                # No statement of ours leaves anything behind in a session, and asyncpg's reset query costs a lone save
                # a third of its speed.
                reset=_no_reset,
            )
            async with asyncio.timeout(settings.connect_timeout):
                await pool
                version, text, encoding, standby = await pool.fetchrow(_FACTS)
            self._pool = pool
        except Exception as error:  # noqa: BLE001 - whatever the driver raises becomes an error of ours
            raise self._cannot_connect(error) from None
        finally:
            if self._pool is None:
                self._closed = True
                if pool is not None:
                    # Else its maintenance would try to replace the connections for ever; one that isn't made has none.
                    with contextlib.suppress(asyncpg.InterfaceError):
                        pool.terminate()
                for connection in list(self._made):
                    connection.terminate()
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
        if isinstance(error, ValueError) and not isinstance(error, OSError):
            return ConfigurationError(f"{self.shown}: {str(error).splitlines()[0]}")
        return translated(error, self.shown)

    async def connect(self, *_: Any, **options: Any) -> Any:
        """A new connection, to the first host that is fit. Each host has its share of the time: one that is dead
        without saying so leaves time for the next."""
        addresses = self._target.addresses()
        wanted = [self._target.options.get("target_session_attrs")]
        if wanted == ["prefer-standby"]:
            wanted = ["standby", "any"]
        share = self._settings.connect_timeout / len(addresses) / len(wanted)
        failure: Exception | None = None
        for attribute in wanted:
            for address in addresses:
                try:
                    connection = await asyncpg.connect(
                        address,
                        target_session_attrs=attribute,
                        timeout=share,
                        command_timeout=self._settings.command_timeout,
                        statement_cache_size=self._settings.statement_cache_size,
                        **options,
                    )
                except (OSError, *NOT_YET) as error:
                    failure = error
                    continue
                self._made.add(connection)
                if self._closed:
                    connection.terminate()
                    raise asyncpg.InterfaceError("the pool is closed")
                return connection
        assert failure is not None
        raise failure

    @contextlib.asynccontextmanager
    async def acquire(self) -> AsyncIterator[Any]:
        """A connection for the length of the block. Errors of the driver come as they are."""
        pool = self._pool
        if pool is None:
            raise StorageUnavailableError(f"{self.shown}: the backend was shut down meanwhile; call again")
        connection = self._take_kept()
        if connection is not None and not _is_ready(connection):
            await self._release(pool, connection)
            connection = None
        if connection is None:
            connection = await self._from_pool(pool)
        try:
            yield connection
        except BaseException as error:
            # One that broke in the middle of a command may look open to asyncpg, and every command on it would fail.
            if is_lost(error) or isinstance(error, NoAnswer):
                with contextlib.suppress(asyncpg.InterfaceError):
                    connection.terminate()
            await self._release(pool, connection)
            raise
        if self._waiting or self._kept or self._closed or not _is_ready(connection):
            await self._release(pool, connection)
        else:
            self._keep(pool, connection)

    async def _from_pool(self, pool: Any) -> Any:
        limit, began = self._settings.acquire_timeout, monotonic()
        self._waiting += 1
        try:
            # asyncpg's own timeout makes a task for each call.
            async with asyncio.timeout(limit):
                return await pool.acquire()
        except TimeoutError:
            if pool.get_size() < pool.get_max_size() and monotonic() - began < limit - 0.01:
                raise self._cannot_connect(TimeoutError()) from None
            raise StorageTimeoutError(
                f"{self.shown}: no connection became free within {limit:g} s (acquire_timeout); "
                f"raise pool_max_size, now {self._settings.pool_max_size}, or run less at the same time"
            ) from None
        finally:
            self._waiting -= 1

    async def _release(self, pool: Any, connection: Any) -> None:
        try:
            # What was done is done, also if the connection turns out to be broken now: asyncpg has ended it then.
            with contextlib.suppress(Exception):
                await pool.release(connection, timeout=CANCEL_TIMEOUT)
        except asyncio.CancelledError:
            # asyncpg releases in a task of its own; where that was cancelled, the pool would wait for ever.
            with contextlib.suppress(asyncpg.InterfaceError):
                connection.terminate()
            raise

    def _keep(self, pool: Any, connection: Any) -> None:
        def give_back() -> None:
            self._giving_back = loop.create_task(self._give_back(pool))

        loop = asyncio.get_running_loop()
        self._kept, self._keeping = connection, loop.call_later(_KEPT, give_back)

    def _take_kept(self) -> Any:
        connection, self._kept = self._kept, None
        if self._keeping is not None:
            self._keeping.cancel()
            self._keeping = None
        return connection

    async def _give_back(self, pool: Any) -> None:
        connection = self._take_kept()
        if connection is not None:
            await self._release(pool, connection)

    async def close(self) -> None:
        pool, self._pool, self._closed = self._pool, None, True
        if pool is not None:
            await self._give_back(pool)
            await pool.close()

    def abandon(self) -> None:
        """Tell the server that nobody is there any more; the loop that could close the connections is gone."""
        self._pool = self._kept = None
        self._closed = True
        for connection in list(self._made):
            transport = getattr(connection, "_transport", None)
            if transport is not None and not connection.is_closed():
                # The destructors would warn of what nobody can close any more.
                connection._aborted = True
                _cut_off(transport)


def _cut_off(transport: Any) -> None:
    """Close the socket of a transport without its loop."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
    beneath = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None)
    if beneath is not None:  # TLS
        transport._closed = True
        transport = beneath
    if getattr(transport, "_sock", None) is not None:  # asyncio's own
        transport._sock.close()
        transport._sock = None


async def _no_reset(connection: Any) -> None:
    pass


def _is_ready(connection: Any) -> bool:
    """Whether the next one may use it as it is."""
    try:
        return not (connection.is_closed() or connection.is_in_transaction())
    except asyncpg.InterfaceError:  # it broke, and asyncpg has taken it back
        return False


async def roll_back(connection: Any, transaction: Any) -> None:
    try:
        if connection.is_in_transaction():
            await transaction.rollback()
    except Exception:  # noqa: BLE001 - the connection is useless then; the server undoes the transaction when it goes
        with contextlib.suppress(asyncpg.InterfaceError):
            connection.terminate()
