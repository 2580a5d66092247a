"""How does a backend live: opening, closing, event loops, threads and processes (G1, G2)?"""

from __future__ import annotations

import asyncio
import inspect
import secrets
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from flujo_core import StateBackend
from flujo_core.errors import SchemaMissingError

from .harness import Harness
from .machine import NAMESPACE
from .observations import unsupported
from .strategies import plain_state
from .suite_support import Handles, collect, fill, loaded, on_fresh_data, other_process

SAVE_AND_EXIT = """
async def main():
    backend = harness.open("machine")
    state = {"pipeline_id": "p", "pipeline_name": "p", "pipeline_version": "1", "current_step_index": 0}
    await backend.save_state("r", state)
    print("saved", flush=True)
    return backend
backend = asyncio.run(main())
"""
WATCHED = """
import threading
done = []
def watch(event, args):
    connecting = event in ("socket.connect", "socket.bind", "sqlite3.connect", "os.mkdir", "subprocess.Popen")
    # Modules are compiled into their caches; all else that is opened for writing counts.
    writing = event == "open" and args[1] and set("wax+") & set(args[1]) and ".pyc" not in str(args[0])
    if connecting or writing:
        done.append((event, str(args)))
sys.addaudithook(watch)
handles = [harness.open("machine") for _ in range(3)]
print(done, threading.active_count())
"""
FORK = """
from flujo_core.errors import StorageUnavailableError
state = {"pipeline_id": "p", "pipeline_name": "p", "pipeline_version": "1", "current_step_index": 0}
backend = harness.open("machine")
runner = asyncio.Runner()
runner.run(backend.save_state("r", state))
child = os.fork()
if child == 0:
    try:
        revision = asyncio.run(asyncio.wait_for(backend.save_state("r", state), 20))
        asyncio.run(backend.save_state("from the child", state))
    except StorageUnavailableError:
        revision = -1
    os._exit(10 + revision)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status), runner.run(backend.save_state("r", state)))
runner.run(backend.shutdown())
runner.close()
"""


