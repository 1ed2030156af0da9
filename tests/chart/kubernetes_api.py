"""A small API server that speaks enough of Kubernetes for Helm, and validates every object that it is given.

Not a cluster: objects are kept in memory, and what controllers and kubelets would do is said at once. A real
kube-apiserver takes a quarter of an hour of CPU to build and an etcd beside it, too much for what it would add.
"""

import copy
import json
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import jsonschema
import kubernetes_validate
import yaml

from tests.chart.custom_resources import CUSTOM_RESOURCES
from tests.chart.discovery import RESOURCES, VERSION, Resource, discovery
from tests.chart.helm import Manifest
from tests.chart.protobuf import decode_secret


class Refused(Exception):
    """An answer other than success: its HTTP status and its reason as in Kubernetes."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status, self.reason = status, reason


class KubernetesApi:
    """Objects by (plural, namespace, name), and a log of what became of them for those who watch.

    `live` sets the status of an object that was created or changed, as controllers and kubelets would.
    """

    def __init__(self, live: Callable[[Manifest], None]) -> None:
        self._live = live
        self._objects: dict[tuple[str, str, str], Manifest] = {}
        self._events: list[tuple[str, str, Manifest]] = []
        self._changed = threading.Condition()
        self.is_open = True
        # Objects by kind and name, in the order in which they were created.
        self.history: list[str] = []

    def objects(self, *kinds: str) -> list[Manifest]:
        return [copy.deepcopy(o) for o in self._objects.values() if o["kind"] in kinds]

    def get(self, resource: Resource, namespace: str, name: str) -> Manifest:
        found = self._objects.get((resource.plural, namespace, name))
        if found is None:
            raise Refused(404, "NotFound", f'{resource.plural} "{name}" not found')
        return found

    def matching(self, resource: Resource, namespace: str, query: dict[str, str]) -> list[Manifest]:
        return [
            found
            for (plural, of_namespace, _), found in self._objects.items()
            if plural == resource.plural and of_namespace == namespace and _matches(found, query)
        ]

    def put(self, resource: Resource, namespace: str, sent: Manifest, is_new: bool = False) -> Manifest:
        """Creates an object or replaces one."""
        new = {**sent, "apiVersion": resource.api_version, "kind": resource.kind}
        new["metadata"] = {name: part for name, part in sent["metadata"].items() if name != "managedFields"}
        _validate(new)
        with self._changed:
            key = (resource.plural, namespace, new["metadata"]["name"])
            old = self._objects.get(key)
            if is_new and old is not None:
                raise Refused(409, "AlreadyExists", f'{resource.plural} "{key[2]}" already exists')
            if old is None:
                self.history.append(f"{new['kind']}/{key[2]}")
            new["metadata"] |= self._kept_by_the_server(namespace, old, new)
            new |= {"status": old["status"]} if old and "status" in old else {}
            self._live(new)
            self._objects[key] = new
            self._tell("MODIFIED" if old else "ADDED", resource, new)
            return new

    def delete(self, resource: Resource, namespace: str, name: str) -> Manifest:
        with self._changed:
            gone = self.get(resource, namespace, name)
            del self._objects[(resource.plural, namespace, name)]
            self._tell("DELETED", resource, gone)
            return gone

    def watch(
        self, resource: Resource, namespace: str, query: dict[str, str]
    ) -> Iterator[tuple[str, Manifest] | None]:
        """What becomes of objects from now on, or from `resourceVersion` on; None now and then, while nothing does."""
        since = int(query.get("resourceVersion") or 0)
        if query.get("sendInitialEvents") == "true":
            with self._changed:
                since, present = self.version, self.matching(resource, namespace, query)
            yield from (("ADDED", found) for found in present)
            mark = {"resourceVersion": str(since), "annotations": {"k8s.io/initial-events-end": "true"}}
            yield "BOOKMARK", {"kind": resource.kind, "apiVersion": resource.api_version, "metadata": mark}
        while self.is_open:
            events = self._events_after(since)
            since += len(events)
            yield None
            yield from (
                (type_, found)
                for plural, type_, found in events
                if plural == resource.plural
                and found["metadata"]["namespace"] == namespace
                and _matches(found, query)
            )

    def _events_after(self, version: int) -> list[tuple[str, str, Manifest]]:
        """Waits half a second for some."""
        with self._changed:
            self._changed.wait_for(lambda: self.version > version or not self.is_open, timeout=0.5)
            return self._events[version:]

    def close(self) -> None:
        with self._changed:
            self.is_open = False
            self._changed.notify_all()

    @property
    def version(self) -> int:
        return len(self._events)

    def _kept_by_the_server(self, namespace: str, old: Manifest | None, new: Manifest) -> dict[str, Any]:
        before = old["metadata"] if old else {}
        is_changed = old is None or old.get("spec") != new.get("spec")
        return {
            "namespace": namespace,
            "uid": before.get("uid", str(uuid.uuid4())),
            "creationTimestamp": before.get(
                "creationTimestamp", datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            ),
            "generation": before.get("generation", 0) + is_changed,
            "resourceVersion": str(self.version + 1),
        }

    def _tell(self, type_: str, resource: Resource, what: Manifest) -> None:
        self._events.append((resource.plural, type_, copy.deepcopy(what)))
        self._changed.notify_all()


def _validate(manifest: Manifest) -> None:
    try:
        if manifest["kind"] in CUSTOM_RESOURCES:
            ours = {**manifest, "metadata": {k: v for k, v in manifest["metadata"].items() if k in _GIVEN}}
            jsonschema.validate(ours, CUSTOM_RESOURCES[manifest["kind"]])
        else:
            kubernetes_validate.validate(manifest, VERSION, strict=True)
    except jsonschema.ValidationError as error:
        raise Refused(422, "Invalid", f"{manifest['kind']} {error.json_path}: {error.message}") from error


_GIVEN = {"name", "namespace", "labels", "annotations"}


def _matches(found: Manifest, query: dict[str, str]) -> bool:
    labels = found["metadata"].get("labels", {})
    wanted = [pair.partition("=")[::2] for pair in query.get("labelSelector", "").split(",") if "=" in pair]
    names = [
        pair.partition("=")[2]
        for pair in query.get("fieldSelector", "").split(",")
        if pair.startswith("metadata.name=")
    ]
    return all(labels.get(name) == value for name, value in wanted) and all(
        found["metadata"]["name"] == name for name in names
    )


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    api: KubernetesApi

    def do_GET(self) -> None:
        self._answer(self._read)

    def do_POST(self) -> None:
        self._answer(
            lambda: self._objects_of(lambda r, ns, _: self.api.put(r, ns, self._body(), is_new=True)), 201
        )

    def do_PUT(self) -> None:
        self._answer(lambda: self._objects_of(lambda r, ns, _: self.api.put(r, ns, self._body())))

    def do_PATCH(self) -> None:
        self._answer(lambda: self._objects_of(self._patch))

    def do_DELETE(self) -> None:
        self._sent()  # how to delete, which is all the same here
        self._answer(lambda: self._objects_of(self.api.delete))

    def log_message(self, *arguments: Any) -> None:
        pass

    def _read(self) -> Any:
        path = urlsplit(self.path).path
        discovered = discovery().get(path)
        return discovered if discovered is not None else self._objects_of(self._get)

    def _get(self, resource: Resource, namespace: str, name: str) -> Any:
        if name.endswith("/log"):
            return "what the pod said\n"
        if name:
            return self.api.get(resource, namespace, name)
        query = dict(parse_qsl(urlsplit(self.path).query))
        if query.get("watch") in ("true", "1"):
            self._stream(self.api.watch(resource, namespace, query))
            return None
        return {
            "kind": f"{resource.kind}List",
            "apiVersion": resource.api_version,
            "metadata": {"resourceVersion": str(self.api.version)},
            "items": self.api.matching(resource, namespace, query),
        }

    def _patch(self, resource: Resource, namespace: str, name: str) -> Manifest:
        """What is applied takes the place of what was; a patch is merged into it."""
        sent = self._body()
        if "apply-patch" in self.headers["Content-Type"]:
            return self.api.put(resource, namespace, sent)
        return self.api.put(resource, namespace, _merged(self.api.get(resource, namespace, name), sent))

    def _objects_of(self, work: Callable[[Resource, str, str], Any]) -> Any:
        path = urlsplit(self.path).path
        for resource in RESOURCES:
            match = re.fullmatch(f"{resource.root}/namespaces/([^/]+)/{resource.plural}(?:/(.+))?", path)
            if match:
                return work(resource, match[1], match[2] or "")
        raise Refused(404, "NotFound", f"the server could not find {path}")

    def _body(self) -> Manifest:
        body = self._sent()
        if "protobuf" in self.headers.get("Content-Type", ""):
            return decode_secret(body)
        return yaml.load(body, Loader=yaml.CSafeLoader) or {}

    def _sent(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, work: Callable[[], Any], status: int = 200) -> None:
        try:
            answer = work()
        except Refused as refused:
            status = refused.status
            answer = {
                **{"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": status},
                **{"reason": refused.reason, "message": str(refused)},
            }
        if answer is None:
            return
        body = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if isinstance(answer, str) else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, events: Iterator[tuple[str, Manifest] | None]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        try:
            for event in events:
                if event is not None:
                    self.wfile.write(json.dumps({"type": event[0], "object": event[1]}).encode() + b"\n")
                self.wfile.flush()
        except OSError:
            pass  # nobody watches any more


def _merged(old: Any, patch: Any) -> Any:
    """As in RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(old) if isinstance(old, dict) else {}
    for name, part in patch.items():
        merged[name] = _merged(merged.get(name), part)
    return {name: part for name, part in merged.items() if part is not None}


@contextmanager
def serve_api(live: Callable[[Manifest], None]) -> Iterator[tuple[KubernetesApi, str]]:
    """A running server and its address."""
    api = KubernetesApi(live)
    handler = type("Handler", (_Handler,), {"api": api})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield api, f"http://127.0.0.1:{server.server_port}"
    finally:
        api.close()
        server.shutdown()
        server.server_close()
        thread.join()
