"""What does the suite have to know about a backend? How to get handles onto the same data, and how to empty it."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from flujo_core import StateBackend, open_backend
from flujo_core.registry import find_plugin

Tables = dict[str, list[dict[str, Any]]]
"""What is stored, by table (or whatever the database has): rows, by column."""

NO_RAW_READER: Final = "the harness has no raw reader: override Harness.raw"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exempt:
    """A test that a backend is known to fail. It must go on failing: once it passes, the exemption is to be removed."""

    reason: str
    link: str
    """Where the reason can be read up: an issue, a page of the database's manual."""

    def __post_init__(self) -> None:
        if not self.reason.strip() or not self.link.startswith(("https://", "http://")):
            raise ValueError(f"an exemption needs a reason and an http(s) link: {self!r}")


class Harness(ABC):
    """Subclass it for a backend, or use `UriHarness`.

    A *namespace* is a place of its own, such as a file or a schema: handles opened on one namespace see the same data,
    handles on different ones nothing of each other. A harness can be pickled: some tests open handles in other
    processes. With ``--jobs`` several are made and used at once: as those of `UriHarness` do, each then keeps its
    namespaces apart from the others', by a random token in their places for instance.
    """

    durable: bool = True
    """Whether what was saved outlives the process, as `BackendSpec.durable` says."""
    shared: bool = True
    """Whether several processes may use one namespace at the same time, as `BackendSpec.shared` says."""
    exemptions: Mapping[str, Exempt] = {}
    """By the name of the test. Rules that core keeps can't be exempted."""

    @abstractmethod
    def open(self, namespace: str, **settings: Any) -> StateBackend:
        """A new handle, with these settings of the backend over the harness's own. Whoever opens it shuts it down."""

    @abstractmethod
    async def wipe(self, namespace: str) -> None:
        """Remove all data of the namespace. No handle on it is open; it may not exist yet."""

    async def raw(self, namespace: str) -> Tables | None:
        """All that is stored in the namespace, read behind the backend's back by a connection of the harness's own.

        Every table whose rows a caller's writes add to, change or remove, indexes kept in tables too; values as the
        database gives them. None: it can't be told, and the tests that need it are not run.
        """
        return None

    async def database(self) -> str:
        """Name and version of what is behind the backend, such as ``PostgreSQL 16.4``, for the report."""
        return ""

    async def remove(self) -> None:  # noqa: B027 - most have nothing to remove
        """All tests are over: remove what wiping left behind."""


class UriHarness(Harness):
    """A harness for a URI with ``{namespace}`` in it, such as ``sqlite:////tmp/x/{namespace}.db``.

    Every harness has places of its own. Wiping goes on to a fresh one and leaves the old one where it is.
    """

    def __init__(self, uri: str, **settings: Any) -> None:
        if "{namespace}" not in uri:
            raise ValueError(f"{uri!r} has no {{namespace}}; put it where one database differs from another")
        spec = find_plugin(uri.partition(":")[0])
        self.durable, self.shared = spec.durable, spec.shared
        self._uri = uri
        self._settings = settings
        self._own = secrets.token_hex(3)
        self._wiped: Counter[str] = Counter()

    def uri(self, namespace: str) -> str:
        """Where the data of a namespace is now."""
        return self._uri.replace("{namespace}", f"{namespace}_{self._own}_{self._wiped[namespace]}")

    def open(self, namespace: str, **settings: Any) -> StateBackend:
        return open_backend(self.uri(namespace), **(self._settings | settings))

    async def wipe(self, namespace: str) -> None:
        self._wiped[namespace] += 1
