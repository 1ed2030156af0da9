"""gunicorn's gevent worker: shares connections out evenly, waits for nobody for ever, and leaves politely."""

import os
import sys
import time
from functools import lru_cache
from importlib import import_module
from types import FrameType
from typing import Any

import gevent
from gevent.threadpool import ThreadPool
from gunicorn import util
from gunicorn.http import wsgi
from gunicorn.http.body import LengthReader
from gunicorn.http.errors import InvalidHeader, NoMoreData, ParseException, UnsupportedTransferCoding
from gunicorn.workers import base_async, ggevent
from werkzeug.exceptions import BadRequest, ClientDisconnected, RequestTimeout
from werkzeug.http import http_date

from app.api.connection_shares import ConnectionCounts, SharingServer
from app.api.overload import Overload, SheddingParser
from app.settings import load_settings

# A whole body has to arrive within this time: who sends a byte now and then must not hold a connection for ever.
BODY_TIMEOUT_S = 15.0
_LEAVE_S = 0.2
_STARTING_NICENESS = 10

# All workers are forks of the process that imports this.
CONNECTIONS = ConnectionCounts()


class Departure:
    """Whether this worker is about to end: it still answers, and balancers should send no more."""

    is_near = False


class TimedBody:
    """The body of a request, all of which has to arrive before a deadline."""

    def __init__(self, request: Any, timeout_s: float) -> None:
        self._request = request
        self._body = request.body
        self._deadline_s = time.monotonic() + timeout_s

    def read(self, size: int | None = None) -> bytes:
        return self._in_time(self._body.read, size)

    def readline(self, size: int | None = None) -> bytes:
        return self._in_time(self._body.readline, size)

    def _in_time(self, read, size: int | None) -> bytes:
        with gevent.Timeout(max(self._deadline_s - time.monotonic(), 0.0)) as timeout:
            try:
                return read(size)
            except gevent.Timeout as late:
                if late is not timeout:
                    raise
                self._request.force_close()  # what is left of the body must not be taken for a request
                raise RequestTimeout("the body did not arrive in time") from late
            except (NoMoreData, OSError) as error:
                self._request.force_close()
                raise ClientDisconnected from error
            except ParseException as error:
                self._request.force_close()
                raise BadRequest(f"the body is not what its header says: {error}") from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)


def has_body_arrived(request: Any) -> bool:
    """Whether all of it came with the header, as of most requests: nobody will wait for it, and it needs no timer."""
    reader = request.body.reader
    return isinstance(reader, LengthReader) and reader.length <= request.unreader.buf.getbuffer().nbytes


class JoinedResponse(wsgi.Response):
    """Sends its header together with the beginning of its body, which gunicorn sends apart: two system calls, and two packets, for
    each of which the client wakes up."""

    def write(self, arg: bytes) -> None:
        if self.headers_sent:
            super().write(arg)
            return
        connection, self.sock = self.sock, _Collected()
        try:
            super().write(arg)
        except BaseException:
            self.headers_sent = False  # so that gunicorn may still answer that it failed
            raise
        finally:
            collected, self.sock = self.sock, connection
        connection.sendall(b"".join(collected))


class _Collected(list[bytes]):
    """What would have been sent."""

    sendall = list.append


class Worker(ggevent.GeventWorker):
    """Told to end, it goes on for `SHUTDOWN_DRAIN_S` as not ready, closing each connection behind its answer, and
    then ends what is left idle: clients that keep connections would hold it up until it is killed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # From here on it may be told to end, also while it starts.
        self._idle: dict[gevent.Greenlet, gevent.Timeout] = {}
        self._under_way: set[Any] = set()
        self._drain_s = load_settings().shutdown_drain_s
        self.connections = CONNECTIONS.new_share(lambda: Overload.is_strained())

    def load_wsgi(self) -> None:
        """Imports the application at a low priority first: the workers that serve need the processor more."""
        if (uri := getattr(self.app, "app_uri", None)) is not None:
            importing = ThreadPool(1)  # on Linux, a thread has a priority of its own
            try:
                importing.apply(_import_politely, (uri.partition(":")[0],))
            finally:
                importing.kill()
        super().load_wsgi()

    def run(self) -> None:
        SharingServer.share = self.connections
        if not Departure.is_near:  # it may have been told to end while it started
            self.connections.join()
        ggevent.StreamServer = SharingServer
        base_async.http.get_parser = lambda cfg, source, address: SheddingParser(cfg, source, address)
        wsgi.Response = JoinedResponse
        util.http_date = lambda: _http_date(int(time.time()))
        super().run()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        Departure.is_near = True
        gevent.spawn(self.connections.leave)  # not in the middle of what this signal interrupts
        for request in self._under_way:
            request.force_close()
        gevent.spawn_later(self._drain_s, self._leave)

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> None:
        if req.body is not None and not has_body_arrived(req):
            req.body = TimedBody(req, BODY_TIMEOUT_S)
        if Departure.is_near or (Overload.is_strained() and Overload.may_give_away()):
            req.force_close()
        self._under_way.add(req)
        try:
            super().handle_request(listener_name, req, sock, addr)
        finally:
            self._under_way.remove(req)

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """A coding that nobody has heard of is the caller's mistake, and no 501 that wakes somebody up."""
        if isinstance(exc, UnsupportedTransferCoding):
            exc = InvalidHeader("Transfer-Encoding")
        super().handle_error(req, client, addr, exc)

    def timeout_ctx(self) -> "_Idle":
        return _Idle(self._idle, super().timeout_ctx())

    def _leave(self) -> None:
        self.alive = False
        while True:  # until this process ends: some connect in the last moment
            for greenlet, timeout in list(self._idle.items()):
                greenlet.kill(timeout, block=False)
            gevent.sleep(_LEAVE_S)


class _Idle:
    """While a connection waits for its next request."""

    def __init__(self, idle: dict[gevent.Greenlet, gevent.Timeout], timeout: gevent.Timeout) -> None:
        self._idle, self._timeout = idle, timeout

    def __enter__(self) -> None:
        self._idle[gevent.getcurrent()] = self._timeout
        self._timeout.start()

    def __exit__(self, kind, error, trace) -> bool:
        self._timeout.close()
        del self._idle[gevent.getcurrent()]
        return error is self._timeout


@lru_cache(maxsize=1)
def _http_date(second: int) -> str:
    """The header `Date` of all answers of a second. gunicorn makes it anew for each, which takes 2 % of a request's time."""
    return http_date(second)


def _import_politely(module: str) -> None:
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, 0, _STARTING_NICENESS)
    import_module(module)
