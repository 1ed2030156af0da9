"""The soak notices what grows, and is not misled by noise, by a warm-up, or by what was disturbed."""

import random

import pytest

from app.gameday.series import Answer
from app.gameday.soak import SoakReport, Trend, trend, typical_latencies


def series(grows_by: float, noise: float = 2.0, around: float = 200.0, points: int = 200):
    chance = random.Random(7)
    return [(float(n), around + grows_by * n / points + chance.gauss(0.0, noise)) for n in range(points)]


@pytest.mark.parametrize("grows_by", [-50.0, 0.0, 8.0])
def test_what_stays_or_falls_or_grows_by_little_is_flat(grows_by):
    assert trend("memory_mb", series(grows_by), 0.0).is_flat


def test_what_grows_is_noticed_with_how_much():
    found = trend("memory_mb", series(30.0), 0.0)

    assert not found.is_flat
    assert found.growth == pytest.approx(30.0, abs=2.0) and found.low < found.growth < found.high


def test_noise_alone_proves_nothing():
    assert trend("memory_mb", series(15.0, noise=80.0), 0.0).is_flat


def test_a_single_spike_proves_nothing():
    points = series(0.0)
    points[150:160] = [(time_s, 5_000.0) for time_s, _ in points[150:160]]

    assert trend("memory_mb", points, 0.0).is_flat


def test_growth_while_it_warms_up_does_not_count():
    points = [(float(n), 10.0 * n) for n in range(120)] + [(120.0 + n, 1_200.0) for n in range(80)]

    assert not trend("memory_mb", points, 0.0).is_flat
    assert trend("memory_mb", points, 120.0).is_flat


def answer(due_s: float, latency_ms: float | None) -> Answer:
    return Answer(due_s, latency_ms, 200, 0, "model", "m", None)


def test_latencies_are_medians_of_undisturbed_windows():
    answers = [answer(n / 10, 5.0 if n % 3 else 50.0) for n in range(300)]
    answers += [answer(15.05, 900.0), answer(25.0, None)]

    assert list(typical_latencies(answers, [(10.0, 20.0)])) == [(0.0, 5.0), (20.0, 5.0)]


def test_a_run_fails_by_its_errors_by_what_grew_and_if_nothing_was_seen():
    flat, grown = Trend("descriptors", 60.0, 0.0, -1.0, 1.0), Trend("descriptors", 60.0, 40.0, 35.0, 45.0)

    def report(errors: int, trends: list[Trend], requests: int = 9) -> SoakReport:
        return SoakReport(7, 500.0, 300.0, 600.0, requests, errors, trends=trends)

    assert report(0, [flat]).passed
    assert report(1, [flat]).broken == ["1 errors"]
    assert report(0, [grown]).broken == ["descriptors grew by 40"]
    assert not report(0, []).passed and not report(0, [flat], requests=0).passed
