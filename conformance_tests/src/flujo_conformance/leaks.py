"""What does this process hold that somebody has to let go: file descriptors, threads, tasks of the running loop?"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from pathlib import Path
from time import monotonic

_POOL = "asyncio_"
"""Threads of the loop's own executor, which grows as it likes and ends with the loop."""


def held() -> set[object]:
    """All of them now. Of a platform that doesn't list descriptors, the rest."""
    threads = {thread for thread in threading.enumerate() if not thread.name.startswith(_POOL)}
    return {*_descriptors(), *threads, *asyncio.all_tasks()}


def _descriptors() -> set[tuple[str, str]]:
    """Each with what it stands for, so that a number which is used again is another one."""
    found, listed = set(), Path("/proc/self/fd")
    if listed.is_dir():
        for entry in list(listed.iterdir()):
            with suppress(OSError):  # the one by which they were listed
                found.add((entry.name, str(entry.readlink())))
    return found


async def left(before: set[object], patience: float = 5) -> set[object]:
    """What is held beyond that which was before, once it no longer gets less: threads take a moment to end."""
    give_up = monotonic() + patience
    while (more := held() - before) and monotonic() < give_up:
        await asyncio.sleep(0.01)
    return more
