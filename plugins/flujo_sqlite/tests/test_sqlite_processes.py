"""Does the SQLite backend hold in several loops, threads and processes, and however they end?"""

from __future__ import annotations

import asyncio
import gc
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from flujo_core.errors import StorageTimeoutError, StorageUnavailableError
from flujo_sqlite import SQLiteBackend

PRELUDE = """
import warnings
# Python 3.12 and later warn of what the forks here are about.
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
import asyncio, os, sys, threading, time
from flujo_sqlite import SQLiteBackend

def state(step=0, **more):
    return {"pipeline_id": "p", "pipeline_name": "n", "pipeline_version": "1", "current_step_index": step, **more}

path, *arguments = sys.argv[1:]
"""


def state(step: int = 0, **more: Any) -> Any:
    return {
        "pipeline_id": "p",
        "pipeline_name": "name",
        "pipeline_version": "1",
        "current_step_index": step,
        **more,
    }


def start(script: str, *arguments: Any, warnings: str = "error::ResourceWarning") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", warnings, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def output(process: subprocess.Popen[str]) -> str:
    """What it printed; nothing on stderr, and a good end."""
    with process:
        try:
            out, err = process.communicate(timeout=40)
        finally:
            process.kill()
    assert (process.returncode, err) == (0, "")
    return out


def rows(path: Path, statement: str) -> list[Any]:
    """What another program sees in the file. Only while this process has it not open."""
    connection = sqlite3.connect(path)
    try:
        return connection.execute(statement).fetchall()
    finally:
        connection.close()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def check_file(path: Path) -> None:
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]


def connection_threads() -> int:
    return sum("_connection_worker_thread" in thread.name for thread in threading.enumerate())


def no_thread_is_left() -> bool:
    """A thread of aiosqlite gives its last answer just before it ends."""
    give_up = time.monotonic() + 5
    while connection_threads() and time.monotonic() < give_up:
        time.sleep(0.001)
    return not connection_threads()


# --- G1: opening, closing, the end of the interpreter -----------------------------------------------------------------


def test_g1_the_constructor_touches_nothing(tmp_path: Path) -> None:
    threads = threading.enumerate()
    SQLiteBackend(tmp_path / "folder" / "x.db")
    SQLiteBackend("/proc/no/such/place/x.db")
    assert names(tmp_path) == []
    assert threading.enumerate() == threads


def test_g1_a_shut_down_backend_opens_again(tmp_path: Path) -> None:
    async def main() -> None:
        backend = SQLiteBackend(tmp_path / "x.db")
        await backend.shutdown()
        assert names(tmp_path) == []
        for revision in (1, 2, 3):
            assert await backend.save_state("r", state()) == revision
            await backend.shutdown()
            await backend.close()
            assert names(tmp_path) == ["x.db"]
            assert no_thread_is_left()
        async with backend:
            loaded = await backend.load_state("r")
            assert loaded is not None
            assert loaded["revision"] == 3

    asyncio.run(main())


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8, 13, 21])
@pytest.mark.parametrize("open_before", [True, False])
def test_g1_shutdown_lets_what_is_under_way_end(tmp_path: Path, turns: int, open_before: bool) -> None:
    async def main() -> None:
        backend = SQLiteBackend(tmp_path / "x.db", readers=1)
        if open_before:
            await backend.save_state("first", state())
        calls: list[asyncio.Future[Any]] = [
            *(asyncio.ensure_future(backend.save_state(f"r{number}", state())) for number in range(5)),
            *(asyncio.ensure_future(backend.load_state("r1")) for _ in range(10)),
            *(asyncio.ensure_future(backend.set_system_state(f"k{number}", number)) for number in range(3)),
            *(asyncio.ensure_future(backend.list_runs()) for _ in range(3)),
        ]
        for _ in range(turns):
            await asyncio.sleep(0)
        await backend.shutdown()
        answers = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 10)
        cut_off = [answer for answer in answers if isinstance(answer, BaseException)]
        # Only who waited for the opening may be sent away, and then nothing was done for him.
        assert not (open_before and cut_off)
        for error in cut_off:
            assert isinstance(error, StorageUnavailableError)
            assert "call again" in str(error)
        await backend.shutdown()
        assert len(await backend.list_runs()) == answers[:5].count(1) + open_before
        await backend.shutdown()
        assert no_thread_is_left()

    asyncio.run(main())
    assert names(tmp_path) == ["x.db"]


