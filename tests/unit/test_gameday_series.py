"""What the load generator notes of each request, and what it takes for a good answer."""

import json

import pytest

from app.gameday.series import Answer, SeriesReader, SeriesWriter
from app.gameday.slates import Asked, is_whole

ANSWERS = [
    Answer(1.25, 7.5, 200, 0, "model", "m1", None),
    Answer(1.5, 0.0, 503, None, None, None, None, sends=2),
    Answer(1.75, None, None, None, None, None, "unanswered"),
]


def test_a_series_is_read_as_it_was_written_while_it_grows(tmp_path):
    path = tmp_path / "series"
    reader = SeriesReader(path)
    assert list(reader.answers()) == []

    with SeriesWriter.to(path) as writer:
        for number, answer in enumerate(ANSWERS, start=1):
            writer.add(answer)
            writer.flush()
            assert list(reader.answers()) == ANSWERS[:number]


def test_a_line_that_is_written_half_is_read_when_it_is_whole(tmp_path):
    path, line = tmp_path / "series", ANSWERS[0].to_line()
    reader = SeriesReader(path)

    path.write_text(line[:9])
    assert list(reader.answers()) == []

    path.write_text(line)
    assert list(reader.answers()) == ANSWERS[:1]


def request(**body) -> bytes:
    return b"POST /suggest HTTP/1.1\r\n\r\n" + json.dumps(body).encode()


def slate(*ids: str, head: str = "HTTP/1.1 200 OK") -> bytes:
    return f"{head}\r\n\r\n{json.dumps({'propositions': [{'proposition_id': i} for i in ids]}, separators=(',', ':'))}".encode()


@pytest.mark.parametrize(
    ("status", "answer", "problem"),
    [
        (200, slate("p1", "p2"), None),
        (200, slate("p1"), "not-full"),
        (200, slate("p1", "p2", "p4"), "not-full"),
        (200, slate("p1", "p1"), "repeated"),
        (200, slate("p1", "p9"), "ineligible"),
        (200, slate("p1", "p3"), "ineligible"),
        (500, b"HTTP/1.1 500 Oops\r\n\r\n", "status"),
        (503, b"HTTP/1.1 503 Busy\r\nRetry-After: 1\r\n\r\n", None),
        (429, b"HTTP/1.1 429 Busy\r\n\r\n", "no-retry-after"),
    ],
)
def test_a_good_answer_is_a_full_slate_of_what_may_be_shown_or_asks_to_come_later(status, answer, problem):
    asked = Asked([request(limit=2, exclude=["p3"])], [b"p1", b"p2", b"p3", b"p4"])

    assert asked.problem(0, status, answer) == problem


def test_an_answer_is_whole_when_its_body_is():
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabcd"

    assert is_whole(answer)
    assert not is_whole(answer[:-1])
    assert not is_whole(answer[:20])
