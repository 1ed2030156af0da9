"""A watch over lines that were read, which goes on where it has left off."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from app.logwatch import state
from app.logwatch.lines import LogLine
from app.logwatch.watch import Anomaly, Plan, Watch


class Search:
    """Keeps what it knows in the file, if there is one. Lines up to the moment that the file knows of count only once.

    Raises:
        ConfigurationError: the file is no state of such a search.
    """

    def __init__(self, plan: Plan, state_path: Path | None) -> None:
        self._state_path = state_path
        self.watch = Watch(plan) if state_path is None else state.load(state_path, plan)
        self._known_until_s = self.watch.now_s
        self.line_count = self.known_count = 0
        self.first_s: float | None = None

    def through(self, lines: Iterable[LogLine]) -> Iterator[Anomaly]:
        """Saves what it knows after each window that begins, so that a killed search loses little."""
        saved_s = self.watch.window_end_s
        for line in lines:
            if line.at_s <= self._known_until_s:
                self.known_count += 1
                continue
            self.line_count += 1
            self.first_s = self.first_s or line.at_s
            yield from self.watch.add(line)
            if self.watch.window_end_s > saved_s:
                saved_s = self.watch.window_end_s
                self.save()

    def until(self, at_s: float) -> Iterator[Anomaly]:
        yield from self.watch.advance(at_s)

    def save(self) -> None:
        if self._state_path is not None:
            state.save(self.watch, self._state_path)
