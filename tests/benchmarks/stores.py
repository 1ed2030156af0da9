"""A PostgreSQL and a Redis of one generated world, each world with servers of its own."""

import io
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

import psycopg2
import redis

from app.adapters.child_process import ending_with_parent
from app.adapters.embedded import EmbeddedServers
from app.bootstrap.stores import FEAST_PROJECT
from app.events.project import FACTS_MARK
from app.features.slots import ALL_SLOTS
from app.settings import Settings
from tests.benchmarks.data import CatalogChunk, Chunk, World
from tests.benchmarks.encoding import copy_binary, copy_columns, redis_commands
from tests.benchmarks.keys import add_key

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Online:
    """What the rows of one kind of entity are in Redis: how many, and how much memory they take."""

    rows: int = 0
    bytes: int = 0

    def __add__(self, other: "Online") -> "Online":
        return Online(self.rows + other.rows, self.bytes + other.bytes)


@dataclass(frozen=True, slots=True)
class LoadTimes:
    """`online` by the column that holds the entity's key."""

    postgres_s: float
    redis_s: float
    rows: int
    online: Mapping[str, Online]


class Stores:
    """The servers in one folder. A worker that uses them keeps its own files elsewhere."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._servers = EmbeddedServers(folder / "embedded")

    @property
    def environment(self) -> Mapping[str, str]:
        """What a process needs to find these stores, and nothing of the caller's own settings."""
        names = {name.upper() for name in Settings.model_fields}
        return {
            **{name: value for name, value in os.environ.items() if name.upper() not in names},
            "PYTHONPATH": str(ROOT),
            "DATA_DIR": str(self.folder),
            **{name.upper(): url for name, url in self._servers.addresses().items()},
        }

    @property
    def settings(self) -> Settings:
        addresses = self._servers.addresses()
        return Settings(_env_file=None, data_dir=self.folder, **addresses)

    def pid(self, name: str) -> int:
        return next(server.pid for server in self._servers.status() if server.name == name)

    @contextmanager
    def running(self) -> Iterator["Stores"]:
        with self._servers.running():
            self._stay_quiet()
            yield self

    def run(self, *command: str, **settings: object) -> str:
        """The output of a `propositions` command on these stores, run when nothing else wants the CPU.

        Operators run commands elsewhere; here they share two cores with what is measured.
        """
        done = subprocess.run(
            [sys.executable, "-m", "app", *command],
            env={**self.environment, **{name: str(value) for name, value in settings.items()}},
            cwd=ROOT,
            capture_output=True,
            text=True,
            start_new_session=True,
            preexec_fn=ending_with_parent(niceness=19),
        )
        if done.returncode:
            raise RuntimeError(f"propositions {' '.join(command)} failed:\n{done.stdout}{done.stderr}")
        return done.stdout

    def copy_to(self, folder: Path) -> "Stores":
        """A copy of these stores, which must not run."""
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.folder, folder)
        return Stores(folder)

    def load(self, world: World, online_views: frozenset[str]) -> LoadTimes:
        """Fills both servers. Tables and views that this version of the project lacks are left out."""
        loader = _Loader(self.settings, online_views, world.now)
        with loader:
            for catalog in world.catalog():
                loader.add_catalog(catalog)
                loader.add(catalog.features)
            for chunk in world.features():
                loader.add(chunk)
            for chunk in world.neighbours():
                loader.add(chunk)
            loader.finish()
        return loader.times

    def _stay_quiet(self) -> None:
        """No background work of the servers while something else is measured."""
        connection = psycopg2.connect(self.settings.postgres_url)
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                for setting in ("autovacuum = off", "checkpoint_timeout = '1h'", "max_wal_size = '32GB'"):
                    cursor.execute(f"ALTER SYSTEM SET {setting}")
                cursor.execute("SELECT pg_reload_conf()")
        finally:
            connection.close()
        with redis.Redis.from_url(self.settings.redis_address) as client:
            client.config_set("appendonly", "no")


