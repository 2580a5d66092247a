"""DBOS: a run's whole life is a workflow of ten steps, and a save one of a single step, whose result is the state.

A workflow that has ended can't be written again. A save of the same run is therefore a new workflow, and DBOS keeps the
state of each twice: as what its step returned, and as its result.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final
from uuid import uuid4

from benchmarks.samples import STEPS

from . import database


class DBOSWorkflows:
    """What both databases have in common."""

    distributions: Final = ("dbos", "psycopg", "sqlalchemy")
    _place: str

    async def open(self, place: str) -> None:
        from dbos import DBOS, DBOSConfig

        self._place = place
        self._given: dict[str, dict[str, Any]] = {}
        """By workflow, what its step is to return: as an argument it would be stored a third time."""
        self._states: dict[str, list[dict[str, Any]]] = {}
        """By workflow, what its steps are to return."""
        self._last: dict[str, str] = {}
        """By run: the workflow that saved it last."""
        # Telemetry and the connection to its console are off unless they are configured.
        DBOS(config=DBOSConfig(name="benchmarks", system_database_url=_url(place), log_level="ERROR"))

        async def save() -> Any:
            return await DBOS.run_step_async({"name": "keep"}, self._kept, DBOS.workflow_id)

        async def lifecycle() -> Any:
            states = self._states.pop(DBOS.workflow_id)
            for step in range(STEPS):
                last = await DBOS.run_step_async({"name": "work"}, _work, states, step)
            return {**last, "status": "completed"}

        self._save, self._lifecycle = (DBOS.workflow(name=body.__name__)(body) for body in (save, lifecycle))
        DBOS.launch()

    async def close(self) -> None:
        from dbos import DBOS

        DBOS.destroy()

    async def save(self, run_id: str, given: dict[str, Any], *, fresh: bool = False) -> None:
        self._given[workflow := f"{run_id} {uuid4()}"] = given
        await self._run(run_id, workflow, self._save)

    async def lifecycle(self, run_id: str, states: list[dict[str, Any]]) -> None:
        self._states[workflow := f"{run_id} {uuid4()}"] = states
        await self._run(run_id, workflow, self._lifecycle)

    async def _run(self, run_id: str, workflow: str, body: Callable[[], Awaitable[object]]) -> None:
        from dbos import SetWorkflowID

        with SetWorkflowID(workflow):
            await body()
        self._last[run_id] = workflow

    async def _kept(self, workflow: str) -> dict[str, Any]:
        return self._given.pop(workflow)

    async def load(self, run_id: str) -> dict[str, Any] | None:
        from dbos import DBOS

        if run_id not in self._last:
            return None
        found: dict[str, Any] = await DBOS.get_result_async(self._last[run_id])
        return found


class OnSQLite(DBOSWorkflows):
    durability: Final = (
        "As DBOS opens it, a rollback journal and synchronous=FULL: what returned outlives a power failure."
    )

    async def find(self, *, limit: int, **filters: Any) -> list[Any]:
        if filters:
            raise NotImplementedError("DBOS filters by attributes in PostgreSQL only")
        return await _newest(limit)

    async def size(self) -> int:
        return database.sqlite_size(self._place)


class OnPostgres(DBOSWorkflows):
    """What runs are to be found by is in the workflow's attributes, for which DBOS has an index."""

    durability: Final = "PostgreSQL's synchronous_commit, as ours."

    async def save(self, run_id: str, given: dict[str, Any], *, fresh: bool = False) -> None:
        from dbos import SetWorkflowAttributes

        head = {"status": given["status"], "pipeline_name": given["pipeline_name"]}
        with SetWorkflowAttributes({**given["metadata"], **head}):
            await super().save(run_id, given, fresh=fresh)

    async def find(self, *, limit: int, metadata_filter: dict[str, Any] | None = None, **filters: Any) -> list[Any]:
        return await _newest(limit, {**(metadata_filter or {}), **filters})

    async def size(self) -> int:
        import psycopg

        async with await psycopg.AsyncConnection.connect(self._place) as connection:
            row: Any = await (await connection.execute(database.POSTGRES_SIZE)).fetchone()
            return int(row[0])


async def _work(states: list[dict[str, Any]], step: int) -> dict[str, Any]:
    return states[step]


async def _newest(limit: int, attributes: dict[str, Any] | None = None) -> list[Any]:
    """Workflows, without their states, as a list of runs comes without them."""
    from dbos import DBOS

    without = {"load_input": False, "load_output": False}
    return list(await DBOS.list_workflows_async(attributes=attributes, limit=limit, sort_desc=True, **without))


def _url(place: str) -> str:
    return place.replace("postgres://", "postgresql+psycopg://", 1)
