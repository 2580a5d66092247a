"""How are changes applied? All of a batch by one statement, behind which comes at most a look at what it left out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from hashlib import sha256
from typing import Any

from flujo_core.store import APPLIED, BUSY, Change, Outcome, StoredRun

from . import queries as sql

Rows = list[tuple[Any, ...]]
Fetch = Callable[..., Awaitable[Sequence[Any]]]
"""Runs a statement with its values."""


def replaces(changes: Sequence[Change]) -> bool:
    """Whether some of what is stored has to go before something comes in its place: one statement can't write a row
    twice. Then it takes a transaction."""
    return any(_replaces(change) for change in changes)


def _replaces(change: Change) -> bool:
    return change.expected is not None and change.row is not None and (change.wipe or change.drop_trace_spans)


def _inserts(change: Change) -> bool:
    return change.row is not None and (change.wipe or change.expected is None)


class Changes:
    """What writes them to the tables of a schema."""

    def __init__(self, schema: str, lock_timeout: float) -> None:
        self._schema = schema
        self._lock_timeout = lock_timeout

    def _sql(self, statement: str) -> str:
        return sql.in_schema(statement, self._schema)

    async def apply(self, fetch: Fetch, changes: Sequence[Change], wait: float) -> set[str]:
        """The ids of the runs that are written; the others were not as expected, or are locked by others.

        A lone change waits for a lock, so many seconds. ``fetch`` runs a statement: of a connection in a transaction if
        the changes are such that `replaces`.
        """
        alone = len(changes) == 1
        replacing = [change for change in changes if _replaces(change)]
        if replacing:
            removed = await self._remove(fetch, replacing, wait if alone else None)
            changes = [change for change in changes if not _replaces(change) or change.run_id in removed]
        if not changes:
            return set()
        names, values = _parts(changes, milliseconds(wait if alone else self._lock_timeout), alone=alone)
        return {row[0] for row in await fetch(self._sql(sql.batch(names)), *values)}

    async def _remove(self, fetch: Fetch, changes: Sequence[Change], wait: float | None) -> set[str]:
        """Locks the runs first; the ids of those that were as expected."""
        run_ids = [change.run_id for change in changes]
        if wait is None:
            found = dict(await fetch(self._sql(sql.LOCK_FREE_RUNS), run_ids))
        else:
            found = dict(await fetch(self._sql(sql.WAIT_FOR_RUNS), run_ids, milliseconds(wait)))
        changes = [change for change in changes if found.get(change.run_id) == change.expected]
        wiped = [change.run_id for change in changes if change.wipe]
        dropped = [change.run_id for change in changes if not change.wipe]
        for statement in sql.WIPE if wiped else ():
            await fetch(self._sql(statement), wiped)
        if dropped:
            await fetch(self._sql(sql.DROP_TRACE_SPANS), dropped)
        return {change.run_id for change in changes}

    async def stored(self, connection: Any, run_ids: Sequence[str]) -> dict[str, StoredRun]:
        rows = await connection.fetch(self._sql(sql.STORED_RUNS), list(run_ids))
        return {run_id: StoredRun(token, run, digests or b"") for run_id, token, run, digests in rows}


def outcome(change: Change, done: Collection[str], stored: Mapping[str, StoredRun]) -> Outcome:
    """Of a change, after a look at what is stored of those that were not done."""
    if change.run_id in done:
        return APPLIED
    found = stored.get(change.run_id)
    # As expected, and yet not written: it was locked by another writer.
    return BUSY if found is not None and found.operation_id == change.expected else found


def _parts(changes: Sequence[Change], limit: str, *, alone: bool) -> tuple[tuple[str, ...], list[Any]]:
    """The parts of the statement that writes the changes, and their values."""
    parts: list[tuple[str, Sequence[Any]]] = []

    def part(name: str, rows: Rows, *more: Any) -> None:
        if rows:
            parts.append((name, [*_columns(rows), *more]))

    known = [change for change in changes if not _inserts(change)]
    if known:
        run_ids = [change.run_id for change in known]
        parts.append(("waited", [run_ids, limit]) if alone else ("locked", [run_ids]))
    wiped = [change for change in known if not change.row]
    part("wiped", [(c.run_id, c.expected) for c in wiped])
    for name in sql.WIPED:
        part(name, [(c.run_id,) for c in wiped])
    rows_of: dict[tuple[str, ...], Rows] = {}
    for change in known:
        if change.row:
            rows_of.setdefault(change.columns, []).append((change.run_id, *change.values, change.expected))
    for columns, name in sql.UPDATES.items():
        part(name, rows_of.get(columns, []))
    new = [change for change in changes if _inserts(change)]
    part("inserted", [(c.run_id, *c.values) for c in new], limit)
    part("cut_history", [(c.run_id, c.history_length) for c in known if c.history_length is not None])
    part("history", [(c.run_id, *entry) for c in changes for entry in c.history])
    part("steps", [(c.run_id, *step) for c in changes for step in c.steps])
    part("spans", [(c.run_id, *span) for c in changes for span in c.spans])
    part("traces", [(c.run_id, c.trace) for c in changes if c.trace is not None])
    part("details", [(c.run_id, _hash(key), key, document) for c in changes for key, document in c.details.items()])
    part("evaluations", [(c.run_id, *evaluation) for c in changes for evaluation in c.evaluations])
    return tuple(name for name, _ in parts), [value for _, values in parts for value in values]


def milliseconds(seconds: float) -> str:
    # 0 would be no limit, and the server's own limit is that of 32 bits.
    return str(min(max(int(seconds * 1000), 1), 2**31 - 1))


def _columns(rows: Rows) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]


def _hash(key: str) -> bytes:
    return sha256(key.encode()).digest()[:16]
