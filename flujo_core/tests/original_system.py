"""What do databases of the original system look like, and what has to be found in them once they are taken over?

PYTEST_DONT_REWRITE: test modules of several packages import it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from flujo_core import StateBackend

Rows = dict[str, list[dict[str, Any]]]
Pick = Callable[[Sequence[Any]], Any]
NOW = datetime(2031, 1, 1, tzinfo=UTC)

# --- its tables: name, type in PostgreSQL, type in SQLite -------------------------------------------------------------

_PIPELINE = [(name, "text NOT NULL", "TEXT NOT NULL") for name in ("pipeline_id", "pipeline_name", "pipeline_version")]
_TIMES = [("created_at", "timestamptz", "TEXT"), ("updated_at", "timestamptz", "TEXT")]
_FIGURES = [
    ("total_steps", "integer", "INTEGER"),
    ("error_message", "text", "TEXT"),
    ("execution_time_ms", "integer", "INTEGER"),
    ("memory_usage_mb", "real", "REAL"),
]
_ID = ("id", "serial PRIMARY KEY", "INTEGER PRIMARY KEY AUTOINCREMENT")
_OF_RUN = ("run_id", "text REFERENCES {s}runs ON DELETE CASCADE", "TEXT REFERENCES runs (run_id) ON DELETE CASCADE")
TABLES: dict[str, list[tuple[str, str, str]]] = {
    "workflow_state": [
        ("run_id", "text PRIMARY KEY", "TEXT PRIMARY KEY"),
        *_PIPELINE,
        ("current_step_index", "integer", "INTEGER"),
        ("pipeline_context", "jsonb", "TEXT"),
        ("last_step_output", "jsonb", "TEXT"),
        ("step_history", "jsonb", "TEXT"),
        ("status", "text", "TEXT"),
        *_TIMES,
        *_FIGURES,
        ("metadata", "jsonb", "TEXT"),
        ("is_background_task", "boolean", "INTEGER"),
        ("parent_run_id", "text", "TEXT"),
        ("task_id", "text", "TEXT"),
        ("background_error", "text", "TEXT"),
    ],
    "runs": [
        ("run_id", "text PRIMARY KEY", "TEXT PRIMARY KEY"),
        *_PIPELINE,
        ("status", "text", "TEXT"),
        *_TIMES,
        *_FIGURES,
    ],
    "steps": [
        _ID,
        _OF_RUN,
        ("step_name", "text", "TEXT"),
        ("step_index", "integer", "INTEGER"),
        ("status", "text", "TEXT"),
        ("output", "jsonb", "TEXT"),
        ("raw_response", "jsonb", "TEXT"),
        ("cost_usd", "real", "REAL"),
        ("token_counts", "integer", "INTEGER"),
        ("execution_time_ms", "integer", "INTEGER"),
        _TIMES[0],
    ],
    "traces": [
        (
            "run_id",
            "text PRIMARY KEY REFERENCES {s}runs ON DELETE CASCADE",
            "TEXT PRIMARY KEY REFERENCES runs (run_id)",
        ),
        ("trace_data", "jsonb", "TEXT"),
        _TIMES[0],
    ],
    "spans": [
        _ID,
        _OF_RUN,
        ("span_id", "text", "TEXT"),
        ("parent_span_id", "text", "TEXT"),
        ("name", "text", "TEXT"),
        ("start_time", "double precision", "REAL"),
        ("end_time", "double precision", "REAL"),
        ("status", "text", "TEXT"),
        ("attributes", "jsonb", "TEXT"),
        _TIMES[0],
    ],
    "system_state": [("key", "text PRIMARY KEY", "TEXT PRIMARY KEY"), ("value", "jsonb", "TEXT"), _TIMES[1]],
    "evaluations": [
        _ID,
        _OF_RUN,
        ("step_name", "text", "TEXT"),
        ("score", "double precision", "REAL"),
        ("feedback", "text", "TEXT"),
        ("metadata", "jsonb", "TEXT"),
        _TIMES[0],
    ],
}
LATE = {
    "workflow_state": [
        "total_steps", "error_message", "execution_time_ms", "memory_usage_mb", "metadata", "is_background_task",
        "parent_run_id", "task_id", "background_error",
    ],
    "steps": ["raw_response", "cost_usd", "token_counts"],
}  # fmt: skip
"""Columns that a database made long ago lacks."""
INDEXES = (
    "CREATE INDEX idx_workflow_state_status ON {s}workflow_state (status)",
    "CREATE INDEX idx_workflow_state_created_at ON {s}workflow_state (created_at)",
    "CREATE INDEX idx_workflow_state_pipeline_id ON {s}workflow_state (pipeline_id)",
    "CREATE INDEX idx_steps_run_id ON {s}steps (run_id)",
)
"""Some have the names of ours."""


def definitions(
    *, postgres: bool, schema: str = "", keys: bool = True, without: Mapping[str, Sequence[str]] | None = None
) -> list[str]:
    """What makes the tables, without some columns of some tables; ``keys``: with foreign keys."""
    found = []
    for table in ("runs", *(table for table in TABLES if table != "runs")):
        lacking = (without or {}).get(table, ())
        columns = [
            f"{name} {_keyless(kind, keys)}".format(s=schema)
            for name, *kinds in TABLES[table]
            for kind in [kinds[0 if postgres else 1]]
            if name not in lacking
        ]
        if columns:
            found.append(f"CREATE TABLE {schema}{table} ({', '.join(columns)})")
    return found + [index.format(s=schema) for index in INDEXES]


def _keyless(kind: str, keys: bool) -> str:
    return kind if keys else kind.partition(" REFERENCES")[0]


# --- what stands in them, and what it means ---------------------------------------------------------------------------

_TIME = datetime(2024, 5, 1, 12, tzinfo=UTC)
TIMES = {
    None: None,
    "2024-05-01T12:00:00": _TIME,
    "2024-05-01 12:00:01": _TIME.replace(second=1),
    "2024-05-01T12:00:02Z": _TIME.replace(second=2),
    "2024-05-01T14:00:03+02:00": _TIME.replace(second=3),
    "2024-05-01T12:00:04.123456+00:00": _TIME.replace(second=4, microsecond=123456),
    "2024-05-01T12:00:05.1234561Z": _TIME.replace(second=5, microsecond=123456),
    "2024-05-01 07:00:06.5-05": _TIME.replace(second=6, microsecond=500000),
}
STATUSES = {
    None: "running",
    "running": "running",
    "paused": "paused",
    "completed": "completed",
    "failed": "failed",
    "cancelled": "cancelled",
    "success": "completed",
    "Canceled": "cancelled",
    "error": "failed",
    "pending": "running",
}
OBJECTS = {
    None: {},
    "{}": {},
    '{"a": [1, 1.0, true, null], "é": "x"}': {"a": [1, 1.0, True, None], "é": "x"},
    '{"n": 123456789012345678901234567890}': {"n": 123456789012345678901234567890},
    '{"b": "q", "is_background_task": true}': {"b": "q", "is_background_task": True},
}
LISTS = {None: [], "[]": [], '[{"s": 1}, "two", 3.5]': [{"s": 1}, "two", 3.5]}
VALUES = {None: None, "null": None, "17": 17, '"text"': "text", '{"k": [2.5]}': {"k": [2.5]}}
SQLITE_VALUES = {"not JSON": "not JSON", "": "", '{"nan": NaN, "inf": -Infinity}': {"nan": math.nan, "inf": -math.inf}}
SQLITE_OBJECTS = {'{"context": NaN}': {"context": math.nan}}
TRACE = {
    "span_id": "s1", "name": "root", "start_time": 1.0, "end_time": 4.0, "status": "completed",
    "children": [{"span_id": "s9", "name": "leaf", "start_time": 2.0}],
}  # fmt: skip
BLANK = (None, "")


def some_rows(pick: Pick, run_ids: Sequence[str], *, sqlite: bool = False) -> Rows:
    """Rows of these runs, drawn from the pools. ``sqlite``: with what only its text columns hold."""
    values = [*VALUES, *(SQLITE_VALUES if sqlite else ())]
    contexts = [*OBJECTS, *(SQLITE_OBJECTS if sqlite else ())]
    times, rows = list(TIMES), {table: [] for table in TABLES}  # type: Any, Rows

    def figures() -> dict[str, Any]:
        return {
            "created_at": pick(times),
            "updated_at": pick(times),
            "status": pick(list(STATUSES)),
            "total_steps": pick((None, 0, 4)),
            "error_message": pick((None, "bad", "")),
            "execution_time_ms": pick((None, 0, 1500)),
            "memory_usage_mb": pick((None, 12.3, 0.1)),
        }

    def pipeline() -> dict[str, Any]:
        return {
            "pipeline_id": pick(("p1", "p2", "", "unknown")),
            "pipeline_name": pick(("One", "Two", "", "unknown")),
            "pipeline_version": pick(("1.0", "latest", "")),
        }

    for run_id in run_ids:
        where = pick(("both", "both", "state", "run", "neither"))
        if where in ("both", "state"):
            rows["workflow_state"].append(
                {
                    "run_id": run_id,
                    **pipeline(),
                    **figures(),
                    "current_step_index": pick((None, 0, 3)),
                    "pipeline_context": pick(contexts),
                    "last_step_output": pick(values),
                    "step_history": pick(list(LISTS)),
                    "metadata": pick(list(OBJECTS)),
                    "is_background_task": pick((None, 0, 1)),
                    "parent_run_id": pick((None, "", "parent")),
                    "task_id": pick((None, "", "t1")),
                    "background_error": pick((None, "lost")),
                }
            )
        if where in ("both", "run"):
            rows["runs"].append({"run_id": run_id, **pipeline(), **figures()})
        for _ in range(pick((0, 1, 2))):
            rows["steps"].append(
                {
                    "run_id": run_id,
                    "step_name": pick(("first", "second")),
                    "step_index": pick((0, 1)),
                    "status": pick((None, "success", "failed")),
                    "output": pick(values),
                    "raw_response": pick(values),
                    "cost_usd": pick((None, 0.1, 0.25)),
                    "token_counts": pick((None, 0, 77)),
                    "execution_time_ms": pick((None, 12)),
                    "created_at": pick(times),
                }
            )
        if pick((False, True)):
            rows["traces"].append({"run_id": run_id, "trace_data": json.dumps(TRACE), "created_at": pick(times)})
        for _ in range(pick((0, 1, 2))):
            rows["spans"].append(
                {
                    "run_id": run_id,
                    "span_id": pick(("s1", "s2")),
                    "parent_span_id": pick((None, "", "s1")),
                    "name": pick(("work", "", None)),
                    "start_time": pick((None, 0.0, 2.5)),
                    "end_time": pick((None, 3.25)),
                    "status": pick((None, "completed")),
                    "attributes": pick(list(OBJECTS)),
                    "created_at": pick(times),
                }
            )
        if where == "neither" or pick((False, True)):
            rows["evaluations"].append(
                {
                    "run_id": run_id,
                    "step_name": pick((None, "", "first")),
                    "score": pick((0.0, 0.5)),
                    "feedback": pick((None, "good")),
                    "metadata": pick(list(OBJECTS)),
                    "created_at": pick(times),
                }
            )
    for number, value in enumerate(values):
        rows["system_state"].append({"key": f"key{number}", "value": value, "updated_at": pick(times)})
    # As on disk: runs come in no order of theirs, and ids in the order of the table.
    for table in TABLES:
        rows[table].reverse()
    for table in ("steps", "spans", "evaluations"):
        rows[table] = [{"id": number, **row} for number, row in enumerate(rows[table], 1)]
    return rows


def dated(rows: Rows) -> Rows:
    """The same, but each run has a time, so that none has that of the test."""
    for its in by_run(rows).values():
        found = [row for table in its.values() for row in table]
        if not any(row.get(name) for row in found for name in ("created_at", "updated_at")):
            found[0]["created_at"] = "2024-05-01T12:00:00"
    return rows


def by_run(rows: Rows) -> dict[str, Rows]:
    """The rows of each run, by table."""
    found: dict[str, Rows] = {}
    for table in TABLES:
        for row in rows[table] if table != "system_state" else ():
            found.setdefault(row["run_id"], {table: [] for table in TABLES})[table].append(row)
    return found


_VALUES: dict[Any, Any] = {**VALUES, **SQLITE_VALUES}
_OBJECTS: dict[Any, Any] = {**OBJECTS, **SQLITE_OBJECTS}


def expected(run_id: str, its: Rows) -> dict[str, Any]:
    """What the public methods have to answer for a run with these rows, in the words of the pools."""
    state, record = (its[table][0] if its[table] else None for table in ("workflow_state", "runs"))
    known = [TIMES[row.get("created_at")] or TIMES[row.get("updated_at")] for row in (state, record) if row]
    every = [TIMES[row.get(name)] for found in its.values() for row in found for name in ("created_at", "updated_at")]
    began = min(filter(None, known), default=None) or min(filter(None, every), default=NOW)

    def last(row: dict[str, Any]) -> datetime:
        return TIMES[row.get("updated_at")] or TIMES[row.get("created_at")] or began

    both = sorted((row for row in (record, state) if row), key=last)
    steps = [TIMES[row.get("created_at")] or began for row in its["steps"]]
    costs = [Decimal(str(row["cost_usd"])) for row in its["steps"] if row.get("cost_usd") is not None]

    def figure(name: str, default: Any = None) -> Any:
        found = [row.get(name) for row in both if row.get(name) is not None]
        return found[-1] if found else default

    def identity(part: str, filler: str | None) -> Any:
        found = [row[part] for row in (state, record) if row and row[part] not in ("", "unknown", "latest")]
        return found[0] if found else filler

    status = STATUSES[(state or record or {"status": None})["status"]]
    metadata: Any = OBJECTS[(state or {}).get("metadata")]
    updated = max([*map(last, both), *steps], default=began)
    pipeline_id = identity("pipeline_id", "unknown")
    return {
        "listed": bool(both),
        "row": {
            "run_id": run_id,
            "pipeline_id": pipeline_id,
            "pipeline_name": identity("pipeline_name", None) or pipeline_id,
            "pipeline_version": identity("pipeline_version", "latest"),
            "status": status,
            "created_at": began,
            "updated_at": updated,
            "start_time": began,
            "end_time": updated if status in ("completed", "failed", "cancelled") else None,
            "current_step_index": (state or {}).get("current_step_index") or 0,
            "total_steps": figure("total_steps", 0),
            "error_message": figure("error_message"),
            "execution_time_ms": _float(figure("execution_time_ms")),
            "memory_usage_mb": figure("memory_usage_mb"),
            "total_cost": float(sum(costs)) if costs else None,
            "metadata": metadata,
            "is_background_task": bool((state or {}).get("is_background_task")) or "is_background_task" in metadata,
            "parent_run_id": (state or {}).get("parent_run_id") or None,
            "task_id": (state or {}).get("task_id") or None,
            "background_error": (state or {}).get("background_error"),
            "revision": 1 if state else 0,
        },
        "state": _expected_state(state, began, last(state)) if state else None,
        "steps": [_expected_step(row, began) for row in sorted(its["steps"], key=lambda row: row["step_index"])],
        "trace": TRACE if its["traces"] else None,
        "spans": _expected_spans(its["spans"], its["traces"], began),
        "evaluations": [
            {
                "run_id": run_id,
                "step_name": row["step_name"] or None,
                "score": row["score"],
                "feedback": row["feedback"],
                "metadata": OBJECTS[row["metadata"]],
                "created_at": TIMES[row["created_at"]] or began,
            }
            for row in its["evaluations"]
        ],
    }


def _float(value: Any) -> float | None:
    return None if value is None else float(value)


def _expected_state(row: dict[str, Any], created_at: datetime, updated_at: datetime) -> dict[str, Any]:
    fillers = {"pipeline_id": "unknown", "pipeline_name": "unknown", "pipeline_version": "latest"}
    return {
        "run_id": row["run_id"],
        **{part: row[part] or filler for part, filler in fillers.items()},
        "current_step_index": row["current_step_index"] or 0,
        "pipeline_context": _OBJECTS[row["pipeline_context"]],
        "last_step_output": _VALUES[row["last_step_output"]],
        "step_history": LISTS[row["step_history"]],
        "status": STATUSES[row["status"]],
        "created_at": created_at,
        "updated_at": updated_at,
        "total_steps": row.get("total_steps") or 0,
        **{name: row.get(name) for name in ("error_message", "execution_time_ms", "memory_usage_mb")},
        "metadata": OBJECTS[row.get("metadata")],
        "is_background_task": bool(row.get("is_background_task")),
        **{name: row.get(name) or None for name in ("parent_run_id", "task_id", "background_error")},
        "revision": 1,
    }


def _expected_step(row: dict[str, Any], began: datetime) -> dict[str, Any]:
    return {
        **{name: row.get(name) for name in ("run_id", "step_name", "step_index", "cost_usd", "token_counts")},
        "status": row["status"] or "completed",
        "output": _VALUES[row["output"]],
        "raw_response": _VALUES[row.get("raw_response")],
        "execution_time_ms": row["execution_time_ms"],
        "created_at": TIMES[row["created_at"]] or began,
        **dict.fromkeys(("step_run_id", "record_id", "start_time", "end_time", "input", "error")),
    }


def _expected_spans(rows: list[dict[str, Any]], traces: list[dict[str, Any]], began: datetime) -> list[dict[str, Any]]:
    spans: dict[str, dict[str, Any]] = {}
    for row in traces:
        leaf: dict[str, Any] = TRACE["children"][0]  # type: ignore[index]
        for node, parent in ((TRACE, None), (leaf, "s1")):
            spans[str(node["span_id"])] = {
                **{name: node.get(name) for name in ("span_id", "name", "start_time", "end_time")},
                "parent_span_id": parent,
                "status": node.get("status", "running"),
                "attributes": {},
                "created_at": TIMES[row["created_at"]] or began,
            }
    for row in rows:
        spans[row["span_id"]] = {
            "span_id": row["span_id"],
            "name": row["name"] or "span",
            "start_time": row["start_time"] or 0.0,
            "end_time": row["end_time"],
            "parent_span_id": row["parent_span_id"] or None,
            "status": row["status"] or "running",
            "attributes": OBJECTS[row["attributes"]],
            "created_at": TIMES[row["created_at"]] or began,
        }
    return sorted(spans.values(), key=lambda span: span["start_time"])


# --- what is found ----------------------------------------------------------------------------------------------------


async def check(backend: StateBackend, rows: Rows) -> list[Any]:
    """That the public methods find all of it; what they answer."""
    answers: list[Any] = []
    runs = {run_id: expected(run_id, its) for run_id, its in by_run(rows).items()}
    for run_id, wanted in sorted(runs.items()):
        found = await _found(backend, run_id, with_trace=wanted["trace"] is not None)
        for part, value in found.items():
            assert same(value, wanted[part]), (run_id, part, value, wanted[part])
        answers.append(found)
    listed = [one["row"] for one in runs.values() if one["listed"]]
    listed.sort(key=lambda row: (row["created_at"], row["run_id"]), reverse=True)
    filters: list[tuple[dict[str, Any], Callable[[dict[str, Any]], bool]]] = [
        ({}, lambda row: True),
        ({"metadata_filter": {"b": "q"}}, lambda row: row["metadata"].get("b") == "q"),
        ({"metadata_filter": {"a": [True]}}, lambda row: "a" in row["metadata"]),
        ({"is_background_task": True}, lambda row: row["is_background_task"]),
        ({"pipeline_name": "One"}, lambda row: row["pipeline_name"] == "One"),
        *(({"status": status}, _has("status", status)) for status in set(STATUSES.values())),
    ]
    for given, holds in filters:
        wanted_rows = list(filter(holds, listed))
        found_rows = await backend.list_runs(**given)
        assert same(found_rows, wanted_rows), given
        assert [row["run_id"] for row in found_rows] == [row["run_id"] for row in wanted_rows]
        assert await backend.count_runs(**given) == len(wanted_rows)
    for row in rows["system_state"]:
        kept = await backend.get_system_state(row["key"])
        assert kept is not None
        assert same(kept["value"], _VALUES[row["value"]])
        if row["updated_at"]:
            assert kept["updated_at"] == TIMES[row["updated_at"]]
        answers.append((row["key"], kept["value"]))
    return answers


def _has(name: str, value: str) -> Callable[[dict[str, Any]], bool]:
    return lambda row: bool(row[name] == value)


def same(one: Any, other: Any) -> bool:
    """With the types, and NaN; whatever the order of keys."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and repr(one) == repr(other)


async def _found(backend: StateBackend, run_id: str, *, with_trace: bool) -> dict[str, Any]:
    row = await backend.get_run_details(run_id)
    assert row is not None
    assert row.pop("final_context") is None
    return {
        "row": row,
        "state": await backend.load_state(run_id),
        "steps": await backend.list_run_steps(run_id),
        # Spans alone may have parents in a cycle.
        "trace": await backend.get_trace(run_id) if with_trace else None,
        "spans": await backend.get_spans(run_id),
        "evaluations": await backend.list_evaluations(None, run_id),
    }
