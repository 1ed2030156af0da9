"""A body needs a timer unless all of it came with its header."""

import socket

import pytest
from gunicorn.config import Config
from gunicorn.http import RequestParser

from app.api.gunicorn_worker import has_body_arrived

POST = b"POST /suggest HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\n"


@pytest.mark.parametrize(
    ("sent", "is_here"),
    [
        (POST + b"body", True),
        (POST + b"bod", False),
        (POST, False),
        (POST + b"body" + POST, True),
        (b"GET /ready HTTP/1.1\r\nHost: h\r\n\r\n", True),
        (b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n", False),
    ],
    ids=["all of it", "one byte less", "nothing", "and the next request", "there is none", "in chunks"],
)
def test_a_body_is_here_when_all_its_bytes_are(sent, is_here):
    client, server = socket.socketpair()
    with client, server:
        client.sendall(sent)
        request = next(RequestParser(Config(), server, ("127.0.0.1", 1)))

        assert has_body_arrived(request) is is_here
