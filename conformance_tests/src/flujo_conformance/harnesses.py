"""Which harness fits a URI, and which one does ``module:Class`` name?"""

from __future__ import annotations

import sys
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, Final

from flujo_core.errors import ConfigurationError
from flujo_core.hookspec import ENTRY_POINT_GROUP
from flujo_core.registry import find_plugin
from flujo_core.uri import mask_uri

from .harness import Harness, UriHarness
from .report import Subject

_KNOWN: Final = {
    "memory": "flujo_conformance.memory_harness:MemoryHarness",
    "sqlite": "flujo_conformance.sqlite_harness:SQLiteHarness",
    "postgres": "flujo_conformance.postgres_harness:PostgresHarness",
    "postgresql": "flujo_conformance.postgres_harness:PostgresHarness",
}
"""Harnesses that wipe faster than `UriHarness`, or can look behind the backend's back."""


def harness_for(uri: str) -> Harness:
    """Of a URI's scheme. Raises `PluginError`, or `ConfigurationError` if it can't tell namespaces apart."""
    scheme = uri.partition(":")[0].lower()
    find_plugin(scheme)
    kind = _loaded(_KNOWN[scheme]) if scheme in _KNOWN else UriHarness
    try:
        found: Harness = kind(uri)
    except ValueError as error:
        raise ConfigurationError(str(error)) from None
    return found


def harness_named(name: str, uri: str = "") -> Harness:
    """What ``module:Class`` names: a `Harness` class, a function that returns one, or an instance.

    A class or function is called with the URI, if there is one. Modules of the working directory are found. Raises
    `ConfigurationError` if there is no harness.
    """
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    found = _loaded(name)
    arguments = [uri] if uri else []
    harness = found if isinstance(found, Harness) else found(*arguments) if callable(found) else None
    if not isinstance(harness, Harness):
        raise ConfigurationError(f"{name} is no harness; name a subclass of flujo_conformance.Harness")
    return harness


def _loaded(name: str) -> Any:
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise ConfigurationError(f"the harness is {name!r}; write module:Class")
    try:
        found: Any = getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"the harness {name} can't be imported: {error}") from error
    except AttributeError:
        raise ConfigurationError(f"the module {module} has no {attribute}") from None
    return found


def subject_of(harness: Harness, uri: str = "") -> Subject:
    """What a report says of the backend that a harness opens."""
    kind = type(harness)
    spec = find_plugin(uri.partition(":")[0]) if uri else None
    scheme = spec.schemes[0] if spec else ""
    entries = [entry for entry in metadata.entry_points(group=ENTRY_POINT_GROUP) if entry.name == scheme]
    distributions = [f"{entry.dist.name} {entry.dist.version}" for entry in entries if entry.dist]
    return Subject(
        name=spec.name if spec else kind.__name__,
        harness=f"{kind.__module__}:{kind.__qualname__}",
        uri=mask_uri(uri) if uri else "",
        distribution=", ".join(distributions),
        durable=harness.durable,
        shared=harness.shared,
    )
