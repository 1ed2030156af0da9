"""What is unusual in a log, and what is not."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import nbinom, poisson

from app.logwatch.counts import Traffic, Trouble, chance_of_at_least
from app.logwatch.latency import threshold
from app.logwatch.lines import LogLine, parse, signature
from app.logwatch.state import load, save
from app.logwatch.watch import MAX_ROUTES, MAX_SIGNATURES, Anomaly, Kind, Plan, Watch
from tests.benchmarks.log_anomalies import FAULTS, judge

HOUR_S = 3_600.0
KNOWN, OTHER = "app.a: the store is slow", "app.b: * is broken"


def usual(hours: float, seed: int = 7, begin_s: float = 0.0) -> Iterator[LogLine]:
    """A request a second, and an error now and then."""
    chance = np.random.default_rng(seed)
    for second in range(int(hours * HOUR_S)):
        at_s = begin_s + second
        yield LogLine(at_s, 1.0, None, "/suggest", float(10 * np.exp(chance.normal(0, 0.4))))
        if chance.random() < 1 / 300:
            yield LogLine(at_s, 1.0, KNOWN)


def errors(name: str, begin_s: float, seconds: float, every_s: float) -> Iterator[LogLine]:
    for number in range(int(seconds / every_s)):
        yield LogLine(begin_s + number * every_s, 1.0, name)


def watch_all(*streams: Iterator[LogLine], plan: Plan = Plan(), watch: Watch | None = None) -> list[Anomaly]:
    watch = watch or Watch(plan)
    lines = sorted((line for stream in streams for line in stream), key=lambda line: line.at_s)
    return [anomaly for line in lines for anomaly in watch.add(line)]


def noticed(anomalies: list[Anomaly]) -> list[tuple[Kind, str]]:
    return [(anomaly.kind, anomaly.subject) for anomaly in anomalies]


def test_a_usual_day_is_no_anomaly():
    assert watch_all(usual(15)) == []


def test_a_burst_is_noticed_as_it_comes_and_once():
    begin_s = 5 * HOUR_S + 20

    (burst,) = watch_all(usual(6), errors(KNOWN, begin_s, 900, 5))

    assert (burst.kind, burst.subject) == (Kind.BURST, KNOWN)
    assert begin_s < burst.detected_s < begin_s + 60
    assert burst.seen > 10 > 1 > burst.expected
    assert burst.is_over and burst.last_s > begin_s + 890


def test_a_burst_that_is_over_is_not_told_again_with_the_next_error():
    seldom = errors(OTHER, 0, 5 * HOUR_S, 600)

    found = watch_all(
        seldom, errors(OTHER, 5 * HOUR_S + 5, 60, 2), errors(OTHER, 5 * HOUR_S + 500, 1, 1), usual(5.2)
    )

    assert noticed(found) == [(Kind.BURST, OTHER)]


def test_what_comes_in_clusters_by_nature_is_no_burst_for_long():
    clusters = [errors(OTHER, 600.0 + n * 2_400, 8, 1) for n in range(36)]

    found = watch_all(usual(24), *clusters)

    assert len(found) <= 3
    assert all(anomaly.detected_s < 4 * HOUR_S for anomaly in found)


def test_after_a_burst_the_next_one_is_noticed_as_well():
    bursts = [errors(KNOWN, hour * HOUR_S, 600, 5) for hour in (5, 7)]

    assert noticed(watch_all(usual(8), *bursts)) == [(Kind.BURST, KNOWN)] * 2


@pytest.mark.parametrize(("at_hours", "found"), [(0.5, []), (2.0, [(Kind.NEW, OTHER)])])
def test_an_error_that_was_never_seen_is_one_unless_it_comes_while_all_is_new(at_hours, found):
    assert noticed(watch_all(usual(3), errors(OTHER, at_hours * HOUR_S, 1, 1))) == found


def test_mistakes_of_callers_are_no_news_but_many_of_them_are():
    def wrong(begin_s: float, count: int) -> Iterator[LogLine]:
        for line in errors("app.access: POST /suggest 422", begin_s, count, 1):
            yield replace(line, of_callers=True)

    found = watch_all(usual(6), wrong(2 * HOUR_S, 1), wrong(5 * HOUR_S, 55))

    assert noticed(found) == [(Kind.BURST, "app.access: POST /suggest 422")]


@pytest.mark.parametrize(
    ("slower", "subject"),
    [
        (lambda ms, number: ms * 2, "/suggest, median"),
        (lambda ms, number: ms * 20 if number % 10 == 0 else ms, "/suggest, p99"),
    ],
)
def test_slower_answers_are_noticed_within_minutes(slower, subject):
    begin_s = 5 * HOUR_S
    lines = [
        replace(line, duration_ms=slower(line.duration_ms, number))
        if line.duration_ms and line.at_s >= begin_s
        else line
        for number, line in enumerate(usual(5.2))
    ]

    found = {anomaly.subject: anomaly for anomaly in watch_all(iter(lines))}

    shift = found[subject]
    assert shift.kind == Kind.SLOW and shift.detected_s - begin_s <= 300
    assert shift.seen > 1.5 * shift.expected


def test_a_route_that_falls_silent_is_noticed_though_other_lines_go_on():
    silent = (line for line in usual(5) if line.route is None or not 3 * HOUR_S <= line.at_s < 3.2 * HOUR_S)

    (missing,) = watch_all(silent, errors(KNOWN, 3 * HOUR_S, 1, 1))

    assert (missing.kind, missing.subject, missing.seen) == (Kind.MISSING, "/suggest", 0)
    assert missing.detected_s == 3 * HOUR_S + 60
    assert missing.is_over


def test_a_log_that_ends_too_soon_is_noticed_when_the_time_is_told():
    watch = Watch(Plan())
    assert watch_all(usual(3), watch=watch) == []

    assert noticed(list(watch.advance(3.1 * HOUR_S))) == [(Kind.MISSING, "/suggest")]


def test_a_line_counts_for_as_many_as_it_stands_for():
    many = [LogLine(5 * HOUR_S + 1, 400.0, KNOWN)]

    (burst,) = watch_all(usual(5.1), iter(many))

    assert (burst.kind, burst.seen) == (Kind.BURST, 400)


def test_runs_that_keep_their_state_find_what_one_run_finds(tmp_path):
    lines = [*usual(4.5), *errors(KNOWN, 4.2 * HOUR_S, 300, 4), *errors(OTHER, 2 * HOUR_S, 9, 1)]
    lines.sort(key=lambda line: line.at_s)
    path = tmp_path / "state"
    found: list[Anomaly] = []

    for part in (lines[:5_000], lines[5_000:15_100], lines[15_100:]):
        watch = load(path, Plan())
        found += [anomaly for line in part for anomaly in watch.add(line)]
        save(watch, path)

    at_once = watch_all(iter(lines))
    assert noticed(found) == noticed(at_once) == [(Kind.NEW, OTHER), (Kind.BURST, KNOWN)]
    assert [anomaly.detected_s for anomaly in found] == [anomaly.detected_s for anomaly in at_once]


def test_what_is_remembered_is_bounded_whatever_comes():
    watch = Watch(Plan())
    for number in range(3 * MAX_SIGNATURES):
        list(watch.add(LogLine(number / 100, 1.0, f"e{number}", f"/r{number}", 1.0)))

    assert len(watch.signatures) <= MAX_SIGNATURES + 1
    assert len(watch.routes) <= MAX_ROUTES + 1


def test_a_gap_of_weeks_is_no_outage_and_takes_no_time():
    assert watch_all(usual(2), usual(2, begin_s=400 * 86_400.0)) == []


@pytest.mark.parametrize(
    ("message", "template"),
    [
        (
            'connection to server at "127.0.0.1", port 22167 failed',
            "connection to server at *, port * failed",
        ),
        ("model 20260101T000000-abc serves", "model * serves"),
        ("3 messages went to propositions.events; the last: x\nTraceback", "* messages went to propositions.events; the last: x"),
        ("1f0e8f0b-3d0c-4bf9-8f0b-0123456789ab took 2.5s", "* took *"),
    ],
)  # fmt: skip
def test_messages_of_one_cause_have_one_signature(message, template):
    assert signature("app.a", message, None) == f"app.a: {template}"


@pytest.mark.parametrize(
    "raw", [b"", b"text", b"{", b"[]", b'{"message": 1}', b'{"@timestamp": "x"}', b"\xff{"]
)
def test_what_is_no_line_of_the_service_is_none(raw):
    assert parse(raw) is None


def test_what_shippers_put_before_a_line_is_left_out():
    line = b'{"@timestamp":"2026-01-01T00:00:00Z","log.level":"error","message":"m","log":{"logger":"app.a"}}'

    assert parse(b"2026-01-01T00:00:00.1Z stdout F " + line) == parse(line)
    assert parse(line).signature == "app.a: m"


def test_probabilities_are_those_of_the_negative_binomial_and_near_those_of_poisson():
    assert chance_of_at_least(9, 4.0, 3.0, 1e12) == pytest.approx(nbinom.sf(8, 2.0, 1 / 3), rel=1e-6)
    traffic, trouble = Traffic(0.9999, 0.9999), Trouble(0.9999)
    chance = np.random.default_rng(7)
    for _ in range(5_000):
        traffic.learn(chance.poisson(20))
        trouble.learn(chance.poisson(0.02))

    assert traffic.chance_of_at_most(8) == pytest.approx(poisson.cdf(8, 20), rel=0.3)
    assert trouble.chance_of_at_least(1) == pytest.approx(poisson.sf(0, 0.02), rel=0.3)
    assert trouble.surprising_count(1e-6) in (3, 4)


def test_a_cusum_of_noise_gets_to_its_threshold_as_seldom_as_it_says():
    chance, limit, runs = np.random.default_rng(7), threshold(200.0), []
    for _ in range(300):
        total = length = 0
        while total <= limit:
            total, length = max(0.0, total + chance.normal() - 0.5), length + 1
        runs.append(length)

    assert np.mean(runs) == pytest.approx(200, rel=0.2)


def test_of_made_up_faults_the_plain_ones_are_noticed_and_little_else():
    plain = [fault for fault in FAULTS if fault.name in ("all latencies 3-fold", "no traffic at all")]

    verdict = judge(days=2, seed=1, plan=Plan(), faults=plain)

    assert all(delay is not None and delay <= 180 for delays in verdict.delays_s.values() for delay in delays)
    assert len([anomaly for anomaly in verdict.false_alarms if anomaly.kind != Kind.NEW]) <= 1
