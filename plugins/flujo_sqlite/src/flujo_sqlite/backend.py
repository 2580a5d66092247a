"""How is the SQLite backend made?"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any, Self

from flujo_core import StateBackend
from flujo_core.errors import ConfigurationError
from flujo_core.settings import BackendSettings
from flujo_core.settings_validation import validate_settings
from flujo_core.uri import file_path, parse_uri

from .settings import SQLiteSettings
from .store import SQLiteStore


class SQLiteBackend(StateBackend):
    """State in one SQLite file, for the processes of one machine.

    ``path`` is the file, or a ``sqlite:///`` URI; a relative one counts from the working directory of now. A missing
    file and its missing folder are made on first use, unless ``auto_migrate=False``. ``settings`` are those of
    `SQLiteSettings`. Raises `ConfigurationError` for a path or a setting that makes no sense.
    """

    def __init__(self, path: str | os.PathLike[str], **settings: Any) -> None:
        checked = validate_settings(SQLiteSettings, settings, "SQLiteBackend(…)")
        self.path = Path(os.path.abspath(_file(path)))
        super().__init__(partial(SQLiteStore, self.path, checked), checked)

    @classmethod
    def from_uri(cls, uri: str, settings: BackendSettings) -> Self:
        return cls(file_path(parse_uri(uri)), **settings.model_dump())

    def __repr__(self) -> str:
        return f"SQLiteBackend({str(self.path)!r})"


def _file(path: str | os.PathLike[str]) -> str:
    text = os.fspath(path)
    if not isinstance(text, str) or not text or "\x00" in text:
        raise ConfigurationError(f"path is {path!r}, not the path of a file")
    if text == ":memory:":
        raise ConfigurationError("path is ':memory:'; open memory:// for state in the memory of this process")
    return str(file_path(parse_uri(text))) if text.startswith("sqlite:") else text
