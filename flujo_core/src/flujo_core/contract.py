"""Which rules does every state backend keep? Their ids, as docstrings and tests name them, and what each one says.

A test whose name begins with ``test_s3_`` proves S3. ``python -m flujo_conformance.rules`` shows which tests there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal

CONTRACT_VERSION: Final = 1
"""Raised when a rule is added, changed or removed: what a report of the suite is about."""

RULES: Final[Mapping[str, str]] = MappingProxyType(
    {
        # For every method
        "G1": "Making a backend does no I/O; it opens itself on first use. shutdown() is idempotent and bounded in "
        "time, a later call opens again, and a process that exits without it ends within two seconds.",
        "G2": "One backend object may be used from several event loops and threads, one after the other or at once. "
        "A forked process shares no connection with its parent.",
        "G3": "What JSON can say is loaded as it was saved, to the type and the last bit, NaN, -0.0, NUL and "
        "surrogates included. Common Python types are turned into their JSON form; arguments are captured "
        "before the first suspension.",
        "G4": "What has no JSON form, is too deep, too large or ambiguous is refused with its path before anything "
        "is sent. Nothing is silently dropped, cut or replaced.",
        "G5": "Identifiers are str of 1 to 255 characters without NUL and surrogates, compared byte for byte, never "
        "cast. Free text is any str; rows show NUL and surrogates as U+FFFD.",
        "G6": "Timestamps are datetimes, naive ones in UTC, or ISO 8601 text with date and time, kept to the "
        "microsecond and returned as aware UTC datetimes.",
        "G7": "Numeric fields are finite, and no bool is a number. Rows show counters as int and durations, sizes "
        "and costs as float; documents keep what was given. Averages agree within 1e-9.",
        "G8": "limit=None is all and limit=0 nothing, offset works without a limit, and anything but a whole number "
        "from 0 upwards is refused.",
        "G9": "What returned is durable and what raised a definite error has had no effect. A cancelled call "
        "happened or did not, never in part, and no write is applied twice.",
        "G10": "Reads and writes of one run are linearizable, whichever handle or process makes them, and a load is "
        "one consistent snapshot.",
        "G11": "Every error is a FlujoStateError that says what to do next. None is a driver's, none shows a password.",
        "G12": "Every wait has a deadline with a default and a setting, and the error names both.",
        # Snapshots
        "S1": "save_state replaces the snapshot as a whole and returns its revision: 1 for the first save, then one "
        "more for each.",
        "S2": "load_state returns every key that was saved, absent known keys with their defaults, and the "
        "revision; None if there is no snapshot.",
        "S3": "created_at is fixed by the first save or record of the run; updated_at is the caller's, or now.",
        "S4": "A snapshot needs its pipeline's id, name and version and current_step_index. The other known keys "
        "have defaults and types; status is one of five.",
        "S5": "A run_id within the state is that of the call.",
        "S6": "A save whose expected_revision is not the stored one raises StateConflictError and writes nothing. "
        "Of concurrent saves with one expected revision exactly one wins.",
        "S7": "delete_state removes the snapshot and no more: a run that has records stays listed. delete_run "
        "removes all of a run.",
        "S8": "The cost of a save does not grow with the number of runs, and of step_history only what changed is "
        "written; however it changed, it loads exactly.",
        # Runs and steps
        "R1": "save_run_start records a run. Repeated, it changes only what it contains. The pipeline's id, name "
        "and version are each fixed by the first value that is not a filler.",
        "R2": "save_run_end changes only the fields it contains; for a run that is not recorded it raises "
        "RunNotFoundError.",
        "R3": "save_step_result appends one record exactly as given; with a record_id that the run has, it replaces "
        "that record.",
        "R4": "list_run_steps is in the order of step_index, then of saving; an unknown run has no steps and no "
        "details.",
        "R5": "Records of an unknown run are kept under a placeholder that only get_run_details shows, until a save "
        "or record of the run completes it.",
        "R6": "list_runs is newest first, ties by run_id descending; all filters hold, and every row has the same "
        "keys.",
        "R7": "iter_runs yields a run that exists throughout exactly once, whatever comes and goes; every page "
        "costs the same, and nothing is held between pages.",
        "R8": "count_runs counts what list_runs would list.",
        "R9": "A run's status is that of its snapshot while it has one, else the one last recorded, else that of "
        "its last snapshot.",
        # Metadata filters
        "M1": "metadata_filter is JSON containment as PostgreSQL's @> on jsonb decides it.",
        "M2": "A filter is an object that metadata could hold; {} matches every run, and its keys mean themselves.",
        "M3": "Metadata holds no NUL, surrogate, NaN or infinity; they are refused with their path.",
        "M4": "A filter costs in proportion to the runs that hold its rarest value.",
        # Traces and spans
        "T1": "A trace is returned exactly as saved. A run with spans only has the tree that their parents make.",
        "T2": "save_spans updates spans by span_id. save_trace replaces the spans that the trace before it wrote "
        "and updates its own.",
        "T3": "get_spans is in the order of start_time, then of saving. get_span_statistics counts and times "
        "finished spans, bounds included.",
        # Administration
        "A1": "get_workflow_stats counts all runs, by status, of the last 24 hours and in the background, and "
        "averages their execution time.",
        "A2": "get_failed_workflows lists failed runs that were last updated within the window, last updated first.",
        "A3": "cleanup_old_workflows removes all of the runs that were created and last updated before the cutoff "
        "and returns how many; a run that is updated meanwhile stays.",
        "A4": "System state keeps any JSON value under a key. Evaluations have a finite score and are listed newest "
        "first.",
        "A5": "A background task is one by its field or its metadata. Stale ones are marked as failed by a save of "
        "their own.",
        # Opening, configuring, migrating
        "D1": "open_backend takes its configuration from the argument, then the environment, then flujo.toml, then "
        "the default, and can tell where each value came from.",
        "D2": "SQLite URIs are relative or absolute as RFC 3986 says, options come from an allow-list, and a shut "
        "down database is one file.",
        "D3": "PostgreSQL URIs follow libpq's grammar and defaults; unknown options are our error.",
        "D4": "Only the plugin of the chosen scheme is imported, and each way in which there is none has an error "
        "of its own.",
        "D5": "With auto_migrate=False nothing is created or changed, and a schema that does not fit is an error "
        "with the command to run. Databases that cannot serve are refused.",
        "D6": "Documents carry a format number, and older code refuses a newer one.",
    }
)

_STORE: Final = (
    "G1 G2 G3 G5 G9 G10 S1 S2 S6 S7 S8 R3 R4 R5 R6 R7 R8 M1 M4 T1 T2 T3 A1 A2 A3 A4".split()  # noqa: SIM905 - a list
)
_PLUGIN: Final = ("G12", "D2", "D3", "D5")

KEPT_BY: Final[Mapping[str, Literal["core", "store", "plugin"]]] = MappingProxyType(
    {rule: "store" if rule in _STORE else "plugin" if rule in _PLUGIN else "core" for rule in RULES}
)
"""Who keeps a rule: core decides it for every backend, a store has to do its part, or it is about a plugin's URI,
settings and files."""
