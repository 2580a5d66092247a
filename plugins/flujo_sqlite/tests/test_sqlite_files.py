"""Which file does the SQLite backend use, what does it do to it, and which files does it refuse?"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from sqlite_migrations import LATEST, with_backend

from flujo_core.errors import (
    ConfigurationError,
    FlujoStateError,
    MigrationError,
    SchemaMissingError,
    SchemaOutdatedError,
    SchemaTooNewError,
    StorageError,
    StorageUnavailableError,
    UnsupportedStorageError,
)
from flujo_sqlite import SQLiteBackend
from flujo_sqlite.store import SQLiteStore


def state(step: int = 0, **more: Any) -> Any:
    return {
        "pipeline_id": "p",
        "pipeline_name": "name",
        "pipeline_version": "1",
        "current_step_index": step,
        **more,
    }


def save(path: Any, run_id: str = "r", **settings: Any) -> int:
    return with_backend(path, lambda backend: backend.save_state(run_id, state()), **settings)


def load(path: Any, run_id: str = "r", **settings: Any) -> Any:
    return with_backend(path, lambda backend: backend.load_state(run_id), **settings)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def ask(path: Path, statement: str) -> list[Any]:
    """What another program sees in the file. Only while this process has it not open."""
    connection = sqlite3.connect(path)
    try:
        with connection:
            return connection.execute(statement).fetchall()
    finally:
        connection.close()


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


# --- D2: names of files -----------------------------------------------------------------------------------------------

ODD_NAMES = [
    "plain.db",
    "no_suffix",
    "per%cent%20%00.db",
    "question?mode=memory",
    "hash#fragment.db",
    "two words.db",
    "quo'te\"s`.db",
    "semi;colon&ampersand=1.db",
    "line\nbreak.db",
    "ünï – ✓ 漢字.db",
    "not-utf8-\udcff\udc80.db",
    "braces{lock_timeout}{}.db",
    " space around ",
    "~",
    "-dash.db",
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_d2_a_name_means_itself(tmp_path: Path, name: str) -> None:
    assert save(tmp_path / name) == 1
    assert save(str(tmp_path / name)) == 2
    assert names(tmp_path) == [name]


def test_d2_relative_paths_count_from_the_working_directory_of_the_constructor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    monkeypatch.chdir(first)
    backends = [
        SQLiteBackend(path)
        for path in ("x.db", Path("x.db"), "./x.db", "gone/../x.db", "sqlite:///x.db", "sqlite:///./x.db")
    ]
    monkeypatch.chdir(second)
    assert [asyncio.run(save_and_shut_down(backend)) for backend in backends] == [1, 2, 3, 4, 5, 6]
    assert names(first) == ["x.db"]
    assert names(second) == []


async def save_and_shut_down(backend: SQLiteBackend) -> int:
    try:
        return await backend.save_state("r", state())
    finally:
        await backend.shutdown()


def test_d2_a_uri_is_taken_with_its_encoding_and_its_options(tmp_path: Path) -> None:
    backend = SQLiteBackend(f"sqlite:///{tmp_path}/per%25%3F%23%20%C3%BC.db?synchronous=normal&lock_timeout=3")
    assert backend.path == tmp_path / "per%?# ü.db"
    assert backend.settings.model_dump()["synchronous"] == "normal"
    assert backend.settings.lock_timeout == 3
    assert SQLiteBackend("SQLITE:///x.db?lock_timeout=3", lock_timeout=4).settings.lock_timeout == 4


@pytest.mark.parametrize("place", ["x.db", "sqlite:///x.db"])
def test_d2_an_unknown_option_names_the_known_ones(place: str) -> None:
    with pytest.raises(ConfigurationError, match=r"unknown option 'synchronus'; did you mean 'synchronous'.*readers"):
        SQLiteBackend(place, synchronus="full")
    with pytest.raises(ConfigurationError, match=r"unknown option 'cache'.*known: .*lock_timeout"):
        SQLiteBackend("sqlite:///x.db?cache=shared")
    with pytest.raises(ConfigurationError, match="synchronous"):
        SQLiteBackend(place, synchronous="off")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (":memory:", "memory://"),
        (Path(":memory:"), "memory://"),
        ("sqlite:///:memory:", "memory://"),
        ("sqlite://", "path"),
        ("sqlite:x.db", "sqlite:///"),
        ("memory://", "memory://"),
        ("file:x.db?mode=memory", "sqlite:///file.db"),
        ("postgresql://me:s3cret@host/db", "open_backend"),
        ("", "path of a file"),
        (".", "folder"),
        (Path(), "folder"),
        ("..", "folder"),
        ("/", "folder"),
        ("folder/", "folder"),
        ("~/x.db", "expanduser"),
        (Path("~/x.db"), "expanduser"),
        ("nul\0.db", "path of a file"),
        ("half \ud800.db", "surrogates"),
        (b"bytes.db", "str or a Path"),
        (None, "str or a Path"),
        (5, "str or a Path"),
    ],
)
def test_d2_a_path_that_makes_no_sense_is_refused(path: Any, words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        SQLiteBackend(path)
    assert words in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_d2_a_missing_folder_is_made(tmp_path: Path) -> None:
    save(tmp_path / "a" / "b" / "x.db")
    assert names(tmp_path / "a" / "b") == ["x.db"]


def test_d2_only_the_owner_may_read_a_new_file_and_its_log(tmp_path: Path, open_umask: None) -> None:
    async def modes(backend: SQLiteBackend) -> list[int]:
        await backend.save_state("r", state())
        await backend.load_state("r")
        assert names(tmp_path) == ["x.db", "x.db-shm", "x.db-wal"]
        return [mode_of(tmp_path / name) for name in names(tmp_path)]

    assert with_backend(tmp_path / "x.db", modes) == [0o600] * 3


def test_d2_the_permissions_of_an_existing_file_stay(tmp_path: Path, open_umask: None) -> None:
    path = tmp_path / "x.db"
    path.touch()
    path.chmod(0o640)

    async def modes(backend: SQLiteBackend) -> list[int]:
        await backend.save_state("r", state())
        return [mode_of(tmp_path / name) for name in names(tmp_path)]

    assert with_backend(path, modes) == [0o640] * 3
    assert mode_of(path) == 0o640


def test_d2_after_the_last_shutdown_the_database_is_one_file(tmp_path: Path) -> None:
    async def main() -> None:
        first, second = SQLiteBackend(tmp_path / "x.db"), SQLiteBackend(tmp_path / "x.db")
        await asyncio.gather(*(backend.save_state("r", state()) for backend in (first, second)))
        await asyncio.gather(*(first.load_state("r") for _ in range(8)))
        await first.shutdown()
        assert await second.save_state("r", state()) == 3
        await second.shutdown()

    asyncio.run(main())
    assert names(tmp_path) == ["x.db"]


def test_d2_one_file_also_where_the_shutdown_comes_in_another_loop(tmp_path: Path) -> None:
    backend = SQLiteBackend(tmp_path / "x.db")
    for step in range(3):
        asyncio.run(backend.save_state(f"r{step}", state(large="x" * 500_000)))
    asyncio.run(backend.shutdown())
    assert names(tmp_path) == ["x.db"]
    copy = tmp_path / "copy.db"
    copy.write_bytes((tmp_path / "x.db").read_bytes())
    assert load(copy, "r2")["large"] == "x" * 500_000


def test_d2_an_empty_file_becomes_a_database(tmp_path: Path) -> None:
    (tmp_path / "x.db").touch()
    assert save(tmp_path / "x.db") == 1


def test_d2_a_link_leads_to_its_file(tmp_path: Path, open_umask: None) -> None:
    real, link = tmp_path / "deep" / "real.db", tmp_path / "link.db"
    link.symlink_to(real)
    assert save(link) == 1
    assert save(real) == 2
    assert save(link) == 3
    assert names(real.parent) == ["real.db"]
    assert names(tmp_path) == ["deep", "link.db"]
    assert link.is_symlink()
    assert mode_of(real) == 0o600


def test_d2_two_names_of_one_file_share_its_state(tmp_path: Path) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(tmp_path / "real.db")

    async def main() -> None:
        async with SQLiteBackend(tmp_path / "real.db") as real, SQLiteBackend(link) as other:
            assert [await backend.save_state("r", state()) for backend in (real, other, real)] == [1, 2, 3]

    asyncio.run(main())


@pytest.mark.parametrize("level", ["full", "normal"])
def test_g9_synchronous_is_what_the_setting_says(tmp_path: Path, level: str) -> None:
    async def pragmas(backend: SQLiteBackend) -> list[Any]:
        writer = cast(SQLiteStore, await backend._store())._writer
        assert writer is not None
        return await writer.run(
            lambda raw: [raw.execute(f"PRAGMA {name}").fetchone()[0] for name in ("synchronous", "journal_mode")]
        )

    expected = {"full": 2, "normal": 1}[level]
    assert with_backend(tmp_path / "x.db", pragmas, synchronous=level) == [expected, "wal"]
    if level == "full":
        assert with_backend(tmp_path / "x.db", pragmas) == [expected, "wal"]


# --- D2, D5: files that can't be used ---------------------------------------------------------------------------------


def refusal(path: Path, **settings: Any) -> FlujoStateError:
    """What opening says. It names the path and has no driver error behind it."""
    with pytest.raises(FlujoStateError) as caught:
        load(path, **settings)
    error = caught.value
    assert str(path) in str(error)
    assert error.__cause__ is None
    assert error.__suppress_context__ or error.__context__ is None
    return error


@pytest.mark.parametrize("auto_migrate", [True, False])
def test_d5_what_is_no_file_is_refused(tmp_path: Path, auto_migrate: bool) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/null")):
        error = refusal(path, auto_migrate=auto_migrate)
        assert isinstance(error, UnsupportedStorageError)
        assert "name a file" in str(error)


@pytest.mark.parametrize("auto_migrate", [True, False])
@pytest.mark.parametrize(
    "content", [b"This is a text file, and it is precious.\n" * 200, b"SQLite format 3", b"\0" * 4096]
)
def test_d5_a_file_of_another_kind_is_refused_and_left_alone(
    tmp_path: Path, content: bytes, auto_migrate: bool
) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    error = refusal(path, auto_migrate=auto_migrate)
    assert isinstance(error, UnsupportedStorageError)
    assert "no SQLite database; name another file" in str(error)
    assert path.read_bytes() == content
    assert names(tmp_path) == ["notes.txt"]


@pytest.mark.parametrize("auto_migrate", [True, False])
@pytest.mark.parametrize(
    "script",
    [
        "CREATE TABLE workflow_state (run_id TEXT PRIMARY KEY, status TEXT)",
        "CREATE TABLE Workflow_State (run_id TEXT PRIMARY KEY, status TEXT)",
        "CREATE VIEW workflow_state AS SELECT 1 AS run_id",
        "CREATE TABLE flujo_schema_versions (version INTEGER PRIMARY KEY, applied_at TEXT)",
        "PRAGMA encoding = 'UTF-16'; CREATE TABLE mine (a)",
    ],
)
def test_d5_a_database_of_another_program_is_refused_and_left_alone(
    tmp_path: Path, script: str, auto_migrate: bool
) -> None:
    path = tmp_path / "other.db"
    connection = sqlite3.connect(path)
    connection.executescript(script)
    connection.close()
    before = path.read_bytes()
    error = refusal(path, auto_migrate=auto_migrate)
    assert isinstance(error, UnsupportedStorageError)
    assert "name another file" in str(error)
    assert path.read_bytes() == before
    assert names(tmp_path) == ["other.db"]


def test_d5_other_tables_beside_ours_keep_what_is_theirs(tmp_path: Path) -> None:
    path = tmp_path / "shared.db"
    connection = sqlite3.connect(path)
    connection.executescript(
        "PRAGMA user_version = 7; PRAGMA application_id = 99; "
        "CREATE TABLE mine (a); INSERT INTO mine VALUES ('precious')"
    )
    connection.close()
    assert save(path) == 1
    assert ask(path, "SELECT a FROM mine") == [("precious",)]
    assert ask(path, "PRAGMA user_version") == [(7,)]
    assert ask(path, "PRAGMA application_id") == [(99,)]


def test_d5_a_file_of_ours_says_so_in_its_header(tmp_path: Path) -> None:
    save(tmp_path / "x.db")
    assert (tmp_path / "x.db").read_bytes()[68:72] == b"FLUJ"
    assert ask(tmp_path / "x.db", "PRAGMA user_version") == [(LATEST,)]


def test_d5_a_table_in_the_way_is_named_and_nothing_is_made(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    ask(path, "CREATE TABLE workflow_steps (a)")
    error = refusal(path)
    assert isinstance(error, MigrationError)
    assert "001_init" in str(error)
    assert "workflow_steps" in str(error)
    assert ask(path, "SELECT name FROM sqlite_master") == [("workflow_steps",)]


def test_g11_a_damaged_file_is_an_error_that_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x.db"

    async def fill(backend: SQLiteBackend) -> None:
        await asyncio.gather(*(backend.save_state(f"r{i}", state(large="x" * 3000)) for i in range(100)))

    with_backend(path, fill)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 3])
    with pytest.raises(StorageError, match="is damaged; restore a backup") as caught:
        with_backend(path, lambda backend: backend.list_runs())
    assert str(path) in str(caught.value)

    path.write_bytes(whole[:8192] + os.urandom(len(whole) - 8192))
    with pytest.raises(StorageError, match="is damaged; restore a backup"):
        with_backend(path, lambda backend: backend.list_runs())


@pytest.mark.parametrize("auto_migrate", [True, False])
def test_g11_a_path_that_can_not_be_is_an_error_that_says_so(tmp_path: Path, auto_migrate: bool) -> None:
    error = refusal(tmp_path / ("x" * 300), auto_migrate=auto_migrate)
    assert isinstance(error, StorageUnavailableError)
    assert "check the path" in str(error)
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert "check the path" in str(refusal(loop, auto_migrate=auto_migrate))
    (tmp_path / "file").touch()
    below = refusal(tmp_path / "file" / "x.db", auto_migrate=auto_migrate)
    assert isinstance(below, StorageUnavailableError if auto_migrate else SchemaMissingError)


AS_NOBODY = """
import asyncio, os, sys
from pathlib import Path
from flujo_sqlite import SQLiteBackend

