"""Redis behind Sentinels: whoever is the primary gets the commands, also after another has become it."""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from pydantic import ValidationError

from app.adapters.redis_client import REDIS_ERRORS, connect_redis
from app.adapters.redis_wire import open_wire
from app.domain.errors import StoreUnavailable
from app.settings import Settings
from tests.contract.online_reader.redis_servers import (
    PASSWORD,
    answers,
    free_ports,
    running_server,
    server_program,
    wait_for,
)

NAME, SENTINEL_PASSWORD = "mymaster", "known to Sentinels"
SOON = ("--repl-diskless-sync-delay", "0")
PING = b"*1\r\n$4\r\nPING\r\n"
SET = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nv\r\n"


@dataclass
class Watched:
    """A primary, its replica, and a Sentinel that needs nobody's consent; `primary` ends with the first."""

    sentinel_port: int
    primary: ExitStack

    def client(self, timeout_ms: int = 1_000) -> redis.Redis:
        (nobody,) = free_ports(1)
        sentinels = [f"127.0.0.1:{nobody}", f"127.0.0.1:{self.sentinel_port}"]
        address = f"redis://:{PASSWORD}@{NAME}/0"
        return connect_redis(address, timeout_ms, sentinels=sentinels, sentinel_password=SENTINEL_PASSWORD)


@pytest.fixture
def watched(tmp_path) -> Iterator[Watched]:
    first, second, sentinel = free_ports(3)
    with ExitStack() as replica, ExitStack() as primary:
        primary.enter_context(running_server(tmp_path / "first", first, *SOON, "--masterauth", PASSWORD))
        options = ("--masterauth", PASSWORD, "--replicaof", f"127.0.0.1 {first}")
        replica.enter_context(running_server(tmp_path / "second", second, *options))
        with (
            connect_redis(f"redis://:{PASSWORD}@127.0.0.1:{second}/0", 5_000) as client,
            running_sentinel(tmp_path / "sentinel", sentinel, first),
        ):
            wait_for(lambda: client.info("replication")["master_link_status"] == "up")
            with connect_redis(f"redis://:{SENTINEL_PASSWORD}@127.0.0.1:{sentinel}", 5_000) as asked:
                wait_for(lambda: asked.execute_command("SENTINEL REPLICAS", NAME))
            yield Watched(sentinel, primary)


@contextmanager
def running_sentinel(folder: Path, port: int, primary_port: int) -> Iterator[None]:
    folder.mkdir()
    configuration = folder / "sentinel.conf"
    configuration.write_text(
        f"""port {port}
bind 127.0.0.1
dir {folder}
requirepass "{SENTINEL_PASSWORD}"
sentinel monitor {NAME} 127.0.0.1 {primary_port} 1
sentinel auth-pass {NAME} {PASSWORD}
sentinel down-after-milliseconds {NAME} 300
sentinel failover-timeout {NAME} 2000
"""
    )
    process = subprocess.Popen(
        [server_program(), configuration, "--sentinel"], cwd=folder, stdout=subprocess.DEVNULL
    )
    try:
        with connect_redis(f"redis://:{SENTINEL_PASSWORD}@127.0.0.1:{port}", 5_000) as client:
            wait_for(lambda: answers(client))
        yield
    finally:
        process.kill()
        process.wait()


def test_commands_reach_the_primary_and_the_next_one_after_its_death(watched):
    with watched.client() as client:
        wire = open_wire(client)
        client.set("before", "1")
        assert wire.ask(PING, 1) == [b"PONG"]

        watched.primary.close()

        wait_for(lambda: succeeds(lambda: client.set("after", "2")))
        wait_for(lambda: succeeds(lambda: wire.ask(SET, 1)))
        assert client.mget("before", "after", "k") == [b"1", b"2", b"v"]


def test_without_any_sentinel_that_answers_redis_counts_as_down():
    nobody = [f"127.0.0.1:{port}" for port in free_ports(2)]
    client = connect_redis(f"redis://:{PASSWORD}@{NAME}/0", 200, sentinels=nobody)

    with pytest.raises(REDIS_ERRORS):
        client.ping()
    with pytest.raises(StoreUnavailable):
        open_wire(client).ask(PING, 1)


def test_settings_that_cannot_go_together_are_refused():
    with pytest.raises(ValidationError, match="exclude each other"):
        Settings(_env_file=None, redis_cluster=True, redis_sentinels="sentinel:26379")
    with pytest.raises(ValidationError, match="give host:port"):
        Settings(_env_file=None, redis_sentinels="sentinel")


def succeeds(work) -> bool:
    try:
        work()
    except (*REDIS_ERRORS, StoreUnavailable):
        return False
    return True