class _Loader:
    def __init__(self, settings: Settings, online_views: frozenset[str], at: datetime) -> None:
        self._connection = psycopg2.connect(settings.postgres_url)
        self._pipe = _RedisPipe(settings.redis_address)
        self._online_views = online_views
        self._at = at
        self._postgres_s = self._redis_s = 0.0
        self._rows = 0
        self._online: dict[str, Online] = {}
        self._tables = self._existing_tables()

    def __enter__(self) -> "_Loader":
        return self

    def __exit__(self, *_) -> None:
        self._connection.close()
        self._pipe.close()

    @property
    def times(self) -> LoadTimes:
        return LoadTimes(self._postgres_s, self._redis_s, self._rows, dict(self._online))

    def add(self, chunk: Chunk) -> None:
        if not len(chunk) or chunk.table not in self._tables:
            return
        self._rows += len(chunk)
        started = time.monotonic()
        columns = ", ".join(copy_columns(chunk))
        self._copy(f"{chunk.table} ({columns}) FROM STDIN (FORMAT binary)", copy_binary(chunk, self._at))
        copied = time.monotonic()
        self._postgres_s += copied - started
        if chunk.table in self._online_views:
            before = self._pipe.used_bytes()
            self._pipe.send(redis_commands(chunk, FEAST_PROJECT, self._at), len(chunk))
            added = Online(len(chunk), self._pipe.used_bytes() - before)
            self._redis_s += time.monotonic() - copied
            self._online[chunk.key_column] = self._online.get(chunk.key_column, Online()) + added

    def add_catalog(self, chunk: CatalogChunk) -> None:
        started = time.monotonic()
        values = chunk.features.values
        at = self._at.isoformat()
        ages = zip(chunk.ids.tolist(), values["category"].tolist(), values["value"].tolist(), strict=True)
        flags = zip(chunk.tags, chunk.is_active.tolist(), chunk.is_windowed.tolist(), strict=True)
        lines = (
            f"{proposition.decode()}\tProposition {proposition.decode()}\t{category.decode()}\t{tags}\t{value}"
            f"\t{is_active}\t{_WINDOW if is_windowed else _ALWAYS}\t{at}\t{at}\n"
            for (proposition, category, value), (tags, is_active, is_windowed) in zip(
                ages, flags, strict=True
            )
        )
        self._copy(f"propositions ({_PROPOSITION_COLUMNS}) FROM STDIN", "".join(lines).encode())
        self._postgres_s += time.monotonic() - started

    def finish(self) -> None:
        """Says how far the tables go, so that snapshots and the projector find nothing left to do."""
        with self._connection, self._connection.cursor() as cursor:
            cursor.execute("UPDATE log_heads SET last_at = %s", (self._at,))
            cursor.execute("UPDATE projection_slots SET folded_until = %s", (self._at,))
            cursor.execute("SELECT generation::text FROM projection")
            (generation,) = cursor.fetchone()
            cursor.execute("ANALYZE")
        self._connection.autocommit = True
        with self._connection.cursor() as cursor:
            cursor.execute("CHECKPOINT")
        with redis.Redis(connection_pool=self._pipe.pool) as client:
            mark = f"{generation} {self._at.isoformat()}"
            marks = dict.fromkeys(map(str, (*ALL_SLOTS, FACTS_MARK)), mark)
            client.hset("propositions:projected-slots", mapping=marks)

    def _copy(self, what: str, content: bytes) -> None:
        with self._connection, self._connection.cursor() as cursor:
            cursor.execute("SET synchronous_commit = off")
            cursor.copy_expert(f"COPY {what}", io.BytesIO(content))

    def _existing_tables(self) -> frozenset[str]:
        with self._connection, self._connection.cursor() as cursor:
            cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
            return frozenset(name for (name,) in cursor.fetchall())


class _RedisPipe:
    """Sends prepared commands and counts the replies; a client library would decode each of them."""

    def __init__(self, address: str) -> None:
        self.pool = redis.ConnectionPool.from_url(address)
        parts = urlsplit(address)
        self._socket = socket.create_connection((parts.hostname, parts.port))
        database = parts.path.lstrip("/") or "0"
        self.send(b"AUTH %s\r\nSELECT %s\r\n" % (parts.password.encode(), database.encode()), 2)

    def send(self, commands: bytes, count: int) -> None:
        self._socket.sendall(commands)
        while count > 0:
            replies = self._socket.recv(1 << 20)
            if b"-" in replies or not replies:
                raise RuntimeError(f"Redis refused generated rows: {replies[:200]!r}")
            count -= replies.count(b"\n")

    def used_bytes(self) -> int:
        with redis.Redis(connection_pool=self.pool) as client:
            return client.info("memory")["used_memory"]

    def close(self) -> None:
        self._socket.close()
        self.pool.disconnect()


_PROPOSITION_COLUMNS = (
    "proposition_id, title, category, tags, value, is_active, starts_at, ends_at, created_at, updated_at"
)
_ALWAYS = "\\N\t\\N"
_WINDOW = "2020-01-01T00:00:00Z\t2100-01-01T00:00:00Z"


def make_template(folder: Path) -> Stores:
    """Stopped stores with all tables and the applied feature repo, to be copied."""
    shutil.rmtree(folder, ignore_errors=True)
    template = Stores(folder)
    with template.running():
        template.run("migrate")
        add_key(template.settings)
        template.run("feast", "apply")
    return template
