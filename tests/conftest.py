"""Real servers for all tests: one PostgreSQL and one Redis-protocol server per test process.

Each test that asks for `settings` gets a database of its own, cloned from one that is migrated and has
the feature repo applied, an empty Redis, and a data folder of its own.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import prometheus_client.values
import psutil
import psycopg2
import pytest
import redis
from prometheus_client.values import MultiProcessValue

from app.adapters.embedded import EmbeddedServers
from app.bootstrap.stores import migrate_database
from app.settings import Settings, load_settings

pytest_plugins = ["tests.access", "tests.kafka_broker"]

TEMPLATE = "template_propositions"


@pytest.fixture(autouse=True)
def own_metrics(tmp_path, monkeypatch) -> None:
    """Each test counts from zero: the metrics of all processes that share a folder are summed."""
    folder = tmp_path / "metrics"
    folder.mkdir()
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(folder))
    monkeypatch.setattr(prometheus_client.values, "ValueClass", MultiProcessValue())


@pytest.fixture(scope="session")
def embedded(tmp_path_factory) -> Iterator[EmbeddedServers]:
    """The running servers."""
    servers = EmbeddedServers(tmp_path_factory.mktemp("servers"))
    with servers.running():
        _forgo_durability(servers.addresses()["database_url"])
        yield servers


@pytest.fixture(scope="session")
def servers(embedded) -> dict[str, str]:
    """Addresses of the running servers, by setting name."""
    return embedded.addresses()


@pytest.fixture
def postgres(embedded) -> Iterator["PostgresServer"]:
    """The PostgreSQL of all tests, to be frozen or killed; it runs again afterwards."""
    server = PostgresServer(embedded)
    yield server
    server.start()


class PostgresServer:
    def __init__(self, servers: EmbeddedServers) -> None:
        self._servers = servers

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It accepts connections and never replies."""
        processes = [self._process(), *self._process().children()]
        for process in processes:
            process.suspend()
        try:
            yield
        finally:
            for process in processes:
                process.resume()

    def kill(self) -> None:
        """All of it: a backend that survives its parent would go on for a moment."""
        family = [self._process(), *self._process().children()]
        for process in family:
            process.kill()
        psutil.wait_procs(family, timeout=30)

    def start(self) -> None:
        self._servers.up(die_with_parent=True)

    def _process(self) -> psutil.Process:
        (status,) = [status for status in self._servers.status() if status.name == "postgres"]
        return psutil.Process(status.pid)


def _forgo_durability(database_url: str) -> None:
    """Every test clones a database of a thousand files; to sync them all would take longer than the tests."""
    connection = psycopg2.connect(database_url)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("ALTER SYSTEM SET fsync = off")
            cursor.execute("SELECT pg_reload_conf()")
    finally:
        connection.close()


@pytest.fixture(scope="session")
def template_database(servers, tmp_path_factory) -> str:
    """A database with all tables and the applied feature repo, to be cloned."""
    url = _create_database(servers["database_url"], TEMPLATE)
    with pytest.MonkeyPatch.context() as patch:
        _use(patch, url, servers["redis_url"], tmp_path_factory.mktemp("template"))
        settings = load_settings()
        migrate_database(settings)
        apply_feature_repo(settings)
    return TEMPLATE


def apply_feature_repo(settings: Settings) -> None:
    """As platform engineers do: the stock command, in the feature repo."""
    feast = Path(sys.executable).with_name("feast")
    subprocess.run([feast, "apply"], cwd=settings.feature_repo, check=True, capture_output=True)


@pytest.fixture
def empty_database(servers, tmp_path, monkeypatch) -> Settings:
    """Settings for a database without tables."""
    url = _create_database(servers["database_url"], f"test_{uuid4().hex}")
    _use(monkeypatch, url, servers["redis_url"], tmp_path)
    return load_settings()


@pytest.fixture
def settings(servers, template_database, tmp_path, monkeypatch) -> Settings:
    """Settings for a migrated database with the feature repo applied, and an empty Redis."""
    url = _create_database(servers["database_url"], f"test_{uuid4().hex}", template_database)
    _use(monkeypatch, url, servers["redis_url"], tmp_path)
    with redis.Redis.from_url(servers["redis_url"]) as client:
        client.flushdb()
    return load_settings()


def _create_database(server_url: str, name: str, template: str = "template1") -> str:
    connection = psycopg2.connect(server_url)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            # Feast's pools may still hold connections to the template.
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (template,)
            )
            cursor.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    finally:
        connection.close()
    return server_url.replace("/propositions?", f"/{name}?")


def _use(patch: pytest.MonkeyPatch, database_url: str, redis_url: str, data_dir: Path) -> None:
    patch.setenv("DATABASE_URL", database_url)
    patch.setenv("REDIS_URL", redis_url)
    patch.setenv("DATA_DIR", str(data_dir))
    # What is not about access asks without keys; see tests/access.py.
    patch.setenv("DEVELOPMENT_MODE", "true")