STATE = {"pipeline_id": "p", "pipeline_name": "n", "pipeline_version": "1", "current_step_index": 0}
folder = Path(sys.argv[1])

async def attempt(name, operation, **settings):
    backend = SQLiteBackend(folder / name, **settings)
    try:
        if operation == "save":
            answer = await backend.save_state("r", STATE)
        else:
            answer = (await backend.load_state("r"))["revision"]
    except Exception as error:
        answer = f"{type(error).__name__}: {error}"
    await backend.shutdown()
    print(f"{name} {operation}: {answer}".replace(str(folder), "FOLDER"))

for name in ("locked.db", "frozen/x.db", "shut/x.db", "good.db"):
    asyncio.run(attempt(name, "save"))
os.chmod(folder / "locked.db", 0o400)
os.chmod(folder / "frozen", 0o500)
os.chmod(folder / "shut", 0o000)
if os.getuid() == 0:
    for name in ("", "locked.db", "frozen", "frozen/x.db", "shut", "shut/x.db", "good.db"):
        os.chown(folder / name, 65534, 65534)
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
for name in ("locked.db", "frozen/x.db", "frozen/new.db", "shut/x.db", "good.db"):
    asyncio.run(attempt(name, "save"))
for name in ("locked.db", "frozen/x.db", "shut/x.db"):
    asyncio.run(attempt(name, "save", auto_migrate=False))
