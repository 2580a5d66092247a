"""Every SQL statement of the DuckDB store, and the one builder of WHERE clauses."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from flujo_core.containment import filter_terms
from flujo_core.store import RunQuery, RunRow
from flujo_core.timestamps import text_of

# --- a run's row ------------------------------------------------------------------------------------------------

_COLUMNS: Final = (*RunRow._fields, "metadata", "snapshot")

INSERT_RUN: Final = f"INSERT INTO workflow_state ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"


def update_run(columns: tuple[str, ...]) -> str:
    """The columns, then run_id."""
    values = ", ".join(f"{name} = ?" for name in columns)
    return f"UPDATE workflow_state SET {values} WHERE run_id = ?"


STORED_RUN: Final = "SELECT operation_id, run FROM workflow_state WHERE run_id = ?"
STORED_HISTORY: Final = "SELECT digest FROM workflow_history WHERE run_id = ? ORDER BY position"
OPERATION_ID: Final = "SELECT operation_id FROM workflow_state WHERE run_id = ?"
LOAD: Final = "SELECT revision, created_at, snapshot FROM workflow_state WHERE run_id = ? AND snapshot IS NOT NULL"
LOAD_HISTORY: Final = "SELECT entry FROM workflow_history WHERE run_id = ? ORDER BY position"
RUN_DETAILS: Final = "SELECT run FROM workflow_state WHERE run_id = ?"

# --- what hangs on a run ----------------------------------------------------------------------------------------

# A statement costs DuckDB about a millisecond however many rows it brings, so lists go in whole, a list for a column.
# And its ON CONFLICT takes longer than to remove what is to be replaced and insert: no table but that of the runs has a
# key, which is safe because only one writer is at work at a time.

_TABLES: Final = (
    "workflow_state", "workflow_history", "workflow_steps", "workflow_spans", "workflow_traces", "workflow_details",
    "workflow_evaluations", "workflow_metadata_terms",
)  # fmt: skip
TABLES_OF: Final = " UNION ".join(f"SELECT '{table}' FROM {table} WHERE run_id = $1" for table in _TABLES)
"""Those that have rows of a run: to look costs less than to delete from the others."""
WIPE: Final = "DELETE FROM {table} WHERE run_id = ?"
INSERT_TERMS: Final = "INSERT INTO workflow_metadata_terms (run_id, term) SELECT ?, unnest(?::BIGINT[])"
DELETE_TERMS: Final = "DELETE FROM workflow_metadata_terms WHERE run_id = ?"
CUT_HISTORY: Final = "DELETE FROM workflow_history WHERE run_id = ? AND position >= ?"
REMOVE_HISTORY: Final = "DELETE FROM workflow_history WHERE run_id = ? AND list_contains(?::BIGINT[], position)"
INSERT_HISTORY: Final = (
    "INSERT INTO workflow_history (run_id, position, digest, entry) "
    "SELECT ?, unnest(?::BIGINT[]), unnest(?::BLOB[]), unnest(?::VARCHAR[])"
)
REMOVE_STEPS: Final = (
    "DELETE FROM workflow_steps WHERE run_id = ? AND list_contains(?::VARCHAR[], record_id) "
    "RETURNING record_id, sequence"
)
INSERT_STEPS: Final = (
    "INSERT INTO workflow_steps "
    "(run_id, sequence, record_id, step_index, step_name, status, cost_usd, created_at, document) "
    "SELECT ?, unnest(?::BIGINT[]), unnest(?::VARCHAR[]), unnest(?::BIGINT[]), unnest(?::VARCHAR[]), "
    "unnest(?::VARCHAR[]), unnest(?::DOUBLE[]), unnest(?::VARCHAR[]), unnest(?::VARCHAR[])"
)
STEP_COST: Final = "SELECT cost_usd FROM workflow_steps WHERE run_id = ? AND record_id = ?"
LIST_STEPS: Final = "SELECT document FROM workflow_steps WHERE run_id = ? ORDER BY step_index, sequence"
DROP_TRACE_SPANS: Final = "DELETE FROM workflow_spans WHERE run_id = ? AND from_trace"
REMOVE_SPANS: Final = (
    "DELETE FROM workflow_spans WHERE run_id = ? AND list_contains(?::VARCHAR[], span_id) RETURNING span_id, sequence"
)
INSERT_SPANS: Final = (
    "INSERT INTO workflow_spans "
    "(run_id, span_id, sequence, from_trace, name, status, start_time, end_time, document) "
    "SELECT ?, unnest(?::VARCHAR[]), unnest(?::BIGINT[]), unnest(?::BOOLEAN[]), unnest(?::VARCHAR[]), "
    "unnest(?::VARCHAR[]), unnest(?::DOUBLE[]), unnest(?::DOUBLE[]), unnest(?::VARCHAR[])"
)
SPANS: Final = (
    "SELECT document FROM workflow_spans WHERE run_id = $1 AND ($2 IS NULL OR status = $2) "
    "AND ($3 IS NULL OR name = $3) ORDER BY start_time, sequence"
)
SPAN_STATISTICS: Final = (
    "SELECT s.name, s.status, count(*), sum(s.end_time - s.start_time) FROM workflow_spans s "
    "WHERE s.end_time IS NOT NULL AND ($2 IS NULL OR s.start_time >= $2) AND ($3 IS NULL OR s.start_time <= $3) "
    "AND ($1 IS NULL OR EXISTS (SELECT 1 FROM workflow_state w "
    "WHERE w.run_id = s.run_id AND w.pipeline_name = $1 AND w.listed)) GROUP BY s.name, s.status"
)
REMOVE_TRACE: Final = "DELETE FROM workflow_traces WHERE run_id = ?"
INSERT_TRACE: Final = "INSERT INTO workflow_traces (run_id, document) VALUES (?, ?)"
TRACE: Final = "SELECT document FROM workflow_traces WHERE run_id = ?"
REMOVE_DETAILS: Final = "DELETE FROM workflow_details WHERE run_id = ? AND list_contains(?::VARCHAR[], key)"
INSERT_DETAILS: Final = (
    "INSERT INTO workflow_details (run_id, key, document) SELECT ?, unnest(?::VARCHAR[]), unnest(?::VARCHAR[])"
)
DETAILS: Final = "SELECT key, document FROM workflow_details WHERE run_id = ? ORDER BY key"
INSERT_EVALUATIONS: Final = (
    "INSERT INTO workflow_evaluations (run_id, sequence, score, step_name, created_at, document) "
    "SELECT ?, unnest(?::BIGINT[]), unnest(?::DOUBLE[]), unnest(?::VARCHAR[]), unnest(?::VARCHAR[]), "
    "unnest(?::VARCHAR[])"
)
EVALUATIONS: Final = (
    "SELECT document FROM workflow_evaluations WHERE $1 IS NULL OR run_id = $1 "
    "ORDER BY created_at DESC, run_id DESC, sequence DESC LIMIT $2"
)

# --- the rest ---------------------------------------------------------------------------------------------------

REMOVE_SYSTEM_STATE: Final = "DELETE FROM flujo_system_state WHERE key = ?"
INSERT_SYSTEM_STATE: Final = "INSERT INTO flujo_system_state (key, document) VALUES (?, ?)"
GET_SYSTEM_STATE: Final = "SELECT document FROM flujo_system_state WHERE key = ?"
RUN_STATISTICS: Final = (
    "SELECT status, is_background_task, count(*), count(*) FILTER (WHERE created_at >= ?), count(execution_time_ms), "
    "coalesce(sum(execution_time_ms), 0) FROM workflow_state WHERE listed GROUP BY status, is_background_task"
)
# Not from the information_schema: a view of all columns of all tables takes DuckDB 30 ms.
TABLES: Final = "SELECT table_name FROM duckdb_tables() WHERE schema_name = 'main'"
COLUMNS: Final = "PRAGMA table_info('{table}')"
CREATE_VERSIONS: Final = """
CREATE TABLE IF NOT EXISTS {table} (
    version INTEGER NOT NULL,
    applied_at VARCHAR NOT NULL DEFAULT (strftime(now() AT TIME ZONE 'UTC', '%Y-%m-%dT%H:%M:%S.%f+00:00')),
    name VARCHAR,
    checksum VARCHAR,
    duration_ms DOUBLE,
    code_version VARCHAR,
    min_code INTEGER NOT NULL DEFAULT 0
)
"""
"""Not in a migration: it is where they are recorded."""
VERSIONS: Final = (
    "SELECT version, name, checksum, applied_at, duration_ms, code_version, min_code FROM {table} ORDER BY version"
)
REPEAT_VERSION: Final = (
    "UPDATE {table} SET name = $2, checksum = $3, code_version = $4, min_code = $5 "
    "WHERE version = $1 AND checksum IS NOT NULL RETURNING version"
)
REMOVE_VERSION: Final = "DELETE FROM {table} WHERE version = ?"
INSERT_VERSION: Final = (
    "INSERT INTO {table} (version, name, checksum, code_version, min_code, duration_ms) VALUES ($1, $2, $3, $4, $5, $6)"
)

# --- lists ------------------------------------------------------------------------------------------------------

COUNT_TERMS: Final = (
    "SELECT term, count(*) FROM workflow_metadata_terms WHERE list_contains(?::BIGINT[], term) GROUP BY term"
)


def terms_of(query: RunQuery) -> list[int]:
    """The terms that every match of the metadata filter has."""
    return sorted(filter_terms(dict(query.metadata_filter))) if query.metadata_filter else []


def select_runs(query: RunQuery, term: int | None) -> tuple[str, list[Any]]:
    """The statement and its values: (run, metadata) in the order of the query. With a filter all that hold ``term``, a
    few of which may not match: limit and offset are the caller's then."""
    where, values = _where(query, term)
    if query.after is not None:
        where.append(f"(w.{query.order}, w.run_id) < (?, ?)")
        values += [text_of(query.after[0]), query.after[1]]
    statement = (
        f"SELECT w.run, w.metadata FROM workflow_state w WHERE {' AND '.join(where)} "
        f"ORDER BY w.{query.order} DESC, w.run_id DESC"
    )
    if not query.metadata_filter:
        statement += " LIMIT ? OFFSET ?"
        values += [query.limit, query.offset]
    return statement, values


