"""Which installed plugin answers a URI scheme, and if none can, why?

Plugins are found by their entry points in the group ``flujo.state_backends``, which are read without importing
anything. Only the plugin of the scheme that is asked for is imported, so that a broken one stops no other.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from importlib import import_module, metadata
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from traceback import format_exception_only
from typing import TYPE_CHECKING, Any, Final, NoReturn

import pluggy

from flujo_core.errors import (
    BackendNotInstalledError,
    BrokenPluginError,
    DuplicateSchemeError,
    IncompatiblePluginError,
    PluginError,
    UnknownSchemeError,
)
from flujo_core.hookspec import API_VERSION, ENTRY_POINT_GROUP, PROJECT_NAME, BackendSpec, StateBackendHooks
from flujo_core.uri import mask_text

if TYPE_CHECKING:
    from flujo_core.backend import StateBackend
    from flujo_core.settings import BackendSettings

WELL_KNOWN: Final = {
    "memory": "pip install 'flujo-core'",
    "postgres": "pip install 'flujo[postgres]'",
    "postgresql": "pip install 'flujo[postgres]'",
    "sqlite": "pip install 'flujo-sqlite'",
}
"""The schemes of our own backends, and what installs them."""

_IMPORT_STRING = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


@dataclass(frozen=True, slots=True)
class InstalledBackend:
    """One scheme of one installed distribution."""

    scheme: str
    distribution: str
    version: str
    status: str
    """``ok``, ``driver missing``, ``broken``, ``incompatible`` or ``duplicate``."""
    reason: str = ""
    """Why it is not ``ok``, and what to do."""


@dataclass(frozen=True, slots=True)
class _Claim:
    """A distribution says that it answers a scheme."""

    scheme: str
    distribution: str
    version: str
    entry: metadata.EntryPoint

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}"


def find_plugin(scheme: str) -> BackendSpec:
    """The description of the backend that answers the scheme, in any case; its driver is there, and not imported.

    Raises one of the five kinds of `PluginError`, each with what to do next (D4).
    """
    scheme = scheme.lower()
    ours = [claim for claim in _claims() if claim.scheme == scheme]
    if not ours:
        _claims_of.cache_clear()  # an installation may have been under way
        claims = _claims()
        ours = [claim for claim in claims if claim.scheme == scheme]
    if not ours:
        _refuse_unknown(scheme, {claim.scheme for claim in claims})
    return _chosen(ours)


def installed_backends() -> list[InstalledBackend]:
    """Every scheme that an installed distribution claims, by scheme and distribution, and whether it can be opened.

    The light plugin modules are imported, drivers are not; a plugin that fails is a row that says why.
    """
    claims = sorted(_claims(), key=lambda claim: (claim.scheme, claim.distribution))
    rows = []
    for claim in claims:
        status, reason = "ok", ""
        try:
            _chosen([other for other in claims if other.scheme == claim.scheme])
        except PluginError as error:
            status, reason = _STATUS[type(error)], str(error)
        rows.append(InstalledBackend(claim.scheme, claim.distribution, claim.version, status, reason))
    return rows


def load_settings(spec: BackendSpec) -> type[BackendSettings]:
    """The settings model of a backend; no driver is imported."""
    from flujo_core.settings import BackendSettings

    model = _load_object(spec, spec.settings)
    if not (isinstance(model, type) and issubclass(model, BackendSettings)):
        raise BrokenPluginError(f"backend {spec.name!r}: {spec.settings} is no BackendSettings; upgrade its plugin")
    return model


def load_backend(spec: BackendSpec) -> type[StateBackend]:
    """The backend's class; its driver is imported."""
    backend: Any = _load_object(spec, spec.backend)
    if not (isinstance(backend, type) and callable(getattr(backend, "from_uri", None))):
        raise BrokenPluginError(
            f"backend {spec.name!r}: {spec.backend} is no class with from_uri(uri, settings); upgrade its plugin"
        )
    return backend


_STATUS: Final[dict[type[PluginError], str]] = {
    BackendNotInstalledError: "driver missing",
    BrokenPluginError: "broken",
    IncompatiblePluginError: "incompatible",
    DuplicateSchemeError: "duplicate",
}


def _claims() -> tuple[_Claim, ...]:
    """Entry points of our group. A distribution that is on the path twice counts once, as it does for an import."""
    return _claims_of(tuple((place, _changed(place)) for place in sys.path), tuple(sys.meta_path))


@lru_cache(maxsize=1)
def _claims_of(*_: object) -> tuple[_Claim, ...]:
    """Kept until something is installed or removed, which changes the folder that it is in: to read all distributions
    takes milliseconds, in which a loop would stand still for every backend that is opened."""
    found: dict[str, list[_Claim]] = {}
    for distribution in metadata.distributions():
        entries = _entry_points(distribution)
        if not entries:
            continue
        fields: Any = distribution.metadata or {}  # empty where an uninstall left half of it
        name = fields.get("Name") or "unnamed distribution"
        version = fields.get("Version") or "(unknown version)"
        key = re.sub(r"[-_.]+", "-", name).lower()
        found.setdefault(key, [_Claim(entry.name.lower(), name, version, entry) for entry in entries])
    return tuple(chain.from_iterable(found.values()))


def _changed(place: str) -> int | None:
    try:
        return Path(place).stat().st_mtime_ns
    except OSError:
        return None


