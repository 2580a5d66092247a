"""Which migrations are there, which are applied, and which come next? No database here.

A migration is a file ``NNN_slug.sql``. There are two *series*: Flujo's own, in the ``migrations`` folder of a plugin,
numbered from 1; and the deployment's, in the folder that the setting ``migrations_dir`` names, numbered from wherever
its first file says. Each is recorded apart, so that a deployment's 003 never meets Flujo's. Numbers have no gap.

Directives stand in the comments at the head of a file, alone in their line::

    -- transaction=false        the one statement of the file runs outside of any transaction
    -- min_code=4               code that knows less than version 4 of Flujo's series can't use the schema any more
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from hashlib import sha256
from importlib.resources import files
from itertools import takewhile
from math import isfinite
from pathlib import Path
from typing import Any, Final, Literal

from .errors import (
    ChecksumMismatchError,
    ConfigurationError,
    InvalidStateError,
    MigrationError,
    SchemaMissingError,
    SchemaOutdatedError,
    SchemaTooNewError,
)
from .scripts import keywords, shape, statements
from .timestamps import instant

COMMAND: Final = "flujo migrate"
VERSIONS_TABLE: Final = "flujo_schema_versions"
"""Where Flujo's own series is recorded; `DEPLOYMENT_TABLE` has the same columns."""
DEPLOYMENT_TABLE: Final = "flujo_deployment_versions"
Series = Literal["flujo", "deployment"]
TABLE_OF: Final[dict[Series, str]] = {"flujo": VERSIONS_TABLE, "deployment": DEPLOYMENT_TABLE}
VERSION_COLUMNS: Final = frozenset(
    ("version", "name", "checksum", "applied_at", "duration_ms", "code_version", "min_code")
)
"""Of each of these tables; one of their name that lacks any is somebody else's."""

_FILE: Final = re.compile(r"([0-9]{3,9})_([a-z0-9_]+)\.sql")
_DIRECTIVES: Final = re.compile(r"--\s*(\w+=\S+(?:\s+\w+=\S+)*)\s*")
_MENTIONED: Final = re.compile(r"--.*\b(transaction|min_code)\s*=", re.IGNORECASE)
_BEGINS: Final = ("BEGIN", "BEGIN TRANSACTION", "BEGIN WORK", "START TRANSACTION")
_ENDS: Final = ("COMMIT", "COMMIT TRANSACTION", "COMMIT WORK", "END", "END TRANSACTION", "END WORK")
# These two look at the `shape` of a statement.
_RECORDS_ITSELF: Final = re.compile(rf'INSERT (?:OR \w+ )?INTO (?:\S+ \. )?"?{VERSIONS_TABLE.upper()}"?(?: |$)')
_RECORD: Final = re.compile(
    _RECORDS_ITSELF.pattern
    + r'(?:\( "?VERSION"?(?: , [^()]*)? \) )?VALUES \( ([0-9]+)(?: ,(?:[^()]|\([^()]*\))*)? \)(?: ON CONFLICT .*)?',
    re.DOTALL,
)
"""One row, whose first value is the version."""
_TRANSACTION_CONTROL: Final = frozenset(
    ("BEGIN", "START", "COMMIT", "END", "ROLLBACK", "ABORT", "SAVEPOINT", "RELEASE")
)


@dataclass(frozen=True, slots=True)
class Migration:
    """A file, and what it asks for."""

    version: int
    name: str
    sql: str = field(repr=False)
    """The text of the file, with LF line ends."""
    statements: tuple[str, ...] = field(repr=False)
    """What is run, one after the other; without the file's own transaction and record, if it has them."""
    series: Series = "flujo"
    transaction: bool = True
    """Whether its statements and its record are one transaction. If not, it has exactly one statement."""
    min_code: int = 0
    code_version: str | None = None
    """Of the distribution that it comes from."""

    @property
    def checksum(self) -> str:
        """SHA-256 of the text with LF line ends, in hex."""
        return sha256(self.sql.encode()).hexdigest()

    def __str__(self) -> str:
        return f"{self.version:03d}_{self.name}"


