"""Plugins: the one that is asked for is imported, each failure has its own error, and none stops another scheme."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from throwaway_plugins import PLUGIN, PluginFolder

from flujo_core import registry
from flujo_core.errors import (
    BackendNotInstalledError,
    BrokenPluginError,
    ConfigurationError,
    DuplicateSchemeError,
    IncompatiblePluginError,
    PluginError,
    UnknownSchemeError,
)
from flujo_core.opening import open_backend
from flujo_core.registry import InstalledBackend, find_plugin, installed_backends, load_backend, load_settings


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PluginFolder:
    return PluginFolder(tmp_path, monkeypatch)


def test_d4_the_plugin_of_the_scheme_is_found(plugins: PluginFolder) -> None:
    plugins.plugin("flujo-redis", "redis", "rediss")
    assert find_plugin("redis").name == "redis"
    assert find_plugin("REDISS") == find_plugin("redis")
    assert load_settings(find_plugin("redis")).__name__ == "Settings"


def test_d4_only_the_plugin_that_is_asked_for_is_imported(plugins: PluginFolder) -> None:
    other = plugins.module("raise RuntimeError('imported')")
    plugins.distribution("flujo-other", {"other": other})
    backend = plugins.plugin("flujo-redis", "redis", drivers=("throwaway_driver",))
    (plugins.path / "throwaway_driver.py").write_text("raise RuntimeError('imported')", encoding="utf-8")
    assert find_plugin("redis").backend == f"{backend}:Backend"
    assert not {other, backend, "throwaway_driver"} & sys.modules.keys()


def test_d4_opening_imports_nothing_heavy() -> None:
    """The modules themselves: the package around them is an empty one here."""
    code = f"""
