"""Which backends filter by metadata wrongly (M1 to M4)?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from flujo_core.containment import contains, filter_terms
from flujo_core.errors import InvalidStateError
from flujo_core.memory import MemoryBackend, MemoryStore, _StoredState
from flujo_core.model import RunInfo, State
from flujo_core.store import RunQuery, RunRow

from .registry import breaks


class _Filtering(MemoryStore):
    """Base of those that have other ideas of containment."""

    def _select(self, query: RunQuery) -> list[RunRow]:
        rows = super()._select(replace(query, metadata_filter=None))
        wanted = query.metadata_filter
        if wanted is None:
            return rows
        return [row for row in rows if self.holds(self._data.runs[row.run_id].metadata, wanted)]

    def holds(self, outer: Any, inner: Any) -> bool:
        if isinstance(inner, Mapping):
            return isinstance(outer, dict) and all(self.entry(outer, key, item) for key, item in inner.items())
        if isinstance(inner, list):
            return isinstance(outer, list) and self.array(outer, inner)
        return not isinstance(outer, (dict, list)) and self.equal(outer, inner)

    def entry(self, outer: dict[str, Any], key: str, inner: Any) -> bool:
        return key in outer and self.holds(outer[key], inner)

    def array(self, outer: list[Any], inner: list[Any]) -> bool:
        return all(any(self.holds(one, other) for one in outer) for other in inner)

    def equal(self, outer: Any, inner: Any) -> bool:
        return contains(outer, inner)


@breaks("M1")
class ListEquality(_Filtering):
    """Arrays are compared as wholes."""

    def array(self, outer: list[Any], inner: list[Any]) -> bool:
        return outer == inner


@breaks("M1")
class ArraysInOrder(_Filtering):
    """The elements of the filter's array must come in its order."""

    def array(self, outer: list[Any], inner: list[Any]) -> bool:
        rest = iter(outer)
        return all(any(self.holds(one, other) for one in rest) for other in inner)


@breaks("M1")
class EachElementOnce(_Filtering):
    """An element of the run's array stands for one of the filter's only."""

    def array(self, outer: list[Any], inner: list[Any]) -> bool:
        return len(outer) >= len(inner) and super().array(outer, inner)


@breaks("M1")
class ScalarInArray(_Filtering):
    """An array contains a scalar."""

    def holds(self, outer: Any, inner: Any) -> bool:
        if isinstance(outer, list) and not isinstance(inner, (list, Mapping)):
            return self.array(outer, [inner])
        return super().holds(outer, inner)


@breaks("M1")
class ElementsPooled(_Filtering):
    """The members of an array's objects are searched together, as an index of paths does."""

    def array(self, outer: list[Any], inner: list[Any]) -> bool:
        objects = [one for one in inner if isinstance(one, dict)]
        return super().array(outer, [one for one in inner if not isinstance(one, dict)]) and all(
            any(isinstance(one, dict) and self.entry(one, key, item) for one in outer)
            for wanted in objects
            for key, item in wanted.items()
        )


@breaks("M1")
class ObjectEquality(_Filtering):
    """Objects within are compared as wholes."""

    def entry(self, outer: dict[str, Any], key: str, inner: Any) -> bool:
        return outer.get(key) == inner if isinstance(inner, dict) and inner else super().entry(outer, key, inner)


@breaks("M1")
class BoolAsInt(_Filtering):
    """True is 1."""

    def equal(self, outer: Any, inner: Any) -> bool:
        return bool(outer == inner)


@breaks("M1")
class IntsAndFloatsDiffer(_Filtering):
    """1 is not 1.0."""

    def equal(self, outer: Any, inner: Any) -> bool:
        return type(outer) is type(inner) and contains(outer, inner)


@breaks("M1")
class NumbersAsFloats(_Filtering):
    """Numbers are compared as floats."""

    def equal(self, outer: Any, inner: Any) -> bool:
        numbers = all(type(value) in (int, float) and abs(value) < 10**300 for value in (outer, inner))
        return float(outer) == float(inner) if numbers else contains(outer, inner)


@breaks("M1")
class ValuesAsText(_Filtering):
    """1 is "1"."""

    def equal(self, outer: Any, inner: Any) -> bool:
        return contains(outer, inner) or (str(outer) == str(inner) and type(outer) in (int, str))


@breaks("M1")
class TextWithoutCase(_Filtering):
    """Text is compared without regard to case."""

    def equal(self, outer: Any, inner: Any) -> bool:
        both = isinstance(outer, str) and isinstance(inner, str)
        return outer.lower() == inner.lower() if both else contains(outer, inner)


@breaks("M1")
class TextWithin(_Filtering):
    """Text is found within text."""

    def equal(self, outer: Any, inner: Any) -> bool:
        both = isinstance(outer, str) and isinstance(inner, str)
        return inner in outer if both else contains(outer, inner)


@breaks("M1")
class NullIsMissing(_Filtering):
    """None in a filter matches a key that is not there."""

    def entry(self, outer: dict[str, Any], key: str, inner: Any) -> bool:
        return (inner is None and key not in outer) or super().entry(outer, key, inner)


