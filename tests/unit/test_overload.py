"""What is refused before it is parsed is a whole request for a slate and nothing else; all else goes the long way."""

import socket
from collections.abc import Iterator

import gevent
import pytest
from gunicorn.config import Config

from app.api import overload
from app.api.overload import Overload, SheddingParser, is_whole_request

BODY = b'{"user_id": "u1"}'
HEAD = b"POST /suggest HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: 17\r\n"
WHOLE = HEAD + b"\r\n" + BODY


@pytest.mark.parametrize(
    "data",
    [
        WHOLE,
        WHOLE.replace(b"Content-Length", b"content-length"),
        WHOLE.replace(b"Host: h", b"Authorization: Bearer pp_x"),
        HEAD.replace(b"17", b"0") + b"\r\n",
    ],
)
def test_a_whole_request_for_a_slate_is_recognized(data):
    assert is_whole_request(data)


@pytest.mark.parametrize(
    "data",
    [
        WHOLE[:-1],
        WHOLE + b"G",
        WHOLE + WHOLE,
        HEAD,
        b"",
        WHOLE.replace(b"/suggest", b"/log_event"),
        WHOLE.replace(b"/suggest", b"/suggest/"),
        WHOLE.replace(b"HTTP/1.1", b"HTTP/1.0"),
        WHOLE.replace(b"POST", b"GET"),
        HEAD + b"Content-Length: 17\r\n\r\n" + BODY,
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + BODY,
        HEAD + b"Connection: close\r\n\r\n" + BODY,
        HEAD + b"Expect: 100-continue\r\n\r\n" + BODY,
        WHOLE.replace(b"Length: 17", b"Length: +17"),
        WHOLE.replace(b"Length: 17", b"Length: 1 7"),
        WHOLE.replace(b"Content-Length: 17\r\n", b""),
        HEAD + b"X: a\nTransfer-Encoding: chunked\r\n\r\n" + BODY,
        HEAD + b"X: a\0b\r\n\r\n" + BODY,
    ],
)
def test_whatever_is_unusual_goes_the_long_way(data):
    assert not is_whole_request(data)


@pytest.fixture
def shed(monkeypatch) -> list[str]:
    """The routes of what is refused: everything, and no connection is given away."""
    routes: list[str] = []
    monkeypatch.setattr(Overload, "is_overrun", staticmethod(lambda: True))
    monkeypatch.setattr(Overload, "on_shed", staticmethod(routes.append))
    monkeypatch.setattr(Overload, "may_give_away", classmethod(lambda cls: False))
    return routes


@pytest.fixture
def connection() -> Iterator[tuple[socket.socket, SheddingParser]]:
    """A client's end, and what parses at the other."""
    client, server = socket.socketpair()
    with client, server:
        client.settimeout(5)
        server.settimeout(5)
        yield client, SheddingParser(Config(), server, ("127.0.0.1", 1))


class QuickClient:
    """A connection whose client sends its next request as soon as it has an answer, `count` in all; seen by the server."""

    def __init__(self, name: str, client: socket.socket, server: socket.socket, count: int) -> None:
        self.name, self._client, self._server = name, client, server
        self._left = count
        self.answers: list[bytes] = []
        self.send()

    def send(self) -> None:
        self._left -= 1
        if self._left < 0:
            self._client.shutdown(socket.SHUT_WR)
        else:
            self._client.sendall(WHOLE)

    def recv(self, size: int) -> bytes:
        return self._server.recv(size)

    def sendall(self, data: bytes) -> None:
        self.answers.append(data)
        self.send()

    def fileno(self) -> int:
        return self._server.fileno()


def test_refused_requests_leave_the_connection_as_it_was_for_the_next(connection, shed, monkeypatch):
    client, parser = connection
    answers = iter([True, True, False])
    monkeypatch.setattr(Overload, "is_overrun", staticmethod(lambda: next(answers)))
    quick = parser.unreader.sock = QuickClient("quick", client, parser.unreader.sock, count=3)
    request = next(parser)

    assert (request.method, request.path, request.body.read()) == ("POST", "/suggest", BODY)
    assert [answer.split(b"\r\n")[0] for answer in quick.answers] == [b"HTTP/1.1 503 Service Unavailable"] * 2
    assert shed == ["suggest", "suggest"]


def test_clients_that_are_quick_to_ask_again_have_their_answers_in_turn(shed):
    order: list[str] = []

    class Noted(QuickClient):
        def sendall(self, data: bytes) -> None:
            order.append(self.name)
            super().sendall(data)

    def serve(name: str) -> None:
        client, server = socket.socketpair()
        with client, server:
            parser = SheddingParser(Config(), server, ("127.0.0.1", 1))
            parser.unreader.sock = Noted(name, client, server, count=3)
            with pytest.raises(StopIteration):
                next(parser)

    gevent.joinall([gevent.spawn(serve, name) for name in ("one", "other")], timeout=5, raise_error=True)

    rounds = [set(order[first : first + 2]) for first in range(0, 6, 2)]
    assert rounds == [{"one", "other"}] * 3


def test_a_refusal_is_a_whole_answer(connection, shed):
    client, parser = connection
    client.sendall(WHOLE)
    client.shutdown(socket.SHUT_WR)
    with pytest.raises(StopIteration):
        next(parser)

    head, _, body = client.recv(65_536).partition(b"\r\n\r\n")
    assert b"Retry-After: 1" in head and b"Content-Length: %d" % len(body) in head
    assert b"Connection" not in head


def test_now_and_then_a_connection_is_closed_behind_a_refusal(connection, shed, monkeypatch):
    client, parser = connection
    monkeypatch.setattr(Overload, "may_give_away", classmethod(lambda cls: True))
    client.sendall(WHOLE)

    with pytest.raises(StopIteration):
        next(parser)

    assert b"Connection: close\r\n" in client.recv(65_536)


def test_connections_are_given_away_no_faster_than_others_can_take_them(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(overload.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(Overload, "_gave_away_at_s", -1.0)
    given = 0
    for _ in range(1_000):
        now[0] += 0.001
        given += Overload.may_give_away()

    assert given == pytest.approx(100, abs=10)


@pytest.mark.parametrize("pipelined", [b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n", WHOLE])
def test_what_was_sent_ahead_is_never_taken_for_the_begin_of_a_request(connection, shed, pipelined):
    client, parser = connection
    client.sendall(b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n" + pipelined[:10])

    assert next(parser).path == "/health"
    client.sendall(pipelined[10:])

    assert next(parser).path == ("/health" if b"health" in pipelined else "/suggest")
    assert shed == []
