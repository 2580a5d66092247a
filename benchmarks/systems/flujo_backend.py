"""Flujo through its public API, with the defaults that production has."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

from flujo_core import StateBackend, open_backend

from ..samples import STEPS, state, step_record


class Flujo:
    async def open(self, place: str) -> None:
        self._place = place
        self._backend: StateBackend = await open_backend(place).__aenter__()

    async def close(self) -> None:
        await self._backend.shutdown()

    async def save(self, run_id: str, given: dict[str, Any], *, fresh: bool = False) -> None:
        await self._backend.save_state(run_id, given)

    async def load(self, run_id: str) -> dict[str, Any] | None:
        return await self._backend.load_state(run_id)

    async def lifecycle(self, run_id: str, number: int) -> None:
        names = ("pipeline_id", "pipeline_name", "pipeline_version", "metadata")
        given = state(number)
        await self._backend.save_run_start({"run_id": run_id, **{name: given[name] for name in names}})
        for step in range(STEPS):
            await self._backend.save_step_result(step_record(run_id, step))
            await self._backend.save_state(run_id, state(number, step))
        await self._backend.save_state(run_id, {**state(number, STEPS), "status": "completed"})
        await self._backend.save_run_end(run_id, {"status": "completed"})

    async def find(self, **filters: Any) -> list[Any]:
        return list(await self._backend.list_runs(**filters))

    async def count(self, **filters: Any) -> int:
        return await self._backend.count_runs(**filters)

    async def remove_older(self, moment: datetime) -> int:
        return await self._backend.cleanup_old_workflows((datetime.now(UTC) - moment) / timedelta(days=1))

    async def size(self) -> int:
        """Bytes of the database."""
        if self._place.startswith("sqlite"):
            with closing(sqlite3.connect(self._place.removeprefix("sqlite:///"))) as raw:
                raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                pages, size = (raw.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
                return int(pages * size)
        import asyncpg

        connection = await asyncpg.connect(self._place)
        try:
            return int(await connection.fetchval("SELECT pg_database_size(current_database())"))
        finally:
            await connection.close()

    def pages(self, size: int, **filters: Any) -> AsyncIterator[Any]:
        return self._backend.iter_runs(page_size=size, **filters)