import sys, types
package = sys.modules["flujo_core"] = types.ModuleType("flujo_core")
package.__path__ = [{str(Path(registry.__file__).parent)!r}]
before = set(sys.modules)
import flujo_core.opening
heavy = {{"pluggy", "pydantic", "pydantic_settings", "importlib.metadata", "tomllib", "asyncio"}}
print(sorted((set(sys.modules) - before) & heavy))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_d4_nothing_is_imported_to_open_but_what_is_needed(plugins: PluginFolder, tmp_path: Path) -> None:
    """An explicit URI does not pay for pydantic-settings."""
    plugins.plugin("flujo-redis", "redis")
    code = (
        "import sys; from flujo_core.opening import open_backend; "
        "print(open_backend('redis://h', pool_max_size=3).settings.pool_max_size, 'pydantic_settings' in sys.modules)"
    )
    path = os.pathsep.join([str(tmp_path), str(Path(registry.__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["3", "False"]


def test_d4_distributions_are_read_again_only_after_an_installation(
    plugins: PluginFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The plugin is a module, not a package: its __pycache__ beside it would look like an installation.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    plugins.plugin("flujo-redis", "redis")
    find_plugin("redis")
    with monkeypatch.context() as patch:
        patch.setattr(metadata, "distributions", lambda: pytest.fail("they were read again"))
        assert find_plugin("redis").name == "redis"
    plugins.plugin("flujo-mongo", "mongo")
    assert find_plugin("mongo").name == "mongo"


def test_d4_what_was_half_installed_at_the_first_look_is_found_at_the_next(plugins: PluginFolder) -> None:
    plugins.plugin("flujo-redis", "redis")
    entries = next(plugins.path.glob("flujo_redis*.dist-info")) / "entry_points.txt"
    text = entries.read_text(encoding="utf-8")
    entries.unlink()
    with pytest.raises(UnknownSchemeError):
        find_plugin("redis")
    entries.write_text(text, encoding="utf-8")
    assert find_plugin("redis").name == "redis"


# --- the five errors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "advice"),
    [
        ("reddis", r"did you mean redis://\?"),
        ("sqlite3", r"did you mean sqlite://\?"),
        ("postgre", r"did you mean postgres:// or postgresql://\?"),
        ("postgresql+asyncpg", r"did you mean postgresql://\? The driver is not part of the scheme"),
        ("Redis+aioredis", r"did you mean redis://\? The driver"),
        ("zzz", "known are memory, postgres, postgresql, redis, sqlite;"),
    ],
)
def test_d4_unknown_scheme(plugins: PluginFolder, scheme: str, advice: str) -> None:
    plugins.plugin("flujo-redis", "redis")
    with pytest.raises(UnknownSchemeError, match=advice):
        find_plugin(scheme)


@pytest.mark.parametrize(
    ("scheme", "command"),
    [
        ("postgres", "pip install 'flujo[postgres]'"),
        ("PostgreSQL", "pip install 'flujo[postgres]'"),
        ("sqlite", "pip install 'flujo-sqlite'"),
        ("memory", "pip install 'flujo-core'"),
    ],
)
def test_d4_plugin_not_installed(plugins: PluginFolder, scheme: str, command: str) -> None:
    plugins.plugin("flujo-redis", "redis")
    with pytest.raises(BackendNotInstalledError) as raised:
        find_plugin(scheme)
    assert str(raised.value).endswith(f"is not installed; run: {command}")


@pytest.mark.parametrize(
    ("schemes", "changes", "command"),
    [
        (("postgres",), {}, "pip install 'flujo[postgres]'"),
        (("redis",), {"install": "pip install 'flujo-redis[driver]'"}, "pip install 'flujo-redis[driver]'"),
        (("redis",), {}, "pip install 'absent_driver'"),
    ],
)
def test_d4_driver_missing(
    plugins: PluginFolder, schemes: tuple[str, ...], changes: dict[str, Any], command: str
) -> None:
    plugins.plugin("flujo-x", *schemes, drivers=("json", "absent_driver"), **changes)
    with pytest.raises(BackendNotInstalledError) as raised:
        find_plugin(schemes[0])
    assert f"needs the driver 'absent_driver', which is not installed; run: {command}" in str(raised.value)


@pytest.mark.parametrize("driver", ["json.tool", "absent_driver.part"])
def test_d4_driver_in_a_package(plugins: PluginFolder, driver: str) -> None:
    plugins.plugin("flujo-x", "x", drivers=(driver,))
    if driver.startswith("json"):
        assert find_plugin("x").drivers == (driver,)
    else:
        with pytest.raises(BackendNotInstalledError, match=r"absent_driver\.part"):
            find_plugin("x")


def test_d4_driver_blocked_or_without_spec(plugins: PluginFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    plugins.plugin("flujo-x", "x", drivers=("throwaway_driver",))
    monkeypatch.setitem(sys.modules, "throwaway_driver", None)
    with pytest.raises(BackendNotInstalledError):
        find_plugin("x")
    monkeypatch.setitem(sys.modules, "throwaway_driver", type(sys)("throwaway_driver"))
    assert find_plugin("x").name == "x"


@pytest.mark.parametrize(
    ("source", "last_line", "cause"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero", ZeroDivisionError),
        ("import absent_module", "ModuleNotFoundError: No module named 'absent_module'", ModuleNotFoundError),
        ("def f(:", "SyntaxError", SyntaxError),
        ("raise SystemExit(3)", "SystemExit: 3", SystemExit),
        ("raise type('Panic', (BaseException,), {})('rust')", "Panic: rust", BaseException),
        ("raise RuntimeError('postgres://u:SECRET@h')", r"postgres://u:\*\*\*@h", RuntimeError),
        (
            "from flujo_core.hookspec import hookimpl\n@hookimpl\ndef flujo_state_backend():\n raise KeyError('k')",
            "KeyError: 'k'",
            KeyError,
        ),
        (
            "from flujo_core.hookspec import hookimpl\n@hookimpl\ndef flujo_state_backend(wrong): ...",
            "PluginValidationError|wrong",
            Exception,
        ),
    ],
)
def test_d4_broken_plugin(plugins: PluginFolder, source: str, last_line: str, cause: type[BaseException]) -> None:
    plugins.distribution("flujo-broken", {"broken": plugins.module(source)}, version="0.3")
    plugins.plugin("flujo-redis", "redis")
    with pytest.raises(BrokenPluginError, match=last_line) as raised:
        find_plugin("broken")
    assert isinstance(raised.value.__cause__, cause)
    assert "flujo-broken 0.3" in str(raised.value)
    assert "broken://" in str(raised.value)
    assert "SECRET" not in str(raised.value)
    assert find_plugin("redis").name == "redis"


def test_d4_module_of_the_plugin_is_missing(plugins: PluginFolder) -> None:
    plugins.distribution("flujo-broken", {"broken": "absent_module"})
    with pytest.raises(BrokenPluginError, match="No module named 'absent_module'"):
        find_plugin("broken")


def test_d4_interrupt_while_a_plugin_is_imported_passes(plugins: PluginFolder) -> None:
    plugins.distribution("flujo-slow", {"slow": plugins.module("raise KeyboardInterrupt")})
    with pytest.raises(KeyboardInterrupt):
        find_plugin("slow")
    with pytest.raises(KeyboardInterrupt):
        installed_backends()


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("", "needs a function flujo_state_backend"),
        ("def flujo_state_backend(): ...", "needs a function flujo_state_backend"),
        (
            "from flujo_core.hookspec import hookimpl\n@hookimpl\ndef flujo_state_backend(): return {}",
            "returns dict, not BackendSpec",
        ),
    ],
)
def test_d4_plugin_without_a_description(plugins: PluginFolder, source: str, reason: str) -> None:
    plugins.distribution("flujo-broken", {"broken": plugins.module(source)})
    with pytest.raises(BrokenPluginError, match=reason):
        find_plugin("broken")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"schemes": "xy"}, "schemes is 'xy', not a tuple of str"),
        ({"schemes": ("y",)}, r"schemes is \('y',\), without 'x'"),
        ({"drivers": ["json"]}, r"drivers is \['json'\], not a tuple"),
        ({"backend": "module.Class"}, "backend is 'module.Class', not 'package.module:Class'"),
        ({"backend": "module:"}, "backend is 'module:', not"),
        ({"settings": None}, "settings is None, not"),
        ({"name": ""}, "name is '', not a non-empty str"),
        ({"api_version": "1"}, "describes itself wrongly: api_version is '1', not an int"),
        ({"api_version": True}, "api_version is True, not an int"),
    ],
)
def test_d4_wrong_description(plugins: PluginFolder, changes: dict[str, Any], reason: str) -> None:
    plugins.plugin("flujo-x", "x", **changes)
    with pytest.raises(BrokenPluginError, match=reason):
        find_plugin("x")


