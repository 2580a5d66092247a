"""Is every step applied once, whoever else is about to apply it and whatever the store answers?"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flujo_core import migrating
from flujo_core.errors import (
    ChecksumMismatchError,
    ConfigurationError,
    FlujoStateError,
    MigrationError,
    MigrationLockError,
    OutcomeUnknownError,
    SchemaMissingError,
    SchemaOutdatedError,
    SchemaTooNewError,
    StorageError,
    StorageTimeoutError,
    StorageUnavailableError,
)
from flujo_core.memory import MemoryStore, _Data
from flujo_core.migrating import Migrator
from flujo_core.migrations import AppliedMigration, Migration
from flujo_core.settings import BackendSettings
from flujo_core.store import CommitUnknown, Interrupted, Migrated

UNHURRIED = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""On a machine with other work an example may take its time."""
OURS = tuple(Migration(version, f"step{version}", f"SELECT {version}", (f"SELECT {version}",)) for version in (1, 2, 3))
Answer = Literal[
    "well", "busy", "interrupted", "timeout", "unavailable", "lost before", "lost after", "says changed",
    "says applied", "fails",
]  # fmt: skip


class Database:
    """What several stores share: the records, and what was run."""

    def __init__(self, rows: Iterable[AppliedMigration] = ()) -> None:
        self.rows = list(rows)
        self.run: list[str] = []


class ScriptedStore(MemoryStore):
    """Applies steps, and answers as it is told; well when nothing is told any more."""

    migrations = "scripted.migrations"

    def __init__(self, database: Database, answers: Iterable[Answer] = ()) -> None:
        super().__init__(_Data())
        self.shared = database
        self.answers = iter(answers)
        self.asked = 0
        self.meanwhile: Callable[[], None] = lambda: None

    async def applied_migrations(self) -> list[AppliedMigration]:
        await asyncio.sleep(0)
        rows = sorted(self.shared.rows, key=lambda row: (row.series == "deployment", row.version))
        await asyncio.sleep(0)
        return rows

    async def migrate(self, step: Migration, expected: Sequence[AppliedMigration]) -> Migrated:
        await asyncio.sleep(0)
        self.asked += 1
        self.meanwhile()
        answer = next(self.answers, "well")
        if answer in ("busy", "says changed", "says applied"):
            return "busy" if answer == "busy" else "changed" if answer == "says changed" else "applied"
        errors: dict[str, Exception] = {
            "interrupted": Interrupted(StorageError("a deadlock")),
            "timeout": Interrupted(StorageTimeoutError("lock_timeout passed")),
            "unavailable": Interrupted(StorageUnavailableError("gone")),
            "lost before": CommitUnknown(StorageUnavailableError("gone")),
            "fails": MigrationError("no such table"),
        }
        if answer in errors:
            raise errors[answer]
        key = (step.series, step.version)
        if sorted(map(str, self.shared.rows)) != sorted(map(str, expected)):
            return "changed"
        self.shared.rows = [row for row in self.shared.rows if (row.series, row.version) != key]
        self.shared.rows.append(applied(step))
        self.shared.run.extend(step.statements)
        await asyncio.sleep(0)
        if answer == "lost after":
            raise CommitUnknown(StorageUnavailableError("gone"))
        return "applied"


def applied(step: Migration, **other: Any) -> AppliedMigration:
    columns: dict[str, Any] = {"checksum": step.checksum, "min_code": step.min_code, "series": step.series, **other}
    return AppliedMigration(step.version, step.name, **columns)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrating, "_PAUSE", (0.0, 0.0))
    monkeypatch.setattr(migrating, "read_migrations", lambda package: OURS)


def migrator(database: Database, *answers: Answer, wait: float = 60, **options: Any) -> tuple[Migrator, ScriptedStore]:
    store = ScriptedStore(database, answers)
    return Migrator(store, BackendSettings(migration_lock_wait=wait, **options)), store


RUN = [f"SELECT {version}" for version in (1, 2, 3)]
PASSING: st.SearchStrategy[Answer] = st.sampled_from(
    ["well", "busy", "interrupted", "timeout", "unavailable", "lost before", "lost after"]
)


