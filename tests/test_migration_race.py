"""Does the race of migrations end well, with fewer processes and rounds than `make race` has?"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

RACE = Path(__file__).with_name("migration_race.py")


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_d5_processes_that_open_a_new_database_at_once_migrate_it_once(database: str) -> None:
    done = subprocess.run(
        [sys.executable, str(RACE), "--processes", "8", "--rounds", "5", "--database", database],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert re.match(rf"{database}: 5 rounds of 8 processes, 0 errors; to the first save: median ", done.stdout)
