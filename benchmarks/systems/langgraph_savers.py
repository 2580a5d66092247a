"""LangGraph's checkpoint savers: a run is a thread, each key of its state a channel, each save a checkpoint more."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from typing import Any, Final

from benchmarks.samples import STEPS, step_record

from . import database

CONSTANT: Final = frozenset({"pipeline_id", "pipeline_name", "pipeline_version", "total_steps", "metadata"})
"""Channels that no step writes: they keep their version, so that PostgreSQL stores them once."""


class LangGraph:
    """What both savers have in common."""

    _saver: Any
    _place: str

    def __init__(self) -> None:
        self._last: dict[str, tuple[str, int]] = {}
        """By run: its last checkpoint, and which that was. A graph knows it too while it runs."""
        # Versions are compared as text; the random end keeps those of two processes apart.
        self._end = f"{random.random():.16f}"

    async def save(self, run_id: str, given: dict[str, Any], *, fresh: bool = False) -> None:
        from langgraph.checkpoint.base.id import uuid6

        parent, number = self._last.get(run_id, (None, 0))
        number += 1
        versions = {name: self._version(1 if name in CONSTANT else number) for name in given}
        checkpoint = {
            "v": 4,  # as its graphs write it; a load of an older one asks for more
            "id": (checkpoint_id := str(uuid6())),
            "ts": datetime.now(UTC).isoformat(),
            "channel_values": given,
            "channel_versions": versions,
            "versions_seen": {},
            "updated_channels": None,
        }
        metadata = {**given["metadata"], "status": given["status"], "pipeline_name": given["pipeline_name"]}
        written = versions if number == 1 else {name: versions[name] for name in versions.keys() - CONSTANT}
        await self._saver.aput(_config(run_id, parent), checkpoint, metadata, written)
        if not fresh:  # of those there may be a million, and none is saved again
            self._last[run_id] = checkpoint_id, number

    def _version(self, number: int) -> str:
        return f"{number:032}.{self._end}"

    async def load(self, run_id: str) -> dict[str, Any] | None:
        found = await self._saver.aget_tuple(_config(run_id))
        return None if found is None else dict(found.checkpoint["channel_values"])

    async def lifecycle(self, run_id: str, states: list[dict[str, Any]]) -> None:
        """As a graph of ten steps does: the input's checkpoint, then each step's writes and the checkpoint after it."""
        await self.save(run_id, states[0])
        for step in range(STEPS):
            config = _config(run_id, self._last[run_id][0])
            await self._saver.aput_writes(config, [("step", step_record(run_id, step))], f"task {step}")
            after = states[step]
            await self.save(run_id, {**after, "status": "completed"} if step == STEPS - 1 else after)
        del self._last[run_id]

    async def find(self, *, limit: int, metadata_filter: dict[str, Any] | None = None, **filters: Any) -> list[Any]:
        """Checkpoints, not runs: a run that was saved twice is there twice. Status and pipeline are in the metadata."""
        chosen = {**(metadata_filter or {}), **filters}
        return [found async for found in self._saver.alist(None, filter=chosen, limit=limit)]


class OnSQLite(LangGraph):
    durability: Final = "WAL, its default, and synchronous=FULL, as ours: what returned outlives a power failure."
    distributions: Final = ("langgraph-checkpoint", "langgraph-checkpoint-sqlite", "aiosqlite")

    async def open(self, place: str) -> None:
        import aiosqlite
        from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

        self._place = place
        self._connection = await aiosqlite.connect(place.removeprefix("sqlite:///"))
        await self._connection.execute("PRAGMA synchronous = FULL")
        self._saver = AsyncSqliteSaver(self._connection)
        await self._saver.setup()

    async def close(self) -> None:
        await self._connection.close()

    async def find(self, *, limit: int, metadata_filter: dict[str, Any] | None = None, **filters: Any) -> list[Any]:
        if any(isinstance(value, dict | list) for value in (metadata_filter or {}).values()):
            raise NotImplementedError("it compares an object or an array as a whole, and doesn't look into it")
        return await super().find(limit=limit, metadata_filter=metadata_filter, **filters)

    async def size(self) -> int:
        return database.sqlite_size(self._place)


class OnPostgres(LangGraph):
    durability: Final = "PostgreSQL's synchronous_commit, as ours."
    distributions: Final = ("langgraph-checkpoint", "langgraph-checkpoint-postgres", "psycopg")

    async def open(self, place: str) -> None:
        from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
        from psycopg.rows import dict_row
        from psycopg_pool import AsyncConnectionPool

        # What the saver asks of its connections; as many as our pool has.
        settings = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
        self._pool = AsyncConnectionPool(place, min_size=1, max_size=10, kwargs=settings, open=False)
        await self._pool.open(wait=True)
        self._saver = AsyncPostgresSaver(self._pool)
        await self._saver.setup()

    async def close(self) -> None:
        await self._pool.close()

    async def size(self) -> int:
        async with self._pool.connection() as connection:
            row: Any = await (await connection.execute(database.POSTGRES_SIZE)).fetchone()
            return int(row["pg_database_size"])


def _config(run_id: str, checkpoint_id: str | None = None) -> dict[str, Any]:
    chosen = {"thread_id": run_id, "checkpoint_ns": ""}
    return {"configurable": {**chosen, "checkpoint_id": checkpoint_id} if checkpoint_id else chosen}
