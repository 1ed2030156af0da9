"""Which models may serve."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import xgboost

from app.adapters.xgboost_model import read_model
from training.gate import (
    Gain,
    GateInput,
    GateLimits,
    judge,
    measure_latency_ms,
    read_report,
    scoring_as_served,
)

GOOD = GateInput(
    slate_count=400,
    gain_over_popularity=Gain(0.03, 0.02, 0.04),
    gain_over_current=Gain(0.004, 0.001, 0.007),
    without_current=None,
    calibration_error=0.02,
    request_coverage=1.0,
    model_coverage=0.99,
    user_lift=0.9,
    proposition_lift=0.95,
    latency_ms=3.0,
    schema_hash="a" * 64,
    repo_schema_hash="a" * 64,
)


def failed(candidate: GateInput, limits: GateLimits = GateLimits()) -> dict[str, str]:
    verdict = judge(candidate, limits)
    reasons = {check.name: check.reason for check in verdict.checks if not check.is_passed}
    assert verdict.is_passed == (not reasons)
    return reasons


def test_a_model_that_reaches_every_limit_passes():
    assert failed(GOOD) == {}


@pytest.mark.parametrize(
    ("change", "name", "says"),
    [
        ({"slate_count": 99}, "test slates", "99 slates"),
        ({"gain_over_popularity": Gain(0.03, 0.0, 0.06)}, "gain over popularity", "+0.0000 to +0.0600"),
        ({"gain_over_current": Gain(0.001, -0.001, 0.003)}, "gain over the current model", "-0.0010"),
        ({"calibration_error": 0.051}, "calibration", "0.0510"),
        ({"request_coverage": 0.999}, "coverage of requests", "99.90%"),
        ({"model_coverage": 0.94}, "coverage by the model", "94.00%"),
        ({"user_lift": 0.84}, "cold users", "84.0%"),
        ({"proposition_lift": 0.89}, "cold propositions", "89.0%"),
        ({"latency_ms": 20.5}, "latency", "20.50 ms"),
        ({"repo_schema_hash": "b" * 64}, "feature schema", "bbbbbbbbbbbb"),
    ],
)
def test_a_model_that_misses_one_limit_is_refused_with_the_figure(change, name, says):
    reasons = failed(replace(GOOD, **change))

    assert set(reasons) == {name}
    assert says in reasons[name]


@pytest.mark.parametrize(
    "change",
    [
        {"gain_over_popularity": None},
        {"gain_over_popularity": Gain(math.nan, math.nan, math.nan)},
        {"gain_over_current": None},
        {"calibration_error": None},
        {"calibration_error": math.nan},
        {"request_coverage": None},
        {"user_lift": math.nan},
        {"latency_ms": None},
    ],
)
def test_what_nobody_measured_is_not_passed(change):
    assert len(failed(replace(GOOD, **change))) == 1


def test_a_certain_gain_must_also_be_large_enough_where_that_is_asked_for():
    assert set(failed(GOOD, GateLimits(min_gain=0.01))) == {"gain over the current model"}


def test_the_first_model_is_not_compared_with_one_that_serves():
    verdict = judge(
        replace(GOOD, gain_over_current=None, without_current="no model serves yet"), GateLimits()
    )

    assert verdict.is_passed
    (skipped,) = [check for check in verdict.checks if check.is_skipped]
    assert (skipped.name, skipped.outcome) == ("gain over the current model", "skipped")
    assert "no model serves yet" in skipped.reason


def test_without_a_cold_part_cold_start_is_skipped_and_says_so():
    verdict = judge(replace(GOOD, user_lift=None, proposition_lift=None), GateLimits())

    assert verdict.is_passed
    assert [check.reason for check in verdict.checks if check.is_skipped] == [
        "skipped: the test slates have no history of users to hide",
        "skipped: the test slates have no history of propositions to hide",
    ]


def test_the_figures_come_from_the_report_that_was_written():
    report = json.loads(
        json.dumps(
            {
                "slate_count": 400,
                "rankers": {"xgboost": {"all": {"ndcg@10": 0.62, "calibration_error": 0.02}}},
                "paired": {
                    "xgboost-popularity": {"ndcg@10": {"mean": 0.03, "low": 0.02, "high": 0.04}},
                    "xgboost-current": {"ndcg@10": {"mean": 0.004, "low": 0.001, "high": 0.007}},
                },
                "retained_lift": {"users": 0.9, "propositions": 0.95},
                "coverage": {"requests": 1.0, "model": 0.99, "catalog": 0.5},
            }
        )
    )

    assert read_report(report, "xgboost", None, 3.0, "a" * 64, "a" * 64) == GOOD


def test_a_report_without_figures_passes_nothing_but_the_schema():
    reasons = failed(read_report({}, "xgboost", None, None, "a", "a"))

    assert len(reasons) == len(judge(GOOD, GateLimits()).checks) - 1


def test_a_verdict_can_be_stored_as_json():
    stored = json.loads(json.dumps(judge(GOOD, GateLimits()).to_json()))

    assert stored[0] == {
        "name": "test slates",
        "is_passed": True,
        "measured": "400",
        "required": ">= 100",
        "reason": "400 slates were tested on, required are 100",
        "is_skipped": False,
    }


@pytest.fixture
def model(spec):
    rng = np.random.default_rng(0)
    matrix = rng.random((200, len(spec.columns))).astype(np.float32)
    data = xgboost.DMatrix(matrix, label=matrix.sum(axis=1), feature_names=list(spec.columns))
    booster = xgboost.train({"max_depth": 4, "nthread": 1}, data, num_boost_round=6)
    return read_model("m1", spec, bytes(booster.save_raw("json")))


def test_what_is_timed_gives_the_scores_of_the_model(spec, model):
    matrix = np.random.default_rng(1).random((30, len(spec.columns))).astype(np.float32)
    of_user = spec.columns_of["user_activity"]
    matrix[:, of_user.start : of_user.stop] = matrix[0, of_user.start : of_user.stop]

    assert model.forest is not None
    assert scoring_as_served(model)(matrix) == pytest.approx(model.score(matrix), rel=1e-5)


class SlowingClock:
    """Each second asking finds a time 1 ms longer than the one before."""

    def __init__(self):
        self.asked, self.now_s = 0, 0.0

    def __call__(self):
        self.asked += 1
        self.now_s += 0.0 if self.asked % 2 else self.asked / 2_000
        return self.now_s


def test_latency_is_the_99th_percentile_in_ms(spec, model):
    matrix = np.zeros((3, len(spec.columns)), np.float32)

    p99_ms = measure_latency_ms(model, matrix, candidate_count=20, repeats=101, clock_s=SlowingClock())

    assert p99_ms == pytest.approx(100.0)
