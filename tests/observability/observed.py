"""A whole service with a model and a projector, and a real Prometheus that scrapes them as the shipped configuration says."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psycopg2

from app.adapters.free_ports import free_port
from app.adapters.model_store import ModelStore
from app.gameday.monitoring import Prometheus, prometheus
from app.gameday.scraping import RULES, scrape_configuration
from app.gameday.serving_data import write_imports
from app.gameday.serving_world import ENVIRONMENT
from app.gameday.stack import Stack, running_stack, wait_until
from tests.observability.visitors import Visitors

SEED = 7


@dataclass(frozen=True, slots=True)
class Observed:
    stack: Stack
    prometheus: Prometheus
    visitors: Visitors


@contextmanager
def observed_service(
    folder: Path, environment: Mapping[str, str], interval: str = "1s"
) -> Iterator[Observed]:
    """Imported history, a promoted model, one projector, what `propositions skew` writes; the first visitors have been there.

    Raises:
        ConfigurationError: Prometheus is not to be had.
        GamedayFailed: the service did not come up.
    """
    private_port, projector_port = free_port(), free_port()
    settings = {
        **ENVIRONMENT,
        "PRIVATE_PORT": str(private_port),
        "PROJECT_METRICS_PORT": str(projector_port),
        "DECISION_FEATURES_SHARE": "1",
        **environment,
    }
    imports = write_imports(folder / "imports", SEED, datetime.now(UTC))
    with (
        running_stack(folder / "stack", settings, ("import", *map(str, imports))) as stack,
        _served(folder / "jobs") as jobs_port,
    ):
        targets = {
            "propositions-web": [f"127.0.0.1:{private_port}"],
            "propositions-projector": [f"127.0.0.1:{projector_port}"],
            "propositions-jobs": [f"127.0.0.1:{jobs_port}"],
        }
        visitors = Visitors(stack.url, f"http://127.0.0.1:{private_port}")
        rules = sorted(RULES.glob("*.yml"))
        with prometheus(folder / "prometheus", scrape_configuration(targets, interval, rules)) as server:
            _serve_with_a_model(stack)
            wait_until(lambda: _is_audited(stack, visitors), 60, "no decision was stored with its features")
            stack.run("skew", "--metrics-file", str(folder / "jobs/metrics"), "--max-mismatch", "1")
            yield Observed(stack, server, visitors)


def _serve_with_a_model(stack: Stack) -> None:
    stack.run("project")
    stack.service.start()
    stack.add_projector()
    stack.run("train", "--seed", str(SEED))
    settings = stack.settings()
    (model,) = ModelStore(settings.model_dir, settings.half_lives_s).versions()
    stack.run("models", "promote", model, "--force", "--reason", "made-up data")
    stack.wait_until_ready()


def _is_audited(stack: Stack, visitors: Visitors) -> bool:
    """Whether `propositions skew` has something to compare: workers load a model some time after it is promoted."""
    visitors.come()
    with closing(psycopg2.connect(stack.postgres.address)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT 1 FROM decisions WHERE features IS NOT NULL LIMIT 1")
        return cursor.rowcount == 1


@contextmanager
def _served(folder: Path) -> Iterator[int]:
    """The port where the files of a folder are to be had, in the place of node_exporter's textfile collector."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_) -> None: ...

    folder.mkdir(parents=True)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()