@dataclass(frozen=True, slots=True)
class AppliedMigration:
    """A row of the table that records a series.

    One without a checksum in Flujo's table was written by hand, by a file in the format of older guides that was given
    to the database itself. It is no version of Flujo's.
    """

    version: int
    name: str | None
    checksum: str | None
    applied_at: datetime | None = None
    duration_ms: float | None = None
    code_version: str | None = None
    min_code: int = 0
    series: Series = "flujo"

    @classmethod
    def of_row(cls, row: Sequence[Any], series: Series) -> AppliedMigration:
        """Of a row's columns in the order of the fields; the time may be ISO text. Whoever recorded a version by hand
        wrote what they liked: a time that is none is None."""
        version, name, checksum, applied_at, duration_ms, code_version, min_code = row
        if isinstance(applied_at, str):
            with suppress(InvalidStateError):
                applied_at = instant(applied_at, "applied_at")
        moment = applied_at if isinstance(applied_at, datetime) else None
        duration_ms = duration_ms if duration_ms is None or isfinite(duration_ms) else None
        return cls(version, name, checksum, moment, duration_ms, code_version, min_code, series)


def record_statement(step: Migration, table: str) -> str:
    """The record of a step as SQL for people; the time and what the runner measures are left to defaults."""
    values = (step.version, step.name, step.checksum, step.code_version, step.min_code)
    shown = ", ".join("NULL" if value is None else repr(value) for value in values)
    return f"INSERT INTO {table} (version, name, checksum, code_version, min_code) VALUES ({shown})"


# --- reading ----------------------------------------------------------------------------------------------------------


def parse_migration(file_name: str, text: str, series: Series = "flujo", code_version: str | None = None) -> Migration:
    """Raises `MigrationError` for a file that can't be run safely; nothing has run then."""
    match = _FILE.fullmatch(file_name)
    if match is None:
        raise MigrationError(f"{file_name} is not named like 001_init.sql: a number, lower-case words, .sql")
    version, name = int(match[1]), match[2]
    sql = text.removeprefix("\ufeff").replace("\r\n", "\n")
    try:
        directives = _directives(sql)
        kept = _without_own_transaction(statements(sql))
        kept = [statement for statement in kept if not _is_record_of(statement, version)]
        _check_statements(kept, directives)
    except MigrationError as error:
        raise MigrationError(f"{file_name}: {error}") from None
    transaction = directives.get("transaction") != "false"
    min_code = int(directives.get("min_code", 0))
    if series == "flujo" and min_code > version:
        raise MigrationError(f"{file_name}: min_code={min_code} excludes the code that it comes with")
    return Migration(version, name, sql, tuple(kept), series, transaction, min_code, code_version)


def _directives(sql: str) -> dict[str, str]:
    found: dict[str, str] = {}
    at_head = True
    for line in map(str.strip, sql.split("\n")):
        at_head = at_head and (not line or line.startswith("--"))
        match = _DIRECTIVES.fullmatch(line) if at_head else None
        if match is None and _MENTIONED.match(line):
            raise MigrationError(f"{line!r:.80}: a directive stands at the head of the file, alone in its line")
        for name, _, value in (pair.partition("=") for pair in match[1].split()) if match else ():
            if name not in ("transaction", "min_code"):
                raise MigrationError(f"there is no directive {name}; there are transaction=false and min_code=N")
            if value not in ("true", "false") if name == "transaction" else re.fullmatch("[0-9]{1,9}", value) is None:
                raise MigrationError(f"{name}={value} is no value of this directive")
            if name in found:
                raise MigrationError(f"the directive {name} is there twice")
            found[name] = value
    return found


def _without_own_transaction(found: list[str]) -> list[str]:
    """The format of the guide: BEGIN first, COMMIT last."""
    framed = len(found) > 1 and shape(found[0]) in _BEGINS and shape(found[-1]) in _ENDS
    return found[1:-1] if framed else found


def _is_record_of(statement: str, version: int) -> bool:
    """Whether a statement is the record of the file's version, which the runner writes anyway."""
    if keywords(statement)[:1] != ["INSERT"] or _RECORDS_ITSELF.match(shape(statement)) is None:
        return False
    recorded = _RECORD.fullmatch(shape(statement))
    if recorded is None or int(recorded[1]) != version:
        raise MigrationError(f"it records something else in {VERSIONS_TABLE} than its own version {version}")
    return True


