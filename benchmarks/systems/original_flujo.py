"""The original Flujo, whose public API ours has.

Its `cleanup_old_workflows` is not measured: in SQLite it compares days and moments as text, and errs by up to a day.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from benchmarks.samples import STEPS, step_record

from . import database

DOCUMENTS: Final = ("pipeline_context", "last_step_output", "step_history", "metadata")


class Original:
    """What both backends have in common."""

    distributions: Final = ("flujo", "aiosqlite", "asyncpg")
    _backend: Any
    _place: str

    async def close(self) -> None:
        await self._backend.shutdown()

    async def save(self, run_id: str, given: dict[str, Any], *, fresh: bool = False) -> None:
        """It requires both timestamps, and lists only runs that were begun."""
        dated = {"created_at": (now := datetime.now(UTC)), "updated_at": now, **given}
        if fresh:
            await self._begin(run_id, dated)
        await self._backend.save_state(run_id, dated)

    async def _begin(self, run_id: str, dated: dict[str, Any]) -> None:
        names = ("pipeline_id", "pipeline_name", "pipeline_version")
        moments = {name: dated[name].isoformat() for name in ("created_at", "updated_at")}
        await self._backend.save_run_start({"run_id": run_id, **{name: dated[name] for name in names}, **moments})

    async def load(self, run_id: str) -> dict[str, Any] | None:
        found: dict[str, Any] | None = await self._backend.load_state(run_id)
        return found

    async def lifecycle(self, run_id: str, states: list[dict[str, Any]]) -> None:
        now = datetime.now(UTC)
        await self._begin(run_id, {**states[0], "created_at": now, "updated_at": now})
        for step in range(STEPS):
            await self._backend.save_step_result(step_record(run_id, step))
            await self.save(run_id, states[step])
        await self.save(run_id, {**states[STEPS], "status": "completed"})
        await self._backend.save_run_end(run_id, {"status": "completed"})

    async def find(self, **filters: Any) -> list[Any]:
        return list(await self._backend.list_runs(**filters))


class OnSQLite(Original):
    durability: Final = (
        "As it opens its connections: WAL; a state with synchronous=FULL on a connection of its own, a run and a step "
        "with synchronous=NORMAL, which a power failure may take back."
    )

    async def open(self, place: str) -> None:
        from flujo.state.backends.sqlite import SQLiteBackend

        self._place = place
        self._backend = SQLiteBackend(Path(place.removeprefix("sqlite:///")))

    async def find(self, **filters: Any) -> list[Any]:
        if any(isinstance(value, list) for value in (filters.get("metadata_filter") or {}).values()):
            raise NotImplementedError("it compares an array as a whole, and doesn't look into it")
        return await super().find(**filters)

    async def size(self) -> int:
        return database.sqlite_size(self._place)


class OnPostgres(Original):
    durability: Final = "PostgreSQL's synchronous_commit, as ours."

    async def open(self, place: str) -> None:
        from flujo.state.backends.postgres import PostgresBackend

        self._place = place
        self._backend = PostgresBackend(place)

    async def load(self, run_id: str) -> dict[str, Any] | None:
        """It hands out the documents as text, which its users decode."""
        found = await super().load(run_id)
        if found is not None:
            found |= {name: json.loads(found[name]) for name in DOCUMENTS if isinstance(found[name], str)}
        return found

    async def size(self) -> int:
        import asyncpg

        connection = await asyncpg.connect(self._place)
        try:
            return int(await connection.fetchval(database.POSTGRES_SIZE))
        finally:
            await connection.close()
