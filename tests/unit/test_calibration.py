import json

import numpy as np
import pytest

from training.calibration import (
    ISOTONIC,
    MAX_KNOTS,
    PLATT,
    Calibration,
    expected_calibration_error,
    fit_calibration,
    reliability,
)
from training.metrics import log_loss


def drawn(count: int, truth, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Scores from -3 to 3 and clicks of probability truth(score)."""
    rng = np.random.default_rng(seed)
    scores = rng.uniform(-3.0, 3.0, count)
    return scores, rng.random(count) < truth(scores)


def logistic(log_odds):
    return 1.0 / (1.0 + np.exp(-log_odds))


def steps(scores):
    """No logistic curve: half of all above 1, hardly any below."""
    return np.where(scores > 1.0, 0.5, 0.05)


@pytest.mark.parametrize("method", [ISOTONIC, PLATT])
def test_calibrated_probabilities_are_near_the_true_ones(method):
    scores, clicked = drawn(20_000, lambda scores: logistic(0.7 * scores - 1.0))

    calibration = fit_calibration(scores, clicked, method=method)

    later, _ = drawn(500, logistic, seed=2)
    assert np.abs(calibration.apply(later) - logistic(0.7 * later - 1.0)).max() < 0.08


def test_probabilities_that_are_right_stay_nearly_as_they_are():
    scores, clicked = drawn(20_000, lambda scores: logistic(scores - 2.0))

    calibration = fit_calibration(logistic(scores - 2.0), clicked, method=PLATT)

    assert calibration.is_of_log_odds
    assert (calibration.slope, calibration.intercept) == pytest.approx((1.0, 0.0), abs=0.1)


@pytest.mark.parametrize("method", [ISOTONIC, PLATT])
@pytest.mark.parametrize("truth", [steps, lambda scores: logistic(-scores)])
def test_no_calibration_turns_an_order_around(method, truth):
    scores, clicked = drawn(3_000, truth)

    probabilities = fit_calibration(scores, clicked, method=method).apply(np.linspace(-9.0, 9.0, 1_000))

    assert (np.diff(probabilities) >= 0.0).all()
    assert (probabilities > 0.0).all() and (probabilities < 1.0).all()


def test_many_clicks_that_follow_no_logistic_curve_are_calibrated_by_isotonic_regression():
    assert fit_calibration(*drawn(10_000, steps)).method == ISOTONIC


def test_clicks_that_follow_a_logistic_curve_are_calibrated_by_two_parameters():
    assert fit_calibration(*drawn(3_000, logistic)).method == PLATT


def test_few_clicks_are_calibrated_by_two_parameters():
    scores, clicked = drawn(300, steps)

    assert fit_calibration(scores, clicked, np.arange(0, 300, 10)).method == PLATT


def test_the_choice_keeps_slates_whole():
    """In each slate exactly one of ten equal scores was clicked: folds of whole slates all look the same."""
    scores, clicked = np.zeros(5_000), np.arange(5_000) % 10 == 0

    calibration = fit_calibration(scores, clicked, np.arange(0, 5_000, 10))

    assert calibration.apply(np.zeros(1))[0] == pytest.approx(0.1, abs=1e-3)


@pytest.mark.parametrize("clicked", [np.zeros(50, bool), np.ones(50, bool)])
@pytest.mark.parametrize("method", ["auto", ISOTONIC, PLATT])
def test_where_all_impressions_are_alike_no_probability_is_certain(method, clicked):
    probabilities = fit_calibration(np.linspace(0.0, 1.0, 50), clicked, method=method).apply(
        np.array([0.0, 1.0])
    )

    assert (np.abs(probabilities - clicked[0]) < 0.05).all()
    assert np.isfinite(log_loss(probabilities, ~clicked[:2]))


def test_a_calibration_survives_its_json_with_few_knots():
    scores, clicked = drawn(5_000, steps)
    for method in (ISOTONIC, PLATT):
        calibration = fit_calibration(scores, clicked, method=method)

        assert Calibration.from_json(json.loads(json.dumps(calibration.to_json()))) == calibration
        assert len(calibration.scores) <= MAX_KNOTS


@pytest.mark.parametrize(
    ("scores", "method", "message"),
    [([], "auto", "at least one"), ([np.nan], "auto", "finite"), ([0.5], "magic", "magic")],
)
def test_what_cannot_be_calibrated_is_refused(scores, method, message):
    with pytest.raises(ValueError, match=message):
        fit_calibration(np.array(scores), np.zeros(len(scores), bool), method=method)


def test_reliability_compares_what_was_promised_with_what_came():
    probabilities = np.array([0.1, 0.1, 0.1, 0.1, 0.8, 0.8])
    clicked = np.array([False, False, False, True, True, True])

    table = reliability(probabilities, clicked, bins=3)

    assert table.counts.tolist() == [4, 2]
    assert table.predicted == pytest.approx([0.1, 0.8])
    assert table.observed == pytest.approx([0.25, 1.0])
    assert expected_calibration_error(probabilities, clicked, bins=3) == pytest.approx(
        (4 * 0.15 + 2 * 0.2) / 6
    )
