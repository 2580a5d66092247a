"""Where is the state, with which settings, and who said so?

The place: the argument, then ``FLUJO_STATE_URI``, then ``flujo.toml``, then `DEFAULT_URI`. Each setting: a keyword
argument, then the URI's query, then the environment, then the plugin's table in ``flujo.toml``, then the plugin's
default. The file is read only when the place is not given as an argument; it is the one that ``FLUJO_CONFIG_PATH``
names, else the nearest ``flujo.toml`` from the working directory upwards::

    [state]
    uri = "postgresql://flujo@db.example.com/flujo"

    [state.postgres]
    pool_max_size = 20

Importing this module imports neither pydantic nor pluggy.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from flujo_core.errors import ConfigurationError
from flujo_core.settings_validation import setting_fields, shown_value, unknown_name, validate_settings
from flujo_core.uri import StateUri, mask_uri, parse_uri

if TYPE_CHECKING:
    from flujo_core.hookspec import BackendSpec
    from flujo_core.settings import BackendSettings

    Settings = TypeVar("Settings", bound=BackendSettings)

DEFAULT_URI: Final = "sqlite:///flujo_ops.db"
CONFIG_FILE: Final = "flujo.toml"

_ARGUMENT = "argument"
_IN_URI = "option in the URI"
_MIGRATE_VARIABLE = "FLUJO_AUTO_MIGRATE"


@dataclass(frozen=True, slots=True, repr=False)
class Configuration:
    """What `open_backend` would open. ``str`` and ``repr`` show no password; ``uri`` has it."""

    uri: str
    spec: BackendSpec
    settings: BackendSettings
    sources: Mapping[str, str]
    """Where ``uri`` and each setting come from, in words: ``argument``, ``environment variable FLUJO_STATE_URI``, …"""

    def describe(self) -> dict[str, str]:
        """``uri`` and each setting as they may be shown."""
        shown = {"uri": mask_uri(self.uri)}
        model = type(self.settings)
        for (name, info), attribute in zip(setting_fields(model).items(), model.model_fields, strict=True):
            shown[name] = shown_value(name, getattr(self.settings, attribute), info)
        return shown

    def __str__(self) -> str:
        return "\n".join(f"{name} = {value}  ({self.sources[name]})" for name, value in self.describe().items())

    def __repr__(self) -> str:
        return f"Configuration({', '.join(f'{name}={value!r}' for name, value in self.describe().items())})"


@dataclass(frozen=True, slots=True)
class _Place:
    """The URI that counts, and what else was said on the way to it."""

    uri: str = field(repr=False)
    source: str
    file: Path | None = None
    tables: Mapping[str, Any] = field(default_factory=dict, repr=False)


def resolve_configuration(uri: str | None = None, settings: Mapping[str, object] | None = None) -> Configuration:
    """Decide which backend, where and with which settings; nothing is opened and no driver is imported.

    Raises `ConfigurationError` for a value that is wrong, naming where it comes from, and `PluginError` when the URI's
    scheme has no usable backend.
    """
    from flujo_core.registry import find_plugin, load_settings

    place = _place(uri)
    parsed = _parse(place)
    spec = find_plugin(parsed.scheme)
    model = load_settings(spec)
    layers: list[tuple[str, Mapping[str, object]]] = [
        (_ARGUMENT, settings or {}),
        (_IN_URI, split_options(model, parsed)[0]),
        (f"environment variable {_MIGRATE_VARIABLE}", _environment_settings()),
        (f"{place.file} [state.{spec.name}]", _table(place, spec)),
    ]
    values: dict[str, object] = {}
    sources: dict[str, str] = {"uri": place.source}
    for source, layer in layers:
        for name, value in layer.items():
            if name not in values:
                values[name], sources[name] = value, source
    checked = validate_settings(model, values, sources)
    for name in setting_fields(model).keys() - sources.keys():
        sources[name] = "default"
    return Configuration(place.uri, spec, checked, sources)


def settings_from_uri(model: type[Settings], uri: StateUri, settings: Mapping[str, object] | None = None) -> Settings:
    """The settings of a backend that is constructed directly: arguments, then the URI's query, then defaults."""
    given = {**split_options(model, uri)[0], **(settings or {})}
    where = {name: _ARGUMENT if name in (settings or {}) else _IN_URI for name in given}
    return validate_settings(model, given, where)


