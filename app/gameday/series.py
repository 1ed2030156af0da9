"""What became of every request, as a file of lines: one process writes it while another reads."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Self, TextIO

_NOTHING = "-"


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a request that was due at `due_s`, on the clock that all processes of a machine share.

    No `status`: there was no answer. `problem`: in a word, why this is no good answer. `sends`: how often it was sent.
    """

    due_s: float
    latency_ms: float | None
    status: int | None
    level: int | None
    strategy: str | None
    model: str | None
    problem: str | None
    sends: int = 1

    @property
    def done_s(self) -> float:
        return self.due_s + (self.latency_ms or 0.0) / 1e3

    def to_line(self) -> str:
        return " ".join(_NOTHING if value is None else str(value) for value in astuple(self)) + "\n"

    @classmethod
    def from_line(cls, line: str) -> Self:
        words = [None if word == _NOTHING else word for word in line.split()]
        due, latency, status, level, strategy, model, problem, sends = words
        return cls(
            float(due),
            None if latency is None else float(latency),
            None if status is None else int(status),
            None if level is None else int(level),
            strategy,
            model,
            problem,
            int(sends),
        )


class SeriesWriter:
    """Whoever reads sees whole lines only once they are flushed."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._lines: list[str] = []

    @classmethod
    @contextmanager
    def to(cls, path: Path | None) -> Iterator[Self | None]:
        """A writer to this file; None: no writer."""
        if path is None:
            yield None
            return
        with path.open("w") as file:
            yield cls(file)

    def add(self, answer: Answer) -> None:
        self._lines.append(answer.to_line())

    def flush(self) -> None:
        self._file.write("".join(self._lines))
        self._file.flush()
        self._lines.clear()


class SeriesReader:
    """All answers of a series so far, in the order in which they came."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._answers: list[Answer] = []

    def answers(self) -> Sequence[Answer]:
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._offset)
                news = file.read()
            whole = news[: news.rfind(b"\n") + 1]
            self._offset += len(whole)
            self._answers += map(Answer.from_line, whole.decode().splitlines())
        return self._answers


def percentile(ascending: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of the values do not exceed; NaN of none.

    >>> percentile([1.0, 2.0, 3.0, 4.0], 50.0)
    2.0
    """
    if not ascending:
        return float("nan")
    return ascending[max(math.ceil(len(ascending) * percent / 100) - 1, 0)]
