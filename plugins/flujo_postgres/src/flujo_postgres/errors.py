"""What does an error of asyncpg or of the server mean? By class and SQLSTATE, in one place."""

from __future__ import annotations

import ssl

import asyncpg

from flujo_core.errors import (
    ConfigurationError,
    FlujoStateError,
    SchemaMissingError,
    StorageError,
    StorageTimeoutError,
    StorageUnavailableError,
    UnsupportedStorageError,
)

_BROKEN = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)
ROLLED_BACK = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError, asyncpg.LockNotAvailableError)
"""The server undid the transaction for a reason that passes."""
NOT_YET = (asyncpg.CannotConnectNowError, asyncpg.TooManyConnectionsError, asyncpg.TargetServerAttributeNotMatched)
"""No connection now; nothing was sent."""

_MEANINGS: tuple[tuple[type[BaseException], type[FlujoStateError], str], ...] = (
    (asyncpg.ClientConfigurationError, ConfigurationError, "can't be used as it is written"),
    (
        asyncpg.InvalidAuthorizationSpecificationError,
        StorageUnavailableError,
        "refused the login; check user, password",
    ),
    (asyncpg.InvalidCatalogNameError, StorageUnavailableError, "has no such database; create it, or name another one"),
    (asyncpg.TooManyConnectionsError, StorageUnavailableError, "has no connection left; lower pool_max_size"),
    (asyncpg.CannotConnectNowError, StorageUnavailableError, "is starting or stopping; try again"),
    (asyncpg.InsufficientPrivilegeError, StorageError, "refused the command; grant the role what it needs"),
    (asyncpg.UndefinedTableError, SchemaMissingError, "has no Flujo tables; run `flujo migrate`"),
    (asyncpg.InvalidSchemaNameError, SchemaMissingError, "has no such schema; run `flujo migrate`"),
    (asyncpg.UndefinedColumnError, SchemaMissingError, "has other tables than this code needs; run `flujo migrate`"),
    (asyncpg.ReadOnlySQLTransactionError, UnsupportedStorageError, "is read-only; name the primary server"),
    (asyncpg.QueryCanceledError, StorageTimeoutError, "stopped the command, by statement_timeout or an administrator"),
    (asyncpg.LockNotAvailableError, StorageTimeoutError, "kept the run locked for too long (lock_timeout)"),
    (asyncpg.DiskFullError, StorageError, "has no room left on its disk; free some and try again"),
    (asyncpg.TargetServerAttributeNotMatched, StorageUnavailableError, "has no host that fits target_session_attrs"),
    (ssl.SSLError, StorageUnavailableError, "can't be reached over TLS; check sslmode and sslrootcert"),
    (TimeoutError, StorageTimeoutError, "did not answer in time"),
    (OSError, StorageUnavailableError, "can't be reached; check host and port, and that the server runs"),
    (asyncpg.PostgresConnectionError, StorageUnavailableError, "closed the connection; try again"),
    (asyncpg.AdminShutdownError, StorageUnavailableError, "closed the connection; try again"),
    (asyncpg.CrashShutdownError, StorageUnavailableError, "closed the connection; try again"),
    (asyncpg.IdleInTransactionSessionTimeoutError, StorageUnavailableError, "closed the connection; try again"),
    (asyncpg.InterfaceError, StorageUnavailableError, "closed the connection; try again"),
    (asyncpg.InternalClientError, StorageUnavailableError, "closed the connection; try again"),
)


class NoAnswer(Exception):  # noqa: N818 - a signal to the store, never an error of a user
    """The connection broke while a write was being committed: the server may have committed all the same."""

    def __init__(self, reason: BaseException) -> None:
        super().__init__()
        self.reason = reason


def is_lost(error: BaseException) -> bool:
    """Whether the connection broke. InterfaceError is asyncpg's word for using one that has closed meanwhile, but also
    the base of its complaints about values, and TimeoutError is an OSError."""
    return isinstance(error, _BROKEN) and not isinstance(error, (TimeoutError, ValueError, *NOT_YET))


def translated(error: BaseException, where: str) -> FlujoStateError:
    """The error of ours that says what happened at ``where``, the server's address without a password."""
    for kind, ours, meaning in _MEANINGS:
        if isinstance(error, kind):
            return ours(f"{where} {meaning} ({_reason(error)})")
    return StorageError(f"{where} refused the command ({_reason(error)})")


def _reason(error: BaseException) -> str:
    # The first line only: the rest may quote the statement's values.
    text = str(error) or type(error).__name__
    return text.splitlines()[0]
