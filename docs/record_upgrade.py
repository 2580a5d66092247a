"""What does a terminal show while a database of the original system is upgraded? Writes it into migrations.md.

python docs/record_upgrade.py            make the database, run the commands, write what they print
python docs/record_upgrade.py --check    tell whether the page has what they print today
"""

from __future__ import annotations

import os
import random
import re
import sqlite3
import subprocess
import sys
import sysconfig
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent / "flujo_core" / "tests"))

from original_system import definitions, some_rows  # noqa: E402 - the folder has to be known first

PAGE = DOCS / "migrations.md"
BEGIN: Final = "<!-- made by record_upgrade.py -->\n"
END: Final = "<!-- until here -->"
FLUJO = Path(sysconfig.get_path("scripts")) / "flujo"
COMMANDS: Final = (
    "ls",
    "flujo migrate --status",
    "flujo migrate --dry-run",
    "flujo migrate",
    "flujo migrate --status",
    "ls",
    "flujo runs list --limit 3",
)
RUNS: Final = [f"run_{number}" for number in range(40)]


def make_original(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        for statement in definitions(postgres=False):
            connection.execute(statement)
        for table, rows in some_rows(random.Random(7).choice, RUNS, sqlite=True).items():
            for row in rows:
                names, marks = ", ".join(row), ", ".join("?" * len(row))
                connection.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", list(row.values()))
        connection.commit()


def session() -> str:
    with TemporaryDirectory() as folder:
        make_original(Path(folder, "flujo_ops.db"))
        lines = []
        for command in COMMANDS:
            program = [str(FLUJO), *command.split()[1:]] if command.startswith("flujo") else [command]
            done = subprocess.run(
                program, cwd=folder, env={**os.environ, "COLUMNS": "100"}, capture_output=True, text=True, check=True
            )
            lines += [f"$ {command}", *(done.stdout + done.stderr).rstrip().splitlines(), ""]
        text = "\n".join(lines).replace(f"{Path(folder).resolve()}/", "/srv/")
    # What differs each time, and with it the width of its column.
    text = re.sub(r"^(\d{3}_.*applied) .*s  ", r"\1  2026-01-02T03:04:05Z  12.3 ms  ", text, flags=re.MULTILINE)
    text = re.sub(r"APPLIED +TOOK +CODE", "APPLIED                  TOOK  CODE", text)
    text = re.sub(r"\d{8}T\d{6}\.\d{6}Z", "20260102T030405.678900Z", text)
    return f"{BEGIN}\n```console\n{text.rstrip()}\n```\n\n"


def main() -> None:
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    page = f"{before}{session()}{END}{after}"
    if sys.argv[1:] == ["--check"]:
        if page != PAGE.read_text(encoding="utf-8"):
            sys.exit(f"{PAGE} is out of date; run: python docs/record_upgrade.py")
    else:
        PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