def _check_statements(kept: list[str], directives: dict[str, str]) -> None:
    if not kept:
        raise MigrationError("it has no statement")
    for statement in kept:
        words = keywords(statement)
        if words and (words[0] in _TRANSACTION_CONTROL or words[:2] == ["PREPARE", "TRANSACTION"]):
            raise MigrationError(
                f"{' '.join(words[:2])} is not allowed: the runner makes the transaction; only one pair of BEGIN and "
                "COMMIT around the whole file is accepted"
            )
    if directives.get("transaction") == "false" and len(kept) != 1:
        raise MigrationError(f"with transaction=false it has exactly one statement, not {len(kept)}")


@cache
def read_migrations(package: str) -> tuple[Migration, ...]:
    """Flujo's own series of a plugin: the files of a package such as ``flujo_sqlite.migrations``, in order."""
    code_version = _version_of(package.partition(".")[0].replace("_", "-"))
    texts = ((entry.name, entry.read_text(encoding="utf-8")) for entry in files(package).iterdir() if _is_sql(entry))
    return _in_order(package, [parse_migration(*text, "flujo", code_version) for text in texts], first=1)


def _version_of(distribution: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def read_folder(folder: Path) -> tuple[Migration, ...]:
    """A deployment's own series, read anew each time. A missing or unreadable folder is a `ConfigurationError`."""
    try:
        texts = [(entry.name, entry.read_text(encoding="utf-8")) for entry in folder.iterdir() if _is_sql(entry)]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"migrations_dir: {folder} can't be read: {error}") from None
    return _in_order(str(folder), [parse_migration(*text, "deployment") for text in texts], first=None)


def _is_sql(entry: object) -> bool:
    return str(getattr(entry, "name", "")).lower().endswith(".sql")


def _in_order(place: str, found: Iterable[Migration], first: int | None) -> tuple[Migration, ...]:
    ordered = sorted(found, key=lambda migration: migration.version)
    if ordered:
        start = ordered[0].version if first is None else first
        for place_of, migration in enumerate(ordered, start):
            if migration.version != place_of:
                raise MigrationError(
                    f"{place}: {migration} stands where number {place_of:03d} is expected; "
                    "the numbers have no gap and none is there twice"
                )
    return tuple(ordered)


# --- status and plan --------------------------------------------------------------------------------------------------

State = Literal["missing", "original", "outdated", "current", "newer", "too new"]


@dataclass(frozen=True, slots=True)
class SchemaStatus:
    """The state of a database's schema."""

    database: str
    """Where, with no password."""
    migrations: tuple[Migration, ...]
    """What this code has: Flujo's series, then the deployment's."""
    applied: tuple[AppliedMigration, ...]
    """What the database has, in the same order."""
    original: bool = False
    """Whether it is a database of the original system, which the first steps take over with all that it holds."""

    @property
    def current_version(self) -> int:
        """The highest version of Flujo's series that is applied; 0 for none."""
        return max((row.version for row in self._recorded() if row.series == "flujo"), default=0)

    @property
    def latest_version(self) -> int:
        """The highest version of Flujo's series that this code has."""
        return max((migration.version for migration in self.migrations if migration.series == "flujo"), default=0)

    @property
    def pending(self) -> tuple[Migration, ...]:
        """What is to be applied, in order."""
        recorded = {(row.series, row.version) for row in self._recorded()}
        return tuple(one for one in self.migrations if (one.series, one.version) not in recorded)

    @property
    def changed(self) -> tuple[Migration, ...]:
        """Those that are applied, but whose file is not the one that was."""
        checksums = {(row.series, row.version): row.checksum for row in self._recorded()}
        return tuple(
            one for one in self.migrations if checksums.get((one.series, one.version), one.checksum) != one.checksum
        )

    @property
    def state(self) -> State:
        """``original``: to be taken over. ``newer``: made by newer code, which says that this code can go on using
        it."""
        if self.original:
            return "original"
        current, latest = self.current_version, self.latest_version
        if current > latest:
            return "too new" if max(row.min_code for row in self._recorded()) > latest else "newer"
        if latest and current == 0:
            return "missing"
        return "outdated" if self.pending else "current"

    def _recorded(self) -> list[AppliedMigration]:
        return [row for row in self.applied if row.checksum]

    def require_current(self) -> None:
        """Raise unless this code can use the schema as it is."""
        if self.original:
            raise SchemaOutdatedError(f"{self.database} was made by the original Flujo; run `{COMMAND}`")
        if self.state == "missing":
            raise SchemaMissingError(f"{self.database} has no Flujo tables; run `{COMMAND}` or set auto_migrate")
        self.refuse_unusable()
        if self.state == "outdated" and self.current_version < self.latest_version:
            raise SchemaOutdatedError(
                f"{self.database} is at schema version {self.current_version}, this code needs {self.latest_version}; "
                f"run `{COMMAND}`"
            )
        if self.pending:
            names = ", ".join(map(str, self.pending))
            raise SchemaOutdatedError(f"{self.database} lacks {names}; run `{COMMAND}`")

    def refuse_unusable(self) -> None:
        """Raise if the schema is too new for this code, or an applied file was changed since."""
        if self.state == "too new":
            raise SchemaTooNewError(
                f"{self.database} is at schema version {self.current_version}, this code knows {self.latest_version}; "
                "upgrade Flujo here"
            )
        if self.changed:
            names = ", ".join(map(str, self.changed))
            raise ChecksumMismatchError(
                f"{self.database}: {names} changed since it was applied; restore the file, or run "
                f"`{COMMAND} --repair-checksums` if the change makes no difference"
            )


