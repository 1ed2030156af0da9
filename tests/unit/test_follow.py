"""In which order a projector that follows the log folds its slots."""

import threading

from prometheus_client import CollectorRegistry

from app.events.follow import follow_log
from app.events.metrics import ProjectorMetrics
from app.features.slots import ALL_SLOTS, COVISIT_SLOT


class AllSlots:
    def balance(self):
        return ALL_SLOTS


class RecordingProjector:
    """Says of each kind of slots how often there is more, and ends the loop after some steps."""

    has_online_store = True

    def __init__(self, stop: threading.Event, covisit_backlog: int, steps: int) -> None:
        self.stepped: list[str] = []
        self._stop, self._covisit_backlog, self._steps = stop, covisit_backlog, steps

    def write_facts(self) -> None:
        pass

    def step(self, slots) -> tuple[int, bool]:
        is_covisit = set(slots) == {COVISIT_SLOT}
        assert is_covisit or COVISIT_SLOT not in slots
        self.stepped.append("covisits" if is_covisit else "counters")
        if len(self.stepped) == self._steps:
            self._stop.set()
        if is_covisit:
            self._covisit_backlog -= 1
        return 1, is_covisit and self._covisit_backlog > 0


def steps_of(covisit_backlog: int, steps: int, covisit_interval_s: float) -> list[str]:
    stop = threading.Event()
    projector = RecordingProjector(stop, covisit_backlog, steps)
    metrics = ProjectorMetrics(CollectorRegistry())
    follow_log(projector, AllSlots(), metrics, 0.001, stop, covisit_interval_s)
    return projector.stepped


def test_a_backlog_of_covisits_takes_turns_with_counters():
    assert steps_of(covisit_backlog=100, steps=6, covisit_interval_s=3_600.0) == ["counters", "covisits"] * 3


def test_without_a_backlog_covisits_are_left_to_gather():
    stepped = steps_of(covisit_backlog=1, steps=8, covisit_interval_s=3_600.0)

    assert stepped == ["counters", "covisits"] + ["counters"] * 6


def test_covisits_come_again_when_their_time_has_come():
    assert steps_of(covisit_backlog=1, steps=6, covisit_interval_s=0.0) == ["counters", "covisits"] * 3
