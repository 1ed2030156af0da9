"""Refusing requests for slates at a small part of what an answer costs, when there are more than can be answered.

To parse a request and make an environment of it takes so long that, at three times what a worker can do, most of its time
went into refusals. Here a request that lies whole in its socket is recognized by a few of its bytes. Anything unusual about it goes the long way, where `Admission` decides.
"""

import re
import time
from collections.abc import Callable
from typing import Any, ClassVar

from gevent.socket import wait_read
from gunicorn.http import RequestParser
from werkzeug.exceptions import HTTPException

from app.api.admission import REFUSAL_BODY, REFUSAL_HEADERS, REFUSAL_STATUS, SUGGEST

_BEGIN = f"POST /{SUGGEST} HTTP/1.1\r\n".encode()
_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,6})\r\n")
# With one of these, where a request ends or whether its connection goes on is not said by its length alone.
_UNUSUAL = re.compile(rb"\r\n(transfer-encoding|connection|expect|upgrade)[ \t]*:")
_READ_BYTES = 8_192
# A worker with more connections than its share, as after the death of another, gives away so many a second.
_SECONDS_PER_LOST_CONNECTION = 0.01


def _refusal(*more: tuple[str, str]) -> bytes:
    head = "".join(f"{name}: {value}\r\n" for name, value in (*REFUSAL_HEADERS, *more))
    return f"HTTP/1.1 {REFUSAL_STATUS}\r\n{head}\r\n".encode() + REFUSAL_BODY


_REFUSAL, _LAST_REFUSAL = _refusal(), _refusal(("Connection", "close"))


class Overload:
    """Of this worker. The application sets what tells of it when it is made."""

    is_strained: ClassVar[Callable[[], bool]] = staticmethod(lambda: False)
    is_overrun: ClassVar[Callable[[], bool]] = staticmethod(lambda: False)
    on_shed: ClassVar[Callable[[str], None]] = staticmethod(lambda route: None)
    _gave_away_at_s: ClassVar[float] = 0.0

    @classmethod
    def watch(
        cls, is_strained: Callable[[], bool], is_overrun: Callable[[], bool], on_shed: Callable[[str], None]
    ) -> None:
        cls.is_strained, cls.is_overrun = staticmethod(is_strained), staticmethod(is_overrun)
        cls.on_shed = staticmethod(on_shed)

    @classmethod
    def may_give_away(cls) -> bool:
        """True for a connection now and then: its client comes back, and may reach another worker."""
        now_s = time.monotonic()
        if now_s - cls._gave_away_at_s < _SECONDS_PER_LOST_CONNECTION:
            return False
        cls._gave_away_at_s = now_s
        return True


class SheddingParser(RequestParser):
    """Refuses whole requests before they are parsed, while the worker is overrun.

    Each connection gets one answer per round of the event loop. A client that is quick to send its next request would else be
    answered, or refused, again and again in a round that never ends.
    """

    _had_answer = False

    def __next__(self) -> Any:
        if self._is_between_requests():
            while data := self._receive():
                if not (Overload.is_overrun() and is_whole_request(data)):
                    self.unreader.unread(data)
                    break
                Overload.on_shed(SUGGEST)
                if Overload.may_give_away():
                    self.unreader.sock.sendall(_LAST_REFUSAL)
                    raise StopIteration
                self.unreader.sock.sendall(_REFUSAL)
            else:
                raise StopIteration
        return super().__next__()

    next = __next__

    def _receive(self) -> bytes:
        if self._had_answer:
            wait_read(self.unreader.sock.fileno())
        self._had_answer = True
        return self.unreader.sock.recv(_READ_BYTES)

    def _is_body_read(self) -> bool:
        """False if the rest of the last body, which nobody wanted, does not come or is wrong: where the next request begins
        is unknown then."""
        try:
            return self.finish_body()
        except (HTTPException, OSError):
            return False

    def _is_between_requests(self) -> bool:
        if self.mesg is not None and (self.mesg.should_close() or not self._is_body_read()):
            raise StopIteration
        return not self.unreader.buf.getbuffer().nbytes


def is_whole_request(data: bytes) -> bool:
    """True if these bytes are one request for a slate and nothing else."""
    if not data.startswith(_BEGIN):
        return False
    end = data.find(_END) + len(_END)
    if end < len(_END):
        return False
    head = data[:end].lower()
    if b"\0" in head or head.count(b"\n") != head.count(b"\r\n"):
        return False
    length = _LENGTH.search(head)
    if length is None or head.count(b"content-length") > 1 or _UNUSUAL.search(head) is not None:
        return False
    return end + int(length[1]) == len(data)