def count_runs(query: RunQuery) -> tuple[str, list[Any]]:
    where, values = _where(query, None)
    return f"SELECT count(*) FROM workflow_state w WHERE {' AND '.join(where)}", values


def _where(query: RunQuery, term: int | None) -> tuple[list[str], list[Any]]:
    where: list[str] = ["true"] if query.placeholders else ["w.listed"]
    values: list[Any] = []

    def condition(text: str, given: Any) -> None:
        if given is not None:
            where.append(text)
            values.append(text_of(given) if isinstance(given, datetime) else given)

    condition("w.run_id IN (SELECT run_id FROM workflow_metadata_terms WHERE term = ?)", term)
    condition("list_contains(?::VARCHAR[], w.status)", None if query.statuses is None else list(query.statuses))
    condition("w.pipeline_id = ?", query.pipeline_id)
    condition("w.pipeline_name = ?", query.pipeline_name)
    condition("w.parent_run_id = ?", query.parent_run_id)
    condition("w.is_background_task = ?", query.is_background_task)
    condition("w.created_at > ?", query.created_after)
    condition("w.created_at < ?", query.created_before)
    condition("w.updated_at > ?", query.updated_after)
    condition("w.updated_at < ?", query.updated_before)
    condition("w.updated_at >= ?", query.updated_from)
    return where, values
