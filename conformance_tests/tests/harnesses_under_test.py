"""Which harnesses show each kind of verdict? Named on the command line by the tests of the command."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from flujo_conformance import Exempt, Harness, Tables
from flujo_conformance.zoo import UNBROKEN, ZooHarness
from flujo_core import StateBackend
from flujo_core.errors import StorageUnavailableError

LINK = "https://example.org/issues/7"
FAILS = "test_s5_a_run_id_within_the_state_is_that_of_the_call"


class Unbroken(ZooHarness):
    def __init__(self) -> None:
        super().__init__(UNBROKEN.name)


class AnyRunId(ZooHarness):
    """Breaks S5, which core keeps."""

    def __init__(self) -> None:
        super().__init__("any-run-id")


class PrefixDelete(ZooHarness):
    """Breaks S7, which a store keeps."""

    def __init__(self) -> None:
        super().__init__("prefix-delete")


class KnownFailure(PrefixDelete):
    exemptions: Mapping[str, Exempt] = {
        "test_s7_deletions_spare_runs_of_similar_ids": Exempt(reason="the ids are a prefix tree", link=LINK)
    }


class KnownFailureThatPasses(Unbroken):
    exemptions = KnownFailure.exemptions


class ExemptFromCore(AnyRunId):
    exemptions: Mapping[str, Exempt] = {FAILS: Exempt(reason="why not", link=LINK)}


class WithoutRawReader(Unbroken):
    async def raw(self, namespace: str) -> Tables | None:
        return None


class Unreachable(Unbroken):
    def open(self, namespace: str, **settings: Any) -> StateBackend:
        raise StorageUnavailableError("nobody listens on port 1; start the server")


class Dying(Unbroken):
    """Reachable for the first few handles only."""

    def __init__(self) -> None:
        super().__init__()
        self._opened = 0

    def open(self, namespace: str, **settings: Any) -> StateBackend:
        self._opened += 1
        if self._opened > 4:
            raise StorageUnavailableError("the server is gone")
        return super().open(namespace, **settings)


class Waiting(Unbroken):
    """Waits for ever, once the suite wipes, and says so: by a file in the folder that WAITING names, if it does."""

    def __init__(self) -> None:
        super().__init__()
        self._wiped = 0

    async def wipe(self, namespace: str) -> None:
        self._wiped += 1
        if self._wiped > 3:
            if "WAITING" in os.environ:
                Path(os.environ["WAITING"], str(os.getpid())).touch()
            await asyncio.sleep(1000)
        await super().wipe(namespace)


class Skipping(Unbroken):
    """Would rather not be judged."""

    async def wipe(self, namespace: str) -> None:
        if "test_s5" in os.environ.get("PYTEST_CURRENT_TEST", ""):
            pytest.skip("not today")


class Ending(Unbroken):
    """Ends the process in the middle of a test."""

    async def wipe(self, namespace: str) -> None:
        if "test_s5" in os.environ.get("PYTEST_CURRENT_TEST", ""):
            os._exit(0)
        await super().wipe(namespace)


class EndingAtOnce(Unbroken):
    def open(self, namespace: str, **settings: Any) -> StateBackend:
        sys.exit(0)


class NotMade(Unbroken):
    def __init__(self) -> None:
        raise RuntimeError("it lacks a password")


def made_by_a_function() -> Harness:
    return Unbroken()


NO_HARNESS = 7
