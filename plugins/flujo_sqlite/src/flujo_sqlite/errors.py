"""What does an error of SQLite mean? By its result code, in one place."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

from flujo_core.errors import (
    FlujoStateError,
    InvalidStateError,
    StorageError,
    StorageTimeoutError,
    StorageUnavailableError,
    UnsupportedStorageError,
)

from .settings import SQLiteSettings

# PROTOCOL: many connections began to recover or read the log at the same instant.
_BUSY: Final = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)


def is_busy(error: sqlite3.Error) -> bool:
    """Another connection holds a lock; the statement did nothing and may be tried again."""
    return _code(error) in _BUSY


def is_refused(error: sqlite3.Error) -> bool:
    """The statement itself is wrong here; nothing is the matter with the file, the disk or the time."""
    return _code(error) not in _MEANINGS


def is_interrupted(error: sqlite3.Error) -> bool:
    """It was stopped at its deadline."""
    return _code(error) == sqlite3.SQLITE_INTERRUPT


def _code(error: sqlite3.Error) -> int:
    code = getattr(error, "sqlite_errorcode", None)
    return code & 0xFF if code is not None else sqlite3.SQLITE_ERROR


# What stands in braces is a setting.
_MEANINGS: Final[dict[int, tuple[type[FlujoStateError], str]]] = {
    sqlite3.SQLITE_NOTADB: (UnsupportedStorageError, "is no SQLite database; name another file"),
    sqlite3.SQLITE_CORRUPT: (StorageError, "is damaged; restore a backup of it"),
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
        "did not answer within {command_timeout:g} s (command_timeout) and was stopped; nothing was changed, try again",
    ),
    **dict.fromkeys(
        _BUSY,
        (
            StorageTimeoutError,
            "stayed locked for {lock_timeout:g} s (lock_timeout); end the other process's transaction, or wait longer",
        ),
    ),
}


def translated(error: sqlite3.Error, path: Path, settings: SQLiteSettings) -> FlujoStateError:
    """The error of ours that says what happened to the file."""
    kind, meaning = _MEANINGS.get(_code(error), (StorageError, "refused the command; see what changed its tables"))
    return kind(f"{path} {meaning.format_map(dict(settings))} ({error})")
