"""Workers share one listening socket; who has accepted a connection leaves the next one to the others."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import gevent
import pytest
from gevent import socket

from app.api import gunicorn_worker
from app.api.gunicorn_worker import TurnTakingServer

FOREVER_S = 3_600.0


@contextmanager
def workers(count: int) -> Iterator[tuple[tuple[str, int], list[int]]]:
    """The address of some servers on one listener, and how many connections each has."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    accepted = [0] * count

    def handler(number: int):
        def handle(connection, address) -> None:
            accepted[number] += 1

        return handle

    servers = [TurnTakingServer(listener, handle=handler(number)) for number in range(count)]
    for server in servers:
        server.max_accept = 1
        server.start()
    try:
        yield listener.getsockname(), accepted
    finally:
        for server in servers:
            server.stop()


def connect(address: tuple[str, int], count: int) -> list[socket.socket]:
    return [socket.create_connection(address) for _ in range(count)]


def wait_for(accepted: list[int], total: int) -> None:
    with gevent.Timeout(10):
        while sum(accepted) < total:
            gevent.sleep(0.001)


def test_connections_are_shared_out_evenly(monkeypatch):
    monkeypatch.setattr(gunicorn_worker, "TURN_S", FOREVER_S)
    with workers(3) as (address, accepted):
        clients = []
        for number in range(1, 4):
            clients += connect(address, 1)
            wait_for(accepted, number)

        assert accepted == [1, 1, 1]


@pytest.mark.parametrize("count", [1, 2])
def test_all_connections_are_accepted_by_and_by(count):
    with workers(count) as (address, accepted):
        clients = connect(address, 10)
        wait_for(accepted, 10)

        assert sum(accepted) == len(clients) == 10


def test_a_timer_that_is_early_does_not_end_accepting(monkeypatch):
    with workers(1) as (address, accepted):
        clients = connect(address, 1)
        wait_for(accepted, 1)
        monkeypatch.setattr(
            gunicorn_worker.time, "monotonic", lambda: 0.0
        )  # whatever is due is so much later
        clients += connect(address, 3)
        wait_for(accepted, 4)


def test_a_server_that_was_stopped_during_its_turn_accepts_nothing_more():
    with workers(1) as (address, accepted):
        connect(address, 1)
        wait_for(accepted, 1)

    gevent.sleep(2 * gunicorn_worker.TURN_S)
    assert accepted == [1]


def test_a_worker_that_is_busy_when_its_turn_comes_makes_up_for_it():
    with workers(1) as (address, accepted):
        clients = connect(address, 50)
        rounds = 0

        while sum(accepted) < len(clients):
            time.sleep(30 * gunicorn_worker.TURN_S)  # it computes, and no greenlet runs
            gevent.sleep(gunicorn_worker.TURN_S / 10)
            rounds += 1

        assert rounds < 15
