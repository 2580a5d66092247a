"""Plugins for one test: a folder as an installer would leave it, without an installer."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from importlib import invalidate_caches, metadata
from itertools import count
from pathlib import Path
from typing import Any

import pytest

_numbers = count()

PLUGIN = """
from flujo_core.hookspec import BackendSpec, hookimpl

@hookimpl
def flujo_state_backend():
    return BackendSpec(**{spec!r})
"""

BACKEND = """
from typing import ClassVar

from flujo_core.settings import BackendSettings
from pydantic import Field, SecretStr, model_validator


class Settings(BackendSettings):
    connection_options: ClassVar[frozenset[str]] = frozenset({"sslmode", "connect_timeout"})

    pool_min_size: int = Field(default=1, ge=0)
    pool_max_size: int | None = 10
    schema_name: str = Field(default="public", alias="schema")
    api_token: SecretStr = SecretStr("")
    password: str = Field(default="", max_length=3)
    replica: bool = False

    @model_validator(mode="after")
    def _sizes(self):
        if self.pool_max_size is not None and self.pool_max_size < self.pool_min_size:
            raise ValueError("pool_max_size should be at least pool_min_size")
        return self


class Backend:
    @classmethod
    def from_uri(cls, uri, settings):
        made = cls()
        made.uri, made.settings = uri, settings
        return made
"""


class PluginFolder:
    """A folder on ``sys.path`` whose distributions are the only ones installed."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = path
        monkeypatch.syspath_prepend(path)
        monkeypatch.setattr(metadata, "distributions", partial(metadata.distributions, path=[str(path)]))

    def module(self, source: str) -> str:
        """Write a module of a name that no test before has imported."""
        name = f"throwaway_{next(_numbers)}"
        assert name not in sys.modules
        (self.path / f"{name}.py").write_text(source, encoding="utf-8")
        invalidate_caches()
        return name

    def distribution(
        self, name: str, entries: Mapping[str, str], *, version: str = "1.0", folder: Path | None = None
    ) -> None:
        info = (folder or self.path) / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
        lines = [f"{scheme} = {value}" for scheme, value in entries.items()]
        (info / "entry_points.txt").write_text("\n".join(["[flujo.state_backends]", *lines, ""]), encoding="utf-8")
        invalidate_caches()

    def plugin(self, name: str, *schemes: str, version: str = "1.0", **changes: Any) -> str:
        """A whole plugin: distribution, light module, settings and backend. Returns the name of the backend's module."""
        backend = self.module(BACKEND)
        spec = {
            "name": schemes[0],
            "schemes": schemes,
            "backend": f"{backend}:Backend",
            "settings": f"{backend}:Settings",
            "api_version": 1,
            **changes,
        }
        self.distribution(name, dict.fromkeys(schemes, self.module(PLUGIN.format(spec=spec))), version=version)
        return backend
