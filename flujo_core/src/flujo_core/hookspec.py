"""What does a plugin tell Flujo about its backend?

A plugin is a light module (it imports no driver) named by an entry point of the group
``flujo.state_backends``; the entry's name is the URI scheme. It implements one hook::

    from flujo_core.hookspec import BackendSpec, hookimpl

    @hookimpl
    def flujo_state_backend() -> BackendSpec:
        return BackendSpec(api_version=1, name="redis", schemes=("redis",), backend="flujo_redis:RedisBackend", …)
"""

from __future__ import annotations

from dataclasses import dataclass

import pluggy

ENTRY_POINT_GROUP = "flujo.state_backends"
PROJECT_NAME = "flujo_state"
API_VERSION = 1
"""Raised when a plugin written for the older interface would no longer work."""

hookspec = pluggy.HookspecMarker(PROJECT_NAME)
hookimpl = pluggy.HookimplMarker(PROJECT_NAME)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendSpec:
    """One backend, described without importing its driver."""

    api_version: int
    """The number of the interface that it was written for: a literal 1 today, not what is installed."""
    name: str
    """Names the backend in messages and its table ``[state.<name>]`` in ``flujo.toml``."""
    schemes: tuple[str, ...]
    """The URI schemes it answers, lower case; each has an entry point of that name."""
    backend: str
    """``package.module:Class``, a `StateBackend` with ``from_uri(uri, settings)``; imported when it is opened."""
    settings: str
    """``package.module:Class``, a `BackendSettings`; imported when a setting is checked, never a driver."""
    drivers: tuple[str, ...] = ()
    """Modules that must be importable, such as ``asyncpg``."""
    install: str = ""
    """The command that installs what is missing, such as ``pip install 'flujo[postgres]'``."""
    durable: bool = True
    """Whether state outlives the process."""
    shared: bool = True
    """Whether several processes may use one database at the same time."""


class StateBackendHooks:
    """The hooks, for pluggy."""

    @hookspec
    def flujo_state_backend(self) -> BackendSpec:  # type: ignore[empty-body]
        """Describe the backend. Called once, when its scheme is first used; it must not import the driver."""
