"""Commands to Redis without the client library's cost per command: packed bytes out, replies in."""

import time
from collections import defaultdict, deque
from contextlib import ExitStack
from functools import partial
from typing import Any, Protocol, Self

import hiredis
import redis
from redis.cluster import ClusterNode
from redis.crc import key_slot
from redis.exceptions import AskError, MovedError

from app.adapters.redis_client import REDIS_ERRORS, ClusterClient
from app.adapters.redis_link import ClosedBeforeReply, Link, seconds_until
from app.domain.errors import StoreUnavailable
from app.domain.ports import Breaker
from app.domain.tracing import SpanKind, current_span, part

# A timeout says something of Redis only after as long.
_TELLING_S = 0.01
_ASKING = b"*1\r\n$6\r\nASKING\r\n"
_NO_ANSWER = (*REDIS_ERRORS, hiredis.HiredisError, OSError)


class NoConnectionFree(StoreUnavailable):
    """There are more callers than connections, which says nothing of Redis."""


class CommandRefused(StoreUnavailable):
    """Redis answers, and cannot do what it is asked for: what lies under a key is of another type, for example."""


class Wire(Protocol):
    """See `RedisWire.ask`."""

    def ask(self, packed: bytes, reply_count: int, timeout_s: float | None = None) -> list[Any]: ...


def open_wire(client: redis.Redis | ClusterClient) -> "RedisWire | ClusterWire":
    """A wire to where `client` goes, with its timeouts and as many connections of its own."""
    return ClusterWire(client) if isinstance(client, ClusterClient) else RedisWire(client.connection_pool)


class GuardedWire:
    """A wire behind a breaker. A caller with hardly any time left does not find out whether Redis is up."""

    def __init__(self, wire: Wire, breaker: Breaker) -> None:
        self._wire, self._breaker = wire, breaker

    def ask(self, packed: bytes, reply_count: int, timeout_s: float | None = None) -> list[Any]:
        if timeout_s is not None and timeout_s < _TELLING_S and self._breaker.state == "closed":
            return self._wire.ask(packed, reply_count, timeout_s)
        return self._breaker.call(lambda: self._wire.ask(packed, reply_count, timeout_s))


