"""What the load generator makes of connections that end, against a server that ends them at will."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from app.gameday.load import Generator, Outcome
from app.gameday.series import Answer, SeriesReader, SeriesWriter

REQUEST = b"POST /suggest HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}"
BODY = json.dumps({"degradation_level": 0, "model_version": "m1", "strategy": "model"}, separators=(",", ":"))
ANSWER = f"HTTP/1.1 200 OK\r\nContent-Length: {len(BODY)}\r\n\r\n{BODY}".encode()

Step = Callable[[socket.socket], None]


def answer(connection: socket.socket) -> None:
    connection.recv(len(REQUEST), socket.MSG_WAITALL)
    connection.sendall(ANSWER)


def read_only(connection: socket.socket) -> None:
    connection.recv(len(REQUEST), socket.MSG_WAITALL)


def leave_unread(connection: socket.socket) -> None:
    """Closing it then resets it."""
    connection.recv(1, socket.MSG_PEEK)


def wait_for_the_client(connection: socket.socket) -> None:
    connection.recv(len(REQUEST), socket.MSG_WAITALL)
    connection.recv(1)


@contextmanager
def server(*connections: tuple[Step, ...]) -> Iterator[int]:
    """Takes so many connections one after the other, does these steps on each, and closes it."""

    def serve() -> None:
        for steps in connections:
            connection, _ = listener.accept()
            with connection:
                for step in steps:
                    step(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(timeout=30)


@contextmanager
def many_connections(step: Step) -> Iterator[int]:
    """Takes any number of connections at a time, does this step once on each, and closes it."""

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            step(connection)

    def accept() -> None:
        while not is_over.is_set():
            with suppress(TimeoutError):
                connection, _ = listener.accept()
                threading.Thread(target=serve, args=(connection,)).start()

    is_over = threading.Event()
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        listener.settimeout(0.05)
        thread = threading.Thread(target=accept)
        thread.start()
        yield listener.getsockname()[1]
        is_over.set()
        thread.join(timeout=30)


@pytest.fixture
def play(tmp_path) -> Callable[..., tuple[Outcome, list[Answer]]]:
    """Sends `count` requests, `rate` per second."""

    def run(
        port: int, count: int, rate: float = 50.0, timeout_s: float = 5.0, connections: int = 1
    ) -> tuple[Outcome, list[Answer]]:
        path = tmp_path / "series"
        with SeriesWriter.to(path) as series:
            generator = Generator(port, [REQUEST], 0, connections, timeout_s, series=series)
            outcome = generator.run_open(rate, count / rate)
            generator.close()
        return outcome, list(SeriesReader(path).answers())

    return run


def test_answers_are_noted_with_level_strategy_and_model(play):
    with server((answer, answer)) as port:
        outcome, answers = play(port, 2)

    assert (outcome.answers, outcome.errors, outcome.retries) == (2, 0, 0)
    assert [(a.status, a.level, a.strategy, a.model, a.problem) for a in answers] == [
        (200, 0, "model", "m1", None)
    ] * 2
    assert answers[1].due_s - answers[0].due_s == pytest.approx(0.02)


def test_an_idle_connection_that_is_closed_costs_no_request(play):
    with server((answer,), (answer,), (answer,)) as port:
        outcome, _ = play(port, 3)

    assert (outcome.answers, outcome.errors, outcome.retries) == (3, 0, 0)


def test_a_request_that_a_kept_connection_never_read_is_sent_once_more(play):
    with server((answer, leave_unread), (answer,)) as port:
        outcome, answers = play(port, 2)

    assert (outcome.answers, outcome.errors, outcome.retries) == (2, 0, 1)
    assert [a.sends for a in answers] == [1, 2]


def test_connections_that_end_at_once_do_not_hold_up_the_others(play):
    with many_connections(answer) as port:
        outcome, _ = play(port, 200, rate=500.0, connections=50)

    assert (outcome.answers, outcome.errors) == (200, 0)


def test_a_new_connection_that_is_closed_is_an_error_read_or_unread(play):
    with server((leave_unread,), (read_only,), (answer,)) as port:
        outcome, answers = play(port, 3)

    assert (outcome.answers, outcome.errors, outcome.retries) == (1, 2, 0)
    assert [a.problem for a in answers] == ["cut", "cut", None]


def test_a_request_that_was_read_is_not_sent_again(play):
    with server((answer, read_only), (answer,)) as port:
        outcome, _ = play(port, 3)

    assert (outcome.answers, outcome.errors, outcome.retries) == (2, 1, 0)


def test_a_request_that_is_never_answered_is_given_up_and_the_next_one_goes_on(play):
    with server((wait_for_the_client,), (answer,)) as port:
        outcome, answers = play(port, 2, rate=2.0, timeout_s=0.2)

    assert (outcome.answers, outcome.errors) == (1, 1)
    assert sorted(str(a.problem) for a in answers) == ["None", "timeout"]


def test_where_nobody_listens_every_request_is_an_error(play):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    outcome, answers = play(port, 3)

    assert (outcome.answers, outcome.errors) == (0, 3)
    assert [a.problem for a in answers] == ["refused"] * 3
