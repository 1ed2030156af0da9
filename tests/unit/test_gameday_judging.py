"""A game day of serving notices every promise that is broken, on series whose verdict is known."""

from dataclasses import replace

import pytest

from app.gameday.judging import Moments, Phase, Promise, judge
from app.gameday.series import Answer
from app.gameday.serving import ServingReport
from app.gameday.serving_world import Probe

# Before from 0 s, the fault from 10 to 20 s, the phase until 40 s.
MOMENTS = Moments(before_s=0.0, began_s=10.0, over_s=20.0, until_s=40.0)
PER_S = 100


def good(due_s: float, **changes) -> Answer:
    return replace(Answer(due_s, 5.0, 200, 0, "model", "m1", None), **changes)


def series(**during) -> list[Answer]:
    """Good slates all the time, but for what is said of those during the fault."""
    moments = [number / PER_S for number in range(40 * PER_S)]
    return [good(due_s, **(during if 10.0 <= due_s < 20.0 else {})) for due_s in moments]


def with_one(answers: list[Answer], due_s: float, **changes) -> list[Answer]:
    return [replace(a, **changes) if a.due_s == due_s else a for a in answers]


def verdict(answers: list[Answer], promise: Promise = Promise(), probes: tuple[Probe, ...] = ()) -> Phase:
    return judge("phase", "fault", promise, MOMENTS, answers, probes)


def test_good_slates_all_the_time_keep_the_promise():
    phase = verdict(series())

    assert phase.passed
    assert (phase.requests, phase.errors, phase.shed, phase.retries) == (30 * PER_S, 0, 0, 0)
    assert (phase.levels, phase.p99_ms, phase.detected_s, phase.recovery_s) == ({"0": 1.0}, 5.0, None, 0.0)


def test_slates_by_the_rules_during_the_fault_keep_it_too():
    phase = verdict(series(level=2, strategy="rules", latency_ms=20.0))

    assert phase.passed
    assert phase.levels == {"2": 1.0} and phase.levels_before == {"0": 1.0}
    assert phase.detected_s == pytest.approx(0.02)
    assert (phase.before_p99_ms, phase.p99_ms, phase.after_p99_ms) == (5.0, 20.0, 5.0)


@pytest.mark.parametrize("due_s", [15.0, 30.0])
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"status": None, "level": None, "problem": "cut"}, "cut"),
        ({"status": None, "level": None, "problem": "timeout"}, "timeout"),
        ({"status": 500, "level": None, "problem": "status"}, "status-500"),
        ({"problem": "not-full"}, "not-full"),
        ({"problem": "ineligible"}, "ineligible"),
        ({"status": 503, "level": None, "problem": "no-retry-after"}, "no-retry-after"),
    ],
)
def test_one_error_breaks_the_promise_during_the_fault_and_after_it(change, problem, due_s):
    phase = verdict(with_one(series(), due_s, **change))

    assert not phase.passed
    assert phase.broken == [f"1 errors (1 {problem})"]


def test_an_error_before_the_fault_is_not_the_faults():
    assert verdict(with_one(series(), 5.0, status=None, problem="cut")).passed


def test_few_errors_are_forgiven_where_that_is_promised():
    promise = Promise(errors_share=0.001)
    three = series()
    for due_s in (10.0, 10.01, 10.02):
        three = with_one(three, due_s, status=None, level=None, problem="cut")

    assert verdict(three, promise).passed
    assert not verdict(with_one(three, 10.03, status=None, problem="cut"), promise).passed


def test_shed_requests_are_no_errors_but_counted():
    phase = verdict(with_one(series(), 15.0, status=503, level=None, strategy=None, latency_ms=900.0))

    assert phase.passed
    assert (phase.errors, phase.shed, phase.p99_ms) == (0, 1, 5.0)


def test_late_slates_break_the_promise():
    phase = verdict(series(latency_ms=100.0))

    assert phase.broken == ["p99 100 ms"]


def test_shedding_everything_is_not_serving():
    phase = verdict(series(status=503, level=None))

    assert "no slate during the fault" in phase.broken


def test_a_level_that_never_recovers_breaks_the_promise():
    answers = [replace(a, level=2) if a.due_s >= 10.0 else a for a in series()]

    phase = verdict(answers)

    assert phase.recovery_s is None
    assert phase.broken == ["never recovered"]


def test_recovery_counts_until_it_stays():
    answers = [
        replace(a, level=1) if 20.0 <= a.due_s < 21.0 or 26.0 <= a.due_s < 27.0 else a for a in series()
    ]

    phase = verdict(answers)

    assert phase.recovery_s == 7.0
    assert phase.broken == ["recovered after 7.0 s"]
    assert verdict(answers, Promise(is_recovery_only_stated=True)).passed


def test_a_silence_is_no_recovery():
    answers = [a for a in series() if not 20.0 <= a.due_s < 29.0]

    assert verdict(answers).recovery_s == 9.0


def test_recovery_counts_from_the_instant_of_what_does_not_last():
    moments = replace(MOMENTS, ended_s=10.0)
    answers = [replace(a, level=2) if 10.0 <= a.due_s < 13.0 else a for a in series()]

    assert judge("phase", "fault", Promise(), moments, answers, ()).recovery_s == 3.0


def probes(*down: tuple[float, str]) -> tuple[Probe, ...]:
    names = dict(down)
    every = [n / 2 for n in range(80)]
    return tuple(
        Probe(at_s, "/health", 200, frozenset({names[at_s]} if at_s in names else ())) for at_s in every
    )


def test_a_dependency_that_health_shows_as_down_is_a_detection():
    phase = verdict(series(), Promise(dependency="postgres"), probes((12.0, "postgres"), (23.0, "postgres")))

    assert (phase.detected_s, phase.recovery_s) == (2.0, 3.0)
    assert phase.passed


def test_a_dependency_that_health_never_shows_as_up_again_breaks_the_promise():
    asked = (*probes((12.0, "postgres")), Probe(39.9, "/health", 200, frozenset({"postgres"})))

    assert verdict(series(), Promise(dependency="postgres"), asked).broken == ["never recovered"]
    assert verdict(series(), Promise(), asked).passed


def test_slates_of_another_model_are_errors_where_the_old_one_must_serve():
    phase = verdict(with_one(series(), 15.0, model="m2"), Promise(model="m1"))

    assert phase.broken == ["1 errors (1 other-model)"]


def test_no_requests_prove_nothing():
    assert "nothing was asked" in verdict([]).broken


def test_a_report_passes_only_if_every_phase_does():
    kept, broken = verdict(series()), verdict(series(latency_ms=100.0))

    assert ServingReport(7, 100.0, 60.0, [kept]).passed
    assert not ServingReport(7, 100.0, 60.0, [kept, broken]).passed
    assert not ServingReport(7, 100.0, 60.0, []).passed