class TracedWire:
    """A wire whose use is a part of the current span."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def ask(self, packed: bytes, reply_count: int, timeout_s: float | None = None) -> list[Any]:
        if current_span() is None:
            return self._wire.ask(packed, reply_count, timeout_s)
        operation = packed.split(b"\r\n", 3)[2].decode()  # the first word of the first command
        attributes: dict[str, str | int] = {"db.system.name": "redis", "db.operation.name": operation}
        if reply_count > 1:
            attributes["db.operation.batch.size"] = reply_count
        with part(operation, SpanKind.CLIENT, attributes):
            return self._wire.ask(packed, reply_count, timeout_s)


class RedisWire:
    """One Redis. Works under gevent and in threads; make it after a fork."""

    def __init__(self, pool: redis.ConnectionPool) -> None:
        self._connection = partial(pool.connection_class, **pool.connection_kwargs)
        self._timeout_s: float = pool.connection_kwargs["socket_timeout"]
        # One entry per caller that has a connection: to add one and to take it off is atomic.
        self._in_use: deque[None] = deque()
        self.most_connections: int = pool.max_connections
        self._idle: list[Link] = []

    def ask(self, packed: bytes, reply_count: int, timeout_s: float | None = None) -> list[Any]:
        """The replies to `reply_count` commands, given as RESP in `packed`: bytes, int, list or None each.

        `timeout_s` lowers the client's own timeout; it holds for all replies together and, while a new
        connection is made, for each of its steps. A command may arrive twice, if the server closes the
        connection on which it came first.

        Raises:
            StoreUnavailable: no answer in time, no free connection, no sense in the answer, or an error
                as answer to one of the commands.
        """
        return _without_errors(self.exchange(packed, reply_count, timeout_s))

    def exchange(self, packed: bytes, reply_count: int, timeout_s: float | None = None) -> list[Any]:
        """As `ask`, with a `hiredis.ReplyError` in the place of each command that Redis refused."""
        with self.exchanging(packed, reply_count, timeout_s) as exchange:
            return exchange.replies()

    def exchanging(self, packed: bytes, reply_count: int, timeout_s: float | None = None) -> "_Exchange":
        """An exchange whose commands are sent when its block begins, and whose replies are read in it."""
        if timeout_s is None or timeout_s > self._timeout_s:
            timeout_s = self._timeout_s
        return _Exchange(self, packed, reply_count, time.monotonic() + timeout_s)

    @property
    def connections_in_use(self) -> int:
        return min(len(self._in_use), self.most_connections)

    def take_connection(self) -> None:
        """Raises NoConnectionFree."""
        self._in_use.append(None)
        if len(self._in_use) > self.most_connections:
            self._in_use.pop()
            raise NoConnectionFree("all connections to Redis are in use: raise REDIS_POOL_SIZE")

    def give_back_connection(self, link: Link | None) -> None:
        """With its link, if not a byte is left on it and the next can have it."""
        if link is not None:
            self._idle.append(link)
        self._in_use.pop()

    def quiet_link(self) -> Link | None:
        """An idle link that was not closed, and on which nothing came that nobody asked for."""
        while True:
            try:
                link = self._idle.pop()
            except IndexError:
                return None
            if link.is_quiet():
                return link
            link.close()

    def connect(self, deadline: float) -> Link:
        connection = self._connection()
        connection.socket_connect_timeout = connection.socket_timeout = seconds_until(deadline)
        connection.connect()
        return Link(connection)


class _Exchange:
    """Commands on their way to one Redis, for as long as its block runs. Both of its steps raise StoreUnavailable."""

    __slots__ = ("_deadline", "_is_clean", "_is_link_new", "_link", "_packed", "_reply_count", "_wire")

    def __init__(self, wire: RedisWire, packed: bytes, reply_count: int, deadline: float) -> None:
        self._wire, self._packed, self._reply_count, self._deadline = wire, packed, reply_count, deadline
        self._link: Link | None = None
        self._is_link_new = self._is_clean = False

    def __enter__(self) -> Self:
        self._wire.take_connection()
        is_sent = False
        try:
            self._send()
            is_sent = True
        except _NO_ANSWER as error:
            raise StoreUnavailable(f"Redis did not answer: {error}") from error
        finally:
            if not is_sent:
                self.__exit__()
        return self

    def __exit__(self, *_) -> None:
        try:
            if self._link is not None and not self._is_clean:
                self._link.close()
        finally:
            self._wire.give_back_connection(self._link if self._is_clean else None)

    def replies(self) -> list[Any]:
        try:
            received = self._first_bytes()  # maybe on another link
            replies = self._link.replies(received, self._reply_count, self._deadline)
        except _NO_ANSWER as error:
            raise StoreUnavailable(f"Redis did not answer: {error}") from error
        self._is_clean = True
        return replies

    def _send(self) -> None:
        self._link = self._wire.quiet_link()
        if self._link is not None:
            try:
                self._link.send(self._packed, self._deadline)
                return
            except ClosedBeforeReply:
                pass
        self._send_on_new_link()

    def _send_on_new_link(self) -> None:
        """There was none, or Redis restarted, or something between us forgot the connection."""
        if self._link is not None:
            self._link.close()
        self._link, self._is_link_new = self._wire.connect(self._deadline), True
        self._link.send(self._packed, self._deadline)

    def _first_bytes(self) -> bytes:
        try:
            return self._link.first_bytes(self._deadline)
        except ClosedBeforeReply:
            if self._is_link_new:
                raise
        self._send_on_new_link()
        return self._link.first_bytes(self._deadline)


class ClusterWire:
    """A Redis Cluster: one round trip to all nodes that hold one of the keys, at once.

    redis-py's own cluster pipeline waits, sleeps and asks again far beyond a request's deadline; this
    follows one redirection and no more. It leaves to `RedisProbe` to find the nodes anew after a failover.
    """

    def __init__(self, client: ClusterClient) -> None:
        self._client = client
        self._wires: dict[str, RedisWire] = {}

    def ask(self, packed: bytes, reply_count: int, timeout_s: float | None = None) -> list[Any]:
        """As `RedisWire.ask`; the second word of each command must be its only key."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        commands = _unpack(packed, reply_count)
        try:
            replies = self._replies_of_nodes(commands, deadline)
            for position, reply in enumerate(replies):
                if isinstance(reply, hiredis.ReplyError):
                    replies[position] = self._redirected(reply, commands[position], deadline)
        except (*REDIS_ERRORS, OSError) as error:
            raise StoreUnavailable(f"Redis did not answer: {error}") from error
        return _without_errors(replies)

    @property
    def connections_in_use(self) -> int:
        return sum(wire.connections_in_use for wire in list(self._wires.values()))

    @property
    def most_connections(self) -> int:
        """Over the nodes that were asked yet."""
        return sum(wire.most_connections for wire in list(self._wires.values()))

    def _replies_of_nodes(self, commands: list[tuple[bytes, ...]], deadline: float | None) -> list[Any]:
        """If one does not answer, the answers of the others are read nevertheless, so that they keep their connections."""
        replies: list[Any] = [None] * len(commands)
        problems: list[Exception] = []
        with ExitStack() as stack:
            sent = []
            try:
                for wire, positions in self._by_node(commands).items():
                    of_node = b"".join(hiredis.pack_command(commands[position]) for position in positions)
                    exchange = wire.exchanging(of_node, len(positions), _seconds_left(deadline))
                    sent.append((positions, stack.enter_context(exchange)))
            except (StoreUnavailable, *REDIS_ERRORS, OSError) as error:
                problems.append(error)
            for positions, exchange in sent:
                try:
                    for position, answer in zip(positions, exchange.replies(), strict=True):
                        replies[position] = answer
                except StoreUnavailable as error:
                    problems.append(error)
        if problems:
            raise problems[0]
        return replies

    def _by_node(self, commands: list[tuple[bytes, ...]]) -> dict[RedisWire, list[int]]:
        positions = defaultdict(list)
        for position, (_, key, *_) in enumerate(commands):
            node = self._client.nodes_manager.get_node_from_slot(key_slot(key))
            positions[self._wire(node)].append(position)
        return positions

    def _wire(self, node: ClusterNode) -> RedisWire:
        if node.name not in self._wires:
            self._wires[node.name] = RedisWire(self._client.get_redis_connection(node).connection_pool)
        return self._wires[node.name]

    def _redirected(
        self, error: hiredis.ReplyError, command: tuple[bytes, ...], deadline: float | None
    ) -> Any:
        """The reply of the node that `error` names; `error` itself if it names none."""
        kind, _, address = str(error).partition(" ")
        packed = hiredis.pack_command(command)
        if kind == "MOVED":
            moved = MovedError(address)
            self._client.nodes_manager.move_slot(moved)
            return self._reply_of(moved, packed, 1, deadline)
        if kind == "ASK":
            return self._reply_of(AskError(address), _ASKING + packed, 2, deadline)
        return error

    def _reply_of(self, target: AskError, packed: bytes, reply_count: int, deadline: float | None) -> Any:
        """The last of the replies."""
        node = self._client.get_node(target.host, target.port) or ClusterNode(target.host, target.port)
        return self._wire(node).exchange(packed, reply_count, _seconds_left(deadline))[-1]


def _unpack(packed: bytes, count: int) -> list[tuple[bytes, ...]]:
    reader = hiredis.Reader()
    reader.feed(packed)
    return [tuple(reader.gets()) for _ in range(count)]


def _without_errors(replies: list[Any]) -> list[Any]:
    if any(issubclass(kind, hiredis.ReplyError) for kind in set(map(type, replies))):
        refused = next(reply for reply in replies if isinstance(reply, hiredis.ReplyError))
        raise CommandRefused(f"Redis refused a command: {refused}")
    return replies


def _seconds_left(deadline: float | None) -> float | None:
    return None if deadline is None else seconds_until(deadline)
