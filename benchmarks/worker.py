"""One system in a process of its own: reads what to do, a line of JSON each, and answers with one.

python -m benchmarks.worker "Flujo on SQLite" sqlite:////tmp/x.db

It imports nothing but the adapter and the workloads, so that it runs in the environment of a peer too.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys

from .systems import SYSTEMS
from .workloads import ONCE, TASKS


async def main(name: str, place: str) -> None:
    measured = SYSTEMS[name].load()()
    await measured.open(place)
    print(json.dumps({"statements": getattr(measured, "statements", {})}), flush=True)
    try:
        while line := await asyncio.to_thread(sys.stdin.readline):
            wanted = json.loads(line)
            gc.collect()
            task = {**TASKS, **ONCE}[wanted["task"]]
            print(json.dumps(await task.run(measured, wanted["size"])), flush=True)
    finally:
        await measured.close()


asyncio.run(main(*sys.argv[1:]))
