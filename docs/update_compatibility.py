"""Which backends keep the contract? Runs the suite on each of ours, and writes the reports and the page made of them.

python docs/update_compatibility.py [--profile ci] [memory sqlite postgres-16 postgres-18 duckdb]
python docs/update_compatibility.py --page      only the page, of the reports that are there
python docs/update_compatibility.py --check     tell whether the page is that of the reports
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from flujo_conformance.postgres_server import PostgresServer
from flujo_conformance.report import Report, matrix, read_report

DOCS = Path(__file__).resolve().parent
REPORTS = DOCS / "reports"
DUCKDB_TESTS = DOCS.parent / "examples" / "flujo_duckdb" / "tests"
PAGE = DOCS / "compatibility.md"
MARK = "<!-- made by update_compatibility.py -->\n"
BACKENDS: Final = ("memory", "sqlite", "postgres-16", "postgres-18", "duckdb")


@contextmanager
def place(name: str) -> Iterator[list[str]]:
    """The arguments that say what to run the suite on."""
    with tempfile.TemporaryDirectory() as folder:
        if name == "memory":
            yield ["--uri", "memory://"]
        elif name == "sqlite":
            yield ["--uri", f"sqlite:///{folder}/{{namespace}}.db"]
        elif name == "duckdb":
            harness = "test_duckdb_conformance:DuckDBHarness"
            yield ["--harness", harness, "--uri", f"duckdb:///{folder}/{{namespace}}.duckdb"]
        else:
            with PostgresServer(int(name.removeprefix("postgres-"))) as server:
                yield ["--uri", server.create_database()]


def run(name: str, profile: str) -> None:
    """Writes the report on one backend."""
    REPORTS.mkdir(exist_ok=True)
    path = REPORTS / f"{name}.json"
    with place(name) as where:
        command = [sys.executable, "-m", "flujo_conformance", "run", *where, "--profile", profile, "--jobs", "2"]
        subprocess.run([*command, "--report", str(path)], cwd=DUCKDB_TESTS, check=False)
    found = read_report(path.read_text(encoding="utf-8"))
    # Where the database was is nobody's business.
    found = found.model_copy(update={"subject": found.subject.model_copy(update={"uri": ""})})
    path.write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")


def page() -> str:
    """What the page says after its mark."""
    found = [read_report((REPORTS / f"{name}.json").read_text(encoding="utf-8")) for name in BACKENDS]
    return "\n".join(
        [
            "## Reports\n",
            "| | " + " | ".join(one.subject.database for one in found) + " |",
            "|---|" + "---|" * len(found),
            *_summary(found),
            "\n## Declared limits\n",
            *(f"- {one.subject.name}: {limit}." for one in found for limit in one.limits()),
            "\n## Rules\n",
            matrix(found),
            "\n## What the tests counted\n",
            "| Test | Figure | " + " | ".join(one.subject.database for one in found) + " |",
            "|---|---|" + "---|" * len(found),
            *_figures(found),
            "",
        ]
    )


def _summary(found: Sequence[Report]) -> Iterator[str]:
    rows: dict[str, list[str]] = {
        "Verdict": [f"**{one.verdict}**" for one in found],
        "Tests": [", ".join(f"{count} {outcome}" for outcome, count in one.counts.items() if count) for one in found],
        "Distribution": [one.subject.distribution for one in found],
        "Durable": ["yes" if one.subject.durable else "no" for one in found],
        "Shared between processes": ["yes" if one.subject.shared else "no" for one in found],
        "Profile, seed": [f"{one.profile}, {'none' if one.seed is None else one.seed}" for one in found],
        "Seconds": [f"{one.seconds:.0f}" for one in found],
        "Kit, contract, Python": [f"{one.kit}, {one.contract}, {one.python}" for one in found],
        "Report": [f"[{name}.json](reports/{name}.json)" for name in BACKENDS],
    }
    return (f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows.items())


def _figures(found: Sequence[Report]) -> Iterator[str]:
    tests = [{test.name: test.figures for test in one.tests} for one in found]
    names = {(test, figure): None for one in tests for test, figures in one.items() for figure in figures}
    for test, figure in names:
        cells = [str(one.get(test, {}).get(figure, "")) for one in tests]
        if max(map(len, cells)) > 20:
            continue  # the reports have it
        yield f"| `{test}` | {figure} | {' | '.join(cells)} |"


def main() -> str | None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backends", nargs="*", choices=[*BACKENDS, []], help="which to run; else all")
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--check", action="store_true")
    chosen = parser.parse_args()
    if not (chosen.page or chosen.check):
        for name in chosen.backends or BACKENDS:
            run(name, chosen.profile)
    before = PAGE.read_text(encoding="utf-8")
    after = before.partition(MARK)[0] + MARK + "\n" + page()
    if chosen.check:
        return None if before == after else f"{PAGE} is out of date; run: python docs/update_compatibility.py --page"
    PAGE.write_text(after, encoding="utf-8")
    return None


if __name__ == "__main__":
    sys.exit(main())