def _entry_points(distribution: metadata.Distribution) -> list[metadata.EntryPoint]:
    try:
        if ENTRY_POINT_GROUP not in (distribution.read_text("entry_points.txt") or ""):
            return []
        return list(dict.fromkeys(distribution.entry_points.select(group=ENTRY_POINT_GROUP)))
    except (TypeError, ValueError):  # a file that is no list of entry points; it stops no other distribution
        return []


def _refuse_unknown(scheme: str, installed: set[str]) -> NoReturn:
    if scheme in WELL_KNOWN:
        raise BackendNotInstalledError(f"the backend for {scheme}:// is not installed; run: {WELL_KNOWN[scheme]}")
    choices = sorted(installed | WELL_KNOWN.keys())
    base = scheme.partition("+")[0]
    near = [base] if base != scheme and base in choices else get_close_matches(scheme, choices, n=3)
    if near:
        guess = f"did you mean {' or '.join(f'{name}://' for name in near)}?"
        if near == [base]:
            guess += " The driver is not part of the scheme."
    else:
        guess = f"known are {', '.join(choices)}; install the plugin that brings this scheme, or use one of these"
    raise UnknownSchemeError(f"no backend answers {scheme}://; {guess}")


def _chosen(claims: list[_Claim]) -> BackendSpec:
    claim, *others = claims
    if others:
        raise DuplicateSchemeError(
            f"{claim.scheme}:// is claimed by {' and by '.join(str(claim) for claim in claims)}; "
            f"uninstall one, such as: pip uninstall {others[-1].distribution}"
        )
    spec = _described(claim)
    _check(spec, claim)
    for driver in spec.drivers:
        if not _importable(driver):
            raise BackendNotInstalledError(_driver_missing(spec, driver))
    return spec


def _described(claim: _Claim) -> BackendSpec:
    """Import the light plugin module and ask its hook."""
    manager = pluggy.PluginManager(PROJECT_NAME)
    manager.add_hookspecs(StateBackendHooks)
    try:
        manager.register(claim.entry.load())
        answers = manager.hook.flujo_state_backend()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: whatever a stranger's module does
        raise BrokenPluginError(_broken(f"plugin {claim} for {claim.scheme}://", error)) from error
    if not answers:
        raise BrokenPluginError(
            f"plugin {claim} for {claim.scheme}:// has no answer: {claim.entry.value} needs a function "
            "flujo_state_backend, marked with flujo_core.hookspec.hookimpl, that returns a BackendSpec"
        )
    spec: BackendSpec = answers[0]
    return spec


def _check(spec: BackendSpec, claim: _Claim) -> None:
    if isinstance(spec, BackendSpec) and type(spec.api_version) is int and spec.api_version != API_VERSION:
        raise IncompatiblePluginError(
            f"plugin {claim} for {claim.scheme}:// is written for version {spec.api_version} of the plugin interface, "
            f"and flujo-core has version {API_VERSION}; run: pip install --upgrade flujo-core {claim.distribution}"
        )
    wrong = _what_is_wrong(spec, claim.scheme)
    if wrong:
        raise BrokenPluginError(
            f"plugin {claim} for {claim.scheme}:// describes itself wrongly: {wrong}; upgrade or uninstall it"
        )


def _what_is_wrong(spec: BackendSpec, scheme: str) -> str:
    if not isinstance(spec, BackendSpec):
        return f"its hook returns {type(spec).__name__}, not BackendSpec"
    if type(spec.api_version) is not int:
        return f"api_version is {spec.api_version!r}, not an int"
    if not (isinstance(spec.name, str) and spec.name):
        return f"name is {spec.name!r}, not a non-empty str"
    for attribute in ("schemes", "drivers"):
        value = getattr(spec, attribute)
        if not (isinstance(value, tuple) and all(isinstance(item, str) and item for item in value)):
            return f"{attribute} is {value!r}, not a tuple of str"
    if scheme not in spec.schemes:
        return f"schemes is {spec.schemes!r}, without {scheme!r}"
    for attribute in ("backend", "settings"):
        value = getattr(spec, attribute)
        if not (isinstance(value, str) and _IMPORT_STRING.fullmatch(value)):
            return f"{attribute} is {value!r}, not 'package.module:Class'"
    return ""


def _importable(module: str) -> bool:
    """Whether the module's top package is there. Not imported, which is why a submodule isn't looked for."""
    top = module.partition(".")[0]
    try:
        return find_spec(top) is not None
    except ValueError:  # imported already, by a loader that left no spec
        return top in sys.modules


def _driver_missing(spec: BackendSpec, driver: str) -> str:
    install = spec.install or WELL_KNOWN.get(spec.schemes[0]) or f"pip install '{driver}'"
    return f"the backend {spec.name!r} needs the driver {driver!r}, which is not installed; run: {install}"


def _load_object(spec: BackendSpec, import_string: str) -> Any:
    module, _, name = import_string.partition(":")
    try:
        return getattr(import_module(module), name)
    except KeyboardInterrupt:
        raise
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in {driver.partition(".")[0] for driver in spec.drivers}:
            raise BackendNotInstalledError(_driver_missing(spec, missing)) from error
        raise BrokenPluginError(_broken(f"backend {spec.name!r} ({import_string})", error)) from error
    except BaseException as error:
        raise BrokenPluginError(_broken(f"backend {spec.name!r} ({import_string})", error)) from error


def _broken(what: str, error: BaseException) -> str:
    last_line = mask_text(format_exception_only(error)[-1].strip())
    return f"{what} can't be loaded: {last_line}; upgrade or uninstall it"
