"""Every SQL statement of the PostgreSQL store, and the one builder of WHERE clauses.

Statements name their tables with ``{s}``, the quoted schema; `in_schema` fills it in. No statement relies on a setting
of its session, so that a pooler in transaction mode may hand each transaction to another connection.
"""

from __future__ import annotations

import re
from functools import cache, partial
from typing import Any, Final

from flujo_core.codec import encode_plain
from flujo_core.store import SETS, RunQuery

# --- a run's row ------------------------------------------------------------------------------------------------

TYPES: Final = {
    "run_id": "text",
    "operation_id": "bytea",
    "listed": "boolean",
    "pipeline_id": "text",
    "pipeline_name": "text",
    "pipeline_version": "text",
    "status": "text",
    "created_at": "timestamptz",
    "updated_at": "timestamptz",
    "end_time": "timestamptz",
    "current_step_index": "bigint",
    "total_steps": "bigint",
    "error_message": "text",
    "execution_time_ms": "double precision",
    "memory_usage_mb": "double precision",
    "total_cost": "double precision",
    "is_background_task": "boolean",
    "parent_run_id": "text",
    "task_id": "text",
    "background_error": "text",
    "revision": "bigint",
    "run": "json",
    "metadata": "jsonb",
    "snapshot": "json",
}
"""The columns of workflow_state in the order of `RunRow`, then the two documents that a write may leave as they are."""

_ALL: Final = tuple(TYPES)


def _marks(names: tuple[str, ...], first: int = 1) -> str:
    return ", ".join(f"${number}::{TYPES[name]}" for number, name in enumerate(names, first))


def _arrays(names: tuple[str, ...], first: int = 1) -> str:
    return ", ".join(f"${number}::{TYPES[name]}[]" for number, name in enumerate(names, first))


def _lock_timeout(number: int) -> str:
    """A condition that always holds and limits, until the end of the transaction, each wait for another writer's lock:
    a statement of its own would be a round trip more. It is met before the first row is locked."""
    return f"set_config('lock_timeout', ${number}::text, true) IS NOT NULL"


INSERT_RUN: Final = (
    f"INSERT INTO {{s}}.workflow_state ({', '.join(_ALL)}) SELECT {_marks(_ALL)} WHERE {_lock_timeout(len(_ALL) + 1)} "
    "ON CONFLICT (run_id) DO NOTHING"
)


@cache
def update_run(columns: tuple[str, ...]) -> str:
    """run_id and the columns, then the expected operation_id and the lock timeout."""
    sets = ", ".join(f"{name} = ${number}::{TYPES[name]}" for number, name in enumerate(columns, 2))
    last = len(columns) + 1
    return (
        f"UPDATE {{s}}.workflow_state SET {sets} WHERE run_id = $1 AND operation_id = ${last + 1}::bytea "
        f"AND {_lock_timeout(last + 2)}"
    )


STORED_RUNS: Final = (
    "SELECT w.run_id, w.operation_id, w.run, (SELECT string_agg(h.digest, ''::bytea ORDER BY h.position) "
    "FROM {s}.workflow_history h WHERE h.run_id = w.run_id) FROM {s}.workflow_state w WHERE w.run_id = ANY($1::text[])"
)
_LOCKED: Final = "SELECT run_id, operation_id FROM {s}.workflow_state WHERE run_id = ANY($1::text[])"
LOCK_FREE_RUNS: Final = f"{_LOCKED} ORDER BY run_id FOR UPDATE SKIP LOCKED"
"""Leaves out those that others hold, so that a batch never waits for one of them."""
WAIT_FOR_RUNS: Final = f"{_LOCKED} AND {_lock_timeout(2)} FOR UPDATE"
OPERATION_ID: Final = "SELECT operation_id FROM {s}.workflow_state WHERE run_id = $1"
LOAD: Final = (
    "SELECT w.revision, w.created_at, w.snapshot, (SELECT string_agg(h.entry::text, ',' ORDER BY h.position) "
    "FROM {s}.workflow_history h WHERE h.run_id = w.run_id) FROM {s}.workflow_state w "
    "WHERE w.run_id = $1 AND w.snapshot IS NOT NULL"
)
RUN_DETAILS: Final = (
    "SELECT w.run, d.key, d.document FROM {s}.workflow_state w "
    'LEFT JOIN {s}.workflow_details d ON d.run_id = w.run_id WHERE w.run_id = $1 ORDER BY d.key COLLATE "C"'
)

