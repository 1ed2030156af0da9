"""The Procfile, as honcho reads it."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import psutil

from app.adapters.free_ports import free_port
from app.gameday.stack import wait_until
from tests.builders import query

ROOT = Path(__file__).parents[2]
HONCHO = Path(sys.executable).with_name("honcho")
TIMEOUT_S = 120.0


def test_honcho_finds_the_processes_that_the_document_names():
    done = subprocess.run([HONCHO, "check"], cwd=ROOT, capture_output=True, text=True, check=True)

    (found,) = re.findall(r"\((.+)\)", done.stdout + done.stderr)
    assert set(found.split(", ")) == {"release", "web", "projector"}
    text = (ROOT / "docs/deployment.md").read_text()
    assert set(re.search(r"^honcho start (.+)$", text, re.MULTILINE)[1].split()) == {"web", "projector"}


@contextmanager
def honcho(folder: Path, port: int, *processes: str) -> Iterator[psutil.Popen]:
    """`honcho start` in the place of a platform: it sets PORT, and has nobody's .env."""
    path = os.pathsep.join((str(HONCHO.parent), os.environ["PATH"]))
    with (folder / "log").open("a") as log:
        started = psutil.Popen(
            [HONCHO, "--procfile", ROOT / "Procfile", "start", *processes],
            cwd=folder,
            env={**os.environ, "PATH": path, "PORT": str(port)},
            stdout=log,
            stderr=log,
        )
    try:
        yield started
    finally:
        with suppress(psutil.NoSuchProcess):
            for process in (*started.children(recursive=True), started):
                process.kill()


def answers(url: str, body: dict | None = None) -> bool:
    data = None if body is None else json.dumps(body).encode()
    try:
        with urlopen(Request(url, data, {"Content-Type": "application/json"}), timeout=10):
            return True
    except (URLError, OSError):
        return False


def test_a_release_and_then_its_processes_take_an_event_and_learn_from_it(empty_database, tmp_path):
    with honcho(tmp_path, free_port(), "release") as release:
        assert release.wait(TIMEOUT_S) == 0, (tmp_path / "log").read_text()

    port = free_port()
    url, click = f"http://127.0.0.1:{port}", {"event_type": "click", "user_id": "u1", "proposition_id": "p1"}
    with honcho(tmp_path, port, "web", "projector") as processes:
        wait_until(lambda: answers(f"{url}/health/ready"), TIMEOUT_S, "web is not ready")
        assert answers(f"{url}/log_event", {**click, "event_id": "e1"})
        learned = "SELECT 1 FROM user_activity WHERE user_id = 'u1'"
        wait_until(lambda: query(empty_database, learned), TIMEOUT_S, "the projector learned nothing")
        started = processes.children(recursive=True)

        processes.terminate()

        processes.wait(TIMEOUT_S)
        assert len(started) > 2 and not psutil.wait_procs(started, TIMEOUT_S)[1]
