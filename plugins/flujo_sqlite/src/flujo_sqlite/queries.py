"""Every SQL statement of the SQLite store, and the one builder of WHERE clauses."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Final

from flujo_core.codec import encode_plain
from flujo_core.containment import filter_terms
from flujo_core.store import RunQuery, RunRow
from flujo_core.timestamps import text_of

# --- a run's row ------------------------------------------------------------------------------------------------

_COLUMNS: Final = (*RunRow._fields, "metadata", "snapshot")

INSERT_RUN: Final = (
    f"INSERT INTO workflow_state ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))}) "
    "ON CONFLICT (run_id) DO NOTHING"
)


@cache
def update_run(columns: tuple[str, ...]) -> str:
    """The columns, then run_id and the expected operation_id."""
    values = ", ".join(f"{name} = ?" for name in columns)
    return f"UPDATE workflow_state SET {values} WHERE run_id = ? AND operation_id = ?"


STORED_RUN: Final = "SELECT operation_id, run FROM workflow_state WHERE run_id = ?"
STORED_HISTORY: Final = "SELECT digest FROM workflow_history WHERE run_id = ? ORDER BY position"
OPERATION_ID: Final = "SELECT operation_id FROM workflow_state WHERE run_id = ?"
OLD_TERMS: Final = "SELECT metadata, created_at FROM workflow_state WHERE run_id = ?"
LOAD: Final = (
    "SELECT revision, created_at, snapshot, (SELECT group_concat(entry, ',') FROM "
    "(SELECT entry FROM workflow_history WHERE run_id = ? ORDER BY position)) "
    "FROM workflow_state WHERE run_id = ? AND snapshot IS NOT NULL"
)
"""SQLite leaves out the order of a subquery only for the aggregates count, min and max (optoverview.html)."""
RUN_DETAILS: Final = "SELECT run FROM workflow_state WHERE run_id = ?"

# --- what hangs on a run ----------------------------------------------------------------------------------------

WIPE: Final = tuple(
    f"DELETE FROM {table} WHERE run_id = ?"
    for table in (
        "workflow_state", "workflow_history", "workflow_steps", "workflow_spans", "workflow_traces",
        "workflow_details", "workflow_evaluations",
    )
)  # fmt: skip
INSERT_TERM: Final = "INSERT OR IGNORE INTO workflow_metadata_terms (term, created_at, run_id) VALUES (?, ?, ?)"
DELETE_TERM: Final = "DELETE FROM workflow_metadata_terms WHERE term = ? AND created_at = ? AND run_id = ?"
CUT_HISTORY: Final = "DELETE FROM workflow_history WHERE run_id = ? AND position >= ?"
PUT_HISTORY: Final = (
    "INSERT INTO workflow_history (run_id, position, digest, entry) VALUES (?, ?, ?, ?) "
    "ON CONFLICT (run_id, position) DO UPDATE SET digest = excluded.digest, entry = excluded.entry"
)
PUT_STEP: Final = (
    "INSERT INTO workflow_steps "
    "(run_id, sequence, record_id, step_index, step_name, status, cost_usd, created_at, document) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (run_id, record_id) WHERE record_id IS NOT NULL DO UPDATE SET "
    "step_index = excluded.step_index, step_name = excluded.step_name, status = excluded.status, "
    "cost_usd = excluded.cost_usd, created_at = excluded.created_at, document = excluded.document"
)
STEP_COST: Final = "SELECT cost_usd FROM workflow_steps WHERE run_id = ? AND record_id = ?"
LIST_STEPS: Final = "SELECT document FROM workflow_steps WHERE run_id = ? ORDER BY step_index, sequence"
DROP_TRACE_SPANS: Final = "DELETE FROM workflow_spans WHERE run_id = ? AND from_trace = 1"
PUT_SPAN: Final = (
    "INSERT INTO workflow_spans "
    "(run_id, span_id, sequence, from_trace, name, status, start_time, end_time, document) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (run_id, span_id) DO UPDATE SET "
    "from_trace = excluded.from_trace, name = excluded.name, status = excluded.status, "
    "start_time = excluded.start_time, end_time = excluded.end_time, document = excluded.document"
)
SPANS: Final = (
    "SELECT document FROM workflow_spans WHERE run_id = ? AND status = ifnull(?, status) "
    "AND name = ifnull(?, name) ORDER BY start_time, sequence"
)
SPAN_STATISTICS: Final = (
    "SELECT s.name, s.status, count(*), total(s.end_time - s.start_time) FROM workflow_spans s "
    "WHERE s.end_time IS NOT NULL "
    "AND s.start_time >= ifnull(?, s.start_time) AND s.start_time <= ifnull(?, s.start_time) "
    "AND (? IS NULL OR EXISTS (SELECT 1 FROM workflow_state w "
    "WHERE w.run_id = s.run_id AND w.pipeline_name = ? AND w.listed)) GROUP BY s.name, s.status"
)
PUT_TRACE: Final = (
    "INSERT INTO workflow_traces (run_id, document) VALUES (?, ?) "
    "ON CONFLICT (run_id) DO UPDATE SET document = excluded.document"
)
TRACE: Final = "SELECT document FROM workflow_traces WHERE run_id = ?"
PUT_DETAIL: Final = (
    "INSERT INTO workflow_details (run_id, key, document) VALUES (?, ?, ?) "
    "ON CONFLICT (run_id, key) DO UPDATE SET document = excluded.document"
)
DETAILS: Final = "SELECT key, document FROM workflow_details WHERE run_id = ? ORDER BY key"
INSERT_EVALUATION: Final = (
    "INSERT INTO workflow_evaluations (run_id, sequence, score, step_name, created_at, document) "
    "VALUES (?, ?, ?, ?, ?, ?)"
)
EVALUATIONS: Final = (
    "SELECT document FROM workflow_evaluations {where} ORDER BY created_at DESC, run_id DESC, sequence DESC LIMIT ?"
)

# --- the rest ---------------------------------------------------------------------------------------------------

PUT_SYSTEM_STATE: Final = (
    "INSERT INTO flujo_system_state (key, document) VALUES (?, ?) "
    "ON CONFLICT (key) DO UPDATE SET document = excluded.document"
)
GET_SYSTEM_STATE: Final = "SELECT document FROM flujo_system_state WHERE key = ?"
RUN_STATISTICS: Final = (
    "SELECT status, is_background_task, count(*), sum(created_at >= ?), count(execution_time_ms), "
    "total(execution_time_ms) FROM workflow_state WHERE listed GROUP BY status, is_background_task"
)
TABLES: Final = "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') AND substr(name, 1, 7) <> 'sqlite_'"
COLUMNS: Final = "SELECT name FROM pragma_table_info(?)"
VIEWS: Final = "SELECT name FROM sqlite_master WHERE type = 'view' ORDER BY name"
TRIGGERS: Final = "SELECT name, tbl_name FROM sqlite_master WHERE type = 'trigger' ORDER BY name"
CREATE_VERSIONS: Final = """
CREATE TABLE IF NOT EXISTS {table} (
    version INTEGER PRIMARY KEY,
    applied_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%f000+00:00', 'now')),
    name TEXT,
    checksum TEXT,
    duration_ms REAL,
    code_version TEXT,
    min_code INTEGER NOT NULL DEFAULT 0
) STRICT
"""
"""Not in a migration: it is where they are recorded."""
VERSIONS: Final = (
    "SELECT version, name, checksum, applied_at, duration_ms, code_version, min_code FROM {table} ORDER BY version"
)
RECORD_VERSION: Final = (
    "INSERT INTO {table} (version, name, checksum, duration_ms, code_version, min_code) VALUES (?, ?, ?, ?, ?, ?) "
    "ON CONFLICT (version) DO UPDATE SET name = excluded.name, checksum = excluded.checksum, "
    "applied_at = CASE WHEN checksum IS NULL THEN excluded.applied_at ELSE applied_at END, "
    "duration_ms = coalesce(duration_ms, excluded.duration_ms), "
    "code_version = excluded.code_version, min_code = excluded.min_code"
)
"""One that was written by hand has no checksum, and another time."""
REFERRING_TABLES: Final = (
    "SELECT DISTINCT m.name FROM sqlite_master m, pragma_foreign_key_list(m.name) WHERE m.type = 'table'"
)
REFERENCES: Final = (
    "SELECT m.name, f.\"table\" FROM sqlite_master m, pragma_foreign_key_list(m.name) f WHERE m.type = 'table'"
)
DANGLING: Final = 'SELECT "table", rowid, parent FROM pragma_foreign_key_check(?)'

# --- lists ------------------------------------------------------------------------------------------------------

COUNT_TERM: Final = "SELECT count(*) FROM (SELECT 1 FROM workflow_metadata_terms WHERE term = ? LIMIT ?)"


def terms_of(query: RunQuery) -> list[int]:
    """The terms that every match of the metadata filter has."""
    return sorted(filter_terms(dict(query.metadata_filter))) if query.metadata_filter else []


def select_runs(query: RunQuery, terms: Sequence[int], *, count: bool = False) -> tuple[str, list[Any]]:
    """The statement and its values. ``terms`` come rarest first; the first one leads, newest first."""
    where, values = _where(query, terms)
    order = "t.created_at" if terms and query.order == "created_at" else f"w.{query.order}"
    run_id = "t.run_id" if terms and query.order == "created_at" else "w.run_id"
    if query.after is not None:
        where.append(f"({order}, {run_id}) < (?, ?)")
        values += [text_of(query.after[0]), query.after[1]]
    source = "workflow_state w"
    if terms:
        source = "workflow_metadata_terms t CROSS JOIN workflow_state w ON w.run_id = t.run_id"
    statement = f"SELECT {'count(*)' if count else 'w.run'} FROM {source} WHERE {' AND '.join(where)}"
    if not count:
        statement += f" ORDER BY {order} DESC, {run_id} DESC LIMIT ? OFFSET ?"
        values += [-1 if query.limit is None else query.limit, query.offset]
    return statement, values


def _where(query: RunQuery, terms: Sequence[int]) -> tuple[list[str], list[Any]]:
    where: list[str] = ["1"] if query.placeholders else ["w.listed"]
    values: list[Any] = []

    def condition(text: str, *given: Any) -> None:
        where.append(text)
        values.extend(given)

    if terms:
        condition("t.term = ?", terms[0])
        for term in terms[1:]:
            condition(
                "EXISTS (SELECT 1 FROM workflow_metadata_terms o WHERE o.term = ? "
                "AND o.created_at = t.created_at AND o.run_id = t.run_id)",
                term,
            )
    if query.statuses is not None:
        if len(query.statuses) == 1 and query.order == "created_at":
            condition("w.status = ?", *query.statuses)
        else:
            # The plus keeps SQLite from the index on status, whose runs it would sort anew for each page.
            condition(f"+w.status IN ({', '.join('?' * len(query.statuses))})", *query.statuses)
    for name in ("pipeline_id", "pipeline_name", "parent_run_id"):
        if getattr(query, name) is not None:
            condition(f"w.{name} = ?", getattr(query, name))
    if query.is_background_task is not None:
        # A literal, so that the partial index can serve.
        condition(f"w.is_background_task = {int(query.is_background_task)}")
    for name, text in (
        ("created_after", "w.created_at > ?"),
        ("created_before", "w.created_at < ?"),
        ("updated_after", "w.updated_at > ?"),
        ("updated_before", "w.updated_at < ?"),
        ("updated_from", "w.updated_at >= ?"),
    ):
        moment = getattr(query, name)
        # Of two upper bounds SQLite begins at either; a page begins where the one before it ended.
        if moment is not None and not (
            name == f"{query.order[:-3]}_before" and query.after and query.after[0] < moment
        ):
            condition(text, text_of(moment))
    if query.metadata_filter:
        condition("flujo_contains(w.metadata, ?)", encode_plain(dict(query.metadata_filter)))
    return where, values
