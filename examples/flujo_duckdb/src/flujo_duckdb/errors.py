"""What does an error of DuckDB mean? By its class, in one place."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import duckdb

from flujo_core.errors import (
    FlujoStateError,
    InvalidStateError,
    StorageError,
    StorageTimeoutError,
    StorageUnavailableError,
    UnsupportedStorageError,
)

from .settings import DuckDBSettings

# What stands in braces is a setting. The first class that an error is of counts.
_MEANINGS: Final[dict[type[duckdb.Error], tuple[type[FlujoStateError], str]]] = {
    duckdb.InterruptException: (
        StorageTimeoutError,
        "did not answer within {command_timeout:g} s (command_timeout) and was stopped; nothing was changed, try again",
    ),
    # Writers of ours wait for each other, so it was a connection that somebody else in this process opened.
    duckdb.TransactionException: (
        StorageTimeoutError,
        "had another writer in this process for {lock_timeout:g} s (lock_timeout); end its transaction, or wait longer",
    ),
    duckdb.ConnectionException: (StorageUnavailableError, "was closed by this process; shut the backend down"),
    duckdb.IOException: (StorageError, "can't be read or written; check the disk"),
    duckdb.OutOfMemoryException: (InvalidStateError, "can't hold a value of this size in memory"),
    duckdb.FatalException: (StorageError, "failed and can't go on; shut all backends on it down and open it again"),
    duckdb.InternalException: (StorageError, "failed and can't go on; shut all backends on it down and open it again"),
    duckdb.Error: (StorageError, "refused the command; see what changed its tables"),
}


def is_refused(error: duckdb.Error) -> bool:
    """The statement itself is wrong here; nothing is the matter with the file, the disk or the time."""
    return _meaning(error) == _MEANINGS[duckdb.Error]


def _meaning(error: duckdb.Error) -> tuple[type[FlujoStateError], str]:
    return next(meaning for kind, meaning in _MEANINGS.items() if isinstance(error, kind))


def translated(error: duckdb.Error, path: Path, settings: DuckDBSettings) -> FlujoStateError:
    """The error of ours that says what happened to the file."""
    kind, meaning = _meaning(error)
    return kind(f"{path} {meaning.format_map(dict(settings))} ({_first_line(error)})")


# All of these are an IOException without a code, so only the text can tell them apart. To look into the file instead
# would give up the process's lock on it: POSIX drops it when any descriptor of the file is closed.
_REFUSALS: Final[dict[str, tuple[type[FlujoStateError], str]]] = {
    "Could not set lock": (
        StorageUnavailableError,
        "is open in another process, and only one can use a DuckDB file at a time; end it, or use sqlite:// or postgres://",
    ),
    "not a valid DuckDB database": (UnsupportedStorageError, "is no DuckDB database; name another file"),
    # SQLite's files are known to DuckDB, but it would need an extension.
    'Extension "': (UnsupportedStorageError, "is no DuckDB database; name another file"),
    "version number": (UnsupportedStorageError, "was written by another version of DuckDB; install that one"),
}


def unopened(error: Exception, path: Path) -> FlujoStateError:
    """Why the file doesn't open."""
    text = _first_line(error)
    for mark, (kind, meaning) in _REFUSALS.items():
        if mark in text:
            return kind(f"{path} {meaning} ({text})")
    if isinstance(error, duckdb.ConnectionException):
        advice = "this process has it open with another configuration; close that connection"
    else:
        advice = "check the path and its permissions"
    return StorageUnavailableError(f"{path} can't be opened: {text}; {advice}")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
