"""Which migrations are there, which are applied, and which come next? No database here.

A migration is a file ``NNN_slug.sql`` in a plugin's ``migrations`` folder; the numbers are contiguous from 1.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.resources import files
from typing import Final, Literal

from .errors import MigrationError, SchemaMissingError, SchemaOutdatedError, SchemaTooNewError

_FILE: Final = re.compile(r"(\d{3})_([a-z0-9_]+)\.sql")
COMMAND: Final = "flujo migrate"


@dataclass(frozen=True, slots=True)
class Migration:
    version: int
    name: str
    sql: str = field(repr=False)

    @property
    def checksum(self) -> str:
        """SHA-256 of the text with LF line ends, in hex."""
        return sha256(self.sql.replace("\r\n", "\n").encode()).hexdigest()

    def __str__(self) -> str:
        return f"{self.version:03d}_{self.name}"


@dataclass(frozen=True, slots=True)
class AppliedMigration:
    """A row of ``flujo_schema_versions``. One without a checksum is the deployment's own, not Flujo's."""

    version: int
    name: str | None
    checksum: str | None


@dataclass(frozen=True, slots=True)
class SchemaStatus:
    """The state of a database's schema."""

    database: str
    """Where, with no password."""
    migrations: tuple[Migration, ...]
    """What this code has."""
    applied: tuple[AppliedMigration, ...]
    """What the database has, by version."""

    @property
    def current_version(self) -> int:
        """The highest of our versions that is applied; 0 for none."""
        return max(self._ours(), default=0)

    def _ours(self) -> set[int]:
        return {row.version for row in self.applied if row.checksum}

    @property
    def latest_version(self) -> int:
        return self.migrations[-1].version if self.migrations else 0

    @property
    def pending(self) -> tuple[Migration, ...]:
        applied = self._ours()
        return tuple(migration for migration in self.migrations if migration.version not in applied)

    @property
    def state(self) -> Literal["missing", "outdated", "current", "too new"]:
        if self.current_version > self.latest_version:
            return "too new"
        if self.migrations and self.current_version == 0:
            return "missing"
        return "outdated" if self.pending else "current"

    def require_current(self) -> None:
        """Raise unless this code can use the schema as it is."""
        if self.state == "missing":
            raise SchemaMissingError(f"{self.database} has no Flujo tables; run `{COMMAND}` or set auto_migrate")
        if self.state == "outdated":
            raise SchemaOutdatedError(
                f"{self.database} is at schema version {self.current_version}, this code needs {self.latest_version}; "
                f"run `{COMMAND}`"
            )
        self.refuse_newer()

    def refuse_newer(self) -> None:
        if self.state == "too new":
            raise SchemaTooNewError(
                f"{self.database} is at schema version {self.current_version}, this code knows {self.latest_version}; "
                "upgrade Flujo here"
            )


@dataclass(frozen=True, slots=True)
class MigrationReport:
    """What a migration run did, or would do."""

    database: str
    from_version: int
    to_version: int
    steps: tuple[Migration, ...]
    """In order; empty if there was nothing to do."""
    dry_run: bool


def read_migrations(package: str) -> tuple[Migration, ...]:
    """The migration files of a package, in order."""
    found = []
    for entry in files(package).iterdir():
        if entry.name.endswith(".sql"):
            match = _FILE.fullmatch(entry.name)
            if match is None:
                raise MigrationError(f"{package}: {entry.name} is not named like 001_init.sql")
            found.append(Migration(int(match[1]), match[2], entry.read_text(encoding="utf-8")))
    found.sort(key=lambda migration: migration.version)
    if [migration.version for migration in found] != list(range(1, len(found) + 1)):
        raise MigrationError(f"{package}: the numbers of the .sql files are not 1, 2, 3, … without gap or repeat")
    return tuple(found)


def plan(status: SchemaStatus, target_version: int | None) -> tuple[Migration, ...]:
    """The steps to the target (None: all), in order; `MigrationError` for a target that makes no sense."""
    status.refuse_newer()
    if target_version is None:
        return status.pending
    if isinstance(target_version, bool) or not isinstance(target_version, int):
        raise MigrationError(f"target version {target_version!r} is not a whole number")
    if not 1 <= target_version <= status.latest_version:
        raise MigrationError(
            f"target version {target_version} is unknown; the known ones are 1 to {status.latest_version}"
        )
    if target_version < status.current_version:
        raise MigrationError(
            f"target version {target_version} is below the current version {status.current_version}; "
            "migrations only go forward, restore a backup to go back"
        )
    return tuple(step for step in status.pending if step.version <= target_version)


def report(status: SchemaStatus, steps: Sequence[Migration], dry_run: bool) -> MigrationReport:
    to_version = steps[-1].version if steps else status.current_version
    return MigrationReport(status.database, status.current_version, to_version, tuple(steps), dry_run)
