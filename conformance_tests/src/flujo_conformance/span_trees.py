"""Which spans are in a trace, which tree do spans make, and what do their durations amount to? (T1 to T3)"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime
from math import fsum
from typing import Any

from flujo_conformance import fields
from flujo_conformance.json_values import MAX_DEPTH, fresh, refuse

SPAN_CHECKS: dict[str, fields.Check] = {
    "span_id": fields.identifier,
    "parent_span_id": fields.optional(fields.identifier),
    "name": fields.identifier,
    "start_time": fields.optional(fields.number),
    "end_time": fields.optional(fields.number),
    "status": fields.label,
    "attributes": fields.optional(fields.json_object),
    "created_at": fields.optional(fields.timestamp),
}

Span = dict[str, Any]


def complete_span(given: Mapping[str, Any], now: datetime) -> Span:
    """A checked span with all its keys, the caller's own ones last."""
    start_time, end_time = given.get("start_time"), given.get("end_time")
    known = {
        "span_id": given["span_id"],
        "parent_span_id": given.get("parent_span_id"),
        "name": given.get("name", "span"),
        "start_time": 0.0 if start_time is None else float(start_time),
        "end_time": None if end_time is None else float(end_time),
        "status": given.get("status", "running"),
        "attributes": given.get("attributes") or {},
        "created_at": given.get("created_at") or now,
    }
    return known | {key: value for key, value in given.items() if key not in known}


def spans_in_trace(trace: dict[str, Any], now: datetime) -> Iterator[Span]:
    """The nodes of a normalised trace that are spans, in document order, each with its parent's id."""
    waiting: list[tuple[dict[str, Any], str, int, str | None]] = [(trace, "$", 1, None)]
    while waiting:
        node, path, level, parent = waiting.pop()
        if level > MAX_DEPTH:
            refuse(path, f"a trace has at most {MAX_DEPTH} levels of nodes")
        span_id = node.get("span_id")
        if span_id is not None and node.get("name") is not None:
            own = {key: value for key, value in node.items() if key != "children"}
            for key, check in SPAN_CHECKS.items():
                if key in own and key != "attributes":
                    own[key] = check(own[key], f"{path}.{key}")
            if not isinstance(own.get("attributes", {}), (dict, type(None))):
                refuse(f"{path}.attributes", "the attributes of a span are an object")
            if own.get("parent_span_id") is None:
                own["parent_span_id"] = parent
            yield fresh(complete_span(own, now))
            parent = span_id
        children = node.get("children")
        if children is None:
            continue
        if not isinstance(children, list):
            refuse(f"{path}.children", "the children of a node are a list")
        for place in range(len(children) - 1, -1, -1):
            where = f"{path}.children[{place}]"
            if not isinstance(children[place], dict):
                refuse(where, "a child is an object")
            waiting.append((children[place], where, level + 1, parent))


def in_order(spans: Mapping[str, Span]) -> list[Span]:
    """Spans in the order of get_spans: by start_time, then as they were saved."""
    return sorted(spans.values(), key=lambda span: float(span["start_time"]))


def rebuild_trace(spans: Mapping[str, Span]) -> dict[str, Any] | None:
    """The tree of a run that has spans only; a cycle is an error."""
    nodes: dict[str, dict[str, Any]] = {}
    for span in in_order(spans):
        kept = {key: value for key, value in span.items() if key not in ("created_at", "children")}
        nodes[span["span_id"]] = {**fresh(kept), "children": []}
    roots: list[dict[str, Any]] = []
    for node in nodes.values():
        parent = nodes.get(node["parent_span_id"])
        (roots if parent is None else parent["children"]).append(node)
    reached = list(roots)
    for node in reached:  # grows while it is read
        reached.extend(node["children"])
    if len(reached) < len(nodes):
        refuse("$", "the spans of this run are their own ancestors; save them again with other parents")
    if len(roots) < 2:
        return roots[0] if roots else None
    ends = [root["end_time"] for root in roots]
    return {
        "span_id": "__root__",
        "parent_span_id": None,
        "name": "root",
        "start_time": min(root["start_time"] for root in roots),
        "end_time": None if None in ends else max(ends),
        "status": "synthetic",
        "attributes": {},
        "children": roots,
    }


def statistics(spans: list[Span]) -> dict[str, Any]:
    """The numbers of get_span_statistics over finished spans."""
    durations: dict[str, list[float]] = {}
    for span in spans:
        durations.setdefault(span["name"], []).append(span["end_time"] - span["start_time"])
    return {
        "total_spans": len(spans),
        "by_name": dict(Counter(span["name"] for span in spans)),
        "by_status": dict(Counter(span["status"] for span in spans)),
        "avg_duration_by_name": {
            name: {"total": fsum(all_of), "count": len(all_of), "average": fsum(all_of) / len(all_of)}
            for name, all_of in durations.items()
        },
    }