# --- what hangs on a run ----------------------------------------------------------------------------------------

_RECORDS: Final = (
    "workflow_history", "workflow_steps", "workflow_spans", "workflow_traces", "workflow_details",
    "workflow_evaluations",
)  # fmt: skip
WIPE: Final = tuple(
    f"DELETE FROM {{s}}.{table} WHERE run_id = ANY($1::text[])" for table in ("workflow_state", *_RECORDS)
)
STEP_COST: Final = "SELECT cost_usd FROM {s}.workflow_steps WHERE run_id = $1 AND record_id = $2"
LIST_STEPS: Final = "SELECT document FROM {s}.workflow_steps WHERE run_id = $1 ORDER BY step_index, sequence"
DROP_TRACE_SPANS: Final = "DELETE FROM {s}.workflow_spans WHERE run_id = ANY($1::text[]) AND from_trace"
SPANS: Final = (
    "SELECT document FROM {s}.workflow_spans WHERE run_id = $1 AND ($2::text IS NULL OR status = $2) "
    "AND ($3::text IS NULL OR name = $3) ORDER BY start_time, sequence"
)
SPAN_STATISTICS: Final = (
    "SELECT s.name, s.status, count(*), sum(s.end_time - s.start_time) FROM {s}.workflow_spans s "
    "WHERE s.end_time IS NOT NULL AND ($2::double precision IS NULL OR s.start_time >= $2) "
    "AND ($3::double precision IS NULL OR s.start_time <= $3) "
    "AND ($1::text IS NULL OR EXISTS (SELECT 1 FROM {s}.workflow_state w "
    "WHERE w.run_id = s.run_id AND w.pipeline_name = $1 AND w.listed)) GROUP BY s.name, s.status"
)
TRACE: Final = "SELECT document FROM {s}.workflow_traces WHERE run_id = $1"
EVALUATIONS: Final = (
    "SELECT document FROM {s}.workflow_evaluations WHERE $1::text IS NULL OR run_id = $1 "
    "ORDER BY created_at DESC, run_id DESC, sequence DESC LIMIT $2"
)

# --- a batch is one statement -----------------------------------------------------------------------------------


def _rows(types: str) -> str:
    """The rows of a part, given as one array for each column, run_id first; only those of runs that were written."""
    arrays = ", ".join(f"${number}::{kind}[]" for number, kind in enumerate(types.split(", "), 1))
    return f"unnest({arrays}) AS u (run_id) WHERE u.run_id IN (SELECT run_id FROM written)"


def _update_runs(columns: tuple[str, ...]) -> str:
    """run_id and the columns, then the expected operation_id."""
    names = ("run_id", *columns)
    sets = ", ".join(f"{name} = u.{name}" for name in columns)
    return (
        f"UPDATE {{s}}.workflow_state w SET {sets} "
        f"FROM unnest({_arrays(names)}, ${len(names) + 1}::bytea[]) AS u ({', '.join(names)}, expected) "
        "JOIN locked l ON l.run_id = u.run_id AND l.operation_id = u.expected "
        "WHERE w.run_id = u.run_id RETURNING w.run_id"
    )


