"""Is the table in contract.md the one that the tests make? ``--check`` tells; without it the page is written anew."""

from __future__ import annotations

import sys
from pathlib import Path

from flujo_conformance.rules import KIT, named_tests, table

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "contract.md"
MARK = "<!-- made by update_contract.py -->\n"
FOLDERS = [KIT, ROOT / "tests", *(ROOT / package / "tests" for package in ("flujo_core", "conformance_tests"))]


def main() -> str | None:
    folders = [*FOLDERS, *sorted(ROOT.glob("plugins/*/tests")), *sorted(ROOT.glob("examples/*/tests"))]
    before = PAGE.read_text(encoding="utf-8")
    after = before.partition(MARK)[0] + MARK + "\n" + table(named_tests(folders)) + "\n"
    if "--check" not in sys.argv:
        PAGE.write_text(after, encoding="utf-8")
    elif before != after:
        return f"{PAGE} is out of date; run: python {Path(__file__).relative_to(ROOT)}"
    return None


if __name__ == "__main__":
    sys.exit(main())
