"""How does a tree become spans, and how do spans become a tree (T1, T2)? Without recursion: trees come from users."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from .codec import MAX_DEPTH
from .errors import InvalidStateError
from .validation import checked_span

ROOT_ID: Final = "__root__"
"""The span_id of the root that is made for several roots."""


def spans_of(trace: dict[str, Any], now: datetime) -> list[dict[str, Any]]:
    """The spans of a normalized trace, in the order of the document, checked; each span_id once, its last one."""
    spans: dict[str, dict[str, Any]] = {}
    waiting: list[tuple[dict[str, Any], str | None, int]] = [(trace, None, 1)]
    while waiting:
        node, parent_id, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise InvalidStateError(f"the trace has more than {MAX_DEPTH} levels of nodes", path="$")
        children = node.get("children")
        if children is not None and not (isinstance(children, list) and all(isinstance(x, dict) for x in children)):
            raise InvalidStateError("children of a trace's node are not a list of objects", path="$.children")
        if node.get("span_id") is not None and node.get("name") is not None:
            content = {key: value for key, value in node.items() if key != "children"}
            if content.get("parent_span_id") is None:
                content["parent_span_id"] = parent_id
            span = checked_span(content, now)
            parent_id = span["span_id"]
            spans[parent_id] = span
        waiting.extend((child, parent_id, depth + 1) for child in reversed(children or []))
    return list(spans.values())


def tree_of(spans: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The tree that spans, in the order of get_spans, make; None for none; `InvalidStateError` for a cycle."""
    if not spans:
        return None
    nodes = {
        span["span_id"]: {key: value for key, value in span.items() if key != "created_at"} | {"children": []}
        for span in spans
    }
    roots: list[dict[str, Any]] = []
    for node in nodes.values():
        parent = nodes.get(node["parent_span_id"])
        (roots if parent is None else parent["children"]).append(node)
    # What can't be reached from a root hangs in a cycle.
    reached, waiting = 0, list(roots)
    while waiting:
        reached += 1
        waiting.extend(waiting.pop()["children"])
    if reached < len(nodes):
        raise InvalidStateError("the spans' parents form a cycle, so they make no tree")
    return roots[0] if len(roots) == 1 else _synthetic_root(roots)


def _synthetic_root(roots: list[dict[str, Any]]) -> dict[str, Any]:
    ends = [root["end_time"] for root in roots]
    return {
        "span_id": ROOT_ID,
        "parent_span_id": None,
        "name": "root",
        "start_time": min(root["start_time"] for root in roots),
        "end_time": None if None in ends else max(ends),
        "status": "synthetic",
        "attributes": {},
        "children": roots,
    }
