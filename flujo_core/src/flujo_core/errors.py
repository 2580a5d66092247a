"""Which error does a caller see, and what does it mean?

One tree; no driver exception is ever the public type, and no message, argument or cause carries a password.

    FlujoStateError
    ├── InvalidStateError          (ValueError)   the argument breaks a rule; nothing was sent
    ├── StateConflictError                        the stored revision is not the expected one; nothing was written
    ├── RunNotFoundError           (LookupError)  the run is not recorded
    ├── ConfigurationError         (ValueError)   a URI, option, variable or configuration file is wrong
    ├── PluginError                               no usable backend for a scheme
    │   ├── UnknownSchemeError                    nothing has this scheme
    │   ├── BackendNotInstalledError (ImportError) the plugin or its driver is not installed
    │   ├── BrokenPluginError                     the plugin fails when it is imported or asked
    │   ├── IncompatiblePluginError               the plugin was written for another version of the interface
    │   └── DuplicateSchemeError                  two plugins claim one scheme
    ├── StorageError                              the database refused or failed; the call had no effect
    │   ├── StorageUnavailableError               it can't be reached, opened or logged in to
    │   ├── StorageTimeoutError    (TimeoutError) a deadline passed; the call had no effect
    │   └── UnsupportedStorageError               it is reached, but not one that a backend may use
    ├── SchemaError                               the tables are not those that this code needs
    │   ├── SchemaMissingError
    │   ├── SchemaOutdatedError
    │   ├── SchemaTooNewError                     also: a document in a newer format
    │   ├── ChecksumMismatchError                 the file of an applied migration was changed
    │   └── MigrationError                        a migration file or its run failed; the step was rolled back
    │       └── MigrationLockError (TimeoutError) another process was migrating for longer than one may wait
    └── OutcomeUnknownError                       the write may or may not have happened; load before repeating it
"""

from __future__ import annotations


class FlujoStateError(Exception):
    """Everything that a state backend raises."""


class InvalidStateError(FlujoStateError, ValueError):
    """An argument breaks a rule of the contract; nothing was sent to the database.

    ``path`` names the place in the argument, such as ``$.metadata.tags[2]``, where there is one.
    """

    def __init__(self, message: str, *, path: str | None = None) -> None:
        super().__init__(message)
        self.path = path


class StateConflictError(FlujoStateError):
    """The stored revision is not the expected one; nothing was written. 0 means "no snapshot"."""

    def __init__(self, run_id: str, *, expected: int, actual: int) -> None:
        super().__init__(
            f"run {run_id!r} is at revision {actual}, not at the expected revision {expected}; "
            "load it again and decide anew"
        )
        self.run_id = run_id
        self.expected = expected
        self.actual = actual

    def __reduce__(self) -> tuple[object, ...]:
        return (_conflict, (self.run_id, self.expected, self.actual))


def _conflict(run_id: str, expected: int, actual: int) -> StateConflictError:
    return StateConflictError(run_id, expected=expected, actual=actual)


class RunNotFoundError(FlujoStateError, LookupError):
    """The run is not recorded."""

    def __init__(self, run_id: str) -> None:
        super().__init__(f"run {run_id!r} is not recorded; call save_run_start or save_state first")
        self.run_id = run_id

    def __reduce__(self) -> tuple[object, ...]:
        return (RunNotFoundError, (self.run_id,))


class ConfigurationError(FlujoStateError, ValueError):
    """A URI, an option, an environment variable or a configuration file is wrong."""


class PluginError(FlujoStateError):
    """No usable backend for a scheme."""


class UnknownSchemeError(PluginError):
    """No known backend has this scheme."""


class BackendNotInstalledError(PluginError, ImportError):
    """The backend is known, but its plugin or its driver is not installed."""


class BrokenPluginError(PluginError):
    """The plugin fails when it is imported or asked for its description."""


class IncompatiblePluginError(PluginError):
    """The plugin was written for another version of the plugin interface."""


class DuplicateSchemeError(PluginError):
    """Two installed plugins claim the same scheme."""


class StorageError(FlujoStateError):
    """The database refused or failed; the call had no effect."""


class StorageUnavailableError(StorageError):
    """The database can't be reached, opened or logged in to."""


class StorageTimeoutError(StorageError, TimeoutError):
    """A deadline passed; the call had no effect. The message names the wait and its setting."""


class UnsupportedStorageError(StorageError):
    """The database is reached, but it is not one that a backend may use."""


class SchemaError(FlujoStateError):
    """The tables in the database are not those that this code needs."""


class SchemaMissingError(SchemaError):
    """The database has no Flujo tables."""


class SchemaOutdatedError(SchemaError):
    """Migrations are pending."""


class SchemaTooNewError(SchemaError):
    """The schema or a stored document was written by newer code that this code can't read."""


class MigrationError(SchemaError):
    """A migration file is wrong, or running it failed; the step was rolled back."""


class MigrationLockError(MigrationError, TimeoutError):
    """What another process held, a migration above all, was not released within ``migration_lock_wait``."""


class ChecksumMismatchError(SchemaError):
    """The file of a migration is not the one that was applied."""


class OutcomeUnknownError(FlujoStateError):
    """The connection was lost while a write was being committed, and what became of it could not be found out."""
