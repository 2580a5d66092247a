"""How is the SQLite backend made?"""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path
from typing import Any, Self

from flujo_core import StateBackend
from flujo_core.config import settings_from_uri
from flujo_core.errors import ConfigurationError
from flujo_core.settings import BackendSettings
from flujo_core.settings_validation import validate_settings
from flujo_core.uri import file_path, mask_uri, parse_uri

from .settings import SQLiteSettings
from .store import SQLiteStore

_ADVICE = "open memory:// for state in the memory of this process"


class SQLiteBackend(StateBackend):
    """State in one SQLite file, for the processes of one machine.

    ``path`` is the file, or a ``sqlite:///`` URI; a relative one counts from the working directory of now. A missing
    file and its missing folder are made on first use, unless ``auto_migrate=False``. ``settings`` are those of
    `SQLiteSettings`, and win over the options of a URI. Raises `ConfigurationError` for a path or a setting that makes
    no sense.
    """

    def __init__(self, path: str | os.PathLike[str], **settings: Any) -> None:
        if isinstance(path, str) and path[:7].lower() == "sqlite:":
            uri = parse_uri(path)
            checked = settings_from_uri(SQLiteSettings, uri, settings)
            path = file_path(uri)
        else:
            checked = validate_settings(SQLiteSettings, settings, "SQLiteBackend(…)")
        self.path = _absolute(path)
        super().__init__(partial(SQLiteStore, self.path, checked), checked)

    @classmethod
    def from_uri(cls, uri: str, settings: BackendSettings) -> Self:
        return cls(file_path(parse_uri(uri)), **settings.model_dump())

    def __repr__(self) -> str:
        return f"SQLiteBackend({str(self.path)!r})"


def _absolute(path: str | os.PathLike[str]) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise ConfigurationError(f"path is {path!r}, not the path of a file; give a str or a Path")
    text = os.fspath(path)
    if not isinstance(text, str) or not text or "\x00" in text:
        raise ConfigurationError(f"path is {text!r}, not the path of a file; give a str or a Path")
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise ConfigurationError(f"path is {text!r}, which no file can be called; remove the surrogates") from None
    if text == ":memory:":
        raise ConfigurationError(f"path is ':memory:'; {_ADVICE}")
    if isinstance(path, str) and re.match("file:|[A-Za-z][A-Za-z0-9+.-]+://", text):
        raise ConfigurationError(
            f"path is the URI {mask_uri(text)!r}; give the path of a file, sqlite:///file.db, or use open_backend; "
            f"{_ADVICE}"
        )
    if text.endswith(("/", os.sep)) or Path(text).name in {"", ".", ".."}:
        raise ConfigurationError(f"path is the folder {text!r}; add the name of a file")
    if text.startswith("~/"):
        raise ConfigurationError(f"path is {text!r}, and a '~' is not expanded; give Path(…).expanduser()")
    try:
        return Path(os.path.abspath(text))  # noqa: PTH100 - resolve() would look at the disk
    except FileNotFoundError:
        raise ConfigurationError(
            f"path is {text!r}, and the working directory is gone; change to another or give the whole path"
        ) from None
