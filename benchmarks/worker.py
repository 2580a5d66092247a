"""One system in a process of its own: reads what to do, a line of JSON each, and answers with one.

    python -m benchmarks.worker "Flujo on SQLite" sqlite:////tmp/x.db

It imports nothing but the adapter and the workloads, so that it runs in the environment of a peer too. First it tells
what the system is.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import platform
import sys
from importlib.metadata import version
from typing import Any, TextIO

from benchmarks.systems import SYSTEMS
from benchmarks.workloads import ALL


async def main(answers: TextIO, name: str, place: str) -> None:
    measured = SYSTEMS[name].load()()
    await measured.open(place)
    try:
        _answer(answers, await _about(measured))
        while line := await asyncio.to_thread(sys.stdin.readline):
            wanted = json.loads(line)
            gc.collect()
            try:
                figures = await ALL[wanted["task"]].run(measured, wanted["size"])
            except Exception as error:  # noqa: BLE001 - a peer may raise anything; the parent tells it
                _answer(answers, {"failed": " ".join(f"{type(error).__name__}: {error}".split())})
            else:
                _answer(answers, {"figures": figures})
    finally:
        await measured.close()


async def _about(measured: Any) -> dict[str, Any]:
    return {
        "durability": measured.durability,
        "versions": {"Python": platform.python_version(), **{name: version(name) for name in measured.distributions}},
        "settings": await measured.settings() if hasattr(measured, "settings") else {},
        "statements": getattr(measured, "statements", {}),
    }


def _answer(answers: TextIO, answer: dict[str, Any]) -> None:
    print(json.dumps(answer), file=answers, flush=True)


# What a peer prints is no answer.
with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
    os.dup2(2, 1)
    asyncio.run(main(answers, *sys.argv[1:]))