@UNHURRIED
@given(st.lists(st.tuples(st.lists(PASSING, max_size=5), st.integers(0, 9)), min_size=1, max_size=4), st.integers(0, 2))
def test_d5_each_step_is_applied_once_however_many_migrate(
    runners: list[tuple[list[Answer], int]], already: int
) -> None:
    """The delays make the runners meet at different places; each await of the store lets the others go on."""
    database = Database(map(applied, OURS[:already]))

    async def one(answers: list[Answer], delay: int) -> list[Migration]:
        for _ in range(delay):
            await asyncio.sleep(0)
        runner, _ = migrator(database, *answers)
        report = await runner.migrate(None)
        assert report.to_version == 3
        return list(report.steps)

    async def main() -> list[list[Migration]]:
        return await asyncio.gather(*(one(*runner) for runner in runners))

    steps = [step for report in asyncio.run(main()) for step in report]
    assert database.run == RUN[already:]
    assert [row.version for row in database.rows] == [1, 2, 3]
    # An answer that was lost may make two runners count the same step; none is counted by nobody.
    assert set(steps) == set(OURS[already:])
    if not any(answer.startswith("lost") for answers, _ in runners for answer in answers):
        assert len(steps) == len(set(steps))


@pytest.mark.parametrize("answer", ["interrupted", "busy", "lost before"])
def test_d5_what_passes_is_tried_again(answer: Answer) -> None:
    runner, store = migrator(Database(), answer, "well", answer, answer)
    report = asyncio.run(runner.migrate(None))
    assert (report.steps, store.shared.run, store.asked) == (OURS, RUN, 6)
    assert report.dry_run is False


@pytest.mark.parametrize(("answer", "ours"), [("lost after", True), ("interrupted", False), ("busy", False)])
def test_d5_a_step_that_is_recorded_counts_as_ours_only_if_our_answer_was_lost(answer: Answer, ours: bool) -> None:
    database = Database(map(applied, OURS[:2]))
    runner, store = migrator(database, answer)
    if not ours:

        def other() -> None:
            database.rows = [applied(step) for step in OURS]

        store.meanwhile = other
    assert asyncio.run(runner.migrate(None)).steps == (OURS[2:] if ours else ())
    assert store.asked == 1


def test_d5_a_commit_that_arrives_late_is_ours() -> None:
    database = Database(map(applied, OURS[:2]))
    runner, store = migrator(database, "lost before", "busy")

    def late() -> None:
        if store.asked == 2:
            database.rows.append(applied(OURS[2]))

    store.meanwhile = late
    assert asyncio.run(runner.migrate(None)).steps == OURS[2:]


@pytest.mark.parametrize(
    ("answer", "kind", "text"),
    [
        ("busy", MigrationLockError, r"001_step1 .*0\.01 s \(migration_lock_wait, --lock-wait\): another process"),
        ("timeout", MigrationLockError, r"\(migration_lock_wait, --lock-wait\): lock_timeout passed"),
        ("interrupted", StorageError, "^a deadlock$"),
        ("lost before", StorageUnavailableError, "^gone$"),
    ],
)
def test_g12_waiting_for_another_process_has_an_end(answer: Answer, kind: type[FlujoStateError], text: str) -> None:
    runner, store = migrator(Database(), *[answer] * 100_000, wait=0.01)
    with pytest.raises(kind, match=text) as caught:
        asyncio.run(runner.migrate(None))
    assert type(caught.value) is kind
    assert store.asked > 1
    assert store.shared.rows == []
    at_once, store = migrator(Database(), *[answer] * 9, wait=0)
    with pytest.raises(kind):
        asyncio.run(at_once.migrate(None))
    assert store.asked == 1


def test_g12_the_wait_is_for_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    runner, store = migrator(Database(), "busy", "well", "busy", "well", "busy", "well", wait=50)
    monkeypatch.setattr(migrating, "monotonic", lambda: store.asked * 30.0)
    assert asyncio.run(runner.migrate(None)).steps == OURS
    runner, store = migrator(Database(), "busy", "busy", "busy", "well", wait=50)
    with pytest.raises(MigrationLockError, match="within 50 s"):
        asyncio.run(runner.migrate(None))