WIPED: Final = {f"wiped_{table}": table for table in _RECORDS}
"""The parts that remove the records of the runs that "wiped" removes, and their tables."""
UPDATES: Final = {columns: f"updated_{number}" for number, columns in enumerate(SETS)}
"""The parts that change rows, by the columns that they set."""
_PARTS: Final = {
    "locked": LOCK_FREE_RUNS,
    "waited": WAIT_FOR_RUNS,
    "wiped": (
        "DELETE FROM {s}.workflow_state w USING unnest($1::text[], $2::bytea[]) AS u (run_id, expected) "
        "JOIN locked l ON l.run_id = u.run_id AND l.operation_id = u.expected "
        "WHERE w.run_id = u.run_id RETURNING w.run_id"
    ),
    **{
        name: f"DELETE FROM {{s}}.{table} WHERE run_id = ANY($1::text[]) AND run_id IN (SELECT run_id FROM wiped)"
        for name, table in WIPED.items()
    },
    **{name: _update_runs(columns) for columns, name in UPDATES.items()},
    "inserted": (
        f"INSERT INTO {{s}}.workflow_state ({', '.join(_ALL)}) SELECT * FROM unnest({_arrays(_ALL)}) "
        f"WHERE {_lock_timeout(len(_ALL) + 1)} ON CONFLICT (run_id) DO NOTHING RETURNING run_id"
    ),
    "cut_history": (
        "DELETE FROM {s}.workflow_history h USING unnest($1::text[], $2::int[]) AS u (run_id, length) "
        "WHERE h.run_id = u.run_id AND h.position >= u.length AND u.run_id IN (SELECT run_id FROM written)"
    ),
    "history": (
        "INSERT INTO {s}.workflow_history (run_id, position, digest, entry) "
        f"SELECT * FROM {_rows('text, int, bytea, json')} "
        "ON CONFLICT (run_id, position) DO UPDATE SET digest = excluded.digest, entry = excluded.entry"
    ),
    "steps": (
        "INSERT INTO {s}.workflow_steps "
        "(run_id, sequence, record_id, step_index, step_name, status, cost_usd, created_at, document) SELECT * FROM "
        f"{_rows('text, bigint, text, bigint, text, text, double precision, timestamptz, json')} "
        "ON CONFLICT (run_id, record_id) WHERE record_id IS NOT NULL DO UPDATE SET "
        "step_index = excluded.step_index, step_name = excluded.step_name, status = excluded.status, "
        "cost_usd = excluded.cost_usd, created_at = excluded.created_at, document = excluded.document"
    ),
    "spans": (
        "INSERT INTO {s}.workflow_spans "
        "(run_id, span_id, sequence, from_trace, name, status, start_time, end_time, document) SELECT * FROM "
        f"{_rows('text, text, bigint, boolean, text, text, double precision, double precision, json')} "
        "ON CONFLICT (run_id, span_id) DO UPDATE SET "
        "from_trace = excluded.from_trace, name = excluded.name, status = excluded.status, "
        "start_time = excluded.start_time, end_time = excluded.end_time, document = excluded.document"
    ),
    "traces": (
        f"INSERT INTO {{s}}.workflow_traces (run_id, document) SELECT * FROM {_rows('text, json')} "
        "ON CONFLICT (run_id) DO UPDATE SET document = excluded.document"
    ),
    "details": (
        "INSERT INTO {s}.workflow_details (run_id, key_hash, key, document) "
        f"SELECT * FROM {_rows('text, bytea, text, json')} "
        "ON CONFLICT (run_id, key_hash) DO UPDATE SET document = excluded.document"
    ),
    "evaluations": (
        "INSERT INTO {s}.workflow_evaluations (run_id, sequence, score, step_name, created_at, document) "
        f"SELECT * FROM {_rows('text, bigint, double precision, text, timestamptz, json')}"
    ),
}


_WRITING: Final = {"wiped", *UPDATES.values(), "inserted"}


@cache
def batch(names: tuple[str, ...]) -> str:
    """One statement that does these parts, in the order of `_PARTS`; it tells the runs that it wrote. The values of
    each part come behind those of the one before.

    All parts see what was stored when the statement began. So no two may write one row, and what decides whether a run
    is written is what the lock of its row returns, which is newer. The lock is "locked", which leaves out the rows that
    others hold, so that a batch never waits for one of them, or "waited" for one run alone.
    """
    texts, first = [], 0
    for name in names:
        text = _PARTS[name]
        texts.append(f"{'locked' if name == 'waited' else name} AS ({_MARK.sub(partial(_moved, first), text)})")
        first += max(int(number) for number in _MARK.findall(text))
    writing = [name for name in names if name in _WRITING]
    rows = " UNION ALL ".join(f"SELECT run_id FROM {name}" for name in writing)
    texts.insert(names.index(writing[-1]) + 1, f"written AS ({rows})")
    return f"WITH {', '.join(texts)} SELECT run_id FROM written"


def _moved(first: int, mark: re.Match[str]) -> str:
    return f"${first + int(mark[1])}"


_MARK: Final = re.compile(r"\$([0-9]+)")

# --- the rest ---------------------------------------------------------------------------------------------------

