"""Header and body leave together, and what an answer is made of stays the same."""

import socket
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from gunicorn.config import Config
from gunicorn.http import wsgi

from app.api.gunicorn_worker import JoinedResponse

OF_FOUR_BYTES = [("Content-Length", "4")]


class Exchange:
    """A response and what its client receives, packet by packet: the sockets keep what is sent at once together."""

    def __init__(
        self, kind: type[wsgi.Response], method: str, client: socket.socket, server: socket.socket
    ) -> None:
        request = SimpleNamespace(method=method, version=(1, 1), should_close=lambda: False)
        self.response = kind(request, server, Config())
        self._client, self._server = client, server

    def packets(self) -> list[bytes]:
        self._server.shutdown(socket.SHUT_WR)
        return list(iter(lambda: self._client.recv(65_536), b""))


@pytest.fixture
def exchange() -> Iterator:
    pairs = []

    def begin(kind: type[wsgi.Response] = JoinedResponse, method: str = "GET") -> Exchange:
        pairs.append(socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        return Exchange(kind, method, *pairs[-1])

    yield begin
    for pair in pairs:
        for end in pair:
            end.close()


def test_the_header_comes_in_one_packet_with_the_body(exchange):
    answered = exchange()
    answered.response.start_response("200 OK", OF_FOUR_BYTES)
    answered.response.write(b"body")
    answered.response.close()

    (packet,) = answered.packets()

    assert packet.startswith(b"HTTP/1.1 200 OK\r\n") and packet.endswith(b"\r\n\r\nbody")


def test_a_stream_does_not_wait_for_its_end(exchange):
    answered = exchange()
    answered.response.start_response("200 OK", [])
    answered.response.write(b"first")
    answered.response.write(b"second")
    answered.response.close()

    first, *rest = answered.packets()

    assert first.endswith(b"\r\n\r\n5\r\nfirst\r\n")
    assert rest == [b"6\r\nsecond\r\n", b"0\r\n\r\n"]


@pytest.mark.parametrize(
    ("method", "status", "headers", "body"),
    [
        ("GET", "200 OK", OF_FOUR_BYTES, [b"body"]),
        ("GET", "200 OK", OF_FOUR_BYTES, [b"bo", b"dy"]),
        ("GET", "200 OK", OF_FOUR_BYTES, [b"body and more"]),
        ("GET", "200 OK", [], [b"", b"streamed"]),
        ("GET", "200 OK", [("Content-Length", "0")], []),
        ("HEAD", "200 OK", OF_FOUR_BYTES, [b""]),
        ("HEAD", "200 OK", OF_FOUR_BYTES, [b"body"]),
        ("DELETE", "204 NO CONTENT", [], [b""]),
    ],
)
def test_every_answer_is_what_it_is_without_joining(exchange, monkeypatch, method, status, headers, body):
    monkeypatch.setattr(wsgi.util, "http_date", lambda: "now")

    def received(kind: type[wsgi.Response]) -> bytes:
        answered = exchange(kind, method)
        answered.response.start_response(status, headers)
        for part in body:
            answered.response.write(part)
        answered.response.close()
        return b"".join(answered.packets())

    assert received(JoinedResponse) == received(JoinedResponse.__base__)


def test_what_is_no_body_sends_nothing(exchange):
    answered = exchange()
    answered.response.start_response("200 OK", OF_FOUR_BYTES)

    with pytest.raises(TypeError):
        answered.response.write("text")

    assert answered.packets() == []
    assert not answered.response.headers_sent, "gunicorn would not answer that it failed"