@pytest.mark.parametrize("version", [0, 2])
def test_d4_incompatible_plugin(plugins: PluginFolder, version: int) -> None:
    plugins.plugin("flujo-old", "old", api_version=version, version="0.1", schemes=None)
    plugins.plugin("flujo-redis", "redis")
    with pytest.raises(
        IncompatiblePluginError, match=r"flujo-old 0\.1 .*version . of .*has version 1; run: pip install"
    ):
        find_plugin("old")
    assert find_plugin("redis").name == "redis"


def test_d4_two_plugins_for_one_scheme(plugins: PluginFolder) -> None:
    plugins.plugin("flujo-one", "x", version="1.5")
    plugins.distribution("flujo-two", {"X": plugins.module("raise RuntimeError")}, version="2.6")
    plugins.plugin("flujo-redis", "redis")
    with pytest.raises(DuplicateSchemeError) as raised:
        find_plugin("x")
    assert "flujo-one 1.5" in str(raised.value)
    assert "flujo-two 2.6" in str(raised.value)
    assert "pip uninstall flujo-" in str(raised.value)
    assert find_plugin("redis").name == "redis"


def test_d4_one_distribution_that_names_a_scheme_twice(plugins: PluginFolder) -> None:
    plugins.distribution("flujo-x", {"x": "module_a", "X": "module_b"})
    with pytest.raises(DuplicateSchemeError):
        find_plugin("x")


