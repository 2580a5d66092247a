"""What does an error of SQLite mean? By its result code, in one place."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from flujo_core.errors import (
    FlujoStateError,
    InvalidStateError,
    StorageError,
    StorageTimeoutError,
    StorageUnavailableError,
    UnsupportedStorageError,
)


def is_busy(error: sqlite3.Error) -> bool:
    """Another connection holds a lock; the statement did nothing and may be tried again."""
    return _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _code(error: sqlite3.Error) -> int:
    code = getattr(error, "sqlite_errorcode", None)
    return code & 0xFF if code is not None else sqlite3.SQLITE_ERROR


_MEANINGS: dict[int, tuple[type[FlujoStateError], str]] = {
    sqlite3.SQLITE_NOTADB: (UnsupportedStorageError, "is no SQLite database; name another file"),
    sqlite3.SQLITE_CORRUPT: (StorageError, "is damaged; restore a backup"),
    sqlite3.SQLITE_CANTOPEN: (StorageUnavailableError, "can't be opened; check that it and its folder are accessible"),
    sqlite3.SQLITE_PERM: (StorageUnavailableError, "can't be opened; check its permissions"),
    sqlite3.SQLITE_AUTH: (StorageUnavailableError, "can't be opened; check its permissions"),
    sqlite3.SQLITE_READONLY: (
        StorageUnavailableError,
        "can't be written; check the permissions of the file and of its folder",
    ),
    sqlite3.SQLITE_FULL: (StorageError, "has no room left on its disk; free some and try again"),
    sqlite3.SQLITE_IOERR: (StorageError, "can't be read or written; check the disk"),
    sqlite3.SQLITE_TOOBIG: (InvalidStateError, "can't hold a value of this size"),
    sqlite3.SQLITE_INTERRUPT: (
        StorageTimeoutError,
        "did not answer in time; the command was stopped and undone (command_timeout)",
    ),
    sqlite3.SQLITE_BUSY: (StorageTimeoutError, "stays locked by another process (lock_timeout)"),
    sqlite3.SQLITE_LOCKED: (StorageTimeoutError, "stays locked by another process (lock_timeout)"),
}


def translated(error: sqlite3.Error, path: Path) -> FlujoStateError:
    """The error of ours that says what happened to the file."""
    kind, meaning = _MEANINGS.get(_code(error), (StorageError, "refused the command"))
    return kind(f"{path} {meaning} ({error})")