@dataclass(frozen=True, slots=True)
class MigrationReport:
    """What a migration run did, or would do."""

    database: str
    from_version: int
    to_version: int
    steps: tuple[Migration, ...]
    """In order; empty if there was nothing to do. What another process did meanwhile is not among them."""
    dry_run: bool
    original: bool = False
    """Whether it began with a database of the original system, which the first steps take over."""


def plan(status: SchemaStatus, target_version: int | None) -> tuple[Migration, ...]:
    """The steps to a version of Flujo's series (None: all of both series), in order.

    Raises `MigrationError` for a target that makes no sense, `SchemaTooNewError` and `ChecksumMismatchError`.
    """
    status.refuse_unusable()
    if target_version is not None:
        _check_target(status, target_version)
    pending = status.pending
    for step in pending:
        done = [row.version for row in status.applied if row.series == step.series and row.checksum]
        if max(done, default=0) > step.version:
            raise MigrationError(
                f"{status.database}: {step} is not applied, but version {max(done)} is; "
                "migrations are applied in order, so its record was removed or the file was added later"
            )
    if target_version is None:
        return pending
    return tuple(step for step in pending if step.series == "flujo" and step.version <= target_version)


def taking_over(status: SchemaStatus) -> tuple[Migration, ...]:
    """The steps that make the tables into which the original's rows go, in the transaction that moves them: Flujo's,
    up to the first that runs outside of any."""
    own = (step for step in status.pending if step.series == "flujo")
    return tuple(takewhile(lambda step: step.transaction, own))


def _check_target(status: SchemaStatus, target_version: int) -> None:
    if isinstance(target_version, bool) or not isinstance(target_version, int):
        raise MigrationError(f"target version {target_version!r} is not a whole number")
    if not 1 <= target_version <= status.latest_version:
        known = f"the known ones are 1 to {status.latest_version}" if status.latest_version else "there are none"
        raise MigrationError(f"target version {target_version} is unknown; {known}")
    if status.original and target_version < status.latest_version:
        raise MigrationError(
            f"{status.database} was made by the original Flujo; it is taken over by version {status.latest_version}, "
            f"not by {target_version}"
        )
    if target_version < status.current_version:
        raise MigrationError(
            f"target version {target_version} is below the current version {status.current_version}; "
            "migrations only go forward, restore a backup to go back"
        )


def report(began: SchemaStatus, ended: SchemaStatus, steps: Sequence[Migration]) -> MigrationReport:
    """What a run did from one status to the other."""
    versions = began.current_version, ended.current_version
    return MigrationReport(began.database, *versions, tuple(steps), dry_run=False, original=began.original)


def preview(status: SchemaStatus, target_version: int | None) -> MigrationReport:
    """What a run would do now."""
    steps = plan(status, target_version)
    ours = [step.version for step in steps if step.series == "flujo"]
    to_version = max(ours, default=status.current_version)
    versions = status.current_version, to_version
    return MigrationReport(status.database, *versions, steps, dry_run=True, original=status.original)