PUT_SYSTEM_STATE: Final = (
    f"INSERT INTO {{s}}.flujo_system_state (key, document) SELECT $1::text, $2::json WHERE {_lock_timeout(3)} "
    "ON CONFLICT (key) DO UPDATE SET document = excluded.document"
)
GET_SYSTEM_STATE: Final = "SELECT document FROM {s}.flujo_system_state WHERE key = $1"
RUN_STATISTICS: Final = (
    "SELECT status, is_background_task, count(*), count(*) FILTER (WHERE created_at >= $1), count(execution_time_ms), "
    "coalesce(sum(execution_time_ms), 0) FROM {s}.workflow_state WHERE listed GROUP BY status, is_background_task"
)
LAYOUT: Final = (
    "SELECT c.relname::text, a.attname::text, format_type(a.atttypid, NULL) FROM pg_class c "
    "JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid "
    "WHERE n.nspname = $1 AND c.relname = ANY($2::text[]) AND c.relkind IN ('r', 'p') "
    "AND a.attnum > 0 AND NOT a.attisdropped"
)
CREATE_VERSIONS: Final = """
CREATE TABLE IF NOT EXISTS {s}.{table} (
    version INTEGER PRIMARY KEY,
    applied_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    name TEXT,
    checksum TEXT,
    duration_ms DOUBLE PRECISION,
    code_version TEXT,
    min_code INTEGER NOT NULL DEFAULT 0
)
"""
"""Not in a migration: it is where they are recorded."""
VERSIONS: Final = (
    "SELECT version, name, checksum, applied_at, duration_ms, code_version, min_code FROM {s}.{table} ORDER BY version"
)
RECORD_VERSION: Final = (
    "INSERT INTO {s}.{table} AS old (version, name, checksum, duration_ms, code_version, min_code) "
    "VALUES ($1, $2, $3, $4, $5, $6) "
    "ON CONFLICT (version) DO UPDATE SET name = excluded.name, checksum = excluded.checksum, "
    "applied_at = CASE WHEN old.checksum IS NULL THEN excluded.applied_at ELSE old.applied_at END, "
    "duration_ms = coalesce(old.duration_ms, excluded.duration_ms), "
    "code_version = excluded.code_version, min_code = excluded.min_code"
)
"""One that was written by hand has no checksum, and another time."""

# --- a migration outside of any transaction: who runs it, and until when, by the server's clock --------------------

LEASES_TABLE: Final = "flujo_migration_leases"
CREATE_LEASES: Final = """
CREATE TABLE IF NOT EXISTS {s}.flujo_migration_leases (
    series TEXT NOT NULL,
    version INTEGER NOT NULL,
    holder TEXT NOT NULL,
    expires_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (series, version)
)
"""
_EXPIRY: Final = "clock_timestamp() + {seconds} * interval '1 second'"
IS_LEASED: Final = "SELECT 1 FROM {s}.flujo_migration_leases WHERE series = $1 AND version = $2"
TAKE_LEASE: Final = (
    "INSERT INTO {s}.flujo_migration_leases AS old (series, version, holder, expires_at) "
    f"VALUES ($1, $2, $3, {_EXPIRY.format(seconds='$4::double precision')}) "
    "ON CONFLICT (series, version) DO UPDATE SET holder = excluded.holder, expires_at = excluded.expires_at "
    "WHERE old.holder = excluded.holder OR old.expires_at < clock_timestamp() RETURNING 1"
)
RENEW_LEASE: Final = (
    f"UPDATE {{s}}.flujo_migration_leases SET expires_at = {_EXPIRY.format(seconds='$4::double precision')} "
    "WHERE series = $1 AND version = $2 AND holder = $3 RETURNING 1"
)
END_LEASE: Final = (
    "DELETE FROM {s}.flujo_migration_leases WHERE series = $1 AND version = $2 AND holder = $3 RETURNING 1"
)
EXPIRE_LEASE: Final = (
    "UPDATE {s}.flujo_migration_leases SET expires_at = '-infinity' WHERE series = $1 AND version = $2 AND holder = $3"
)
INDEX_STATE: Final = (
    "SELECT i.indisvalid AND i.indisready, "
    "EXISTS (SELECT 1 FROM pg_stat_progress_create_index p WHERE p.index_relid = i.indexrelid), n.nspname::text "
    "FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace "
    "WHERE i.indrelid = to_regclass($1) AND c.relname = $2"
)

# --- what refers to tables of the original system, other than they themselves --------------------------------------

