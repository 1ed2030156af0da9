"""One connection to Redis: packed bytes out, replies in.

It is redis-py's, so passwords, TLS, databases and Unix sockets work as its address says. Only the bytes on
it are handled here, which takes redis-py's private socket: the one place that does so.
"""

import ssl
import time
from itertools import islice
from typing import Any

import hiredis
import redis

_READ_BYTES = 16_384
_NOTHING = object()
_CLOSED = (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError)


class ClosedBeforeReply(ConnectionError):
    """The server closed the connection before the first byte of an answer."""


class Link:
    """One connection, and the replies on it. Whoever sends on it reads as many replies, or closes it."""

    __slots__ = ("_connection", "_reader", "_socket")

    def __init__(self, connection: redis.Connection) -> None:
        self._connection = connection
        self._socket = connection._sock
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)

    def send(self, packed: bytes, deadline: float) -> None:
        self._socket.settimeout(seconds_until(deadline))
        try:
            self._socket.sendall(packed)
        except _CLOSED as error:
            raise ClosedBeforeReply(str(error)) from error

    def first_bytes(self, deadline: float) -> bytes:
        self._socket.settimeout(max(deadline - time.monotonic(), 0.0))
        try:
            received = self._received_in_time()
        except _CLOSED as error:
            raise ClosedBeforeReply(str(error)) from error
        if not received:
            raise ClosedBeforeReply("it closed the connection")
        return received

    def replies(self, received: bytes, count: int, deadline: float) -> list[Any]:
        """`count` replies, of which `received` is the beginning, and nothing else."""
        replies = self._replies_in(received, count)
        while len(replies) < count:
            self._socket.settimeout(seconds_until(deadline))
            received = self._socket.recv(_READ_BYTES)
            if not received:
                raise ConnectionError("it closed the connection in the middle of a reply")
            replies += self._replies_in(received, count - len(replies))
        if self._reader.has_data():
            raise ConnectionError("it sent more than was asked for")
        return replies

    def _received_in_time(self) -> bytes:
        """What came before the deadline, also if this process was too busy to look: that is no fault of Redis."""
        try:
            return self._socket.recv(_READ_BYTES)
        except (TimeoutError, BlockingIOError, ssl.SSLWantReadError):
            self._socket.settimeout(0)
            try:
                return self._socket.recv(_READ_BYTES)
            except (BlockingIOError, ssl.SSLWantReadError):
                raise TimeoutError("timed out") from None

    def _replies_in(self, received: bytes, most: int) -> list[Any]:
        self._reader.feed(received)
        return list(islice(iter(self._reader.gets, _NOTHING), most))

    def is_quiet(self) -> bool:
        try:
            self._socket.settimeout(0)
            self._socket.recv(1)
        except (BlockingIOError, ssl.SSLWantReadError):
            return True
        except OSError:
            pass
        return False

    def close(self) -> None:
        self._connection.disconnect()


def seconds_until(deadline: float) -> float:
    """Raises TimeoutError when that is past."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left