@breaks("M1")
class TopLevelOnly(_Filtering):
    """Only the first key of a filter counts."""

    def holds(self, outer: Any, inner: Any) -> bool:
        return super().holds(outer, dict(list(inner.items())[:1]) if isinstance(inner, Mapping) else inner)


@breaks("M1")
class OldMetadataStays(MemoryStore):
    """A filter still finds what a run's metadata was before."""

    def _select(self, query: RunQuery) -> list[RunRow]:
        if not query.metadata_filter:
            return super()._select(query)
        ids = {row.run_id for row in super()._select(query)}
        old = {run.row.run_id for run in self._candidates(query)}
        return [row for row in super()._select(replace(query, metadata_filter=None)) if row.run_id in ids | old]

    def _index(self, run: _StoredState, terms: set[int]) -> None:
        super()._index(run, run.terms | terms if run.row.run_id in self._data.runs and terms else terms)


@breaks("M2", "M1")
class DottedPaths(_Filtering):
    """A dot in a key of a filter is a path."""

    def entry(self, outer: dict[str, Any], key: str, inner: Any) -> bool:
        first, dot, rest = key.partition(".")
        if dot and isinstance(outer.get(first), dict):
            return self.entry(outer[first], rest, inner)
        return super().entry(outer, key, inner)


@breaks("M2")
class KeysByPrefix(_Filtering):
    """A key of a filter finds those that begin with it."""

    def entry(self, outer: dict[str, Any], key: str, inner: Any) -> bool:
        return any(self.holds(item, inner) for name, item in outer.items() if name.startswith(key))


@breaks("M2")
class KeysAsPatterns(_Filtering):
    """% in a key of a filter is any key."""

    def entry(self, outer: dict[str, Any], key: str, inner: Any) -> bool:
        anywhere = key == "%" and any(self.holds(item, inner) for item in outer.values())
        return anywhere or super().entry(outer, key, inner)


@breaks("M2")
class QuotesBreakKeys(_Filtering):
    """A quote in a key of a filter finds nothing."""

    def entry(self, outer: dict[str, Any], key: str, inner: Any) -> bool:
        return '"' not in key and super().entry(outer, key, inner)


@breaks("M2")
class EmptyFilterFindsNothing(MemoryBackend):
    """An empty filter matches no run."""

    async def list_runs(self, *args: Any, **kwargs: Any) -> list[RunInfo]:
        return [] if kwargs.get("metadata_filter") == {} else await super().list_runs(*args, **kwargs)


@breaks("M2")
class EmptyListIsAFilter(MemoryBackend):
    """An empty list is an empty filter."""

    async def count_runs(self, *args: Any, **kwargs: Any) -> int:
        return await super().count_runs(*args, **kwargs | {"metadata_filter": kwargs.get("metadata_filter") or None})


@breaks("M3")
class NanInMetadataAsNull(MemoryBackend):
    """NaN in metadata is kept as None."""

    async def save_state(self, run_id: str, state: State, *, expected_revision: int | None = None) -> int:
        try:
            return await super().save_state(run_id, state, expected_revision=expected_revision)
        except InvalidStateError as error:
            if "nan" not in str(error):
                raise
            return await super().save_state(run_id, {**state, "metadata": {}}, expected_revision=expected_revision)


@breaks("M3")
class MetadataNormalised(MemoryBackend):
    """Metadata comes back in rows as jsonb has it, with sorted keys."""

    async def _rows(self, query: RunQuery) -> list[RunInfo]:
        rows = await super()._rows(query)
        for row in rows:
            row["metadata"] = dict(sorted(row["metadata"].items()))
        return rows


class _Searching(MemoryStore):
    """Base of those that look at some of the candidates only."""

    def some(self, candidates: list[_StoredState]) -> Iterable[_StoredState]:
        raise NotImplementedError

    def _candidates(self, query: RunQuery) -> Iterable[_StoredState]:
        found = list(super()._candidates(query))
        return self.some(found) if query.metadata_filter else found


@breaks("M4")
class SearchGivesUp(_Searching):
    """A search looks at no more than 100 runs."""

    def some(self, candidates: list[_StoredState]) -> Iterable[_StoredState]:
        return candidates[:100]


@breaks("M1", "M4")
class CandidatesUnchecked(_Searching):
    """What the index finds is not compared with the filter."""

    def _select(self, query: RunQuery) -> list[RunRow]:
        if not query.metadata_filter:
            return super()._select(query)
        terms = filter_terms(dict(query.metadata_filter))
        plain = super()._select(replace(query, metadata_filter=None))
        return [row for row in plain if self._data.runs[row.run_id].terms >= terms]


@breaks("M4")
class RarestTermOnly(_Searching):
    """A filter finds all runs that hold its rarest value, whatever else it asks for."""

    def _select(self, query: RunQuery) -> list[RunRow]:
        found = {run.row.run_id for run in self._candidates(query)} if query.metadata_filter else None
        rows = super()._select(replace(query, metadata_filter=None))
        return [row for row in rows if found is None or row.run_id in found]

    def some(self, candidates: list[_StoredState]) -> Iterable[_StoredState]:
        return candidates