class LifePart:
    def test_g1_making_a_backend_needs_no_event_loop_and_does_no_io(self, state_harness: Harness) -> None:
        assert other_process(state_harness, WATCHED) == "[] 1"

    def test_g1_methods_are_coroutines(self, state_harness: Harness) -> None:
        backend = state_harness.open(NAMESPACE)
        for name, _ in inspect.getmembers(StateBackend, inspect.iscoroutinefunction):
            assert inspect.iscoroutinefunction(getattr(backend, name)), name
        assert inspect.isasyncgen(backend.iter_runs())

    @on_fresh_data
    async def test_g1_the_first_call_opens_whichever_it_is(self, here: Handles) -> None:
        assert await here.one.list_runs() == []
        assert await here.two.save_state("r", plain_state()) == 1
        assert await collect(here.open().iter_runs()) != []

    @on_fresh_data
    async def test_g1_first_calls_at_once_open_once_and_all_answer(self, here: Handles) -> None:
        answers = await asyncio.gather(
            *(here.one.save_state(f"r{n}", plain_state()) for n in range(5)),
            here.one.count_runs(),
            *(here.two.save_state(f"two{n}", plain_state()) for n in range(5)),
        )
        assert answers[:5] == answers[6:] == [1] * 5
        assert await here.one.count_runs() == 10

    @on_fresh_data
    async def test_g1_as_a_context_manager_it_is_open_inside_and_shut_down_after(self, here: Handles) -> None:
        async with here.one as entered:
            assert entered is here.one
            await entered.save_state("r", plain_state())
        async with here.one:
            assert await here.one.count_runs() == 1

    @on_fresh_data
    async def test_g1_shutdown_may_be_repeated_and_comes_before_any_use(self, here: Handles) -> None:
        await here.one.shutdown()
        await here.one.save_state("r", plain_state())
        await here.one.shutdown()
        await here.one.shutdown()
        await here.one.close()
        await asyncio.gather(here.two.shutdown(), here.two.shutdown())

    @on_fresh_data
    async def test_g1_a_call_after_shutdown_opens_again(self, here: Handles) -> None:
        for revision in (1, 2, 3):
            assert await here.one.save_state("r", plain_state()) == revision
            await here.one.shutdown()
        assert (await loaded(here.one))["revision"] == 3

    @on_fresh_data
    async def test_g1_shutdown_lets_calls_finish_and_is_bounded_in_time(self, here: Handles) -> None:
        await here.one.count_runs()
        saves = [asyncio.ensure_future(here.one.save_state(f"r{n}", plain_state())) for n in range(50)]
        await asyncio.sleep(0)
        started = time.perf_counter()
        await here.one.shutdown()
        assert time.perf_counter() - started < here.one.settings.close_timeout + 1
        assert await asyncio.gather(*saves) == [1] * 50
        assert await here.two.count_runs() == 50

    def test_g1_a_process_that_exits_without_shutdown_ends_within_two_seconds(self, state_harness: Harness) -> None:
        asyncio.run(state_harness.wipe(NAMESPACE))
        # From its last line on, so that the time to start the interpreter doesn't count.
        said = other_process(state_harness, SAVE_AND_EXIT + "import time; print(time.time())")
        ended = time.time()
        assert said.startswith("saved")
        assert ended - float(said.split()[-1]) < 2

    def test_g2_one_backend_in_one_event_loop_after_another(self, state_harness: Harness) -> None:
        asyncio.run(state_harness.wipe(NAMESPACE))
        backend = state_harness.open(NAMESPACE)
        for revision in range(1, 6):
            assert asyncio.run(backend.save_state("r", plain_state())) == revision
        assert asyncio.run(loaded(backend))["revision"] == 5
        asyncio.run(backend.shutdown())

    def test_g2_a_loop_that_ended_in_the_middle_of_a_call_hinders_no_later_one(self, state_harness: Harness) -> None:
        asyncio.run(state_harness.wipe(NAMESPACE))
        backend = state_harness.open(NAMESPACE)

        async def leave() -> None:
            for n in range(20):
                task = asyncio.ensure_future(backend.save_state(f"r{n}", plain_state()))
                task.add_done_callback(lambda done: done.cancelled() or done.exception())
            await asyncio.sleep(0)

        for _ in range(3):
            asyncio.run(leave())
        assert asyncio.run(backend.save_state("after", plain_state())) == 1
        assert all(state["revision"] <= 3 for state in asyncio.run(backend.list_runs()))
        asyncio.run(backend.shutdown())

    def test_g2_several_threads_with_loops_of_their_own_at_once(self, state_harness: Harness) -> None:
        asyncio.run(state_harness.wipe(NAMESPACE))
        backend = state_harness.open(NAMESPACE)
        threads, saves = 4, 10
        barrier = threading.Barrier(threads, timeout=20)

        async def work(name: str) -> list[int]:
            revisions = []
            for _ in range(saves):
                revisions.append(await backend.save_state("shared", plain_state()))
                await backend.save_state(name, plain_state())
            await backend.shutdown()
            return revisions

        def in_thread(number: int) -> list[int]:
            barrier.wait()
            return asyncio.run(work(f"own {number}"))

        with ThreadPoolExecutor(threads) as pool:
            revisions = [revision for found in pool.map(in_thread, range(threads)) for revision in found]
        assert sorted(revisions) == list(range(1, threads * saves + 1))
        own = [asyncio.run(loaded(backend, f"own {n}"))["revision"] for n in range(threads)]
        assert own == [saves] * threads
        asyncio.run(backend.shutdown())

    def test_g2_parent_and_child_of_a_fork_both_go_on(self, state_harness: Harness) -> None:
        asyncio.run(state_harness.wipe(NAMESPACE))
        said = other_process(state_harness, FORK)
        if state_harness.shared:
            assert said == "12 3"
        elif state_harness.durable:
            assert said == "9 2"
            unsupported("a forked process is refused with StorageUnavailableError while its parent has the data open")
        else:
            # The child goes on from what its parent had.
            assert said == "12 2"
            unsupported("a forked process has data of its own")

    @on_fresh_data
    async def test_g2_handles_on_one_namespace_share_all_and_those_on_others_nothing(self, here: Handles) -> None:
        await fill(here.one)
        await here.one.set_system_state("k", 1)
        other = here.harness.open("another")
        try:
            await other.delete_run("r")
            assert await other.get_run_details("r") is None
            assert await here.two.get_run_details("r") is not None
            assert await here.two.get_system_state("k") is not None
        finally:
            await other.shutdown()

    @on_fresh_data
    async def test_d5_asking_for_the_schema_changes_nothing_and_migrating_makes_it(self, here: Handles) -> None:
        backend = here.harness.open(f"unused_{secrets.token_hex(4)}")
        before = await backend.schema_status()
        for _ in range(2):
            plan = await backend.migrate(dry_run=True)
            assert (plan.dry_run, plan.steps) == (True, before.pending)
            assert await backend.schema_status() == before
        assert (await backend.migrate()).steps == before.pending
        after = await backend.schema_status()
        assert (after.state, after.pending) == ("current", ())
        assert (await backend.migrate()).steps == ()
        assert await backend.save_state("r", plain_state()) == 1
        await backend.shutdown()

    @on_fresh_data
    async def test_d5_without_migrating_nothing_is_made_and_what_is_there_is_used(self, here: Handles) -> None:
        backend = here.harness.open(f"unused_{secrets.token_hex(4)}", auto_migrate=False)
        before = await backend.schema_status()
        if before.pending:
            for _ in range(2):
                with pytest.raises(SchemaMissingError, match="flujo migrate"):
                    await backend.save_state("r", plain_state())
                assert await backend.schema_status() == before
        await backend.shutdown()
        await here.one.save_state("r", plain_state())
        assert (await loaded(here.open(auto_migrate=False)))["revision"] == 1
