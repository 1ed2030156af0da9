"""Workers share one listening socket; each connection goes to the worker that has fewest."""

import os
import socket as blocking_socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import gevent
import pytest
from gevent import socket

from app.api import connection_shares
from app.api.connection_shares import SLOTS, ConnectionCounts, SharingServer

FOREVER_S = 3_600.0


class Workers:
    """Some servers on one listener, in one event loop, whose connections stay open until the client closes them."""

    def __init__(self, count: int) -> None:
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self.address = self._listener.getsockname()
        counts = ConnectionCounts()
        self.shares = [counts.new_share() for _ in range(count)]
        self.clients: list[set] = [set() for _ in range(count)]
        self.servers = [SharingServer(self._listener, handle=self._handler(n)) for n in range(count)]
        for server, share in zip(self.servers, self.shares, strict=True):
            server.share = share
            share.join()
            server.max_accept = 1  # as gunicorn has it where there are several workers
            server.start()

    def _handler(self, number: int):
        def handle(connection, address) -> None:
            self.clients[number].add(address)
            connection.recv(1)
            self.clients[number].remove(address)

        return handle

    @property
    def open(self) -> list[int]:
        return [len(clients) for clients in self.clients]

    def connect(self, count: int) -> list[socket.socket]:
        return [socket.create_connection(self.address) for _ in range(count)]

    def wait_for(self, total: int) -> None:
        self.wait_until(lambda: sum(self.open) == total)

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        with gevent.Timeout(10):
            while not is_so():
                gevent.sleep(0.001)

    def stop(self) -> None:
        for server in self.servers:
            server.stop()


@contextmanager
def workers(count: int) -> Iterator[Workers]:
    running = Workers(count)
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture
def endless_patience(monkeypatch):
    monkeypatch.setattr(connection_shares, "PATIENCE_S", FOREVER_S)


@pytest.mark.parametrize(("count", "clients", "shares"), [(1, 10, [10]), (2, 10, [5, 5]), (3, 7, [2, 2, 3])])
def test_connections_that_come_at_once_are_shared_out_evenly(endless_patience, count, clients, shares):
    with workers(count) as running:
        held = running.connect(clients)
        running.wait_for(len(held))

        assert sorted(running.open) == shares


def test_who_has_lost_connections_gets_the_next(endless_patience):
    with workers(2) as running:
        held = running.connect(8)
        running.wait_for(8)
        of_first = [client for client in held if client.getsockname() in running.clients[0]]
        for client in of_first[:3]:
            client.close()
        running.wait_for(5)

        held += running.connect(3)
        running.wait_for(8)

        assert running.open == [4, 4]


def test_a_worker_that_hangs_is_waited_for_once_and_not_for_each_connection(monkeypatch):
    with workers(2) as running:
        running.servers[1].stop_accepting()  # as if its event loop stood still
        monkeypatch.setattr(connection_shares, "PATIENCE_S", 0.05)
        waits: list[int] = []
        monkeypatch.setattr(running.servers[0], "_has_pending", lambda: bool(waits.append(1)) or True)
        held = running.connect(40)
        running.wait_for(40)

        assert running.open == [len(held), 0]
        assert len(waits) < 3 * 50


def test_who_leaves_gets_what_nobody_else_takes(endless_patience):
    with workers(2) as running:
        running.shares[0].leave()
        held = running.connect(3)
        running.wait_for(3)
        assert running.open == [0, 3]

        running.servers[1].stop_accepting()
        running.shares[1].leave()
        held += running.connect(1)
        running.wait_for(4)

        assert running.open == [1, 3]


def test_a_server_that_is_stopped_while_it_leaves_a_connection_to_others_ends(endless_patience, capsys):
    with workers(2) as running:
        running.servers[1].stop_accepting()
        running.shares[0].add(1)
        client = running.connect(1)
        running.wait_until(lambda: running.servers[0]._watcher is None)

        running.servers[0].stop()
        gevent.sleep(3 * connection_shares.TURN_S)

        assert sum(running.open) == 0
        assert client
        assert "Traceback" not in capsys.readouterr().err


def test_processes_that_were_forked_see_each_others_counts():
    counts = ConnectionCounts()
    ours, theirs = counts.new_share(), counts.new_share()
    ours.join()
    ours.add(2)
    child = os.fork()
    if not child:
        theirs.join()
        theirs.add(1)
        os._exit(0)
    os.waitpid(child, 0)

    assert ours.have_others_fewer()


def test_no_two_workers_have_the_same_slot_however_many_came_and_went():
    counts = ConnectionCounts()
    lasting = counts.new_share()
    lasting.join()
    for _ in range(2 * SLOTS):
        passing = counts.new_share()
        passing.join()
        assert passing.slot != lasting.slot
        counts.take_back(passing)
        assert not lasting.have_others_fewer()

    lasting.add(1)
    assert not lasting.have_others_fewer()


def test_a_strained_worker_does_not_get_back_what_it_gives_away():
    counts, strain = ConnectionCounts(), [False, True]
    calm, strained = (counts.new_share(lambda number=number: strain[number]) for number in range(2))
    for share in (calm, strained):
        share.join()
        share.add(4)
    strained.add(-1)
    assert strained.have_others_fewer() and not calm.have_others_fewer()

    calm.add(1)
    strain[1] = False
    strained.add(-1)

    assert calm.have_others_fewer() and not strained.have_others_fewer()


def test_a_worker_that_computes_in_between_accepts_all_that_came_meanwhile():
    with workers(1) as running:
        held = [blocking_socket.create_connection(running.address) for _ in range(50)]
        rounds = 0

        while sum(running.open) < len(held):
            gevent.sleep(0.0001)  # a round of the event loop
            rounds += 1

        assert rounds < 15