def test_d4_distribution_found_twice_is_no_duplicate(plugins: PluginFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after an editable install, when the source folder is on the path as well."""
    plugins.plugin("flujo-x.y", "x", version="2.0")
    second = plugins.path / "second"
    plugins.distribution("Flujo_X-Y", {"x": "older_module"}, version="1.0", folder=second)
    distributions = metadata.distributions

    def both(**_: object) -> Any:
        return [*distributions(), *distributions(path=[str(second)])]

    monkeypatch.setattr(metadata, "distributions", both)
    assert find_plugin("x").name == "x"
    assert [row.version for row in installed_backends()] == ["2.0"]


def test_d4_damaged_metadata_stops_nothing(plugins: PluginFolder) -> None:
    plugins.plugin("flujo-redis", "redis")
    plugins.distribution("damaged", {})
    entries = plugins.path / "damaged-1.0.dist-info" / "entry_points.txt"
    entries.write_text("[flujo.state_backends]\nno value\n", encoding="utf-8")
    plugins.distribution("binary", {})
    (plugins.path / "binary-1.0.dist-info" / "entry_points.txt").write_bytes(b"\xff")
    plugins.distribution("nameless", {"nameless": "absent_module"})
    (plugins.path / "nameless-1.0.dist-info" / "METADATA").unlink()
    assert find_plugin("redis").name == "redis"
    assert [row.scheme for row in installed_backends()] == ["nameless", "redis"]
    with pytest.raises(BrokenPluginError):
        find_plugin("nameless")


# --- listing ----------------------------------------------------------------------------------------------------------


def test_d4_list_of_backends(plugins: PluginFolder) -> None:
    plugins.plugin("flujo-redis", "redis", "rediss")
    plugins.distribution("flujo-broken", {"broken": plugins.module("1 / 0")})
    plugins.plugin("flujo-old", "old", api_version=0)
    plugins.plugin("flujo-pg", "postgres", drivers=("absent_driver",))
    plugins.plugin("flujo-one", "x", version="1.5")
    plugins.plugin("flujo-two", "x", version="2.6")
    rows = installed_backends()
    assert [(row.scheme, row.distribution, row.version, row.status) for row in rows] == [
        ("broken", "flujo-broken", "1.0", "broken"),
        ("old", "flujo-old", "1.0", "incompatible"),
        ("postgres", "flujo-pg", "1.0", "driver missing"),
        ("redis", "flujo-redis", "1.0", "ok"),
        ("rediss", "flujo-redis", "1.0", "ok"),
        ("x", "flujo-one", "1.5", "duplicate"),
        ("x", "flujo-two", "2.6", "duplicate"),
    ]
    assert rows[3] == InstalledBackend("redis", "flujo-redis", "1.0", "ok", "")
    assert "ZeroDivisionError: division by zero" in rows[0].reason
    assert all(row.reason for row in rows if row.status != "ok")


# --- opening ----------------------------------------------------------------------------------------------------------


def opened(uri: Any, **settings: object) -> Any:
    return open_backend(uri, **settings)


def test_d4_open_backend(plugins: PluginFolder) -> None:
    plugins.plugin("flujo-redis", "redis")
    backend = opened("REDIS://u:p@h?pool_min_size=2&sslmode=require", pool_max_size=7, schema="s")
    assert backend.uri == "REDIS://u:p@h?pool_min_size=2&sslmode=require"
    assert (backend.settings.pool_min_size, backend.settings.pool_max_size, backend.settings.schema_name) == (2, 7, "s")


@pytest.mark.parametrize("uri", [Path("x.db"), b"sqlite:///x.db", 3])
def test_d1_open_backend_wants_text(plugins: PluginFolder, uri: object) -> None:
    with pytest.raises(ConfigurationError, match=rf"a str, not {type(uri).__name__};.*SQLiteBackend\(path\)"):
        opened(uri)


@pytest.mark.parametrize(
    ("source", "error", "reason"),
    [
        ("import absent_driver", BackendNotInstalledError, "needs the driver 'absent_driver'.*pip install"),
        ("import absent_driver.part", BackendNotInstalledError, "needs the driver 'absent_driver'"),
        ("import absent_other", BrokenPluginError, "No module named 'absent_other'"),
        ("raise SystemExit(1)", BrokenPluginError, "SystemExit: 1"),
        ("", BrokenPluginError, "has no attribute 'Backend'"),
        ("Backend = 1", BrokenPluginError, "no class with from_uri"),
        ("class Backend: ...", BrokenPluginError, "no class with from_uri"),
        ("raise KeyboardInterrupt('now')", KeyboardInterrupt, "now"),
    ],
)
def test_d4_backend_class_fails(
    plugins: PluginFolder, monkeypatch: pytest.MonkeyPatch, source: str, error: type[BaseException], reason: str
) -> None:
    """The driver seems to be there, an empty folder for example, and is not."""
    plugins.plugin("flujo-x", "x", backend=f"{plugins.module(source)}:Backend", drivers=("absent_driver",))
    monkeypatch.setattr(registry, "_importable", lambda module: True)
    with pytest.raises(error, match=reason) as raised:
        opened("x://")
    if issubclass(error, PluginError) and not source.startswith(("Backend", "class")):
        assert raised.value.__cause__ is not None


@pytest.mark.parametrize("source", ["Settings = dict", "Settings = None"])
def test_d4_settings_are_no_model(plugins: PluginFolder, source: str) -> None:
    plugins.plugin("flujo-x", "x", settings=f"{plugins.module(source)}:Settings")
    with pytest.raises(BrokenPluginError, match="no BackendSettings"):
        load_settings(find_plugin("x"))


def test_d4_backend_class_is_loaded_from_its_import_string(plugins: PluginFolder) -> None:
    plugins.plugin("flujo-x", "x")
    assert load_backend(find_plugin("x")).__name__ == "Backend"


def test_d4_the_hook_may_be_an_object_of_the_module(plugins: PluginFolder) -> None:
    backend = plugins.plugin("flujo-x", "x")
    spec = {
        "api_version": 1,
        "name": "y",
        "schemes": ("y",),
        "backend": f"{backend}:Backend",
        "settings": f"{backend}:Settings",
    }
    module = plugins.module(PLUGIN.format(spec=spec) + "\nimport sys\nitself = sys.modules[__name__]\n")
    plugins.distribution("flujo-y", {"y": f"{module}:itself"})
    assert find_plugin("y").name == "y"