def split_options(model: type[BackendSettings], uri: StateUri) -> tuple[dict[str, str], dict[str, str]]:
    """The URI's query in two: the settings of the model, and its `connection_options`, which are the driver's.

    A name that is both is a setting. Raises `ConfigurationError` for one that is neither.
    """
    fields = setting_fields(model)
    ours = {name: value for name, value in uri.options.items() if name in fields}
    drivers = {name: value for name, value in uri.options.items() if name not in fields}
    for name in drivers:
        if name not in model.connection_options:
            raise ConfigurationError(
                f"{_IN_URI}: {unknown_name('option', name, fields.keys() | model.connection_options)}"
            )
    return ours, drivers


def _place(argument: str | None) -> _Place:
    if argument is not None:
        if not isinstance(argument, str):
            raise ConfigurationError(
                f"a state URI is a str, not {type(argument).__name__}; for a file write 'sqlite:///' and its path, "
                "or use SQLiteBackend(path) of flujo_sqlite"
            )
        return _Place(argument, _ARGUMENT)
    from flujo_core.config_sources import EnvironmentVariables

    variables = EnvironmentVariables()
    path = _find_file(variables.config_path)
    document = _read_file(path) if path else {}
    state = document.get("state", {})
    tables = {name: table for name, table in state.items() if isinstance(table, dict)}
    if variables.state_uri is not None:
        return _Place(variables.state_uri, "environment variable FLUJO_STATE_URI", path, tables)
    if "uri" in state:
        return _Place(state["uri"], f"{path} [state] uri", path, tables)
    if "state_uri" in document:
        return _Place(document["state_uri"], f"{path} state_uri", path, tables)
    return _Place(DEFAULT_URI, "default", path, tables)


def _parse(place: _Place) -> StateUri:
    try:
        return parse_uri(place.uri)
    except ConfigurationError as error:
        raise ConfigurationError(f"{place.source}: {error}") from None


def _find_file(named: str | None) -> Path | None:
    if named is None:
        return next((path for path in _candidates() if _is_file(path)), None)
    if not _is_file(Path(named)):
        raise ConfigurationError(
            f"environment variable FLUJO_CONFIG_PATH names {named!r}, which is no file; correct it or unset it"
        )
    return Path(named).absolute()


def _candidates() -> list[Path]:
    try:
        folder = Path.cwd()
    except FileNotFoundError:  # the working directory was removed
        return []
    return [parent / CONFIG_FILE for parent in (folder, *folder.parents)]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a folder on the way that this user may not enter
        return False


def _read_file(path: Path) -> dict[str, Any]:
    """The file's contents, of which the keys that are ours have the right types."""
    from flujo_core.config_sources import read_toml

    document = read_toml(path)
    state = document.get("state", {})
    if not isinstance(state, dict):
        raise ConfigurationError(f"{path}: 'state' should be a table; write [state] and uri = \"…\" below it")
    for key, value in (("state_uri", document.get("state_uri", "")), ("[state] uri", state.get("uri", ""))):
        if not isinstance(value, str):
            raise ConfigurationError(f'{path}: {key} should be a string, such as "{DEFAULT_URI}"')
    for key, value in state.items():
        if key != "uri" and not isinstance(value, dict):
            unknown = unknown_name("key", key, ["uri"])
            raise ConfigurationError(
                f"{path} [state]: {unknown}, and a backend's settings in its table [state.<backend>]"
            )
    return document


def _table(place: _Place, spec: BackendSpec) -> Mapping[str, Any]:
    for scheme in spec.schemes:
        if scheme != spec.name and scheme in place.tables:
            raise ConfigurationError(
                f"{place.file}: the settings of {scheme}:// stand in the table [state.{spec.name}]; "
                f"rename [state.{scheme}]"
            )
    table: dict[str, Any] = dict(place.tables.get(spec.name, {}))
    folder = table.get("migrations_dir")
    if isinstance(folder, str) and place.file is not None:
        # Of the file's place, wherever below it a command is run.
        table["migrations_dir"] = str(place.file.parent / folder)
    return table


def _environment_settings() -> dict[str, str]:
    """Read without pydantic-settings, so that an explicit URI doesn't pay for its import."""
    value = os.environ.get(_MIGRATE_VARIABLE)
    return {} if value is None else {"auto_migrate": value}