asyncio.run(attempt("locked.db", "load", auto_migrate=False))
os.chmod(folder / "shut", 0o700)
os.chmod(folder / "frozen", 0o700)
"""


def test_g11_missing_permissions_are_errors_that_say_so() -> None:
    # Not below pytest's folder, which another user may not enter.
    with tempfile.TemporaryDirectory() as folder:
        result = run_python(AS_NOBODY, folder)
    lines = result.stdout.splitlines()
    assert lines[:4] == [f"{name} save: 1" for name in ("locked.db", "frozen/x.db", "shut/x.db", "good.db")]
    refused = "StorageUnavailableError: FOLDER/"
    assert lines[4].startswith(f"locked.db save: {refused}locked.db can't be opened: Permission denied; check the path")
    assert lines[5].startswith(f"frozen/x.db save: {refused}frozen/x.db can't be")
    assert lines[6].startswith(f"frozen/new.db save: {refused}frozen/new.db can't be opened: Permission")
    assert lines[7].startswith(f"shut/x.db save: {refused}shut/x.db can't be opened: Permission denied")
    assert lines[8] == "good.db save: 2"
    assert lines[9].startswith(f"locked.db save: {refused}locked.db can't be written; check the permissions")
    assert lines[10].startswith(f"frozen/x.db save: {refused}frozen/x.db can't be")
    assert lines[11].startswith(
        f"shut/x.db save: {refused}shut/x.db can't be opened: Permission denied; check the path"
    )
    assert lines[12] == "locked.db load: 1"
    assert result.stderr == ""


def run_python(script: str, *arguments: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, timeout=30, check=True
    )


DISK_FULL = """
import asyncio, resource, sys
from flujo_core.errors import StorageError
from flujo_sqlite import SQLiteBackend

