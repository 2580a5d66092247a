"""How is a process killed while it writes, and what had it been told by then that it wrote?"""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
import time
from collections import Counter
from typing import Final

from .harness import Harness

RUNS: Final = ("run 0", "run 1", "run 2")
KINDS: Final = ("save", "step", "spans")

_CHILD = """
import asyncio, pickle, sys
task, sys.path[:] = pickle.load(sys.stdin.buffer)
harness, namespace, runs = pickle.loads(task)

async def write(backend, kind, run_id):
    number = 0
    while True:
        number += 1
        if kind == "save":
            await backend.save_state(run_id, {
                "pipeline_id": "p", "pipeline_name": "p", "pipeline_version": "1", "current_step_index": number,
                "step_history": [{"entry": place} for place in range(number)], "metadata": {"n": number},
                "error_message": str(number), "mine": number})
        elif kind == "step":
            await backend.save_step_result(
                {"run_id": run_id, "step_name": "s", "step_index": number, "record_id": str(number)})
        else:
            await backend.save_spans(run_id, [{"span_id": f"{number} {half}", "start_time": number} for half in "ab"])
        print(f"{kind} {run_id}", flush=True)

async def main():
    backend = harness.open(namespace)
    await asyncio.gather(*(write(backend, kind, run_id) for run_id in runs for kind in ("save", "step", "spans")))

asyncio.run(main())
"""


def written_until_killed(
    harness: Harness, namespace: str, acknowledgements: int, delay: float, *, limit: float = 30
) -> Counter[str]:
    """Kills a writer some time after its n-th acknowledgement; how many of its writes of a kind and run returned.

    It writes all kinds on all runs at the same time, one of each after the other, under the numbers from 1.
    """
    child = subprocess.Popen([sys.executable, "-c", _CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=False)
    assert child.stdin is not None
    assert child.stdout is not None
    deadline = threading.Timer(limit, child.kill)
    deadline.start()
    try:
        child.stdin.write(pickle.dumps((pickle.dumps((harness, namespace, RUNS)), sys.path)))
        child.stdin.close()
        lines = [child.stdout.readline() for _ in range(acknowledgements)]
        time.sleep(delay)
        child.kill()
        lines += child.stdout.readlines()
    finally:
        deadline.cancel()
        child.kill()
        child.wait()
        child.stdout.close()
    if len(lines) < acknowledgements or not lines[acknowledgements - 1]:
        raise TimeoutError(f"the writer made fewer than {acknowledgements} writes in {limit:g} s")
    # What it was about to say when it died has no end of line.
    return Counter(line.decode().strip() for line in lines if line.endswith(b"\n"))
