"""Which runs does a caller ask for? The filters of lists, counts and iterations, checked."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypedDict

from .errors import InvalidStateError
from .store import RunQuery
from .timestamps import instant
from .validation import flag, metadata, natural, optional_identifier, optional_natural, run_status


class Filters(TypedDict, total=False):
    """More conditions of lists, counts and iterations; all given ones hold together. The times are strict bounds."""

    pipeline_id: str | None
    parent_run_id: str | None
    is_background_task: bool | None
    created_after: datetime | str | None
    created_before: datetime | str | None
    updated_after: datetime | str | None
    updated_before: datetime | str | None


_TIMES = ("created_after", "created_before", "updated_after", "updated_before")


def run_query(
    status: str | None,
    pipeline_name: str | None,
    metadata_filter: Mapping[str, Any] | None,
    filters: Filters,
    *,
    limit: int | None = None,
    offset: int = 0,
) -> RunQuery:
    """The query that the arguments of `StateBackend.list_runs` mean; `InvalidStateError` for a wrong one."""
    unknown = set(filters) - set(Filters.__annotations__)
    if unknown:
        raise TypeError(f"unknown filter {min(unknown)!r}; the known ones are {', '.join(Filters.__annotations__)}")
    if metadata_filter is not None and not isinstance(metadata_filter, Mapping):
        raise InvalidStateError(
            f"metadata_filter is a {type(metadata_filter).__name__}, not a dict", path="$.metadata_filter"
        )
    contained = metadata(metadata_filter if metadata_filter is None else dict(metadata_filter), "metadata_filter")
    given: Mapping[str, Any] = filters
    times: dict[str, Any] = {name: instant(given[name], name) for name in _TIMES if given.get(name) is not None}
    return RunQuery(
        statuses=None if status is None else (run_status(status),),
        pipeline_name=optional_identifier(pipeline_name, "pipeline_name"),
        pipeline_id=optional_identifier(filters.get("pipeline_id"), "pipeline_id"),
        parent_run_id=optional_identifier(filters.get("parent_run_id"), "parent_run_id"),
        is_background_task=flag(filters.get("is_background_task"), "is_background_task"),
        metadata_filter=contained or None,
        limit=optional_natural(limit, "limit"),
        offset=natural(offset, "offset"),
        **times,
    )
