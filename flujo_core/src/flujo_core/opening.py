"""How does a program get its backend without naming a database in its code?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flujo_core.config import resolve_configuration

if TYPE_CHECKING:
    from flujo_core.backend import StateBackend


def open_backend(uri: str | None = None, **settings: object) -> StateBackend:
    """The backend that the URI names, else the environment, else ``flujo.toml``, else ``sqlite:///flujo_ops.db`` (D1).

    ``settings`` are the backend's own, such as ``auto_migrate=False``, and win over all other sources. The database is
    not touched; the backend opens itself on first use. Raises `ConfigurationError` for a value that is wrong and a
    `PluginError` when the scheme has no usable backend.
    """
    from flujo_core.registry import load_backend

    configuration = resolve_configuration(uri, settings)
    backend = load_backend(configuration.spec)
    return backend.from_uri(configuration.uri, configuration.settings)
