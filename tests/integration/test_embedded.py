import os
import signal
import stat
import subprocess
import sys

import psycopg2
import pytest
import redis

from app.adapters.embedded import EmbeddedServers


@pytest.fixture
def embedded(tmp_path):
    servers = EmbeddedServers(tmp_path / "embedded")
    servers.up(die_with_parent=True)
    yield servers
    servers.down()


def write_and_read(embedded) -> tuple[list, bytes | None]:
    """What is stored so far, after one more value was written to each server."""
    connection = psycopg2.connect(embedded.addresses()["database_url"])
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute("CREATE TABLE IF NOT EXISTS kept (n int)")
            cursor.execute("INSERT INTO kept SELECT count(*) FROM kept")
            cursor.execute("SELECT n FROM kept ORDER BY n")
            rows = [n for (n,) in cursor.fetchall()]
    finally:
        connection.close()
    with redis.Redis.from_url(embedded.addresses()["redis_url"]) as client:
        return rows, client.incr("kept")


def kill(embedded, name: str) -> None:
    (pid,) = [s.pid for s in embedded.status() if s.name == name]
    os.kill(pid, signal.SIGKILL)


def test_data_survive_a_stop_and_a_start(embedded):
    write_and_read(embedded)

    embedded.down()
    assert not any(server.is_running for server in embedded.status())
    embedded.up(die_with_parent=True)

    assert write_and_read(embedded) == ([0, 1], 2)


def test_data_survive_kill_9_and_ports_stay_the_same(embedded):
    write_and_read(embedded)
    with redis.Redis.from_url(embedded.addresses()["redis_url"]) as client:
        client.execute_command("WAITAOF", 1, 0, 5_000)
    before = embedded.addresses()

    kill(embedded, "postgres")
    kill(embedded, "redis")
    embedded.up(die_with_parent=True)

    assert embedded.addresses() == before
    assert write_and_read(embedded) == ([0, 1], 2)


def test_up_starts_only_what_is_missing(embedded):
    pids = {server.name: server.pid for server in embedded.status()}

    kill(embedded, "redis")
    embedded.up(die_with_parent=True)

    after = {server.name: server.pid for server in embedded.status()}
    assert after["postgres"] == pids["postgres"] and after["redis"] != pids["redis"]


def test_both_listen_on_loopback_only_and_want_a_password(embedded):
    address = embedded.addresses()["redis_url"]
    assert "@127.0.0.1:" in address
    with (
        pytest.raises(redis.AuthenticationError),
        redis.Redis.from_url("redis://" + address.partition("@")[2]) as client,
    ):
        client.ping()
    with pytest.raises(psycopg2.OperationalError, match="password"):
        psycopg2.connect(
            "postgresql://propositions:wrong@" + embedded.addresses()["database_url"].partition("@")[2]
        )


def test_passwords_are_readable_by_this_user_only(embedded, tmp_path):
    for path in (tmp_path / "embedded").glob("*.json"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_servers_end_with_the_process_that_wanted_them_for_itself(tmp_path):
    program = (
        "import os, sys; from pathlib import Path; from app.adapters.embedded import EmbeddedServers;"
        "EmbeddedServers(Path(sys.argv[1])).up(die_with_parent=True); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "e")], check=False)

    embedded = EmbeddedServers(tmp_path / "e")
    embedded.down()  # waits for what is ending already
    assert not any(server.is_running for server in embedded.status())


@pytest.mark.parametrize("command", [["status"], ["up"], ["down"]])
def test_the_commands_report_both_servers(tmp_path, command):
    environment = {
        **{k: v for k, v in os.environ.items() if k not in ("DATABASE_URL", "REDIS_URL")},
        "DATA_DIR": str(tmp_path / "data"),
    }

    def propositions(*arguments):
        program = [sys.executable, "-m", "app", *arguments]
        return subprocess.run(program, env=environment, capture_output=True, text=True, check=True).stdout

    try:
        output = propositions(*command)
        state = "running" if command == ["up"] else "stopped"
        assert f"postgres: {state}" in output and f"redis: {state}" in output
    finally:
        propositions("down")


def test_with_both_addresses_set_nothing_is_started(tmp_path):
    environment = {
        **os.environ,
        "DATABASE_URL": "postgresql://elsewhere/db",
        "REDIS_URL": "redis://elsewhere",
        "DATA_DIR": str(tmp_path / "data"),
    }

    done = subprocess.run(
        [sys.executable, "-m", "app", "up"], env=environment, capture_output=True, text=True, check=True
    )

    assert "nothing to start" in done.stdout
    assert not (tmp_path / "data").exists()
