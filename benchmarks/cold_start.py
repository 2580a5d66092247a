"""How long does a program wait before its first save? Programs for fresh processes: Flujo's, and bare ones beside.

*import* is ``from flujo_core import open_backend, StateBackend`` beside a script that imports asyncio and pluggy and
defines one pydantic model. *first save* makes the tables in a new SQLite file and saves once, beside bare aiosqlite
with one pydantic model, the same columns and indexes, and the same durability.

A program is given the path of the new file and the folder of the migrations.
"""

from __future__ import annotations

from typing import Final

IMPORT: Final = "from flujo_core import open_backend, StateBackend"
BARE_IMPORT: Final = """
import asyncio, pluggy
from pydantic import BaseModel
class Settings(BaseModel):
    uri: str = "sqlite:///flujo_ops.db"
"""
_STATE: Final = """
state = {"pipeline_id": "p", "pipeline_name": "P", "pipeline_version": "1", "current_step_index": 0,
         "pipeline_context": {f"key {n}": "x" * 60 for n in range(25)}, "metadata": {"batch": "b-1", "tags": ["a"]}}
"""
FIRST_SAVE: Final = f"""
import asyncio, sys
from flujo_core import open_backend
{_STATE}
async def main():
    async with open_backend("sqlite:///" + sys.argv[1]) as backend:
        await backend.save_state("r", state)
asyncio.run(main())
"""
BARE_FIRST_SAVE: Final = f"""
import asyncio, json, sys
import aiosqlite
from pydantic import BaseModel
from pathlib import Path
class Settings(BaseModel):
    path: str
{_STATE}
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
