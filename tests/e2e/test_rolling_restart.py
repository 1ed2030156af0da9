"""All web workers are replaced while slates are asked for."""

import json
import subprocess
import sys
from datetime import UTC, datetime

import psutil

from app.gameday.load import write_requests
from app.gameday.serving_data import questions, write_imports
from app.gameday.stack import READY_TIMEOUT_S, Stack, running_stack, wait_until

SEED = 7
RATE = 40
# Longer than a worker takes to start beside others. The long deadline: a busy machine refuses nobody.
ENVIRONMENT = {"WEB_WORKERS": "2", "SHUTDOWN_DRAIN_S": "15", "SUGGEST_DEADLINE_MS": "10000"}


def ask_on_and_on(stack: Stack) -> subprocess.Popen:
    requests = write_requests(stack.folder / "requests", "/suggest", questions(SEED, 500))
    options = (
        f"--port={stack.port}",
        "--connections=16",
        f"--rate={RATE}",
        "--seconds=300",
        "--timeout-s=20",
    )
    load = subprocess.Popen(
        [sys.executable, "-m", "app.gameday.load", str(requests), *options], stdout=subprocess.PIPE, text=True
    )
    wait_until(lambda: psutil.Process(load.pid).net_connections(), READY_TIMEOUT_S, "nobody asks")
    return load


def test_all_workers_are_replaced_under_load_and_no_request_is_lost(tmp_path):
    imports = write_imports(tmp_path / "imports", SEED, datetime.now(UTC))
    with running_stack(tmp_path / "stack", ENVIRONMENT, ("import", *map(str, imports))) as stack:
        stack.service.start()
        stack.wait_until_ready()
        load = ask_on_and_on(stack)
        before = set(stack.service.workers)

        stack.service.renew_workers()

        wait_until(
            lambda: len(stack.service.workers) == len(before) and not before & set(stack.service.workers),
            READY_TIMEOUT_S,
            "the old workers stay",
        )
        load.terminate()
        outcome = json.loads(load.communicate()[0])
        print(outcome["due"], outcome["latency_ms"], outcome["retries"], "sent again")
        assert outcome["due"] > RATE and outcome["errors"] == 0
        assert outcome["statuses"] == {"200": outcome["due"]}
