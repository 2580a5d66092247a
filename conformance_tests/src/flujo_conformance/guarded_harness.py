"""Who is to blame, the backend or the harness? What a harness does wrong is said to be its own fault."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from flujo_core import StateBackend
from flujo_core.errors import FlujoStateError

from .harness import Harness, Tables


class HarnessError(Exception):
    """The harness failed: nothing is said about the backend."""


class GuardedHarness(Harness):
    """The same harness; whatever it raises but errors of ours is a `HarnessError`."""

    def __init__(self, harness: Harness) -> None:
        self.guarded = harness
        self.durable, self.shared = harness.durable, harness.shared
        # Once: they are what they were when the run began.
        self.exemptions = dict(harness.exemptions)

    def open(self, namespace: str, **settings: Any) -> StateBackend:
        with _blamed("open"):
            backend = self.guarded.open(namespace, **settings)
            if not isinstance(backend, StateBackend):
                raise TypeError(f"a {type(backend).__name__} is no StateBackend")
            return backend

    async def wipe(self, namespace: str) -> None:
        with _blamed("wipe"):
            await self.guarded.wipe(namespace)

    async def raw(self, namespace: str) -> Tables | None:
        with _blamed("raw"):
            return await self.guarded.raw(namespace)

    async def database(self) -> str:
        with _blamed("database"):
            return str(await self.guarded.database())

    async def remove(self) -> None:
        with _blamed("remove"):
            await self.guarded.remove()


@contextmanager
def _blamed(method: str) -> Iterator[None]:
    try:
        yield
    except FlujoStateError:
        raise
    except (Exception, SystemExit, pytest.skip.Exception, pytest.fail.Exception, pytest.exit.Exception) as error:
        raise HarnessError(f"the harness's {method} raised {type(error).__name__}: {error}") from error
