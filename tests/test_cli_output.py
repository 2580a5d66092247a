"""Does the installed ``flujo`` command behave at a prompt and in a script? Run as a process, on real databases."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from command_support import ENVIRONMENT, FLUJO, files, own_migrations, run

from flujo.state import open_backend
from flujo_conformance.postgres_server import Server

pytest_plugins = ["command_support"]

SECRET = "hunter2-q"


def save_runs(uri: str, number: int = 3) -> None:
    async def saved() -> None:
        async with open_backend(uri) as backend:
            for n in range(number):
                run = {"run_id": f"run_{n}", "pipeline_name": "nightly", "metadata": {"user": {"id": n}}}
                await backend.save_run_start({**run, "created_at": f"2025-03-04T05:06:{n % 60:02}Z"})

    asyncio.run(saved())


# --- the life of a database ------------------------------------------------------------------------------------------


def test_a_database_is_migrated_in_the_open(uri: str, tmp_path: Path) -> None:
    def flujo(*command: str) -> tuple[int, str, str]:
        return run(*command, "--uri", uri, cwd=tmp_path)

    own = own_migrations(uri)
    latest = len(own)
    before = files(tmp_path)
    code, out, err = flujo("migrate", "--dry-run")
    assert (code, err) == (0, "")
    assert re.match(
        rf"(.+): schema version 0 → {latest} \(dry run: nothing was written\)\n"
        + "".join(f"  pending  {name}\n" for name in own)
        + r"\n-- Stop at the first error.*\n(?:PRAGMA .*\n)?BEGIN",
        out,
    )
    database = out.partition(": schema")[0]

    code, out, err = flujo("runs", "list")
    assert (code, out) == (1, "")
    assert err.startswith(f"error: {database} has no Flujo tables; run `flujo migrate`")
    assert files(tmp_path) == before

    code, out, err = flujo("migrate", "--target-version", "1")
    assert (code, out, err) == (0, f"{database}: schema version 0 → 1\n  applied  001_init\n", "")
    code, out, err = flujo("migrate", "--target-version", "1")
    assert (code, out) == (0, f"{database} has nothing to do up to that version (schema version 1)\n")
    code, out, err = flujo("runs", "show", "x")
    assert (code, out) == (1, "")
    assert err == f"error: {database} is at schema version 1, this code needs {latest}; run `flujo migrate`\n"

    code, out, err = flujo("migrate", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {
        "database": database,
        "from_version": 1,
        "to_version": latest,
        "steps": [{"series": "flujo", "version": int(name[:3]), "name": name} for name in own[1:]],
        "dry_run": False,
        "original": False,
    }
    for options in ([], ["--dry-run"], ["--target-version", f"{latest}"]):
        code, out, err = flujo("migrate", *options)
        assert (code, err) == (0, "")
        assert out.startswith(f"{database} ")
        assert out.endswith(f"(schema version {latest})\n")
    assert json.loads(flujo("migrate", "--json")[1])["steps"] == []

    for target, complaint in (
        (1, f"is below the current version {latest}"),
        (latest + 1, f"is unknown; the known ones are 1 to {latest}"),
    ):
        code, out, err = flujo("migrate", "--target-version", f"{target}")
        assert (code, out) == (1, "")
        assert re.fullmatch(rf"error: target version {target} {complaint}.*\n", err)


def test_every_database_shows_the_same(uri: str, tmp_path: Path) -> None:
    save_runs(uri)
    database = ["--uri", uri]
    code, out, err = run("runs", "list", "--limit", "2", *database, cwd=tmp_path)
    assert (code, err) == (0, "2 of 3 runs; --limit and --offset show others\n")
    titles, *rows = out.splitlines()
    assert titles.split() == ["RUN", "PIPELINE", "STATUS", "STEP", "CREATED", "UPDATED"]
    assert [row.split()[:5] for row in rows] == [
        ["run_2", "nightly", "running", "0", "2025-03-04T05:06:02Z"],
        ["run_1", "nightly", "running", "0", "2025-03-04T05:06:01Z"],
    ]
    code, out, err = run("runs", "list", "--json", "--meta", "user.id=1", *database, cwd=tmp_path)
    assert (code, err) == (0, "")
    assert [row["run_id"] for row in json.loads(out)] == ["run_1"]
    code, out, err = run("runs", "show", "run_1", *database, cwd=tmp_path)
    assert (code, err) == (0, "")
    assert re.search(r'^metadata +\{"user": \{"id": 1\}\}$', out, re.MULTILINE)
    code, out, err = run("runs", "show", "run_1", "--json", *database, cwd=tmp_path)
    assert (code, err) == (0, "")
    assert json.loads(out)["run"]["created_at"] == "2025-03-04T05:06:01.000000+00:00"
    code, out, err = run("runs", "show", "run_9", *database, cwd=tmp_path)
    assert (code, out) == (1, "")
    assert err.startswith("error: run 'run_9' is not recorded in ")


def test_both_ways_to_run_it_are_the_same_command(tmp_path: Path) -> None:
    module = (sys.executable, "-m", "flujo_core")
    for command in (["backends"], ["runs", "list"]):
        assert run(*command, cwd=tmp_path) == run(*command, cwd=tmp_path, program=module)


# --- which database --------------------------------------------------------------------------------------------------


def test_the_database_is_found_as_a_program_finds_it(tmp_path: Path) -> None:
    def migrated(*options: str, **environment: str) -> str:
        code, out, err = run("migrate", "--dry-run", *options, cwd=tmp_path, variables=environment)
        assert (code, err) == (0, "")
        return Path(out.partition(": schema")[0]).name

    assert migrated() == "flujo_ops.db"
    (tmp_path / "flujo.toml").write_text('[state]\nuri = "sqlite:///file.db"\n')
    assert migrated() == "file.db"
    assert migrated(FLUJO_STATE_URI="sqlite:///variable.db") == "variable.db"
    assert migrated("--uri", "sqlite:///option.db", FLUJO_STATE_URI="sqlite:///variable.db") == "option.db"
    assert files(tmp_path) == {"flujo.toml"}


def test_reading_never_migrates_whatever_the_environment_says(tmp_path: Path) -> None:
    code, _, err = run("runs", "list", cwd=tmp_path, variables={"FLUJO_AUTO_MIGRATE": "true"})
    assert (code, files(tmp_path)) == (1, set())
    assert "has no Flujo tables" in err


def test_a_database_that_is_only_read_stays_as_it_was(tmp_path: Path) -> None:
    save_runs(f"sqlite:///{tmp_path}/state.db")
    before = (tmp_path / "state.db").read_bytes()
    assert run("runs", "list", "--uri", "sqlite:///state.db", cwd=tmp_path)[0] == 0
    assert run("runs", "show", "run_1", "--uri", "sqlite:///state.db", cwd=tmp_path)[0] == 0
    assert files(tmp_path) == {"state.db"}
    assert (tmp_path / "state.db").read_bytes() == before


# --- errors ----------------------------------------------------------------------------------------------------------

REFUSED = f"postgres://u:{SECRET}@127.0.0.1:1/x"
READ, MIGRATE = ["runs", "list"], ["migrate"]


@pytest.mark.parametrize(
    ("command", "database", "complaint"),
    [
        (READ, "state.db", "has no scheme; write sqlite:///state.db"),
        (READ, "", "the state URI is empty"),
        (READ, "sqlite://state.db", "use three, sqlite:///state.db"),
        (READ, "sqlite:///:memory:", "write memory://"),
        (READ, f"postgres://u:{SECRET}#1@host/x", "write it as %23"),
        (READ, "sqllite:///state.db", "no backend answers sqllite://; did you mean sqlite://?"),
        (READ, "mysql://host/x", "no backend answers mysql://"),
        (READ, f"postgres://u:{SECRET}@host/x?nope=1", "unknown option 'nope'"),
        (READ, REFUSED, "can't be reached"),
        (READ, "sqlite:///missing/state.db", "has no Flujo tables; run `flujo migrate`"),
        (READ, "sqlite:///missing.db", "has no Flujo tables; run `flujo migrate`"),
        (READ, "sqlite:///empty", "has no Flujo tables; run `flujo migrate`"),
        (READ, "sqlite:///text/state.db", "/text/state.db "),
        (READ, "sqlite:///text", "is no SQLite database"),
        (READ, "sqlite:///folder", "/folder "),
        (READ, "sqlite:///foreign", "has no Flujo tables"),
        (MIGRATE, "sqlite:///text/state.db", "/text/state.db "),
        (MIGRATE, "sqlite:///text", "is no SQLite database"),
        (MIGRATE, "sqlite:///folder", "/folder "),
        (MIGRATE, REFUSED, "can't be reached"),
        (MIGRATE, "sqlite:///state.db?auto_migrate=perhaps", "should be one of true/false"),
        ([*MIGRATE, "--dry-run"], "sqlite:///text", "is no SQLite database"),
        ([*MIGRATE, "--dry-run"], "sqlite:///folder", "/folder "),
        ([*MIGRATE, "--target-version", "0"], "sqlite:///empty", "target version 0 is unknown"),
        ([*MIGRATE, "--target-version", "9"], "sqlite:///empty", "target version 9 is unknown"),
    ],
)
def test_an_error_is_one_line_that_says_what_to_do(
    tmp_path: Path, command: list[str], database: str, complaint: str
) -> None:
    (tmp_path / "text").write_text("Neither a database nor a folder. " * 100)
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").touch()
    with contextlib.closing(sqlite3.connect(tmp_path / "foreign")) as connection:
        connection.execute("CREATE TABLE other (x)")
    before = files(tmp_path)
    code, out, err = run(*command, "--uri", database, cwd=tmp_path)
    assert (code, out) == (1, "")
    assert re.fullmatch("error: .+\n", err)
    assert complaint in err
    assert SECRET not in err
    assert files(tmp_path) == before


def test_a_refused_login_shows_no_password(server: Server, tmp_path: Path) -> None:
    uri = re.sub("//[^@]*@", f"//nobody_of_this_name:{SECRET}@", server.uri)
    code, out, err = run("runs", "list", "--uri", uri, cwd=tmp_path)
    assert (code, out) == (1, "")
    assert re.fullmatch("error: .+\n", err)
    assert SECRET not in err


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        (["runs", "list", "--meta", "a"], "KEY=VALUE"),
        (["runs", "show"], "RUN_ID"),
        (["migrate", "--target-version", "two"], "--target-version"),
        (["nonsense"], "nonsense"),
    ],
)
def test_wrong_usage_is_exit_code_2(tmp_path: Path, command: list[str], complaint: str) -> None:
    code, out, err = run(*command, cwd=tmp_path)
    assert (code, out, files(tmp_path)) == (2, "", set())
    assert "Usage: flujo" in err
    assert complaint in err


@pytest.mark.parametrize(
    ("option", "value", "complaint"),
    [
        ("--status", "done", "status is 'done', not one of running, paused, completed, failed, cancelled"),
        ("--limit", "-1", "limit is -1, not a whole number from 0 upwards"),
        ("--offset", "-1", "offset is -1, not a whole number from 0 upwards"),
    ],
)
def test_a_value_that_can_not_be_meant_is_one_line(tmp_path: Path, option: str, value: str, complaint: str) -> None:
    result = run("runs", "list", option, value, cwd=tmp_path)
    assert (*result, files(tmp_path)) == (1, "", f"error: {complaint}\n", set())


def test_a_broken_configuration_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "flujo.toml").write_text("[state\n")
    code, out, err = run("runs", "list", cwd=tmp_path)
    assert (code, out) == (1, "")
    assert re.fullmatch(r"error: .*flujo\.toml.*\n", err)


# --- signals, pipes and terminals ------------------------------------------------------------------------------------


def test_ctrl_c_ends_it_quietly(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"postgres://u@127.0.0.1:{silent.getsockname()[1]}/x?sslmode=disable"
        command = [FLUJO, "runs", "list", "--uri", uri]
        with subprocess.Popen(
            command, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            silent.settimeout(60)
            connection, _ = silent.accept()
            with connection:
                connection.recv(1)  # it waits for the server's answer now
                process.send_signal(signal.SIGINT)
                assert process.communicate(timeout=60) == (b"", b"")
    assert process.returncode == 130


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_reader_that_goes_away_is_no_error(tmp_path: Path, options: list[str]) -> None:
    save_runs(f"sqlite:///{tmp_path}/flujo_ops.db", 100)
    reader, writer = os.pipe()
    os.close(reader)
    command = [FLUJO, "runs", "list", "--limit", "100", *options]
    done = subprocess.run(
        command, cwd=tmp_path, env=ENVIRONMENT, stdout=writer, stderr=subprocess.PIPE, timeout=60, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a file that is always full")
def test_output_that_can_not_be_written_is_an_error(tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [FLUJO, "backends"], cwd=tmp_path, env=ENVIRONMENT, stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 1
    assert done.stderr == b"error: the output can't be written: No space left on device\n"


def test_any_encoding_will_do(tmp_path: Path) -> None:
    code, out, err = run("migrate", "--dry-run", cwd=tmp_path, variables={"PYTHONIOENCODING": "ascii"})
    assert (code, err) == (0, "")
    assert r"schema version 0 \u2192 " in out


def in_terminal(*command: str, cwd: Path, columns: int = 80, **environment: str) -> str:
    """What a terminal receives."""
    terminal, end = pty.openpty()
    settings = ENVIRONMENT | {"TERM": "xterm-256color", "COLUMNS": str(columns)} | environment
    with subprocess.Popen([FLUJO, *command], cwd=cwd, env=settings, stdin=end, stdout=end, stderr=end) as process:
        os.close(end)
        received = b""
        with contextlib.suppress(OSError):  # Linux says so when the other end is closed
            while chunk := os.read(terminal, 65536):
                received += chunk
        os.close(terminal)
    assert process.returncode == 0
    return received.decode()


def test_colours_are_for_terminals_and_never_in_json(tmp_path: Path) -> None:
    save_runs(f"sqlite:///{tmp_path}/flujo_ops.db")
    table = in_terminal("runs", "list", cwd=tmp_path)
    assert "\x1b[36mrunning\x1b[0m" in table
    assert max(len(re.sub(r"\x1b\[\d*m", "", line)) for line in table.splitlines()) <= 80
    assert "\x1b" not in run("runs", "list", cwd=tmp_path)[1]
    assert "\x1b" not in in_terminal("runs", "list", "--json", cwd=tmp_path)
    assert "\x1b[36m" not in in_terminal("runs", "list", cwd=tmp_path, NO_COLOR="1")
    assert "\x1b" not in in_terminal("runs", "list", cwd=tmp_path, TERM="dumb")


# --- plugins ---------------------------------------------------------------------------------------------------------


def test_backends_are_listed_without_their_drivers(tmp_path: Path) -> None:
    code = """
import sys
from flujo_core.cli import main
try:
    main()
finally:
    loaded = {name.partition(".")[0] for name in sys.modules}
    ours = {"flujo_sqlite", "flujo_postgres", "flujo_duckdb"}
    print(*sorted(loaded & {"asyncpg", "aiosqlite", "sqlite3", "duckdb", *ours}), file=sys.stderr)
"""
    exit_code, out, err = run("backends", "--json", cwd=tmp_path, program=(sys.executable, "-c", code))
    assert (exit_code, err) == (0, "flujo_duckdb flujo_postgres flujo_sqlite\n")
    described = {
        row["scheme"]: (row["backend"], row["durable"], row["shared"], row["status"]) for row in json.loads(out)
    }
    assert described == {
        "duckdb": ("duckdb", True, False, "ok"),  # the example, whose distribution is installed here like any other
        "memory": ("memory", False, False, "ok"),
        "postgres": ("postgres", True, True, "ok"),
        "postgresql": ("postgres", True, True, "ok"),
        "sqlite": ("sqlite", True, True, "ok"),
    }
