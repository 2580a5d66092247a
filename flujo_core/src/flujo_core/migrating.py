"""How does a database reach the schema that this code needs, whoever else is about to change it?

One step after another: read what is applied, plan, let the store apply one step *if that is still so* (`Store.migrate`,
a compare-and-swap), read again. So it doesn't matter who applied a step, nor whether the answer to a commit was lost:
what is recorded is applied.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Final

from .errors import (
    FlujoStateError,
    MigrationError,
    MigrationLockError,
    OutcomeUnknownError,
    StorageError,
    StorageTimeoutError,
)
from .migrations import (
    AppliedMigration,
    Migration,
    MigrationReport,
    SchemaStatus,
    plan,
    preview,
    read_folder,
    read_migrations,
    report,
    taking_over,
)
from .store import CommitUnknown, Interrupted, Migrated, Store

if TYPE_CHECKING:
    from .settings import BackendSettings

_log: Final = logging.getLogger("flujo")
_PAUSE: Final = (0.01, 0.1)
"""Seconds between two attempts, drawn anew each time: those who wait don't come all at once."""
_CONTRADICTIONS: Final = 20
"""So often a store may say that something else is applied than what it told, while a step doesn't come any further."""

Told = Callable[["MigrationProgress"], None]
Work = Callable[[], Awaitable[Migrated]]


@dataclass(frozen=True, slots=True)
class MigrationProgress:
    """What a migration run is at."""

    step: Migration
    number: int
    """Of the step among those that are to do, from 1."""
    of: int
    doing: str
    """``waits``: for the lock of another process; ``runs``; ``done``."""


