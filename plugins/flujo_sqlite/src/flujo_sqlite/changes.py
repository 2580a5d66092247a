"""How is one change applied? In a transaction, in the thread of the connection that writes."""

from __future__ import annotations

import sqlite3
from datetime import datetime
from functools import lru_cache
from typing import Any

from flujo_core.codec import decode_plain
from flujo_core.containment import document_terms
from flujo_core.store import APPLIED, Change, Outcome, RunRow, StoredRun
from flujo_core.timestamps import text_of

from . import queries as sql

Raw = sqlite3.Connection


def _values(change: Change) -> list[Any]:
    return [text_of(value) if isinstance(value, datetime) else value for value in change.values]


def apply(raw: Raw, change: Change) -> Outcome:
    row, run_id = change.row, change.run_id
    if change.wipe:
        found = raw.execute(sql.OPERATION_ID, (run_id,)).fetchone()
        if (found[0] if found else None) != change.expected:
            return stored(raw, run_id)
        _wipe(raw, run_id)
    if row is not None:
        applied = _insert(raw, change) if change.wipe or change.expected is None else _update(raw, change)
        if not applied:
            return stored(raw, run_id)
        _put_records(raw, change)
    return APPLIED


def _insert(raw: Raw, change: Change) -> bool:
    assert change.row is not None
    assert isinstance(change.metadata, str)
    if raw.execute(sql.INSERT_RUN, (change.run_id, *_values(change))).rowcount != 1:
        return False
    _put_terms(raw, change.row, _terms(change.metadata))
    return True


def _update(raw: Raw, change: Change) -> bool:
    row, metadata = change.row, change.metadata
    assert row is not None
    old: tuple[str, str] = ("{}", "")
    if isinstance(metadata, str):
        old = raw.execute(sql.OLD_TERMS, (change.run_id,)).fetchone() or old
    statement = sql.update_run(change.columns)
    if raw.execute(statement, (*_values(change), change.run_id, change.expected)).rowcount != 1:
        return False
    if isinstance(metadata, str):
        # Only the terms that changed; they stand under created_at, which changes when a placeholder is completed.
        before, created_at = _terms(old[0]), old[1]
        after = _terms(metadata)
        kept = before & after if created_at == text_of(row.created_at) else set()
        raw.executemany(sql.DELETE_TERM, [(term, created_at, row.run_id) for term in before - kept])
        _put_terms(raw, row, after - kept)
    return True


@lru_cache(maxsize=512)
def _terms(metadata: str) -> frozenset[int]:
    return frozenset(document_terms(decode_plain(metadata)))


def _put_terms(raw: Raw, row: RunRow, terms: set[int] | frozenset[int]) -> None:
    if terms:
        created_at = text_of(row.created_at)
        raw.executemany(sql.INSERT_TERM, [(term, created_at, row.run_id) for term in sorted(terms)])


def _wipe(raw: Raw, run_id: str) -> None:
    old = raw.execute(sql.OLD_TERMS, (run_id,)).fetchone()
    if old is not None:
        raw.executemany(sql.DELETE_TERM, [(term, old[1], run_id) for term in _terms(old[0])])
    for statement in sql.WIPE:
        raw.execute(statement, (run_id,))


def _put_records(raw: Raw, change: Change) -> None:
    run_id = change.run_id
    if change.history_length is not None:
        raw.execute(sql.CUT_HISTORY, (run_id, change.history_length))
    if change.history:
        raw.executemany(sql.PUT_HISTORY, [(run_id, *entry) for entry in change.history])
    for step in change.steps:
        raw.execute(sql.PUT_STEP, (run_id, *step[:6], text_of(step.created_at), step.document))
    if change.drop_trace_spans:
        raw.execute(sql.DROP_TRACE_SPANS, (run_id,))
    for span in change.spans:
        raw.execute(sql.PUT_SPAN, (run_id, *span))
    if change.trace is not None:
        raw.execute(sql.PUT_TRACE, (run_id, change.trace))
    for key, document in change.details.items():
        raw.execute(sql.PUT_DETAIL, (run_id, key, document))
    for evaluation in change.evaluations:
        raw.execute(
            sql.INSERT_EVALUATION, (run_id, *evaluation[:3], text_of(evaluation.created_at), evaluation.document)
        )


def stored(raw: Raw, run_id: str) -> StoredRun | None:
    row = raw.execute(sql.STORED_RUN, (run_id,)).fetchone()
    if row is None:
        return None
    return StoredRun(row[0], row[1], b"".join(digest for (digest,) in raw.execute(sql.STORED_HISTORY, (run_id,))))