@pytest.mark.parametrize("repair", [False, True])
@pytest.mark.parametrize(("answer", "asked"), [("says changed", 20), ("says applied", 1)])
@pytest.mark.parametrize("restless", [False, True])
def test_a_store_that_contradicts_itself_is_found_out(answer: Answer, asked: int, repair: bool, restless: bool) -> None:
    rows = [applied(step, checksum="old") for step in OURS] if repair else []
    runner, store = migrator(Database(rows), *[answer] * 100_000)
    if restless:
        # Records that are others each time, and none of them a version: the plan stays the same.
        def another() -> None:
            store.shared.rows = [*rows, AppliedMigration(100 + store.asked, None, None)]

        store.meanwhile = another
    with pytest.raises(StorageError, match="bug of the backend"):
        asyncio.run(asyncio.wait_for(runner.repair_checksums() if repair else runner.migrate(None), 5))
    assert store.asked == asked


def test_d5_what_changes_beside_a_step_makes_a_new_plan() -> None:
    runner, store = migrator(Database(), "interrupted")
    store.meanwhile = lambda: store.shared.rows.extend([AppliedMigration(9, None, None)] * (store.asked == 1))
    assert asyncio.run(runner.migrate(None)).steps == OURS
    assert store.asked == 4


def test_d5_each_step_has_its_own_patience_with_a_store_that_lags() -> None:
    lagging: list[Answer] = [*["says changed"] * 10, "well"] * 3  # type: ignore[list-item]
    runner, _ = migrator(Database(), *lagging)
    assert asyncio.run(runner.migrate(None)).steps == OURS


def test_d5_a_step_that_fails_ends_the_run_and_leaves_those_before() -> None:
    runner, store = migrator(Database(), "well", "fails")
    with pytest.raises(MigrationError, match="no such table"):
        asyncio.run(runner.migrate(None))
    assert store.shared.run == RUN[:1]


def test_d5_progress_is_told_in_order() -> None:
    runner, _ = migrator(Database(map(applied, OURS[:1])), "busy", "interrupted", "well", "well")
    told: list[tuple[int, int, int, str]] = []
    report = asyncio.run(runner.migrate(3, lambda now: told.append((now.step.version, now.number, now.of, now.doing))))
    assert told == [(2, 1, 2, "runs"), (2, 1, 2, "waits"), (2, 1, 2, "done"), (3, 2, 2, "runs"), (3, 2, 2, "done")]
    assert (report.from_version, report.to_version) == (1, 3)


def test_d5_repair_records_the_files_and_runs_nothing() -> None:
    database = Database([applied(OURS[0]), *(applied(step, checksum="old") for step in OURS[1:])])
    runner, _ = migrator(database, "busy", "lost after")
    with pytest.raises(ChecksumMismatchError, match="002_step2, 003_step3"):
        asyncio.run(runner.migrate(None))
    assert asyncio.run(runner.repair_checksums()) == OURS[1:]
    assert database.run == []
    assert [row.checksum for row in database.rows] == [step.checksum for step in OURS]
    assert asyncio.run(runner.repair_checksums()) == ()


def test_d5_a_script_is_what_the_store_makes_of_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScriptedStore, "migration_script", lambda self, step: [*step.statements, f"-- {step}"])
    runner, _ = migrator(Database(map(applied, OURS[:2])))
    assert asyncio.run(runner.script(None)) == ["SELECT 3", "-- 003_step3"]


# --- opening and settings ---------------------------------------------------------------------------------------------


def test_d5_opening_migrates_if_it_may() -> None:
    runner, store = migrator(Database())
    asyncio.run(runner.prepare())
    assert store.shared.run == RUN
    asyncio.run(runner.prepare())
    assert store.asked == 3


def test_d5_opening_without_auto_migrate_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "007_ours.sql").write_text("SELECT 7")
    expected: list[tuple[int, type[FlujoStateError], str]] = [
        (0, SchemaMissingError, "flujo migrate"),
        (1, SchemaOutdatedError, "at schema version 1, this code needs 3"),
        (3, SchemaOutdatedError, "lacks 007_ours"),
    ]
    for count, kind, text in expected:
        runner, store = migrator(Database(map(applied, OURS[:count])), auto_migrate=False, migrations_dir=tmp_path)
        with pytest.raises(kind, match=text):
            asyncio.run(runner.prepare())
        assert store.asked == 0
    # Flujo's series first, then the deployment's own, each recorded apart.
    runner, store = migrator(Database(map(applied, OURS[:2])), migrations_dir=tmp_path)
    asyncio.run(runner.prepare())
    assert store.shared.run == ["SELECT 3", "SELECT 7"]
    assert [(row.series, row.version) for row in store.shared.rows[2:]] == [("flujo", 3), ("deployment", 7)]