class Migrator:
    """The migrations of one open store."""

    def __init__(self, store: Store, settings: BackendSettings) -> None:
        self._store = store
        self._settings = settings
        self._contradictions = 0
        folder = settings.migrations_dir
        own = read_migrations(store.migrations) if store.migrations else ()
        if folder is not None and not store.migrations:
            raise MigrationError(f"{store.database} has no schema, so it takes no migrations_dir")
        self._migrations = own + (read_folder(folder) if folder is not None else ())
        for migration in self._migrations:
            if not (migration.transaction or store.migrates_outside_transactions):
                raise MigrationError(
                    f"{migration}: {store.database} runs every migration in a transaction; remove transaction=false"
                )
            if migration.min_code > len(own):
                raise MigrationError(
                    f"{migration}: min_code={migration.min_code} excludes this code, which knows {len(own)}"
                )

    async def status(self) -> SchemaStatus:
        applied = tuple(await self._store.applied_migrations())
        fresh = not any(row.series == "flujo" and row.checksum for row in applied)
        original = fresh and await self._store.is_original()
        return SchemaStatus(self._store.database, self._migrations, applied, original)

    async def prepare(self) -> None:
        """What opening does: migrate if ``auto_migrate`` says so, else see whether the schema is one to be used."""
        status = await self.status()
        if self._settings.auto_migrate:
            status.refuse_unusable()
            if status.pending:
                await self.migrate(None)
        else:
            status.require_current()
        if status.state == "newer":
            _log.warning(
                "%s is at schema version %d, this code knows %d; newer code says that they go together",
                status.database,
                status.current_version,
                status.latest_version,
            )

    async def preview(self, target_version: int | None) -> MigrationReport:
        return preview(await self.status(), target_version)

    async def script(self, target_version: int | None) -> list[str]:
        status = await self.status()
        if status.original:
            raise MigrationError(
                f"{status.database} was made by the original Flujo, whose rows SQL alone can't take over; "
                "run `flujo migrate`"
            )
        return [statement for step in plan(status, target_version) for statement in self._store.migration_script(step)]

    async def migrate(self, target_version: int | None, told: Told | None = None) -> MigrationReport:
        """Raises `MigrationLockError` if another process held up one step for longer than ``migration_lock_wait``."""
        began = status = await self.status()
        done: list[Migration] = []
        while steps := plan(status, target_version):
            step = steps[0]
            number = len(done) + 1

            def tell(doing: str, step: Migration = step, number: int = number, of: int = len(steps)) -> None:
                if told is not None:
                    told(MigrationProgress(step, number, number - 1 + of, doing))

            if status.original:
                all_at_once = taking_over(status)
                work: Work = partial(self._store.take_over, all_at_once)
            else:
                all_at_once = (step,)
                work = partial(self._store.migrate, step, status.applied)
            status, by_us = await self._apply(work, step, status, tell)
            if by_us:
                done.extend(all_at_once)
                tell("done")
        return report(began, status, done)

    async def repair_checksums(self) -> tuple[Migration, ...]:
        """Record the files as they are now; nothing of them is run. Returns those whose record was changed."""
        status = await self.status()
        if status.state == "too new":
            status.refuse_unusable()
        repaired: list[Migration] = []
        while status.changed:
            step = status.changed[0]
            record = replace(step, statements=(), transaction=True)
            work = partial(self._store.migrate, record, status.applied)
            status, by_us = await self._apply(work, record, status, lambda doing: None)
            if by_us:
                repaired.append(step)
        return tuple(repaired)

    async def _apply(
        self, work: Work, step: Migration, status: SchemaStatus, tell: Callable[[str], None]
    ) -> tuple[SchemaStatus, bool]:
        """What is applied then, and whether the step was applied by us, who ask for ``work``. It may also be that
        something else was, and the step not: then there is a new plan to make."""
        give_up: float | None = None
        unknown = False
        tell("runs")
        while True:
            outcome: Migrated | None = None
            error: FlujoStateError | None = None
            try:
                outcome = await work()
            except Interrupted as signal:
                error = _public(signal)
            except CommitUnknown as signal:
                error = _public(signal)
                unknown = True
            now = await self._told_after(unknown, error)
            if _is_recorded(step, now.applied):
                self._contradictions = 0
                # Of an answer that was lost, the record tells what became of it.
                return now, outcome == "applied" or unknown
            self._contradictions += outcome == "changed"
            if outcome == "applied" or self._contradictions >= _CONTRADICTIONS:
                raise StorageError(
                    f"{self._store.database}: what the store says about {step} again and again is not what it has "
                    "recorded; this is a bug of the backend"
                )
            if (now.applied, now.original) != (status.applied, status.original):
                return now, False
            if give_up is None:
                # From now on: the step itself may have taken long before it was interrupted.
                give_up = monotonic() + self._settings.migration_lock_wait
                tell("waits")
            if monotonic() >= give_up:
                raise self._waited_too_long(step, error)
            await asyncio.sleep(random.uniform(*_PAUSE))

    async def _told_after(self, unknown: bool, error: FlujoStateError | None) -> SchemaStatus:
        """The status; where it can't be told after an answer was lost, nobody knows what became of the step."""
        try:
            return await self.status()
        except StorageError:
            if not unknown:
                raise
            raise OutcomeUnknownError(f"{error}; `flujo migrate --status` will tell whether it was applied") from None

    def _waited_too_long(self, step: Migration, error: FlujoStateError | None) -> FlujoStateError:
        if error is not None and not isinstance(error, StorageTimeoutError):
            return error
        why = "another process is migrating" if error is None else str(error)
        return MigrationLockError(
            f"{self._store.database}: {step} could not begin within {self._settings.migration_lock_wait:g} s "
            f"(migration_lock_wait, --lock-wait): {why}; nothing was changed, run `flujo migrate` again"
        )


def _public(signal: Interrupted | CommitUnknown) -> FlujoStateError:
    return signal.error if isinstance(signal.error, FlujoStateError) else StorageError(str(signal.error))


def _is_recorded(step: Migration, applied: Sequence[AppliedMigration]) -> bool:
    return any((row.series, row.version, row.checksum) == (step.series, step.version, step.checksum) for row in applied)
