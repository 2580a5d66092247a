"""What does the suite have to know about a backend? How to get handles onto the same data, and how to empty it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from typing import Any

from flujo_core import StateBackend, open_backend


class Harness(ABC):
    """Subclass it for a backend, or use `UriHarness`.

    A *namespace* is a place of its own, such as a file or a schema: handles opened on one namespace see the same data,
    handles on different ones nothing of each other.
    """

    @abstractmethod
    def open(self, namespace: str) -> StateBackend:
        """A new handle. Whoever opens it shuts it down."""

    @abstractmethod
    async def wipe(self, namespace: str) -> None:
        """Remove all data of the namespace. No handle on it is open; it may not exist yet."""


class UriHarness(Harness):
    """A harness for a URI with ``{namespace}`` in it, such as ``sqlite:////tmp/x/{namespace}.db``.

    Wiping goes on to a fresh database and leaves the old one where it is.
    """

    def __init__(self, uri: str, **settings: Any) -> None:
        self._uri = uri
        self._settings = settings
        self._wiped: Counter[str] = Counter()

    def open(self, namespace: str) -> StateBackend:
        place = f"{namespace}_{self._wiped[namespace]}"
        return open_backend(self._uri.replace("{namespace}", place), **self._settings)

    async def wipe(self, namespace: str) -> None:
        self._wiped[namespace] += 1
