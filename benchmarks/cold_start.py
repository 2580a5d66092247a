"""How long does a program wait before its first save? Fresh processes, interleaved, medians.

    python benchmarks/cold_start.py [--rounds 21] [--json]

*import* is ``from flujo_core import open_backend, StateBackend`` beside a script that imports asyncio and pluggy and
defines one pydantic model. *first save* makes the tables in a new SQLite file and saves once, beside bare aiosqlite
with one pydantic model, the same columns and indexes, and the same durability.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from platform import python_version

IMPORT = "from flujo_core import open_backend, StateBackend"
IMPORT_BAR = """
import asyncio, pluggy
from pydantic import BaseModel
class Settings(BaseModel):
    uri: str = "sqlite:///flujo_ops.db"
"""
STATE = """
state = {"pipeline_id": "p", "pipeline_name": "P", "pipeline_version": "1", "current_step_index": 0,
         "pipeline_context": {f"key {n}": "x" * 60 for n in range(25)}, "metadata": {"batch": "b-1", "tags": ["a"]}}
"""
SAVE = f"""
import asyncio, sys
from flujo_core import open_backend
{STATE}
async def main():
    async with open_backend("sqlite:///" + sys.argv[1]) as backend:
        await backend.save_state("r", state)
asyncio.run(main())
"""
SAVE_BAR = f"""
import asyncio, json, sys
import aiosqlite
from pydantic import BaseModel
from pathlib import Path
class Settings(BaseModel):
    path: str
{STATE}
async def main():
    settings = Settings(path=sys.argv[1])
    async with aiosqlite.connect(settings.path, isolation_level=None) as connection:
        await connection.execute("PRAGMA journal_mode = WAL")
        await connection.execute("PRAGMA synchronous = FULL")
        await connection.execute("BEGIN IMMEDIATE")
        for file in sorted(Path(sys.argv[2]).glob("*.sql")):
            lines = [line for line in file.read_text().splitlines() if not line.startswith("--")]
            for statement in "\\n".join(lines).split(";"):
                await connection.execute(statement)
        await connection.execute("COMMIT")
        names = [row[1] for row in await connection.execute_fetchall("PRAGMA table_info(workflow_state)")]
        values = {{"run_id": "r", "operation_id": b"0" * 16, "listed": 1, "pipeline_id": "p", "pipeline_name": "P",
                  "pipeline_version": "1", "status": "running", "created_at": "2024", "updated_at": "2024",
                  "current_step_index": 0, "total_steps": 0, "is_background_task": 0, "revision": 1, "run": "{{}}",
                  "metadata": json.dumps(state["metadata"]), "snapshot": json.dumps(state)}}
        marks = ", ".join("?" * len(names))
        row = [values.get(name) for name in names]
        await connection.execute(f"INSERT INTO workflow_state VALUES ({{marks}})", row)
asyncio.run(main())
"""


def seconds(program: str, *arguments: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", program, *arguments], check=True)
    return time.perf_counter() - started


def measure(rounds: int) -> dict[str, float]:
    import flujo_sqlite

    migrations = str(Path(flujo_sqlite.__file__).parent / "migrations")
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for name, program, bar in (("import", IMPORT, IMPORT_BAR), ("first save", SAVE, SAVE_BAR)):
                times.setdefault(name, []).append(seconds(program, f"{folder}/ours{number}.db"))
                times.setdefault(f"{name}, bar", []).append(seconds(bar, f"{folder}/bar{number}.db", migrations))
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    medians = measure(options.rounds)
    ratios = {name: medians[name] / medians[f"{name}, bar"] for name in ("import", "first save")}
    versions = {"python": python_version(), **{name: version(name) for name in ("pydantic", "pluggy", "aiosqlite")}}
    if options.json:
        print(json.dumps({"medians_s": medians, "ratios": ratios, "versions": versions}))
        return
    print("  ".join(f"{name} {value}" for name, value in versions.items()))
    for name, ratio in ratios.items():
        ours, bar = medians[name] * 1000, medians[f"{name}, bar"] * 1000
        print(f"{name:12} {ours:6.0f} ms   bar {bar:6.0f} ms   ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
