"""The driver alone: aiosqlite, with the columns, indexes and durability of Flujo's tables, and nothing of Flujo."""

from __future__ import annotations

import asyncio
import json
import os
from datetime import UTC, datetime
from typing import Any, Final

import aiosqlite

from benchmarks import cold_start
from benchmarks.samples import STEPS, step_record

from . import database

COLUMNS: Final = (
    "run_id", "operation_id", "listed", "pipeline_id", "pipeline_name", "pipeline_version", "status", "created_at",
    "updated_at", "end_time", "current_step_index", "total_steps", "error_message", "execution_time_ms",
    "memory_usage_mb", "total_cost", "is_background_task", "parent_run_id", "task_id", "background_error", "revision",
    "run", "metadata", "snapshot",
)  # fmt: skip
UPSERT: Final = (
    f"INSERT INTO workflow_state ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))}) "
    f"ON CONFLICT (run_id) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in COLUMNS[1:])}"
)
LOAD: Final = "SELECT revision, snapshot FROM workflow_state WHERE run_id = ?"
PUT_TERM: Final = "INSERT INTO workflow_metadata_terms (term, created_at, run_id) VALUES (?, ?, ?)"
PUT_STEP: Final = (
    "INSERT INTO workflow_steps (run_id, sequence, record_id, step_index, step_name, status, cost_usd, created_at, "
    "document) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
MOMENT: Final = "2024-01-01T00:00:00.000000+00:00"


def columns(run_id: str, given: dict[str, Any]) -> list[Any]:
    """The values of a row, its documents about as long as Flujo's."""
    head = {name: given[name] for name in ("pipeline_id", "pipeline_name", "pipeline_version", "status", "metadata")}
    now = datetime.now(UTC).isoformat()
    return [
        run_id, os.urandom(16), 1, given["pipeline_id"], given["pipeline_name"], given["pipeline_version"],
        given["status"], MOMENT, now, None, given["current_step_index"], given["total_steps"], None, None, None, None,
        0, None, None, None, 1, json.dumps({**head, "saved_at": now, "revision": 1}), json.dumps(given["metadata"]),
        json.dumps(given),
    ]  # fmt: skip


class RawSQLite:
    durability: Final = "WAL and synchronous=FULL, as ours."
    distributions: Final = ("aiosqlite",)
    statements: Final = {
        "first save": f"BEGIN IMMEDIATE; {UPSERT}; 12 times: {PUT_TERM}; COMMIT",
        "save": UPSERT,
        "load": LOAD,
        "step of a lifecycle": PUT_STEP,
    }
    programs: Final = {"import": cold_start.BARE_IMPORT, "first save": cold_start.BARE_FIRST_SAVE}

    async def open(self, place: str) -> None:
        self._place = place
        self._transaction = asyncio.Lock()
        self._connection = await aiosqlite.connect(place.removeprefix("sqlite:///"), isolation_level=None)
        await self._connection.execute("PRAGMA journal_mode = WAL")
        await self._connection.execute("PRAGMA synchronous = FULL")
        await self._connection.execute("PRAGMA secure_delete = OFF")
        if not await self._connection.execute_fetchall("PRAGMA table_info(workflow_state)"):
            for text in database.migrations("flujo_sqlite"):
                await self._connection.executescript(text)

    async def close(self) -> None:
        await self._connection.close()

    async def settings(self) -> dict[str, str]:
        [[synchronous]] = await self._connection.execute_fetchall("PRAGMA synchronous")
        return database.sqlite_settings(self._place, database.SYNCHRONOUS[synchronous])

    async def save(self, run_id: str, given: dict[str, Any], *, fresh: bool = False) -> None:
        values = columns(run_id, given)
        if not fresh:
            await self._connection.execute(UPSERT, values)
            return
        # As many terms as the metadata have; what they are doesn't matter to their index.
        terms = [(int.from_bytes(os.urandom(7), "big"), MOMENT, run_id) for _ in range(12)]
        async with self._transaction:
            await self._connection.execute("BEGIN IMMEDIATE")
            await self._connection.execute(UPSERT, values)
            await self._connection.executemany(PUT_TERM, terms)
            await self._connection.execute("COMMIT")

    async def load(self, run_id: str) -> dict[str, Any] | None:
        rows = list(await self._connection.execute_fetchall(LOAD, (run_id,)))
        if not rows:
            return None
        found: dict[str, Any] = json.loads(rows[0][1])
        return {**found, "revision": rows[0][0]}

    async def lifecycle(self, run_id: str, states: list[dict[str, Any]]) -> None:
        await self.save(run_id, states[0])
        for step in range(STEPS):
            record = step_record(run_id, step)
            values = [run_id, step, record["record_id"], step, record["step_name"], "completed", 0.001, MOMENT]
            await self._connection.execute(PUT_STEP, [*values, json.dumps(record)])
            await self.save(run_id, states[step])
        await self.save(run_id, {**states[STEPS], "status": "completed"})
