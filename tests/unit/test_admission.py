"""What would have to wait too long is refused at once; who watches is always let in."""

import json

import pytest

from app.api.admission import Admission, InProgress


class Under:
    """The application, which notes who is in, and the outcome of a request."""

    def __init__(self, most_at_once=()) -> None:
        self.is_overrun = False
        self.shed: list[str] = []
        self.during = lambda: None
        self.in_progress = InProgress()
        self.admission = Admission(
            self.answer, lambda: self.is_overrun, dict(most_at_once), self.shed.append, self.in_progress
        )

    def answer(self, environ, start_response):
        self.during()
        start_response("200 OK", [])
        return (b"answer",)

    def ask(self, path: str, method: str = "POST") -> tuple[str, dict, bytes]:
        told = []
        body = b"".join(
            self.admission(
                {"REQUEST_METHOD": method, "PATH_INFO": path},
                lambda status, headers: told.append((status, dict(headers))),
            )
        )
        return *told[0], body


@pytest.mark.parametrize("path", ["/suggest", "/suggest/"])
def test_slates_that_would_wait_too_long_are_refused_with_a_problem_and_when_to_come_again(path):
    under = Under()
    under.is_overrun = True

    status, headers, body = under.ask(path)

    assert status.startswith("503") and headers["Retry-After"] == "1"
    assert headers["Content-Type"] == "application/problem+json"
    assert int(headers["Content-Length"]) == len(body) and json.loads(body)["status"] == 503
    assert under.shed == ["suggest"]


@pytest.mark.parametrize(
    "path", ["/health", "/health/ready", "/metrics", "/log_event", "/", "", "//suggest", "x"]
)
def test_everything_else_is_let_in_then(path):
    under = Under()
    under.is_overrun = True

    assert under.ask(path)[0] == "200 OK"
    assert under.shed == []


def statuses_of_nested(under: Under, *paths: str) -> list[str]:
    """Each request is made while those before are under way."""
    statuses = []

    def go_on() -> None:
        if waiting:
            statuses.append(under.ask(waiting.pop(0))[0][:3])

    waiting = list(paths)
    under.during = go_on
    go_on()
    return statuses[::-1]


def test_a_kind_of_request_has_room_for_so_many_at_a_time():
    under = Under({"propositions": 2, "users": 1})

    assert statuses_of_nested(under, "/propositions/a", "/propositions", "/users/u", "/propositions/c") == [
        "200",
        "200",
        "200",
        "503",
    ]
    assert under.shed == ["propositions"]
    assert statuses_of_nested(under, "/propositions/a", "/propositions/b") == ["200", "200"]


def test_room_is_given_back_when_a_request_ends_even_if_it_fails():
    under = Under({"users": 1})

    def fail() -> None:
        raise ValueError("a bug")

    under.during = fail
    for _ in range(3):
        with pytest.raises(ValueError, match="a bug"):
            under.ask("/users/u")
    under.during = lambda: None

    assert under.ask("/users/u")[0] == "200 OK"


@pytest.mark.parametrize("method", ["AAAB", "TRACE", "get"])
def test_a_method_that_no_route_has_ends_before_anything_counts_it(method):
    under = Under()
    under.during = lambda: pytest.fail("was let in")

    status, headers, _ = under.ask("/health/live", method)

    assert status.startswith("405") and "GET" in headers["Allow"]