REFERRERS: Final = """
SELECT CASE WHEN r.oid IS NULL THEN pg_describe_object(d.classid, d.objid, 0)
    ELSE pg_describe_object('pg_class'::regclass, r.ev_class, 0) END
FROM pg_depend d
LEFT JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
LEFT JOIN pg_constraint k ON d.classid = 'pg_constraint'::regclass AND k.oid = d.objid
LEFT JOIN pg_policy p ON d.classid = 'pg_policy'::regclass AND p.oid = d.objid
WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = ANY($1::oid[]) AND d.deptype = 'n'
    AND (d.classid = 'pg_proc'::regclass OR coalesce(r.ev_class, k.conrelid, p.polrelid) <> ALL($1::oid[]))
ORDER BY 1 LIMIT 1
"""
"""Views, foreign keys, policies and functions; a function whose body is a text says nothing of what it uses."""


def quoted(identifier: str) -> str:
    return '"' + identifier.replace('"', '""') + '"'


@cache
def in_schema(statement: str, schema: str) -> str:
    """The statement with its tables in a schema."""
    return statement.replace("{s}", quoted(schema))


# --- lists ------------------------------------------------------------------------------------------------------

CUSTOM_PLANS: Final = "BEGIN READ ONLY; SET LOCAL plan_cache_mode = force_custom_plan"
"""A plan made for other values may walk the wrong index: how many runs match depends on the value."""
NEWEST: Final = 1000
"""How many of the newest runs are looked through before the metadata index is asked."""


def select_runs(query: RunQuery, *, count: bool = False) -> tuple[str, list[Any]]:
    """The statement and its values. With a metadata filter the order is one that no index has, so that the metadata
    index finds the runs and a sort orders them."""
    where, values = _where(query)
    order = "w.created_at + interval '0'" if query.metadata_filter else f"w.{query.order}"
    if query.after is not None:
        where.append(f"(w.{query.order}, w.run_id) < (${len(values) + 1}, ${len(values) + 2})")
        values += query.after
    what = "count(*)" if count else "w.run"
    statement = f"SELECT {what} FROM {{s}}.workflow_state w WHERE {' AND '.join(where)}"
    return (statement, values) if count else (statement + _page(query, order, values), values)


def select_newest(query: RunQuery) -> tuple[str, list[Any]]:
    """The matches of a metadata filter among the newest runs that meet the other conditions; the flag tells whether
    these were all."""
    where, values = _where(query, metadata=False)
    if query.after is not None:
        where.append(f"(w.created_at, w.run_id) < (${len(values) + 1}, ${len(values) + 2})")
        values += query.after
    values.append(_filter(query))
    inner = (
        f"SELECT w.run, w.metadata, w.created_at, w.run_id FROM {{s}}.workflow_state w WHERE {' AND '.join(where)} "
        f"ORDER BY w.created_at DESC, w.run_id DESC LIMIT {NEWEST}"
    )
    contained = f"w.metadata @> ${len(values)}::jsonb"
    return f"SELECT w.run FROM ({inner}) w WHERE {contained}" + _page(query, "w.created_at", values), values


def _page(query: RunQuery, order: str, values: list[Any]) -> str:
    values += [query.limit, query.offset]
    return f" ORDER BY {order} DESC, w.run_id DESC LIMIT ${len(values) - 1}::bigint OFFSET ${len(values)}::bigint"


def _filter(query: RunQuery) -> str:
    return encode_plain(dict(query.metadata_filter or {}))


def _where(query: RunQuery, *, metadata: bool = True) -> tuple[list[str], list[Any]]:
    where: list[str] = ["true"] if query.placeholders else ["w.listed"]
    values: list[Any] = []

    def condition(text: str, value: Any) -> None:
        values.append(value)
        where.append(text.format(f"${len(values)}"))

    if query.statuses is not None:
        if len(query.statuses) == 1:
            condition("w.status = {}", query.statuses[0])
        else:
            condition("w.status = ANY({}::text[])", list(query.statuses))
    for name in ("pipeline_id", "pipeline_name", "parent_run_id"):
        if getattr(query, name) is not None:
            condition(f"w.{name} = {{}}", getattr(query, name))
    if query.is_background_task is not None:
        # No parameter, so that the partial index can serve.
        where.append("w.is_background_task" if query.is_background_task else "NOT w.is_background_task")
    for name, text in (
        ("created_after", "w.created_at > {}"),
        ("created_before", "w.created_at < {}"),
        ("updated_after", "w.updated_at > {}"),
        ("updated_before", "w.updated_at < {}"),
        ("updated_from", "w.updated_at >= {}"),
    ):
        moment = getattr(query, name)
        if moment is not None:
            condition(text, moment)
    if metadata and query.metadata_filter:
        condition("w.metadata @> {}::jsonb", _filter(query))
    return where, values
