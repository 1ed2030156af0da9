"""A real OpenSearch on this machine, out of its jars in Maven's repository."""

import json
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from app.adapters.child_process import ending_with_parent
from app.adapters.free_ports import free_port
from app.gameday import maven

VERSION = "2.19.6"
ARTIFACTS = (
    f"org.opensearch:opensearch:{VERSION}",
    *(
        f"org.opensearch.plugin:{module}:{VERSION}"
        for module in (
            "transport-netty4-client",
            "analysis-common",
            "lang-painless",
            "lang-mustache-client",
            "ingest-common",
        )
    ),
    # Optional for Maven, and needed to start.
    "org.apache.logging.log4j:log4j-core:2.25.4",
)
PROGRAM = Path(__file__).with_name("SearchServer.java")
JAVA = ("java", "-Xms256m", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
START_TIMEOUT_S, ANSWER_TIMEOUT_S, POLL_S = 60.0, 30.0, 0.05


class Refused(Exception):
    """What the server says is wrong."""


class NotYet(Refused):
    """The index is there, but its shards do not answer yet."""


class SearchServer:
    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, method: str, path: str, body: Mapping[str, Any] | str | None = None) -> Any:
        """The JSON of an answer; a text is sent as lines of JSON.

        Raises:
            NotYet: the status is 503.
            Refused: it is 400 or more.
        """
        is_lines = isinstance(body, str)
        data = body.encode() if is_lines else body and json.dumps(body).encode()
        headers = {"Content-Type": "application/x-ndjson" if is_lines else "application/json"}
        request = Request(f"http://127.0.0.1:{self.port}{path}", data, headers, method=method)
        try:
            with urlopen(request, timeout=ANSWER_TIMEOUT_S) as answer:
                return json.loads(answer.read())
        except HTTPError as error:
            refused = NotYet if error.code == HTTPStatus.SERVICE_UNAVAILABLE else Refused
            raise refused(f"{method} {path}: {error.read().decode()}") from error

    def search(self, index: str, **body: Any) -> Any:
        return self.ask("POST", f"/{index}/_search", body)

    def is_ready(self) -> bool:
        try:
            return self.ask("GET", "/")["version"]["number"] == VERSION
        except (Refused, URLError, OSError):
            return False


@contextmanager
def search_server(folder: Path) -> Iterator[SearchServer]:
    """One that keeps its data in the folder, until the end of the block.

    Raises:
        ConfigurationError: Java, Maven or the jars are not to be had.
        AssertionError: it did not start; the text ends with its log.
    """
    (folder / "config").mkdir(parents=True)
    jars = maven.classpath(f"opensearch-{VERSION}", ARTIFACTS)
    server, log_path = SearchServer(free_port()), folder / "search.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [*JAVA, "-cp", jars, str(PROGRAM), str(folder), str(server.port)],
            stdout=log,
            stderr=log,
            preexec_fn=ending_with_parent(),
        )
    try:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not server.is_ready():
            assert process.poll() is None and time.monotonic() < deadline_s, log_path.read_text()[-2_000:]
            time.sleep(POLL_S)
        yield server
    finally:
        process.kill()
        process.wait()
