"""The driver alone: an asyncpg pool of 10, with the columns and indexes of Flujo's tables, and nothing of Flujo."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, Final

import asyncpg

from benchmarks.samples import STEPS, step_record

from . import database
from .raw_sqlite import COLUMNS
from .raw_sqlite import columns as sqlite_columns

UPSERT: Final = (
    f"INSERT INTO workflow_state ({', '.join(COLUMNS)}) VALUES ({', '.join(f'${n + 1}' for n in range(len(COLUMNS)))}) "
    f"ON CONFLICT (run_id) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in COLUMNS[1:])}"
)
LOAD: Final = "SELECT revision, snapshot FROM workflow_state WHERE run_id = $1"
PUT_STEP: Final = (
    "INSERT INTO workflow_steps (run_id, sequence, record_id, step_index, step_name, status, cost_usd, created_at, "
    "document) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)"
)
MOMENT: Final = datetime(2024, 1, 1, tzinfo=UTC)


def columns(run_id: str, given: dict[str, Any]) -> list[Any]:
    values = sqlite_columns(run_id, given)
    values[COLUMNS.index("created_at")], values[COLUMNS.index("updated_at")] = MOMENT, datetime.now(UTC)
    values[COLUMNS.index("listed")], values[COLUMNS.index("is_background_task")] = True, False
    return values


class RawPostgres:
    durability: Final = "PostgreSQL's synchronous_commit, as ours."
    distributions: Final = ("asyncpg",)
    statements: Final = {"save, the first one too": UPSERT, "load": LOAD, "step of a lifecycle": PUT_STEP}

    async def open(self, place: str) -> None:
        # asyncpg prepares a statement the first time and keeps it, for each connection.
        self._pool = await asyncpg.create_pool(place, min_size=1, max_size=10)
        if await self._pool.fetchval("SELECT to_regclass('workflow_state')") is None:
            for text in database.migrations("flujo_postgres"):
                await self._pool.execute(text)
        self._one = await asyncpg.connect(place)
        self._prepared = await self._one.prepare(UPSERT)

    async def close(self) -> None:
        await self._one.close()
        await self._pool.close()

    async def settings(self) -> dict[str, str]:
        return {name: str(value) for name, value in await self._one.fetch(database.POSTGRES_SETTINGS)}

    async def save_alone(self, run_id: str, given: dict[str, Any], *, fresh: bool = False) -> None:
        """On a connection of one's own: what nobody else needs."""
        await self._prepared.fetch(*columns(run_id, given))

    async def save(self, run_id: str, given: dict[str, Any], *, fresh: bool = False) -> None:
        await self._pool.execute(UPSERT, *columns(run_id, given))

    async def load_alone(self, run_id: str) -> dict[str, Any] | None:
        return _state(await self._one.fetchrow(LOAD, run_id))

    async def load(self, run_id: str) -> dict[str, Any] | None:
        return _state(await self._pool.fetchrow(LOAD, run_id))

    async def lifecycle(self, run_id: str, states: list[dict[str, Any]]) -> None:
        await self.save(run_id, states[0])
        for step in range(STEPS):
            record = step_record(run_id, step)
            values = [run_id, step, record["record_id"], step, record["step_name"], "completed", 0.001, MOMENT]
            await self._pool.execute(PUT_STEP, *values, json.dumps(record))
            await self.save(run_id, states[step])
        await self.save(run_id, {**states[STEPS], "status": "completed"})


def _state(row: Any) -> dict[str, Any] | None:
    return {**json.loads(row["snapshot"]), "revision": row["revision"]} if row else None
