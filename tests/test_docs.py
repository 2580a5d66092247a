"""Does what README and docs print work as printed?"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from flujo_conformance import StateBackendSuite
from flujo_conformance.report import read_report
from flujo_core.config import resolve_configuration
from flujo_core.contract import CONTRACT_VERSION
from flujo_core.settings import BackendSettings
from flujo_core.settings_validation import setting_fields
from flujo_postgres.settings import PostgresSettings
from flujo_sqlite.settings import SQLiteSettings

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(language: str) -> list[tuple[str, str]]:
    fence = re.compile(rf"^```{language}\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return [(f"{page.name}:{n}", code) for page in PAGES for n, code in enumerate(fence.findall(page.read_text()))]


@pytest.mark.parametrize(("place", "code"), blocks("python"), ids=lambda value: value if ":" in value[:40] else "")
def test_python_runs(place: str, code: str, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, f"{place}: {result.stderr}"
    assert result.stderr == ""


@pytest.mark.parametrize(("place", "text"), blocks("toml"), ids=lambda value: value if ":" in value[:40] else "")
def test_toml_is_a_configuration(place: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "flujo.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    for variable in ("FLUJO_STATE_URI", "FLUJO_AUTO_MIGRATE", "FLUJO_CONFIG_PATH"):
        monkeypatch.delenv(variable, raising=False)
    assert resolve_configuration().uri == tomllib.loads(text)["state"]["uri"], place


@pytest.mark.parametrize(("page", "model"), [("sqlite.md", SQLiteSettings), ("postgres.md", PostgresSettings)])
def test_every_setting_stands_in_its_table_with_its_default(page: str, model: type[BackendSettings]) -> None:
    rows = re.findall(r"^\| `(\w+)` \| `?([^|`]*)`? \| (.*) \|$", (ROOT / "docs" / page).read_text(), re.MULTILINE)
    table = {name: default.strip() for name, default, _ in rows}
    expected = {name: _shown(field.default) for name, field in setting_fields(model).items()}
    assert table == expected


def _shown(default: object) -> str:
    return str(default).lower() if default is None or isinstance(default, bool) else str(default).removesuffix(".0")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_contract_page_has_the_table_of_today() -> None:
    script = ROOT / "docs" / "update_contract.py"
    result = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_the_recorded_upgrade_is_that_of_today() -> None:
    script = ROOT / "docs" / "record_upgrade.py"
    result = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_the_authors_guide_prints_files_as_they_are() -> None:
    text = (ROOT / "docs" / "writing-a-backend.md").read_text(encoding="utf-8")
    printed = re.findall(r"^`(plugins/[^`]+)`[^\n]*:\n\n```\w+\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(printed) == 4
    for path, code in printed:
        source = (ROOT / path).read_text(encoding="utf-8")
        assert code == source if path.endswith(".py") else code in source, path


def test_what_the_authors_guide_quotes_is_said_somewhere() -> None:
    text = (ROOT / "docs" / "writing-a-backend.md").read_text(encoding="utf-8")
    table = text[text.index("| It says") : text.index("## What you may use")]
    quoted = re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE)[1:]
    assert len(quoted) > 10
    sources = [ROOT / "flujo_core" / "src", ROOT / "conformance_tests" / "src"]
    said = "".join(path.read_text(encoding="utf-8") for source in sources for path in source.rglob("*.py"))
    said = re.sub(r'"\s+f?"', "", said).replace("{{", "{").replace("}}", "}")
    assert [words for words in quoted if words.partition(",")[0] not in said] == []


def test_what_the_page_on_migrations_quotes_is_said_somewhere() -> None:
    text = (ROOT / "docs" / "migrations.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\| `([^`]*…[^`]*)` \|", text[text.index("## When it says") :], re.MULTILINE)
    assert len(quoted) > 10
    sources = [ROOT / "flujo_core" / "src", *(ROOT / "plugins").glob("*/src")]
    said = "".join(path.read_text(encoding="utf-8") for source in sources for path in source.rglob("*.py"))
    said = re.sub(r'"\s+f?"', "", said)
    # Without what differs each time: names and numbers.
    pieces = [piece.strip() for words in quoted for piece in re.split(r"…|\d+(?:_…)?", words)]
    assert [piece for piece in pieces if len(piece) > 3 and piece not in said] == []


def test_the_compatibility_page_is_made_of_the_reports() -> None:
    script = ROOT / "docs" / "update_compatibility.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "reports").glob("*.json")), ids=lambda path: path.stem)
def test_every_report_is_of_the_suite_of_today(path: Path) -> None:
    report = read_report(path.read_text(encoding="utf-8"))
    assert (report.verdict, report.contract, report.subject.uri) == ("PASS", CONTRACT_VERSION, "")
    today = {name for name in dir(StateBackendSuite) if name.startswith("test_")}
    assert {test.name.partition("[")[0] for test in report.tests} == today
