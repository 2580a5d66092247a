"""Do many processes that open one new database at the same instant make its tables once, and does none of them fail?

    python tests/migration_race.py --processes 16 --rounds 50 --database sqlite

The processes are started once. In each round they get the address of an empty database, wait for one and the same
moment, open it, and save and load a run of their own. Then the database is compared with that of a lone process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

import asyncpg
from rich.console import Console
from rich.progress import Progress

from flujo_conformance.postgres_server import provided_server
from flujo_core import open_backend

AHEAD = 0.05
"""Seconds that a process has to hear of a round before it begins."""
PATIENCE = 120
"""Seconds for a round; migration_lock_wait ends it sooner."""
STATE: Any = {"pipeline_id": "p", "pipeline_name": "n", "pipeline_version": "1", "current_step_index": 0}

# A table without any key: a second run of either step would leave a second row.
STEPS = [
    "CREATE TABLE race_log (what TEXT);\nINSERT INTO race_log VALUES ('one');\n",
    "ALTER TABLE race_log ADD COLUMN more TEXT;\nINSERT INTO race_log VALUES ('two', NULL);\n",
]
INDEX = {
    "sqlite": "CREATE INDEX race_log_what ON race_log (what);\n",
    "postgres": "-- transaction=false\nCREATE INDEX CONCURRENTLY race_log_what ON {schema}.race_log (what);\n",
}


# --- one of the processes ---------------------------------------------------------------------------------------------


def work() -> None:
    """Obeys the lines on its stdin; ends with them."""
    for line in sys.stdin:
        print(json.dumps(asyncio.run(take_part(**json.loads(line)))), flush=True)


async def take_part(uri: str, folder: str, run_id: str, at: float) -> dict[str, Any]:
    backend = open_backend(uri, migrations_dir=folder)
    await asyncio.sleep(max(0.0, at - time.time() - 0.002))
    while time.time() < at:
        pass
    try:
        await backend.save_state(run_id, STATE)
        seconds = time.time() - at
        loaded = await backend.load_state(run_id)
        if loaded is None or loaded["revision"] != 1:
            return {"error": f"loaded {loaded!r}"}
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what this looks for
        return {"error": f"{type(error).__name__}: {error}"}
    else:
        return {"seconds": seconds}
    finally:
        await backend.shutdown()


# --- the databases ----------------------------------------------------------------------------------------------------


class Database(Protocol):
    def new(self) -> str:
        """The URI of an empty one."""

    def contents(self, uri: str) -> dict[str, Any]:
        """Its schema, what is recorded, and what the steps left, as comparable values; then it is removed."""


RECORDS = {
    "Flujo's steps": "SELECT version, name, checksum FROM flujo_schema_versions ORDER BY version",
    "the deployment's steps": "SELECT version, name, checksum FROM flujo_deployment_versions ORDER BY version",
    "what the steps did": "SELECT what FROM race_log ORDER BY what",
}


class SQLiteFiles:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def new(self) -> str:
        folder = self._folder / secrets.token_hex(4)
        folder.mkdir()
        return f"sqlite:///{folder / 'x.db'}"

    def contents(self, uri: str) -> dict[str, Any]:
        path = Path(uri.removeprefix("sqlite:///"))
        with closing(sqlite3.connect(path)) as connection:
            found = {name: connection.execute(statement).fetchall() for name, statement in RECORDS.items()}
            found["the schema"] = connection.execute(
                "SELECT type, name, sql FROM sqlite_master ORDER BY 1, 2"
            ).fetchall()
            found["the header"] = [
                connection.execute(f"PRAGMA {name}").fetchone()
                for name in ("user_version", "application_id", "integrity_check")
            ]
        # Each of the two steps with an INSERT made one copy.
        found["the files"] = sorted(entry.name.removeprefix("x.db").split(".20")[0] for entry in path.parent.iterdir())
        for entry in path.parent.iterdir():
            entry.unlink()
        return found


POSTGRES_SCHEMA = {
    "the columns": """
        SELECT table_name, column_name, data_type, is_nullable, column_default FROM information_schema.columns
        WHERE table_schema = $1::text ORDER BY table_name, ordinal_position""",
    "the indexes": """
        SELECT indexrelid::regclass::text, indisvalid, indisready, replace(pg_get_indexdef(indexrelid), $1::text, '')
        FROM pg_index JOIN pg_class c ON c.oid = indrelid WHERE c.relnamespace = to_regnamespace($1::text)
        ORDER BY 1""",
    "the constraints": """
        SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE connamespace = to_regnamespace($1::text) AND contype <> 'n' ORDER BY 1, 2""",
}


class PostgresSchemas:
    def __init__(self, uri: str) -> None:
        self._uri = uri

    def new(self) -> str:
        return f"{self._uri}{'&' if '?' in self._uri else '?'}schema=race_{secrets.token_hex(4)}"

    def contents(self, uri: str) -> dict[str, Any]:
        return asyncio.run(self._contents(uri.rpartition("schema=")[2]))

    async def _contents(self, schema: str) -> dict[str, Any]:
        connection = await asyncpg.connect(self._uri, server_settings={"search_path": schema})
        try:
            found = {name: await connection.fetch(statement) for name, statement in RECORDS.items()}
            for name, statement in POSTGRES_SCHEMA.items():
                found[name] = await connection.fetch(statement, schema)
            found["the leases"] = await connection.fetch("SELECT * FROM flujo_migration_leases")
            await connection.execute(f"DROP SCHEMA {schema} CASCADE")
        finally:
            await connection.close()
        return {name: [tuple(row) for row in rows] for name, rows in found.items()}


@contextmanager
def provided(kind: str) -> Iterator[Database]:
    if kind == "sqlite":
        with tempfile.TemporaryDirectory() as folder:
            yield SQLiteFiles(Path(folder))
    else:
        with provided_server() as server:
            uri = server.create_database()
            try:
                yield PostgresSchemas(uri)
            finally:
                server.drop_database(uri)


# --- the race ---------------------------------------------------------------------------------------------------------


class Workers:
    def __init__(self, count: int) -> None:
        self._processes = [
            subprocess.Popen(
                [sys.executable, __file__, "--work"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            for _ in range(count)
        ]

    def race(self, uri: str, folder: Path, count: int | None = None) -> list[dict[str, Any]]:
        """What they answer, all of them or so many."""
        at = time.time() + AHEAD
        taking_part = self._processes[:count]
        for number, process in enumerate(taking_part):
            assert process.stdin is not None
            task = {"uri": uri, "folder": str(folder), "run_id": f"run {number}", "at": at}
            process.stdin.write(json.dumps(task) + "\n")
            process.stdin.flush()
        return [self._answer(process) for process in taking_part]

    @staticmethod
    def _answer(process: subprocess.Popen[str]) -> dict[str, Any]:
        assert process.stdout is not None
        line = process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": f"the process ended: {process.wait(PATIENCE)}"}
        return answer

    def end(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            with process:
                pass


def run(kind: str, processes: int, rounds: int, progress: Progress) -> list[str]:
    """Prints the figures; returns what went wrong."""
    wrong: list[str] = []
    seconds: list[float] = []
    bar = progress.add_task(kind, total=rounds)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for number, text in enumerate([*STEPS, INDEX[kind]], 1):
            (folder / f"{number:03d}_race.sql").write_text(text)
        database = stack.enter_context(provided(kind))
        workers = Workers(processes)
        stack.callback(workers.end)

        lone_uri = database.new()
        # Also makes sure that all have imported what they need: the others open the database after the first one.
        wrong += [f"alone: {answer['error']}" for answer in workers.race(lone_uri, folder, 1) if "error" in answer]
        wrong += [
            f"warming up: {answer['error']}" for answer in workers.race(lone_uri, folder)[1:] if "error" in answer
        ]
        expected = database.contents(lone_uri)
        if [what for (what,) in expected["what the steps did"]] != ["one", "two"]:
            wrong.append(f"alone: the steps left {expected['what the steps did']}")

        for number in range(1, rounds + 1):
            uri = database.new()
            answers = workers.race(uri, folder)
            wrong += [f"round {number}: {answer['error']}" for answer in answers if "error" in answer]
            seconds += [answer["seconds"] for answer in answers if "seconds" in answer]
            found = database.contents(uri)
            wrong += [
                f"round {number}: {name}: {found[name]}, not {value}"
                for name, value in expected.items()
                if found[name] != value
            ]
            progress.advance(bar)
    figures = f"median {statistics.median(seconds):.3f} s, worst {max(seconds):.3f} s" if seconds else "never"
    print(f"{kind}: {rounds} rounds of {processes} processes, {len(wrong)} errors; to the first save: {figures}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--database", choices=sorted(INDEX), action="append", help="both, if none is named")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work()
        return 0
    console = Console(stderr=True)
    failed = False
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        for kind in arguments.database or ["sqlite", "postgres"]:
            wrong = run(kind, arguments.processes, arguments.rounds, progress)
            for line in wrong[:20]:
                print(f"  {line}")
            failed = failed or bool(wrong)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
