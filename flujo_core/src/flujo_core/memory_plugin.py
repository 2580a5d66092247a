"""The plugin of the in-memory backend, which core brings itself."""

from __future__ import annotations

from .hookspec import BackendSpec, hookimpl


@hookimpl
def flujo_state_backend() -> BackendSpec:
    return BackendSpec(
        api_version=1,
        name="memory",
        schemes=("memory",),
        backend="flujo_core.memory:MemoryBackend",
        settings="flujo_core.settings:BackendSettings",
        install="pip install flujo-core",
        durable=False,
        shared=False,
    )
