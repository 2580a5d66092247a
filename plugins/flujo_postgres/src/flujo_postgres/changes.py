"""How are changes applied? In the transaction of a connection."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

from flujo_core.store import APPLIED, BUSY, Change, Keep, Outcome, StoredRun

from . import queries as sql


class Changes:
    """What writes them to the tables of a schema."""

    def __init__(self, schema: str, lock_timeout: float) -> None:
        self._schema = schema
        self._lock_timeout = lock_timeout

    def _sql(self, statement: str) -> str:
        return sql.in_schema(statement, self._schema)

    async def apply(self, connection: Any, changes: Sequence[Change], wait: float) -> list[Outcome]:
        outcomes = await self._expected(connection, changes, wait)
        applied = [change for change in changes if outcomes.get(change.run_id) == APPLIED]
        wiped = [change.run_id for change in applied if change.wipe]
        if wiped:
            for statement in sql.WIPE:
                await connection.execute(self._sql(statement), wiped)
        inserted = await self._insert(connection, [c for c in applied if c.row and (c.wipe or c.expected is None)])
        refused = [c.run_id for c in applied if c.row and (c.wipe or c.expected is None) and c.run_id not in inserted]
        await self._update(connection, [c for c in applied if c.row and not c.wipe and c.expected is not None])
        await self._put_records(connection, [c for c in applied if c.row and c.run_id not in refused])
        if refused:
            stored = await self.stored(connection, refused)
            outcomes.update({run_id: stored.get(run_id) for run_id in refused})
        return [outcomes[change.run_id] for change in changes]

    async def _expected(self, connection: Any, changes: Sequence[Change], wait: float) -> dict[str, Outcome]:
        """Locks the rows that are expected, and tells those apart that are as expected.

        A batch leaves out rows that others have locked, so that it never waits for one of them; a lone change waits.
        New runs are tried by the insert.
        """
        known = {change.run_id: change.expected for change in changes if change.expected is not None}
        outcomes: dict[str, Outcome] = {change.run_id: APPLIED for change in changes if change.expected is None}
        if not known:
            return outcomes
        if len(changes) == 1:
            await connection.execute(f"SET LOCAL lock_timeout = {milliseconds(wait)}")
            locked = await connection.fetch(self._sql(sql.LOCK_RUNS), list(known))
        else:
            locked = await connection.fetch(self._sql(sql.LOCK_FREE_RUNS), list(known))
        found = dict(locked)
        outcomes.update({run_id: APPLIED for run_id, expected in known.items() if found.get(run_id) == expected})
        others = [run_id for run_id in known if run_id not in outcomes]
        if others:
            stored = await self.stored(connection, others)
            for run_id in others:
                held = run_id not in found and run_id in stored
                outcomes[run_id] = BUSY if held else stored.get(run_id)
        return outcomes

    async def _insert(self, connection: Any, changes: list[Change]) -> set[str]:
        if not changes:
            return set()
        rows = [(*change.row, change.metadata, given(change.snapshot)) for change in changes if change.row]
        limit = milliseconds(self._lock_timeout)
        done = await connection.fetch(self._sql(sql.INSERT_RUNS), *_columns(rows), limit)
        return {row[0] for row in done}

    async def _update(self, connection: Any, changes: list[Change]) -> None:
        for (with_metadata, with_snapshot), statement in sql.UPDATE_RUNS.items():
            rows = [
                (
                    *change.row,
                    *([change.metadata] if with_metadata else []),
                    *([change.snapshot] if with_snapshot else []),
                )
                for change in changes
                if change.row
                and isinstance(change.metadata, str) == with_metadata
                and isinstance(change.snapshot, Keep) != with_snapshot
            ]
            if rows:
                await connection.execute(self._sql(statement), *_columns(rows))

    async def _put_records(self, connection: Any, changes: list[Change]) -> None:
        async def put(statement: str, rows: list[tuple[Any, ...]]) -> None:
            if rows:
                await connection.execute(self._sql(statement), *_columns(rows))

        cuts = [(c.run_id, c.history_length) for c in changes if c.history_length is not None]
        await put(sql.CUT_HISTORY, cuts)
        await put(sql.PUT_HISTORY, [(c.run_id, *entry) for c in changes for entry in c.history])
        await put(sql.PUT_STEPS, [(c.run_id, *step) for c in changes for step in c.steps])
        dropped = [c.run_id for c in changes if c.drop_trace_spans]
        if dropped:
            await connection.execute(self._sql(sql.DROP_TRACE_SPANS), dropped)
        await put(sql.PUT_SPANS, [(c.run_id, *span) for c in changes for span in c.spans])
        await put(sql.PUT_TRACES, [(c.run_id, c.trace) for c in changes if c.trace is not None])
        await put(
            sql.PUT_DETAILS,
            [(c.run_id, _hash(key), key, document) for c in changes for key, document in c.details.items()],
        )
        await put(sql.INSERT_EVALUATIONS, [(c.run_id, *evaluation) for c in changes for evaluation in c.evaluations])

    async def stored(self, connection: Any, run_ids: Sequence[str]) -> dict[str, StoredRun]:
        rows = await connection.fetch(self._sql(sql.STORED_RUNS), list(run_ids))
        return {run_id: StoredRun(token, run, digests or b"") for run_id, token, run, digests in rows}


def milliseconds(seconds: float) -> str:
    # 0 would be no limit, and the server's own limit is that of 32 bits.
    return str(min(max(int(seconds * 1000), 1), 2**31 - 1))


def given(snapshot: str | Keep | None) -> str | None:
    return None if isinstance(snapshot, Keep) else snapshot


def _columns(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]


def _hash(key: str) -> bytes:
    return sha256(key.encode()).digest()[:16]
