"""How is the DuckDB backend made?"""

from __future__ import annotations

import os
from functools import partial
from typing import Any, Self

from flujo_core import StateBackend
from flujo_core.config import settings_from_uri
from flujo_core.errors import ConfigurationError
from flujo_core.files import absolute_file
from flujo_core.settings import BackendSettings
from flujo_core.settings_validation import validate_settings
from flujo_core.uri import file_path, parse_uri

from .settings import DuckDBSettings
from .store import DuckDBStore


class DuckDBBackend(StateBackend):
    """State in one DuckDB file, for one process at a time.

    ``path`` is the file, or a ``duckdb:///`` URI; a relative one counts from the working directory of now. A missing
    file and its missing folder are made on first use, unless ``auto_migrate=False``. ``settings`` are those of
    `DuckDBSettings`, and win over the options of a URI. Raises `ConfigurationError` for a path or a setting that makes
    no sense.
    """

    def __init__(self, path: str | os.PathLike[str], **settings: Any) -> None:
        if isinstance(path, str) and path[:7].lower() == "duckdb:":
            uri = parse_uri(path)
            checked = settings_from_uri(DuckDBSettings, uri, settings)
            path = file_path(uri)
        else:
            checked = validate_settings(DuckDBSettings, settings, "DuckDBBackend(…)")
        self.path = absolute_file(path, "duckdb:///file.duckdb")
        try:
            str(self.path).encode()
        except UnicodeEncodeError:
            raise ConfigurationError(f"path is {path!r}, and DuckDB's names are UTF-8; rename the file") from None
        super().__init__(partial(DuckDBStore, self.path, checked), checked)

    @classmethod
    def from_uri(cls, uri: str, settings: BackendSettings) -> Self:
        return cls(file_path(parse_uri(uri)), **settings.model_dump())

    def __repr__(self) -> str:
        return f"DuckDBBackend({str(self.path)!r})"