def state(text):
    return {"pipeline_id": "p", "pipeline_name": "n", "pipeline_version": "1", "current_step_index": 0, "text": text}

async def main():
    async with SQLiteBackend(sys.argv[1]) as backend:
        assert await backend.save_state("r", state("old")) == 1
        unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, unlimited[1]))
        for _ in range(2):
            # The small one is in the same transaction, and is saved all the same.
            large, small = await asyncio.gather(
                backend.save_state("r", state("x" * 1_000_000)), backend.save_state("small", state("")),
                return_exceptions=True,
            )
            assert type(large) is StorageError, repr(large)
            assert sys.argv[1] in str(large) and "disk" in str(large), large
            assert small in (1, 2), small
        assert (await backend.load_state("r"))["text"] == "old"
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        assert await backend.save_state("r", state("x" * 1_000_000)) == 2
    print("done")

asyncio.run(main())
"""


def test_g9_a_full_disk_leaves_the_old_state_and_later_saves_work(tmp_path: Path) -> None:
    assert run_python(DISK_FULL, tmp_path / "x.db").stdout == "done\n"
    assert load(tmp_path / "x.db")["revision"] == 2
    assert load(tmp_path / "x.db", "small")["revision"] == 2
    assert ask(tmp_path / "x.db", "PRAGMA integrity_check") == [("ok",)]


def test_g9_a_database_at_its_largest_size_says_that_there_is_no_room(tmp_path: Path) -> None:
    async def use(backend: SQLiteBackend) -> None:
        await backend.save_state("r", state(text="old"))
        writer = cast(SQLiteStore, await backend._store())._writer
        assert writer is not None
        await writer.run(lambda raw: raw.execute("PRAGMA max_page_count = 60").fetchone())
        with pytest.raises(StorageError, match="no room left on its disk; free some and try again"):
            await backend.save_state("r", state(text="x" * 1_000_000))
        loaded: Any = await backend.load_state("r")
        assert (loaded["text"], loaded["revision"]) == ("old", 1)
        await writer.run(lambda raw: raw.execute("PRAGMA max_page_count = 100000").fetchone())
        assert await backend.save_state("r", state(text="x" * 1_000_000)) == 2

    with_backend(tmp_path / "x.db", use)


# --- D5: the schema ---------------------------------------------------------------------------------------------------


def test_d5_without_auto_migrate_nothing_is_made(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "x.db"
    error = refusal(path, auto_migrate=False)
    assert isinstance(error, SchemaMissingError)
    assert "flujo migrate" in str(error)
    with pytest.raises(SchemaMissingError):
        save(path, auto_migrate=False)
    assert names(tmp_path) == []


def test_d5_without_auto_migrate_an_empty_file_stays_empty(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    path.touch()
    assert isinstance(refusal(path, auto_migrate=False), SchemaMissingError)
    assert (names(tmp_path), path.stat().st_size) == (["x.db"], 0)


def test_d5_a_dry_run_and_a_look_at_the_schema_write_nothing(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "x.db"
    report = with_backend(path, lambda backend: backend.migrate(dry_run=True))
    assert (report.from_version, report.to_version, report.dry_run, len(report.steps)) == (0, LATEST, True, LATEST)
    assert with_backend(path, lambda backend: backend.schema_status()).state == "missing"
    assert names(tmp_path) == []
    with_backend(path, lambda backend: backend.migrate(1))
    before = path.read_bytes()
    assert with_backend(path, lambda backend: backend.migrate(dry_run=True)).from_version == 1
    assert path.read_bytes() == before


@pytest.mark.parametrize("auto_migrate", [True, False])
def test_d5_migrate_goes_step_by_step_and_may_be_repeated(tmp_path: Path, auto_migrate: bool) -> None:
    path = tmp_path / "folder" / "x.db"

    async def use(backend: SQLiteBackend) -> None:
        first = await backend.migrate(1)
        assert [str(step) for step in first.steps] == ["001_init"]
        again = await backend.migrate(1)
        assert (again.from_version, again.to_version, again.steps) == (1, 1, ())
        assert (await backend.schema_status()).state == "outdated"
        rest = await backend.migrate()
        assert (rest.from_version, rest.to_version, len(rest.steps)) == (1, LATEST, LATEST - 1)
        assert (await backend.migrate()).steps == ()
        assert await backend.save_state("r", state()) == 1

    with_backend(path, use, auto_migrate=auto_migrate)
    assert names(path.parent) == ["x.db"]


@pytest.mark.parametrize("target", [0, -1, LATEST + 1, True, "2", 1])
def test_d5_a_target_that_makes_no_sense_is_an_error(tmp_path: Path, target: Any) -> None:
    save(tmp_path / "x.db")
    with pytest.raises(MigrationError, match="target version"):
        with_backend(tmp_path / "x.db", lambda backend: backend.migrate(target))
    assert load(tmp_path / "x.db")["revision"] == 1


def test_d5_an_older_schema_is_upgraded_or_named(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    with_backend(path, lambda backend: backend.migrate(1))
    error = refusal(path, auto_migrate=False)
    assert isinstance(error, SchemaOutdatedError)
    assert "flujo migrate" in str(error)
    assert save(path) == 1
    assert load(path, auto_migrate=False)["revision"] == 1


@pytest.mark.parametrize("auto_migrate", [True, False])
def test_d5_a_newer_schema_is_refused(tmp_path: Path, auto_migrate: bool) -> None:
    path = tmp_path / "x.db"
    save(path)
    ask(path, "INSERT INTO flujo_schema_versions (version, name, checksum, min_code) VALUES (99, 'future', 'abc', 99)")
    error = refusal(path, auto_migrate=auto_migrate)
    assert isinstance(error, SchemaTooNewError)
    assert "upgrade Flujo" in str(error)
    with pytest.raises(SchemaTooNewError):
        with_backend(path, lambda backend: backend.migrate())


@pytest.mark.parametrize("auto_migrate", [True, False])
def test_d5_versions_of_the_deployment_block_nothing(tmp_path: Path, auto_migrate: bool) -> None:
    path = tmp_path / "x.db"
    save(path)
    ask(path, "INSERT INTO flujo_schema_versions (version, name) VALUES (1001, 'our_own_index')")
    assert save(path, auto_migrate=auto_migrate) == 2


# --- D6: documents of newer code --------------------------------------------------------------------------------------


def test_d6_a_document_in_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    with_backend(path, lambda backend: backend.save_step_result({"run_id": "r", "step_name": "s", "step_index": 0}))
    save(path, "r")
    before = {column: ask(path, f"SELECT {column} FROM workflow_state")[0][0] for column in ("snapshot", "run")}
    assert all(text.startswith('{"format":1,') for text in before.values())

    async def refused(backend: SQLiteBackend, *reads: str) -> None:
        for name in reads:
            with pytest.raises(SchemaTooNewError, match="format"):
                await getattr(backend, name)(*(() if name == "list_runs" else ("r",)))

    def newer(statement: str, *reads: str) -> None:
        ask(path, statement)
        with_backend(path, lambda backend: refused(backend, *reads))

    newer("UPDATE workflow_state SET snapshot = replace(snapshot, '\"format\":1,', '\"format\":2,')", "load_state")
    newer(
        "UPDATE workflow_state SET run = replace(run, '\"format\":1,', '\"format\":2,')",
        "load_state",
        "list_runs",
        "get_run_details",
    )
    newer("UPDATE workflow_steps SET document = replace(document, '\"format\":1,', '\"format\":7,')", "list_run_steps")
    with pytest.raises(SchemaTooNewError, match="format"):
        save(path, "r")
    # Nothing was written over what newer code wrote.
    assert ask(path, "SELECT revision FROM workflow_state") == [(1,)]
