"""Where do the peers run? Each in a virtual environment of its own, made of pinned versions when first needed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).resolve().parent.parent / ".venv-benchmarks"


class EnvironmentFailedError(Exception):
    """Why a peer can't be measured here."""


@dataclass(frozen=True)
class Environment:
    requirements: tuple[str, ...]
    python: str = ""
    """The version that the peer needs; empty: that of the interpreter that runs this program."""


ENVIRONMENTS: Final = {
    "langgraph": Environment(
        (
            "langgraph-checkpoint~=4.3.0",
            "langgraph-checkpoint-sqlite~=3.1.0",
            "langgraph-checkpoint-postgres~=3.2.0",
            "aiosqlite~=0.22.0",
            "psycopg[binary,pool]~=3.3.0",
        )
    ),
    "dbos": Environment(("dbos~=3.4.0", "psycopg[binary]~=3.3.0")),
    "original": Environment(
        (
            "flujo[postgres]==0.6.11",
            "aiosqlite~=0.22.0",
            "asyncpg~=0.32.0",
            # What it imports uses a module that later ones don't have.
            "opentelemetry-sdk~=1.39.0",
        ),
        python="3.13",
    ),
}


def interpreter(name: str) -> str:
    """The Python of an environment, which is made first if it isn't there or has other requirements."""
    environment, folder = ENVIRONMENTS[name], FOLDER / name
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    # Written last: an environment without it was not finished.
    made_of = folder / "requirements.txt"
    wanted = "\n".join(environment.requirements) + "\n"
    if not (python.exists() and made_of.exists() and made_of.read_text(encoding="utf-8") == wanted):
        _run(_base(environment.python), "-m", "venv", "--clear", str(folder))
        _run(str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *environment.requirements)
        made_of.write_text(wanted, encoding="utf-8")
    return str(python)


def _base(wanted: str) -> str:
    """An interpreter of the wanted version: this one, one on the path, or one that pyenv has."""
    if not wanted:
        return sys.executable
    found = [sys.executable, shutil.which(f"python{wanted}"), shutil.which("python3")]
    for candidate in (*found, *sorted(Path.home().glob(f".pyenv/versions/{wanted}.*/bin/python"))):
        if candidate and _version(str(candidate)) == wanted:
            return str(candidate)
    raise EnvironmentFailedError(f"there is no Python {wanted} on the path or in ~/.pyenv")


def _version(python: str) -> str:
    """Empty if it doesn't run: on the path may be a stand-in for an interpreter that nobody has chosen."""
    program = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        return subprocess.run([python, "-c", program], capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def _run(*line: str) -> None:
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        reason = ([one for one in said if one.startswith("ERROR")] or said or [f"exit code {done.returncode}"])[-1]
        raise EnvironmentFailedError(f"{' '.join(line[1:3])} failed: {reason}")
