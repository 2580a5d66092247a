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
import throwaway_backend

_numbers = count()

PLUGIN = """
from flujo_core.hookspec import BackendSpec, hookimpl

@hookimpl
def flujo_state_backend():
    return BackendSpec(**{spec!r})
"""

BACKEND = Path(throwaway_backend.__file__)


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

    def plugin(self, distribution: str, /, *schemes: str, version: str = "1.0", **changes: Any) -> str:
        """A whole plugin: distribution, light module, settings and backend, whose module's name is returned."""
        backend = self.module(BACKEND.read_text(encoding="utf-8"))
        spec = {
            "name": schemes[0],
            "schemes": schemes,
            "backend": f"{backend}:Backend",
            "settings": f"{backend}:Settings",
            "api_version": 1,
            **changes,
        }
        self.distribution(distribution, dict.fromkeys(schemes, self.module(PLUGIN.format(spec=spec))), version=version)
        return backend
