"""API keys from the command line to the workers, over a real PostgreSQL and under a real gunicorn."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection

import pytest
from typer.testing import CliRunner

from app import cli
from app.adapters.key_file import KeyFile, LiveKeys
from app.api.factory import create_app
from app.bootstrap.keeper import take_snapshot
from app.bootstrap.stores import key_store
from app.bootstrap.web import build_api
from app.domain.access import Scope
from app.domain.errors import KeyRefused
from app.settings import load_settings
from tests.builders import query

READY_S = 60.0
SEEN_S = 10.0


@pytest.fixture
def run(settings):
    """Runs `propositions keys ...`; an error is raised."""

    def keys(*arguments):
        result = CliRunner().invoke(cli.app, ["keys", *arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return keys


def created(run, *scopes, name="web", **options):
    flags = [f for scope in scopes or ("suggest",) for f in ("--scope", scope)]
    flags += [str(f) for option, value in options.items() for f in (f"--{option.replace('_', '-')}", value)]
    return json.loads(run("create", name, *flags, "--json").stdout)


def found(settings, presented):
    """What workers find after the keeper has looked once."""
    take_snapshot(settings)
    live = LiveKeys(KeyFile(settings.snapshot_dir))
    live.refresh()
    return live.find(presented, datetime.now(UTC))


@pytest.fixture(autouse=True)
def _catalog(settings, monkeypatch):
    """`take_snapshot` without the feature schema, which takes seconds to read."""
    monkeypatch.setattr("app.bootstrap.keeper.RegistrySchema.read", lambda self: None)


def test_a_created_key_is_printed_once_alone_on_stdout(settings, run):
    result = run("create", "web shop", "--scope", "suggest", "--scope", "events")

    presented = result.stdout.strip()
    key_id = presented.split("_")[1]
    assert re.fullmatch(r"pp_[0-9a-f]{12}_[A-Za-z0-9_-]{43}", presented)
    assert "cannot be shown again" in result.stderr and key_id in result.stderr
    assert presented.split("_", 2)[2] not in run("list").output + run("list", "--json").output
    assert found(settings, presented).scopes == {Scope.SUGGEST, Scope.EVENTS}


def test_no_secret_is_in_the_database(settings, run):
    secret = created(run)["key"].split("_", 2)[2]

    (row,) = query(settings, "SELECT api_keys::text FROM api_keys")
    assert secret not in row[0] and secret.encode().hex() not in row[0]


def test_the_list_shows_every_key_and_what_became_of_it(run):
    made = [created(run, name=name) for name in ("one", "two", "three")]
    run("revoke", made[0]["key_id"])
    run("rotate", made[1]["key_id"])

    listed = json.loads(run("list", "--json").stdout)

    assert [(key["name"], key["is_valid"]) for key in listed] == [
        ("one", False),
        ("two", True),
        ("three", True),
    ]
    assert listed[0]["revoked_at"] and listed[1]["previous_until"] and not listed[2]["revoked_at"]
    shown = run("list").stdout
    assert all(text in shown for text in ("one", "revoked", "rotated", made[2]["key_id"], "suggest"))


def test_a_key_can_be_made_to_end_by_itself(settings, run):
    key = created(run, expires_days=2)

    assert datetime.fromisoformat(key["expires_at"]) - datetime.fromisoformat(key["created_at"]) == timedelta(
        2
    )
    assert found(settings, key["key"]) is not None
    query(settings, "UPDATE api_keys SET expires_at = now() - interval '1 second'")
    assert found(settings, key["key"]) is None
    assert "expired" in run("list").stdout


def test_a_rotated_key_takes_both_secrets_for_a_while(settings, run):
    first = created(run)

    second = run("rotate", first["key_id"]).stdout.strip()

    assert second.startswith(f"pp_{first['key_id']}_") and second != first["key"]
    assert found(settings, first["key"]) == found(settings, second) is not None
    (hours,) = query(settings, "SELECT extract(epoch FROM previous_until - now()) / 3600 FROM api_keys")[0]
    assert 23.9 < hours <= 24


def test_a_rotation_without_an_overlap_ends_the_old_secret_at_once(settings, run):
    first = created(run)

    second = run("rotate", first["key_id"], "--overlap-hours", "0").stdout.strip()

    assert found(settings, first["key"]) is None
    assert found(settings, second) is not None


def test_a_revoked_key_is_gone_for_good(settings, run):
    key = created(run)

    assert run("revoke", key["key_id"]).exit_code == 0

    assert found(settings, key["key"]) is None
    with pytest.raises(KeyRefused, match="create a new one"):
        run("rotate", key["key_id"])


@pytest.mark.parametrize("command", ["rotate", "revoke"])
def test_an_unknown_id_is_refused_with_what_to_do(run, command):
    with pytest.raises(KeyRefused, match="keys list"):
        run(command, "0123456789ab")


@pytest.mark.parametrize("name", ["", "  ", "a\nb"])
def test_a_key_without_a_name_is_refused(settings, run, name):
    with pytest.raises(KeyRefused, match="say who will use it"):
        run("create", name, "--scope", "suggest")
    assert key_store(settings).all() == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["create", "x", "--scope", "root"], "'suggest', 'events', 'catalog', 'admin'"),
        (["create", "x"], "--scope"),
        (["create", "x", "--scope", "admin", "--expires-days", "0"], "--expires-days"),
        (["rotate", "x", "--overlap-hours", "-1"], "--overlap-hours"),
    ],
)
def test_wrong_options_are_refused_by_name(settings, run, arguments, told):
    result = run(*arguments)

    assert result.exit_code == 2
    assert told in " ".join(re.sub("[\u2500-\u257f]", " ", result.stderr).split())
    assert key_store(settings).all() == []


def test_a_worker_that_starts_without_postgres_knows_the_keys(settings, run, monkeypatch):
    key = created(run)
    take_snapshot(settings)
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("DEVELOPMENT_MODE", "false")
    config = load_settings()
    services, _, registry = build_api(config)
    client = create_app(config, services, registry).test_client()

    assert client.post("/suggest", json={}, headers={"X-Api-Key": key["key"]}).status_code == 200
    assert client.post("/suggest", json={}, headers={"X-Api-Key": key["key"][:-1]}).status_code == 401


def test_two_workers_share_a_limit_through_redis(settings, run, monkeypatch):
    key = created(run)
    take_snapshot(settings)
    monkeypatch.setenv("DEVELOPMENT_MODE", "false")
    monkeypatch.setenv("RATE_LIMIT_PER_KEY", "10 per day")
    config = load_settings()
    workers = []
    for _ in range(2):
        services, _, registry = build_api(config)
        workers.append((create_app(config, services, registry).test_client(), services.rate_counts))

    statuses = []
    for _ in range(10):
        for client, counts in workers:
            statuses.append(client.post("/suggest", json={}, headers={"X-Api-Key": key["key"]}).status_code)
            counts.exchange()

    assert 10 <= statuses.count(200) <= 11 and statuses[-1] == 429


def free_ports(count):
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def ask(port, path, key=None, headers=(), method="GET", body=None):
    with closing(HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        sent = {"Content-Type": "application/json", **dict(headers)}
        if key:
            sent["Authorization"] = f"Bearer {key}"
        connection.request(method, path, body, sent)
        answer = connection.getresponse()
        answer.read()
        return answer.status


def wait_until(condition, timeout_s):
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "waited in vain"
        time.sleep(0.05)
    return timeout_s - (end_s - time.monotonic())


@pytest.fixture
def served(settings, tmp_path):
    """The public and the private port of a service under gunicorn, which runs until the end of the test."""
    public, private = free_ports(2)
    environment = {
        **os.environ,
        "DEVELOPMENT_MODE": "false",
        "PORT": str(public),
        "PRIVATE_PORT": str(private),
        "WEB_WORKERS": "2",
        "RATE_LIMIT_UNAUTHORIZED": "none",  # tests ask until a key is known
    }
    binds = [f for port in (public, private) for f in ("--bind", f"127.0.0.1:{port}")]
    command = [
        "-m",
        "gunicorn",
        "--config",
        "python:app.api.gunicorn_conf",
        *binds,
        "app.bootstrap.web:web()",
    ]
    with (tmp_path / "serve.log").open("w") as log:
        process = subprocess.Popen([sys.executable, *command], env=environment, stdout=log, stderr=log)
    try:
        yield public, private, process
    finally:
        process.terminate()
        process.wait(60)


def is_ready(port, process):
    assert process.poll() is None
    try:
        return ask(port, "/health/ready") == 200
    except OSError:
        return False


def test_under_gunicorn_ports_are_told_apart_by_their_sockets_and_keys_come_and_go_within_seconds(
    served, run, tmp_path
):
    public, private, process = served
    before = created(run, "suggest", "admin")
    wait_until(lambda: is_ready(public, process), READY_S)

    def suggest(key):
        """Answers of both workers: connections are shared out among them."""
        return {ask(public, "/suggest", key["key"], method="POST", body="{}") for _ in range(6)}

    assert suggest(before) == {200}
    claims = [{}, {"Host": f"127.0.0.1:{private}"}, {"X-Forwarded-Port": str(private)}]
    assert [ask(public, "/metrics", before["key"], claim) for claim in claims] == [404] * 3
    assert [ask(public, path, before["key"]) for path in ("/docs", "/users/u")] == [404, 404]
    assert [ask(private, "/metrics", headers=c) for c in ({}, {"Host": f"x:{public}"})] == [200, 200]
    assert [ask(private, "/users/u", key) for key in (None, before["key"])] == [401, 404]
    assert ask(private, "/openapi.json") == 200

    key = created(run)
    wait_until(lambda: suggest(key) == {200}, SEEN_S)
    run("revoke", key["key_id"])
    wait_until(lambda: suggest(key) == {401}, SEEN_S)
    assert suggest(before) == {200}
    log = (tmp_path / "serve.log").read_text()
    assert before["key"] not in log and key["key"] not in log and before["key_id"] in log