def test_g1_no_thread_and_no_warning_is_left_by_loops_that_closed(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    backend = SQLiteBackend(tmp_path / "x.db")

    async def use(step: int) -> int:
        await asyncio.gather(*(backend.load_state("r") for _ in range(4)))
        return await backend.save_state("r", state(step))

    revisions = []
    for step in range(6):
        revisions.append(asyncio.run(use(step)))
        # Those of this loop; the ones before are gone.
        assert 2 <= connection_threads() <= 5
    assert revisions == [1, 2, 3, 4, 5, 6]
    asyncio.run(backend.shutdown())
    gc.collect()
    assert no_thread_is_left()
    assert names(tmp_path) == ["x.db"]
    assert [str(warning.message) for warning in recwarn] == []


ENDLESS = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"

EXITS = {
    "after a save": """
asyncio.run(SQLiteBackend(path).save_state("r", state()))
""",
    "with the backend in a global": """
backend = SQLiteBackend(path)
asyncio.run(backend.save_state("r", state()))
asyncio.run(backend.load_state("r"))
""",
    "with a loop that was never closed": """
backend = SQLiteBackend(path)
loop = asyncio.new_event_loop()
loop.run_until_complete(backend.save_state("r", state()))
pending = loop.create_task(backend.save_state("other", state()))
loop.run_until_complete(asyncio.sleep(0))
""",
    "with an error": """
backend = SQLiteBackend(path)
async def main():
    await backend.save_state("r", state())
    saving = asyncio.create_task(backend.save_state("other", state()))
    await asyncio.sleep(0)
    raise SystemExit(0)
asyncio.run(main())
""",
    "in the middle of a long read": """
backend = SQLiteBackend(path)
async def main():
    await backend.save_state("r", state())
    store = await backend._store()
    loops = [asyncio.create_task(store._read(lambda raw: raw.execute(ENDLESS).fetchall())) for _ in range(4)]
    await asyncio.sleep(0.3)
loop = asyncio.new_event_loop()
loop.run_until_complete(main())
""".replace("ENDLESS", repr(ENDLESS)),
    "in the middle of a long write": """
backend = SQLiteBackend(path)
async def main():
    await backend.save_state("r", state())
    store = await backend._store()
    task = asyncio.create_task(store._write(lambda raw: raw.execute(ENDLESS).fetchall()))
    await asyncio.sleep(0.3)
asyncio.run(main())
""".replace("ENDLESS", repr(ENDLESS)),
    "with a loop in a daemon thread": """
backend = SQLiteBackend(path)
loop = asyncio.new_event_loop()
threading.Thread(target=loop.run_forever, daemon=True).start()
asyncio.run_coroutine_threadsafe(backend.save_state("r", state()), loop).result()
""",
    "with a thread that goes on": """
backend = SQLiteBackend(path)
async def use():
    for step in range(5):
        await backend.save_state("r", state(step))
        await asyncio.sleep(0.02)
    await backend.load_state("r")
async def main():
    if (3, 12) <= sys.version_info < (3, 12, 3):
        # These start no thread once the main one has ended (python/cpython#113964): the connections have to be there.
        await use()
    ready.set()
    threading.main_thread().join()
    await use()
ready = threading.Event()
threading.Thread(target=lambda: asyncio.run(main())).start()
ready.wait()
""",
}


@pytest.mark.parametrize("way", EXITS)
def test_g1_an_interpreter_that_forgets_shutdown_ends(tmp_path: Path, way: str) -> None:
    path = tmp_path / "x.db"
    # The time of the script's last line, which is before the interpreter begins to end.
    with start(PRELUDE + EXITS[way] + "\nprint(time.time())", path, warnings="default") as process:
        try:
            out, err = process.communicate(timeout=15)
        finally:
            process.kill()
        took = time.time() - float(out.split()[-1]) if out else None
    assert process.returncode == 0
    # Loops and tasks that nobody ended complain about themselves, which is right; threads and connections don't.
    assert not re.search("Thread-|aiosqlite|sqlite3", err), err
    assert took is None or took < 2
    assert rows(path, "SELECT run_id FROM workflow_state WHERE run_id = 'r'") == [("r",)]
    check_file(path)
    assert names(tmp_path) == ["x.db"]


# --- G2: loops, threads, forks ----------------------------------------------------------------------------------------


def test_g2_four_threads_with_a_loop_each_use_one_backend(tmp_path: Path) -> None:
    backend = SQLiteBackend(tmp_path / "x.db")
    together = threading.Barrier(4)

    async def use(thread: int) -> list[int]:
        revisions = []
        for step in range(25):
            await backend.save_state(f"own {thread}", state(step))
            revisions.append(await backend.save_state("shared", state(step)))
            await backend.load_state("shared")
        if thread % 2:
            await backend.shutdown()
        return revisions

    def run(thread: int) -> list[int]:
        together.wait(10)
        return asyncio.run(use(thread))

    with ThreadPoolExecutor(4) as pool:
        revisions = [revision for part in pool.map(run, range(4)) for revision in part]
    assert sorted(revisions) == list(range(1, 101))
    asyncio.run(backend.shutdown())
    assert rows(tmp_path / "x.db", "SELECT run_id, revision FROM workflow_state ORDER BY run_id") == [
        *((f"own {thread}", 25) for thread in range(4)),
        ("shared", 100),
    ]
    assert no_thread_is_left()


def test_g2_a_second_backend_in_the_process_gives_up_no_lock_of_the_first(tmp_path: Path) -> None:
    # To close any descriptor of a file gives up the locks that the process has on it; then the next process to close
    # the database takes itself for the last one, and removes the log that is still written here.
    path = tmp_path / "x.db"
    other = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
print(connection.execute("SELECT count(*) FROM workflow_state").fetchone()[0])
connection.close()
"""

    async def main() -> None:
        async with SQLiteBackend(path) as first:
            await first.save_state("a", state())
            for count in (1, 2, 3):
                async with SQLiteBackend(path) as second:
                    await second.schema_status()
                    await second.migrate()
                    await second.load_state("a")
                    assert output(start(other, path)) == f"{count}\n"
                    assert names(tmp_path) == ["x.db", "x.db-shm", "x.db-wal"]
                    await first.save_state(f"b{count}", state())

    asyncio.run(main())
    assert len(rows(path, "SELECT 1 FROM workflow_state")) == 4


FORK = (
    PRELUDE
    + """
backend = SQLiteBackend(path)
loop = asyncio.new_event_loop()
save = lambda name: loop.run_until_complete(backend.save_state(name, state()))

save("before")
async def load():
    await asyncio.gather(*(backend.load_state("before") for _ in range(4)))
loop.run_until_complete(load())
to_child, to_parent = os.pipe(), os.pipe()
child = os.fork()
if child == 0:
    loop = asyncio.new_event_loop()
    save("child 1")
    os.write(to_parent[1], b"x")
    os.read(to_child[0], 1)
    # The parent has closed: had the child no lock of its own, the log would be gone by now.
    for number in range(2, 6):
        save(f"child {number}")
    assert loop.run_until_complete(backend.load_state("parent 1"))["revision"] == 1
    loop.run_until_complete(backend.shutdown())
    os._exit(0)
os.read(to_parent[0], 1)
save("parent 1")
assert loop.run_until_complete(backend.load_state("child 1"))["revision"] == 1
loop.run_until_complete(backend.shutdown())
os.write(to_child[1], b"x")
assert os.waitpid(child, 0)[1] == 0
save("parent 2")
loop.run_until_complete(backend.shutdown())
loop.close()
print("done")
"""
)


def test_g2_a_fork_and_its_parent_use_one_backend(tmp_path: Path) -> None:
    assert output(start(FORK, tmp_path / "x.db")) == "done\n"
    saved = [run_id for (run_id,) in rows(tmp_path / "x.db", "SELECT run_id FROM workflow_state ORDER BY run_id")]
    assert saved == ["before", *(f"child {number}" for number in range(1, 6)), "parent 1", "parent 2"]
    check_file(tmp_path / "x.db")
    assert names(tmp_path) == ["x.db"]


FORKS_UNDER_LOAD = (
    PRELUDE
    + """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of newer Pythons: a fork of a process with threads
backend = SQLiteBackend(path)
going = True

async def use(name):
    count = 0
    while going:
        count += 1
        assert await backend.save_state(name, state(count)) == count
        assert (await backend.load_state(name))["revision"] == count
    await backend.shutdown()
    return count

def run(name, counts):
    counts[name] = asyncio.run(use(name))

counts = {}
threads = [threading.Thread(target=run, args=(f"thread {number}", counts)) for number in range(2)]
for thread in threads:
    thread.start()
time.sleep(0.2)
children = []
for number in range(8):
    child = os.fork()
    if child == 0:
        async def main():
            for step in range(3):
                await backend.save_state(f"child {number}", state(step))
            await backend.shutdown()
        asyncio.new_event_loop().run_until_complete(main())
        os._exit(0)
    children.append(child)
    time.sleep(0.02)
assert [os.waitpid(child, 0)[1] for child in children] == [0] * 8
going = False
for thread in threads:
    thread.join()
for name, count in sorted(counts.items()):
    print(name, count)
"""
)


def test_g2_forks_while_other_threads_save(tmp_path: Path) -> None:
    counts = dict(line.rsplit(" ", 1) for line in output(start(FORKS_UNDER_LOAD, tmp_path / "x.db")).splitlines())
    saved = dict(rows(tmp_path / "x.db", "SELECT run_id, revision FROM workflow_state"))
    assert saved == {**{name: int(count) for name, count in counts.items()}, **{f"child {n}": 3 for n in range(8)}}
    assert len(counts) == 2
    check_file(tmp_path / "x.db")


# --- G2, G9: processes ------------------------------------------------------------------------------------------------

SAVE_100 = (
    PRELUDE
    + """
name, = arguments
async def main():
    print("ready", flush=True)
    sys.stdin.readline()
    async with SQLiteBackend(path) as backend:
        for step in range(50):
            await asyncio.gather(backend.save_state(name, state(step)), backend.save_state("shared", state(step)))
asyncio.run(main())
"""
)


def test_g2_four_processes_save_and_none_is_locked_out(tmp_path: Path) -> None:
    # On a file that is not there yet: all four open it at the same instant.
    path = tmp_path / "folder" / "x.db"
    processes = [start(SAVE_100, path, f"process {number}") for number in range(4)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        output(process)
    assert rows(path, "SELECT run_id, revision FROM workflow_state ORDER BY run_id") == [
        *((f"process {number}", 50) for number in range(4)),
        ("shared", 200),
    ]
    check_file(path)
    assert names(path.parent) == ["x.db"]


STREAM = (
    PRELUDE
    + """
async def writer(backend, name):
    step = 0
    while True:
        step += 1
        history = [{"entry": number, "text": "x" * 200} for number in range(step)]
        revision = await backend.save_state(name, state(step, step_history=history, metadata={"step": step}))
        os.write(1, f"{name} {revision}\\n".encode())

async def main():
    async with SQLiteBackend(path) as backend:
        await asyncio.gather(*(writer(backend, f"r{number}") for number in range(3)))
asyncio.run(main())
"""
)


@pytest.mark.parametrize("lines", [1, 17, 90])
def test_g9_what_was_acknowledged_survives_a_killed_writer(tmp_path: Path, lines: int) -> None:
    path = tmp_path / "x.db"
    with start(STREAM, path) as process:
        assert process.stdout is not None
        acknowledged = [process.stdout.readline() for _ in range(lines)]
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read()
        # A line is written with one call, so the last one is whole.
        acknowledged += rest.splitlines()
    latest = {line.split()[0]: int(line.split()[1]) for line in acknowledged}
    assert latest

    async def main() -> None:
        async with SQLiteBackend(path) as backend:
            for run_id, revision in latest.items():
                loaded: Any = await backend.load_state(run_id)
                # One more may have been committed whose line was not written any more.
                assert revision <= loaded["revision"] <= revision + 1
                step = loaded["revision"]
                assert loaded["current_step_index"] == step
                assert loaded["metadata"] == {"step": step}
                assert [entry["entry"] for entry in loaded["step_history"]] == list(range(step))
                found = await backend.list_runs(metadata_filter={"step": step})
                assert run_id in [row["run_id"] for row in found]
                assert await backend.save_state(run_id, state()) == step + 1

    asyncio.run(main())
    check_file(path)


HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.readline()
connection.close()
"""


class Holder:
    """Another process that holds the write lock until it is told to let go."""

    def __init__(self, path: Path) -> None:
        self._process = start(HOLD, path)

    def __enter__(self) -> Holder:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "held\n"
        return self

    def let_go(self) -> None:
        output(self._process)

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert stream is not None
            stream.close()


def test_g12_a_lock_that_is_held_too_long_is_an_error_with_the_setting(tmp_path: Path) -> None:
    path = tmp_path / "x.db"

    async def main() -> None:
        async with SQLiteBackend(path, lock_timeout=0.4) as backend:
            await backend.save_state("r", state(1))
            with Holder(path) as holder:
                begun = time.monotonic()
                # Many runs: each of them waits once, together with the others.
                answers = await asyncio.gather(
                    *(backend.save_state(f"r{number}", state()) for number in range(20)), return_exceptions=True
                )
                took = time.monotonic() - begun
                assert {type(answer) for answer in answers} == {StorageTimeoutError}
                message = str(answers[0])
                assert str(path) in message
                assert "0.4 s (lock_timeout)" in message
                assert "end the other process's transaction" in message
                assert 0.35 < took < 2.5
                # Readers don't wait for the writer.
                loaded: Any = await backend.load_state("r")
                assert loaded["current_step_index"] == 1
                with pytest.raises(StorageTimeoutError, match="lock_timeout"):
                    await backend.set_system_state("key", 1)
                holder.let_go()
            assert await backend.save_state("r", state(2)) == 2
            assert await backend.count_runs() == 1

    asyncio.run(main())


def test_g12_a_lock_that_is_let_go_in_time_only_delays(tmp_path: Path) -> None:
    path = tmp_path / "x.db"

    async def main() -> None:
        async with SQLiteBackend(path, lock_timeout=20) as backend:
            await backend.save_state("r", state())
            with Holder(path) as holder:
                saving = asyncio.create_task(backend.save_state("r", state()))
                await asyncio.sleep(0.2)
                assert not saving.done()
                await asyncio.to_thread(holder.let_go)
                assert await saving == 2

    asyncio.run(main())


def test_g12_a_locked_file_delays_its_opening_only_so_long(tmp_path: Path) -> None:
    path = tmp_path / "x.db"

    async def main() -> None:
        backend = SQLiteBackend(path, lock_timeout=0.3)
        with Holder(path) as holder:
            begun = time.monotonic()
            with pytest.raises(StorageTimeoutError, match="lock_timeout"):
                await backend.save_state("r", state())
            assert time.monotonic() - begun < 2.5
            holder.let_go()
        assert await backend.save_state("r", state()) == 1
        await backend.shutdown()
        assert no_thread_is_left()

    asyncio.run(main())
