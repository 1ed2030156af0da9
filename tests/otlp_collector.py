"""A collector that takes OTLP over HTTP and keeps the spans."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TypeVar

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

PATIENCE_S = 30.0

Tree = Mapping[str, "Tree"]


class Collector:
    """`status` is what it answers; while it `hangs`, nothing."""

    def __init__(self, port: int) -> None:
        self.endpoint = f"http://127.0.0.1:{port}"
        self.status = 200
        self.hangs = False
        self.post_count = 0
        self.headers: list[Mapping[str, str]] = []
        self.resources: list[Mapping[str, str]] = []
        self._spans: list[Span] = []
        self._news = threading.Condition()

    def take(self, request: ExportTraceServiceRequest, headers: Mapping[str, str]) -> None:
        with self._news:
            self.headers.append(headers)
            for of_resource in request.resource_spans:
                self.resources.append(attributes(of_resource.resource))
                for of_scope in of_resource.scope_spans:
                    self._spans += of_scope.spans
            self._news.notify_all()

    def spans(self, trace_id: str | None = None) -> Sequence[Span]:
        return [span for span in self._spans if trace_id is None or span.trace_id.hex() == trace_id]

    def wait_for(self, trace_id: str | None, *names: str) -> Sequence[Span]:
        """The spans of a trace, or all, when spans of these names are among them."""
        with self._news:
            come = self._news.wait_for(
                lambda: set(names) <= {span.name for span in self.spans(trace_id)}, PATIENCE_S
            )
        assert come, f"{names} did not come; {sorted({span.name for span in self.spans(trace_id)})} did"
        return self.spans(trace_id)


Kind = TypeVar("Kind", bound=Collector)


def attributes(owner) -> Mapping[str, str | int | bool]:
    """Of a span or a resource."""
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in owner.attributes}


def tree(spans: Sequence[Span], parent_id: bytes) -> Tree:
    """Names of spans below a span, with those below them, in the order in which they began."""
    children = sorted(
        (span for span in spans if span.parent_span_id == parent_id), key=lambda s: s.start_time_unix_nano
    )
    return {span.name: tree(spans, span.span_id) for span in children}


@contextmanager
def running_collector(kind: type[Kind] = Collector) -> Iterator[Kind]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            collector.post_count += 1
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if collector.hangs:
                ending.wait()
            elif self.path == "/v1/traces" and collector.status == 200:
                collector.take(ExportTraceServiceRequest.FromString(body), dict(self.headers))
            self.send_response(collector.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_) -> None:
            pass

    ending = threading.Event()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector = kind(server.server_port)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield collector
        finally:
            ending.set()
            server.shutdown()
