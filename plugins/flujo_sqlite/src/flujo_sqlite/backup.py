"""How is a file kept as it is before a migration rewrites what is in it?"""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Final

from flujo_core.errors import MigrationError

from .errors import is_interrupted

KEPT: Final = 2
"""The newest backups of one file; older ones are removed."""
ORIGINAL: Final = "000_original"
"""Before a database of the original system is taken over. Its backups are counted apart: later ones don't push the last
copy of that system's tables out."""
_STEPS: Final = 10_000
"""Of SQLite's machine, between two looks at the clock and at whether to stop."""
Stopped = Callable[[], bool]
"""Whether nobody waits for the migration any more."""
Keep = Callable[[str], Path]
"""`back_up` of a file, before what."""


def stop_when(stopped: Stopped, raw: sqlite3.Connection) -> None:
    raw.set_progress_handler(stopped, _STEPS)


def back_up(path: Path, before: str, patience: float, stopped: Stopped) -> Path:
    """A copy beside the file, which only its owner may read, checked and flushed: ``x.db.before-003_y.<time>.bak``.
    Of a link it lies beside the file that is meant: there is room for it, and other links find it.

    The caller holds the write lock, so it is the state that the migration finds. Raises `MigrationError` when it can't
    be made, has an error in it, or takes longer than so many seconds.
    """
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    shown, path = path, Path(os.path.realpath(path))
    target = path.with_name(f"{path.name}.before-{before}.{stamp}.bak")
    unfinished = target.with_suffix(".part")
    try:
        _remove(_left(path, "part(-journal)?"))  # of a migration that was killed: there is one at a time
        if os.path.lexists(target):
            raise FileExistsError(f"{target} is there already")
        # VACUUM INTO takes an empty file, and leaves its permissions.
        os.close(os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_CLOEXEC", 0), 0o600))
        try:
            _copy(path, unfinished, monotonic() + patience, stopped)
            _flush(unfinished)
            unfinished.rename(target)
        except BaseException:
            with suppress(OSError):
                unfinished.unlink()
            raise
        _flush_folder(target.parent)
        # This one stays also if the clock was set back since the others were made.
        mark = f"{path.name}.before-{ORIGINAL}."
        alike = [old for old in _left(path, "bak") if old.name.startswith(mark) == target.name.startswith(mark)]
        _remove([old for old in alike if old != target][: 1 - KEPT])
    except (OSError, sqlite3.Error) as error:
        slow = isinstance(error, sqlite3.Error) and is_interrupted(error)
        why = (
            f"it took longer than {patience:g} s (migration_timeout)"
            if slow
            else f"{error}; make room on the disk, or see the permissions of the folder"
        )
        raise MigrationError(f"{shown}: no backup could be made, so {before} was not run: {why}") from None
    return target


def _left(path: Path, suffix: str) -> list[Path]:
    """What former calls left beside the file, oldest first; whatever has another name is somebody else's."""
    ours = re.compile(rf"{re.escape(path.name)}\.before-\d{{3,}}_[a-z0-9_]+\.(\d{{8}}T\d{{6}}\.\d{{6}}Z)\.{suffix}")
    found = [(match[1], entry) for entry in path.parent.iterdir() if (match := ours.fullmatch(entry.name))]
    return [entry for _, entry in sorted(found)]


def _remove(old: list[Path]) -> None:
    for entry in old:
        with suppress(OSError):  # another user's, in a folder where everybody may write: no reason not to migrate
            entry.unlink()


def _copy(path: Path, target: Path, give_up: float, stopped: Stopped) -> None:
    # Another connection: the migration's own is in its transaction, which VACUUM can't be.
    with closing(_connect(path, give_up, stopped)) as source:
        # A URI, for SQLite's text can't hold every name of a file.
        source.execute("VACUUM INTO ?", (target.absolute().as_uri(),))
    with closing(_connect(target, give_up, stopped)) as copy:
        found = copy.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise sqlite3.DatabaseError(f"the copy is damaged, so the file may be too: {found}")


def _connect(path: Path, give_up: float, stopped: Stopped) -> sqlite3.Connection:
    raw = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
    raw.set_progress_handler(lambda: stopped() or monotonic() > give_up, _STEPS)
    return raw


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)  # Windows flushes only what may be written
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":
        return  # a folder can't be opened there
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