@pytest.mark.parametrize("auto_migrate", [True, False])
def test_d5_a_newer_schema_is_used_with_a_warning_if_it_says_so(
    auto_migrate: bool, caplog: pytest.LogCaptureFixture
) -> None:
    newer = Migration(4, "newer", "SELECT 4", ("SELECT 4",), min_code=3)
    runner, store = migrator(Database(map(applied, [*OURS, newer])), auto_migrate=auto_migrate)
    with caplog.at_level(logging.WARNING, "flujo"):
        asyncio.run(runner.prepare())
    assert [record.getMessage() for record in caplog.records] == [
        "memory:// is at schema version 4, this code knows 3; newer code says that they go together"
    ]
    store.shared.rows[-1] = applied(newer, min_code=4)
    with pytest.raises(SchemaTooNewError, match="upgrade Flujo here"):
        asyncio.run(runner.prepare())
    assert store.asked == 0


@pytest.mark.parametrize("auto_migrate", [True, False])
def test_d5_a_changed_file_is_refused_on_opening(auto_migrate: bool) -> None:
    runner, store = migrator(Database([applied(OURS[0], checksum="old"), applied(OURS[1])]), auto_migrate=auto_migrate)
    with pytest.raises(ChecksumMismatchError, match="001_step1 changed"):
        asyncio.run(runner.prepare())
    assert store.asked == 0


def test_d5_a_store_without_schema_takes_no_migrations(tmp_path: Path) -> None:
    store = MemoryStore(_Data())
    with pytest.raises(MigrationError, match="memory:// has no schema, so it takes no migrations_dir"):
        Migrator(store, BackendSettings(migrations_dir=tmp_path))
    runner = Migrator(store, BackendSettings())
    asyncio.run(runner.prepare())
    assert asyncio.run(runner.migrate(None)).steps == ()


def test_d5_a_folder_that_is_not_there_is_a_wrong_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="migrations_dir"):
        migrator(Database(), migrations_dir=tmp_path / "missing")


def test_d5_a_step_outside_of_a_transaction_needs_a_store_that_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "001_ours.sql").write_text("-- transaction=false\nSELECT 7")
    with pytest.raises(MigrationError, match="001_ours: memory:// runs every migration in a transaction"):
        migrator(Database(), migrations_dir=tmp_path)
    monkeypatch.setattr(ScriptedStore, "migrates_outside_transactions", True)
    runner, store = migrator(Database(), migrations_dir=tmp_path)
    asyncio.run(runner.migrate(None))
    assert store.shared.run == [*RUN, "-- transaction=false\nSELECT 7"]


def test_when_the_answer_is_lost_and_nothing_can_be_read_any_more_nobody_knows_the_outcome() -> None:
    runner, store = migrator(Database(), "lost after")

    def breaks() -> None:
        async def unreachable() -> list[AppliedMigration]:
            raise StorageUnavailableError("gone for good")

        store.applied_migrations = unreachable  # type: ignore[method-assign]

    store.meanwhile = breaks
    with pytest.raises(OutcomeUnknownError, match="--status"):
        asyncio.run(runner.migrate(None))
    assert store.shared.rows != []


def test_older_code_repairs_no_checksums_of_a_schema_that_is_too_new_for_it() -> None:
    newer = AppliedMigration(9, "later", "x", min_code=9)
    changed = replace(applied(OURS[0]), checksum="of another text")
    runner, store = migrator(Database([changed, newer]))
    with pytest.raises(SchemaTooNewError):
        asyncio.run(runner.repair_checksums())
    assert store.shared.rows == [changed, newer]


def test_a_file_of_the_deployment_that_excludes_this_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "001_x.sql").write_text("-- min_code=4\nSELECT 1")
    with pytest.raises(MigrationError, match="001_x: min_code=4 excludes this code, which knows 3"):
        migrator(Database(), migrations_dir=tmp_path)


def test_g12_a_step_that_took_long_before_it_was_interrupted_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    runner, store = migrator(Database(), "interrupted", wait=50)
    monkeypatch.setattr(migrating, "monotonic", lambda: store.asked * 1000.0)
    assert asyncio.run(runner.migrate(None)).steps == OURS
