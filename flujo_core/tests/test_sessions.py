"""Does a backend open and close as it should when that takes long, fails or is given up?"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from flujo_core.backend import StateBackend
from flujo_core.errors import StorageTimeoutError, StorageUnavailableError
from flujo_core.memory import MemoryStore, _Data
from flujo_core.settings import BackendSettings


class SlowStore(MemoryStore):
    def __init__(self, data: _Data, log: list[str], opening: float = 0, closing: float = 0) -> None:
        super().__init__(data)
        self.log, self.opening, self.closing = log, opening, closing

    async def open(self, *, create: bool) -> None:
        self.log.append("open")
        await asyncio.sleep(self.opening)
        self.log.append("opened")

    async def close(self) -> None:
        await asyncio.sleep(self.closing)
        self.log.append("closed")

    def abandon(self) -> None:
        self.log.append("abandoned")


def slow(**delays: float) -> tuple[StateBackend, list[str]]:
    log: list[str] = []
    data = _Data()
    return StateBackend(lambda: SlowStore(data, log, **delays), BackendSettings(close_timeout=0.1)), log


def test_g1_calls_that_come_together_open_once() -> None:
    async def main() -> None:
        backend, log = slow(opening=0.01)
        await asyncio.gather(*(backend.count_runs() for _ in range(5)))
        await backend.shutdown()
        await backend.shutdown()
        assert log == ["open", "opened", "closed"]

    asyncio.run(main())


def test_g12_shutdown_ends_an_opening_that_takes_too_long_and_tells_those_who_wait_for_it() -> None:
    async def main() -> None:
        backend, log = slow(opening=60)
        waiting = asyncio.create_task(backend.count_runs())
        await asyncio.sleep(0.01)
        with pytest.raises(StorageTimeoutError, match="close_timeout"):
            await backend.shutdown()
        with pytest.raises(StorageUnavailableError, match="call again"):
            await waiting
        assert log == ["open", "abandoned", "closed"]

    asyncio.run(main())


def test_g1_shutdown_lets_calls_end_that_wait_for_the_opening() -> None:
    async def main() -> None:
        backend, log = slow(opening=0.02)
        waiting = asyncio.create_task(backend.set_system_state("key", 1))
        await asyncio.sleep(0.01)
        await backend.shutdown()
        await waiting
        assert log == ["open", "opened", "closed"]

    asyncio.run(main())


def test_g1_a_caller_who_gives_up_does_not_end_the_opening_for_others() -> None:
    async def main() -> None:
        backend, log = slow(opening=0.05)
        first = asyncio.create_task(backend.count_runs())
        second = asyncio.create_task(backend.count_runs())
        await asyncio.sleep(0.01)
        first.cancel()
        assert await second == 0
        assert first.cancelled()
        assert log == ["open", "opened"]

    asyncio.run(main())


def test_g12_a_shutdown_that_takes_too_long_names_its_setting() -> None:
    async def main() -> None:
        backend, log = slow(closing=60)
        await backend.count_runs()
        with pytest.raises(StorageTimeoutError, match="close_timeout"):
            await backend.shutdown()
        assert log[-1] == "abandoned"
        assert await backend.count_runs() == 0

    asyncio.run(main())


def test_g2_the_store_of_a_loop_that_has_closed_is_let_go() -> None:
    backend, log = slow()
    for _ in range(3):
        asyncio.run(backend.count_runs())
    assert log == ["open", "opened"] + ["abandoned", "open", "opened"] * 2


def test_g1_a_failed_opening_is_tried_anew() -> None:
    class Refusing(MemoryStore):
        tries = 0

        async def open(self, *, create: bool) -> None:
            Refusing.tries += 1
            if Refusing.tries < 3:
                raise StorageUnavailableError("not yet")

    async def main() -> Any:
        backend = StateBackend(lambda: Refusing(_Data()), BackendSettings())
        for _ in range(2):
            with pytest.raises(StorageUnavailableError):
                await backend.count_runs()
        return await backend.count_runs()

    assert asyncio.run(main()) == 0
