"""What does the suite have to know about a backend? How to get handles onto the same data, and how to empty it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from flujo_core import StateBackend, open_backend


class Harness(ABC):
    """Subclass it for a backend, or use `UriHarness`.

    A *namespace* is a place of its own, such as a file or a schema; two handles opened on one namespace see the same
    data, two namespaces nothing of each other.
    """

    name: ClassVar[str] = "backend"

    @abstractmethod
    def open(self, namespace: str) -> StateBackend:
        """A new handle. It is shut down by the suite."""

    @abstractmethod
    async def wipe(self, namespace: str) -> None:
        """Remove all data of the namespace; handles on it are closed, and it may not exist yet."""


class UriHarness(Harness):
    """A harness for a URI with ``{namespace}`` in it: each namespace is a database of its own, emptied run by run."""

    def __init__(self, uri: str, **settings: Any) -> None:
        self.name = uri.partition(":")[0]  # type: ignore[misc]
        self._uri = uri
        self._settings = settings

    def open(self, namespace: str) -> StateBackend:
        return open_backend(self._uri.replace("{namespace}", namespace), **self._settings)

    async def wipe(self, namespace: str) -> None:
        async with self.open(namespace) as backend:
            async for row in backend.iter_runs():
                await backend.delete_run(row["run_id"])
