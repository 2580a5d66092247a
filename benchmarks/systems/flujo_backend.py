"""Flujo through its public API, with the defaults that production has."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from benchmarks import cold_start
from benchmarks.samples import STEPS, step_record
from flujo_core import StateBackend, open_backend
from flujo_core.store import PROGRESS

from . import database

_SAVED: Final = (*PROGRESS, "snapshot")
"""What a save of a known run sets, its metadata, status and pipeline being as they were."""


class Flujo:
    """What both databases have in common."""

    _place: str
    _backend: StateBackend

    async def open(self, place: str) -> None:
        self._place = place
        self._backend = await open_backend(place).__aenter__()

    async def close(self) -> None:
        await self._backend.shutdown()

    async def save(self, run_id: str, given: dict[str, Any], *, fresh: bool = False) -> None:
        await self._backend.save_state(run_id, given)

    async def load(self, run_id: str) -> dict[str, Any] | None:
        return await self._backend.load_state(run_id)

    async def lifecycle(self, run_id: str, states: list[dict[str, Any]]) -> None:
        names = ("pipeline_id", "pipeline_name", "pipeline_version", "metadata")
        given = states[0]
        await self._backend.save_run_start({"run_id": run_id, **{name: given[name] for name in names}})
        for step in range(STEPS):
            await self._backend.save_step_result(step_record(run_id, step))
            await self._backend.save_state(run_id, states[step])
        await self._backend.save_state(run_id, {**states[STEPS], "status": "completed"})
        await self._backend.save_run_end(run_id, {"status": "completed"})

    async def find(self, **filters: Any) -> list[Any]:
        return list(await self._backend.list_runs(**filters))

    async def count(self, **filters: Any) -> int:
        return await self._backend.count_runs(**filters)

    async def remove_older(self, moment: datetime) -> int:
        return await self._backend.cleanup_old_workflows((datetime.now(UTC) - moment) / timedelta(days=1))

    def pages(self, size: int, **filters: Any) -> AsyncIterator[Any]:
        return self._backend.iter_runs(page_size=size, **filters)


class OnSQLite(Flujo):
    durability: Final = "WAL and synchronous=FULL, its default: what returned outlives a power failure."
    distributions: Final = ("flujo-core", "flujo-sqlite", "aiosqlite", "pydantic")
    programs: Final = {"import": cold_start.IMPORT, "first save": cold_start.FIRST_SAVE}

    @property
    def statements(self) -> dict[str, str]:
        from flujo_sqlite import queries

        return {
            "first save": f"{queries.INSERT_RUN}; for each term of the metadata: {queries.INSERT_TERM}",
            "save, the metadata unchanged": queries.update_run(_SAVED),
            "load": queries.LOAD,
            "step of a lifecycle": queries.PUT_STEP,
        }

    async def settings(self) -> dict[str, str]:
        from flujo_sqlite.settings import SQLiteSettings

        return database.sqlite_settings(self._place, SQLiteSettings().synchronous)

    async def size(self) -> int:
        return database.sqlite_size(self._place)


class OnPostgres(Flujo):
    durability: Final = "PostgreSQL's synchronous_commit, which it leaves as the server has it."
    distributions: Final = ("flujo-core", "flujo-postgres", "asyncpg", "pydantic")

    @property
    def statements(self) -> dict[str, str]:
        from flujo_postgres import queries

        texts = {
            "first save": queries.INSERT_RUN,
            "first saves at once": queries.batch(("inserted",)),
            "save, the metadata unchanged": queries.update_run(_SAVED),
            "saves at once": queries.batch(("locked", queries.UPDATES[_SAVED])),
            "load": queries.LOAD,
            "steps at once": queries.batch(("locked", queries.UPDATES[PROGRESS], "steps")),
        }
        return {name: text.replace("{s}.", "") for name, text in texts.items()}

    async def settings(self) -> dict[str, str]:
        return {name: str(value) for name, value in await self._rows(database.POSTGRES_SETTINGS)}

    async def size(self) -> int:
        return int((await self._rows(database.POSTGRES_SIZE))[0][0])

    async def _rows(self, statement: str) -> list[Any]:
        """By a connection of its own, not the backend's."""
        import asyncpg

        connection = await asyncpg.connect(self._place)
        try:
            return list(await connection.fetch(statement))
        finally:
            await connection.close()
