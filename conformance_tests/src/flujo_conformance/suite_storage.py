"""Is what the database holds what the backend says? Looks behind its back, where the harness can."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from flujo_core.errors import FlujoStateError

from .answers import Call
from .harness import NO_RAW_READER, Harness
from .machine import NAMESPACE
from .observations import observe
from .strategies import plain_state
from .suite_support import WRITES, Handles, call, everything, fill, on_fresh_data

HISTORY = 300


async def stored(harness: Harness) -> Counter[str]:
    """Each row that is stored, as text; the test is not run if the harness can't tell."""
    tables = await harness.raw(NAMESPACE)
    if tables is None:
        pytest.skip(NO_RAW_READER)
    return Counter(f"{table}: {sorted(row.items())!r}" for table, rows in tables.items() for row in rows)


def unexpected(before: Counter[str], after: Counter[str]) -> str:
    """Rows that were added or removed, in words; empty if there are none."""
    signs = [("+", after - before), ("-", before - after)]
    return "\n".join(f"{sign} {row:.300}" for sign, rows in signs for row in rows)


class StoragePart:
    @on_fresh_data
    async def test_s7_of_a_deleted_run_nothing_is_left_in_any_table(self, here: Handles) -> None:
        await fill(here.one, "stays")
        before = await stored(here.harness)
        await fill(here.one)
        assert unexpected(before, await stored(here.harness)), "the raw reader sees nothing of a run that was saved"
        await here.two.delete_run("r")
        assert not unexpected(before, await stored(here.harness))

    @on_fresh_data
    async def test_s7_of_a_deleted_snapshot_without_records_nothing_is_left_in_any_table(self, here: Handles) -> None:
        await fill(here.one, "stays")
        before = await stored(here.harness)
        await here.one.save_state("r", plain_state(step_history=[1, 2], metadata={"a": [1, {"b": 2}]}))
        await here.two.delete_state("r")
        assert not unexpected(before, await stored(here.harness))

    @on_fresh_data
    async def test_a3_of_cleaned_up_runs_nothing_is_left_in_any_table(self, here: Handles) -> None:
        await here.one.count_runs()
        before = await stored(here.harness)
        for number in range(3):
            await fill(here.one, f"r{number}")
        here.clock.now += timedelta(days=31)
        await fill(here.one, "stays")
        assert await here.two.cleanup_old_workflows(30) == 3
        await here.two.delete_run("stays")
        assert not unexpected(before, await stored(here.harness))

    @on_fresh_data
    async def test_g9_what_returned_is_committed_for_whoever_looks(self, here: Handles) -> None:
        await here.one.count_runs()
        for write in WRITES:
            before = await stored(here.harness)
            await call(here.one, write)
            assert unexpected(before, await stored(here.harness)), f"nothing of {write[0]} is there"

    @on_fresh_data
    async def test_g9_a_refused_call_changes_no_row(self, here: Handles) -> None:
        await fill(here.one)
        wrong: list[Call] = [
            ("save_state", ("r", plain_state()), {"expected_revision": 7}),
            ("save_state", ("new", plain_state()), {"expected_revision": 1}),
            ("save_state", ("r", plain_state(last_step_output=object())), {}),
            ("save_state", ("r", plain_state(step_history=[1, object()])), {}),
            ("save_state", ("r", plain_state(metadata={"a": "\x00"})), {}),
            ("delete_state", ("r",), {"expected_revision": 7}),
            ("save_run_start", ({"run_id": "r", "status": "done"},), {}),
            ("save_run_end", ("unknown", {"status": "failed"}), {}),
            ("save_step_result", ({"run_id": "new", "step_name": "s", "step_index": "0"},), {}),
            ("save_spans", ("r", [{"span_id": "fine"}, {"span_id": ""}]), {}),
            ("save_trace", ("new", {"span_id": "a", "name": "n", "children": [{"span_id": 1, "name": "n"}]}), {}),
            ("persist_evaluation", ("r", float("nan")), {}),
            ("set_system_state", ("k", object()), {}),
            ("cleanup_old_workflows", (-1,), {}),
        ]
        before = await stored(here.harness)
        for one in wrong:
            with pytest.raises(FlujoStateError):
                await call(here.two, one)
            assert not unexpected(before, await stored(here.harness)), one[0]

    @on_fresh_data
    async def test_g9_reading_changes_no_row(self, here: Handles) -> None:
        await fill(here.one)
        before = await stored(here.harness)
        await everything(here.two, "r", "unknown")
        await here.two.schema_status()
        await here.two.migrate(dry_run=True)
        assert [row["run_id"] async for row in here.two.iter_runs(metadata_filter={"full": [1]})] == ["r"]
        assert not unexpected(before, await stored(here.harness))

    @on_fresh_data
    async def test_s8_of_a_long_history_only_what_changed_is_written(self, here: Handles) -> None:
        history: list[Any] = [{"step": number, "said": "x" * 500} for number in range(HISTORY)]
        most = 0
        await here.one.save_state("r", plain_state(step_history=history))

        def append() -> None:
            history.append({"step": len(history), "said": "y" * 500})

        def edit() -> None:
            history[HISTORY // 2]["step"] = True

        def shorten() -> None:
            del history[-1]

        changes: list[Callable[[], None]] = [append, edit, shorten, append]
        for number, change in enumerate(changes):
            before = await stored(here.harness)
            change()
            # In turn: what a handle knows of the history is not what the other one saved.
            await (here.one, here.two)[number % 2].save_state("r", plain_state(step_history=history))
            written = await stored(here.harness) - before
            most = max(most, sum(len(row) for row in written.elements()))
        observe("most characters written", most)
        assert most > 0, "the raw reader sees nothing of what is saved"
        assert most < 50 * 500, f"{most} characters are written where one entry of {HISTORY} changed"
