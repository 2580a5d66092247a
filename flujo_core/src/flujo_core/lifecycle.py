"""How does a backend open, close and reach its database? What every part of `StateBackend` stands on (G)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from .batching import Operation
from .codec import encode_document
from .migrating import Migrator, Told
from .migrations import Migration, MigrationReport, SchemaStatus
from .model import RunInfo
from .runs import Draft, Run
from .sessions import Sessions, to_its_end
from .store import RunQuery, Store

if TYPE_CHECKING:
    from .settings import BackendSettings

Result = TypeVar("Result")


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Lifecycle:
    """``make_store`` makes a store that isn't open yet, and does no I/O. It is called on first use in each event loop,
    again for a call after `shutdown` or an opening that failed, in a forked child, and for each `migrate` and
    `schema_status`, which use a store of their own; stores of one backend are open side by side. ``settings`` is an
    instance of the plugin's settings class. ``clock`` returns the current time as an aware UTC datetime."""

    def __init__(
        self, make_store: Callable[[], Store], settings: BackendSettings, *, clock: Callable[[], datetime] = _utc_now
    ) -> None:
        self._make_store = make_store
        self._settings = settings
        self.clock = clock
        """The current time as an aware UTC datetime; may be replaced."""
        self._sessions = Sessions(make_store, settings)

    @classmethod
    def from_uri(cls, uri: str, settings: BackendSettings) -> Self:
        """The backend for a URI of one of its schemes; what `open_backend` calls. No I/O.

        ``settings`` is an instance of the settings class that the plugin's `BackendSpec` names, checked and complete:
        options of the URI, keyword arguments, configuration and defaults are in it. Use all of it. The URI comes as it
        was given, its options included.
        """
        raise TypeError(f"{cls.__name__} is not made from a URI")

    @property
    def settings(self) -> BackendSettings:
        return self._settings

    # --- G: life -----------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self._sessions.current()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.shutdown()

    async def shutdown(self) -> None:
        """Settle what is under way in this event loop and close (G1). Harmless when repeated; a later call opens again.

        Raises `StorageTimeoutError` after ``close_timeout`` seconds.
        """
        await self._sessions.close()

    async def close(self) -> None:
        """The same as `shutdown`."""
        await self.shutdown()

    async def schema_status(self) -> SchemaStatus:
        """Which migrations are applied and which are pending (D5). Writes nothing, and needs no right to."""
        return await self._migrating(lambda migrator: migrator.status(), create=False)

    async def migrate(
        self, target_version: int | None = None, dry_run: bool = False, *, told: Told | None = None
    ) -> MigrationReport:
        """Apply pending migrations, up to ``target_version`` of Flujo's series if given, else the deployment's too;
        with ``dry_run`` only tell which, reading only. ``told`` hears of each step.

        Each step is applied as a whole and once, however many processes do this at the same time. A database of the
        original system is taken over with all that it holds, as a whole or not at all. Raises
        `MigrationError` for an unknown or lower target and for a step that fails (it is rolled back, those before it
        stay), `MigrationLockError` if another process holds things up for longer than ``migration_lock_wait``,
        `ChecksumMismatchError` if an applied file was changed, `SchemaTooNewError` for a schema that only newer code
        understands.
        """
        if dry_run:
            return await self._migrating(lambda migrator: migrator.preview(target_version), create=False)
        return await self._migrating(lambda migrator: migrator.migrate(target_version, told), create=True)

    async def migration_script(self, target_version: int | None = None) -> list[str]:
        """What `migrate` would do now, as SQL statements that somebody may run by hand instead. Raises `MigrationError`
        for a database of the original system: its rows are taken over by code."""
        return await self._migrating(lambda migrator: migrator.script(target_version), create=False)

    async def repair_checksums(self) -> tuple[Migration, ...]:
        """Record the files of applied migrations as they are now, where they were changed; returns those. No SQL of
        theirs is run."""
        return await self._migrating(lambda migrator: migrator.repair_checksums(), create=False)

    async def _migrating(self, use: Callable[[Migrator], Awaitable[Result]], *, create: bool) -> Result:
        """On a store of its own, whose schema is not looked at first."""
        store = self._make_store()
        # Its files are read before anything is made.
        migrator = Migrator(store, self._settings)
        try:
            await store.open(create=create)
            return await use(migrator)
        finally:
            await to_its_end(store.close(), store)

    async def _store(self) -> Store:
        return (await self._sessions.current()).store

    async def _write(
        self,
        run_id: str,
        apply: Callable[[Draft], Any],
        *,
        size: int = 0,
        record_id: str | None = None,
        solo: bool = False,
    ) -> Any:
        session = await self._sessions.current()
        return await session.batcher.submit(Operation(run_id, apply, size, record_id, solo))

    def _document(self, value: Any) -> str:
        """A normalized value as a document within the limit (G4)."""
        return encode_document(value, self._settings.max_document_bytes)

    async def _list(self, query: RunQuery) -> list[Run]:
        return [Run.from_document(document) for document in await (await self._store()).list_runs(query)]

    async def _rows(self, query: RunQuery) -> list[RunInfo]:
        return [run.row() for run in await self._list(query)]

    async def _pages(self, query: RunQuery, page_size: int) -> AsyncGenerator[list[Run], None]:
        """All runs of the query by key; between pages nothing is held (R7)."""
        while True:
            page = await self._list(replace(query, limit=page_size))
            yield page
            if len(page) < page_size:
                return
            query = replace(query, after=(page[-1].created_at, page[-1].run_id))
