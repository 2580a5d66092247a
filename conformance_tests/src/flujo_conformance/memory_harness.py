"""How do the tests of the suite get handles onto data in memory, and look at it behind the backend's back?"""

from __future__ import annotations

from typing import Any

from flujo_core.memory import _NAMED, _Data

from .harness import Tables, UriHarness


class MemoryHarness(UriHarness):
    def __init__(self, uri: str = "memory://{namespace}", **settings: Any) -> None:
        super().__init__("memory://{namespace}" if uri == "memory://" else uri, **settings)

    async def database(self) -> str:
        return "memory"

    async def raw(self, namespace: str) -> Tables:
        return tables_of(_NAMED[self.uri(namespace).removeprefix("memory://")])


def tables_of(data: _Data) -> Tables:
    """Everything in the memory of the reference store."""
    with data.lock:
        runs = data.runs
        heads = [{**run.row._asdict(), "snapshot": run.snapshot, "metadata": run.metadata} for run in runs.values()]
        return {
            "runs": heads,
            "history": [{"run_id": key, **entry._asdict()} for key, run in runs.items() for entry in run.history],
            "steps": [{"run_id": key, **step._asdict()} for key, run in runs.items() for step in run.steps],
            "spans": [{"run_id": key, **span._asdict()} for key, run in runs.items() for span in run.spans.values()],
            "traces": [{"run_id": key, "document": run.trace} for key, run in runs.items() if run.trace is not None],
            "details": [
                {"run_id": key, "key": name, "document": document}
                for key, run in runs.items()
                for name, document in run.details.items()
            ],
            "evaluations": [{"run_id": key, **each._asdict()} for key, run in runs.items() for each in run.evaluations],
            "terms": [{"run_id": key, "term": term} for term, holders in data.holders.items() for key in holders],
            "system": [{"key": key, "document": document} for key, document in data.system.items()],
        }
