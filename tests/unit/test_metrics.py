import numpy as np
import pytest
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import ndcg_score, roc_auc_score

from training import metrics
from training.metrics import (
    SLATE_METRICS,
    bootstrap_mean,
    bootstrap_means,
    log_loss,
    ndcg,
    pooled_auc,
    rank,
    slate_metrics,
)


def measured(scores, relevance, starts=(0,)):
    """All metrics of a few slates, rounded, as lists."""
    values = slate_metrics(
        np.array(scores, dtype=float), np.array(relevance), np.array(starts), np.random.default_rng(0)
    )
    return {name: numbers.round(4).tolist() for name, numbers in values.items()}


def ragged_slates(seed, slates=60, longest=15):
    """Scores, relevance and starts of slates of 1 to `longest` candidates."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, longest + 1, slates)
    count = int(sizes.sum())
    return rng.normal(size=count), rng.choice(3, count, p=[0.7, 0.2, 0.1]), np.cumsum(sizes) - sizes


def test_a_slate_is_measured_as_by_hand():
    # In the order of the scores: a click, nothing, a conversion, nothing.
    result = measured([4, 2, 3, 1], [1, 2, 0, 0])

    best = 3 + 1 / np.log2(3)
    assert result["ndcg@1"] == [pytest.approx(1 / 3, abs=1e-4)]
    assert result["ndcg@3"] == [pytest.approx((1 + 3 / 2) / best, abs=1e-4)]
    assert result["precision@1"] == [1.0]
    assert result["precision@3"] == [0.6667]
    assert result["precision@10"] == [0.2]
    assert result["recall@3"] == [1.0]
    assert result["hit_rate@1"] == [1.0]
    assert result["mrr"] == [1.0]
    assert result["auc"] == [0.75]


def test_a_click_at_the_second_place_is_discounted():
    result = measured([3, 2, 1], [0, 1, 0])

    assert result["ndcg@10"] == [pytest.approx(1 / np.log2(3), abs=1e-4)]
    assert result["mrr"] == [0.5]
    assert result["hit_rate@1"] == [0.0]


def test_a_slate_without_a_click_is_not_measured():
    result = measured([1, 2, 3, 4], [0, 0, 0, 1], starts=(0, 2))

    assert list(result) == list(SLATE_METRICS)
    assert all(np.isnan(values[0]) and not np.isnan(values[1]) for values in result.values())


def test_where_everything_was_clicked_no_order_can_lose():
    result = measured([1, 2, 3], [1, 1, 1])

    assert result["ndcg@10"] == result["precision@3"] == result["mrr"] == [1.0]
    assert np.isnan(result["auc"][0])


@pytest.mark.parametrize("depth", [1, 3, 5, 10])
def test_ndcg_is_that_of_sklearn_with_exponential_gains(depth):
    scores, relevance, starts = ragged_slates(seed=1)

    values = ndcg(scores, relevance, starts, depth, np.random.default_rng(0))

    for value, first, last in zip(values, starts, [*starts[1:], len(scores)], strict=True):
        if last - first > 1 and relevance[first:last].any():
            gains = 2.0 ** relevance[first:last] - 1.0
            assert value == pytest.approx(ndcg_score([gains], [scores[first:last]], k=depth))


def test_auc_of_a_slate_is_that_of_sklearn():
    scores, relevance, starts = ragged_slates(seed=2)

    values = rank(scores, relevance, starts, np.random.default_rng(0)).auc()

    for value, first, last in zip(values, starts, [*starts[1:], len(scores)], strict=True):
        clicked = relevance[first:last] > 0
        if clicked.any() and not clicked.all():
            assert value == pytest.approx(roc_auc_score(clicked, scores[first:last]))
        else:
            assert np.isnan(value)


def test_equal_scores_do_not_profit_from_the_order_of_the_data():
    count = 4_000
    relevance = np.tile([1, 0, 0, 0], count)

    result = measured(np.zeros(4 * count), relevance, starts=np.arange(0, 4 * count, 4))

    assert np.mean(result["mrr"]) == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4, abs=0.02)
    assert np.mean(result["auc"]) == pytest.approx(0.5, abs=0.02)


def test_a_score_that_is_no_number_comes_last():
    ranking = rank(
        np.array([np.nan, -np.inf, 1.0, np.inf]), np.zeros(4), np.array([0]), np.random.default_rng(0)
    )

    assert ranking.order.tolist()[:2] == [3, 2]


def test_slates_of_very_different_lengths_are_ordered_like_others(monkeypatch):
    scores, relevance, starts = ragged_slates(seed=3)
    in_a_table = slate_metrics(scores, relevance, starts, np.random.default_rng(0))

    monkeypatch.setattr(metrics, "MAX_PADDING", 0)
    sorted_at_once = slate_metrics(scores, relevance, starts, np.random.default_rng(0))

    for name in SLATE_METRICS:
        np.testing.assert_array_equal(in_a_table[name], sorted_at_once[name])


def test_pooled_metrics_are_those_of_sklearn_with_equal_scores():
    rng = np.random.default_rng(4)
    probabilities = rng.random(400).round(1)
    clicked = rng.random(400) < probabilities

    assert pooled_auc(probabilities, clicked) == pytest.approx(roc_auc_score(clicked, probabilities))
    inside = np.clip(probabilities, 0.05, 0.95)
    assert log_loss(inside, clicked) == pytest.approx(sklearn_log_loss(clicked, inside))


def test_one_wrong_certainty_costs_a_finite_loss():
    assert log_loss(np.array([0.0]), np.array([True])) == pytest.approx(-np.log(1e-7))


def test_nothing_has_no_pooled_metrics():
    nothing = np.zeros(0)

    assert np.isnan(log_loss(nothing, nothing > 0))
    assert np.isnan(pooled_auc(np.ones(3), np.ones(3, bool)))


def test_an_interval_is_as_wide_as_the_normal_approximation_says():
    values = np.random.default_rng(5).normal(2.0, 1.0, 400)

    interval = bootstrap_mean(values, np.random.default_rng(0))

    standard_error = values.std() / np.sqrt(len(values))
    assert interval.mean == pytest.approx(values.mean())
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * standard_error, rel=0.1)


def test_many_slates_in_groups_have_the_same_interval(monkeypatch):
    values = {"all": np.random.default_rng(6).normal(size=6_000)}
    values["some"] = np.where(np.arange(6_000) % 3 == 0, values["all"], np.nan)
    one_by_one = bootstrap_means(values, np.random.default_rng(0))

    monkeypatch.setattr(metrics, "MAX_RESAMPLED", 1_000)
    in_groups = bootstrap_means(values, np.random.default_rng(0))

    for name, interval in in_groups.items():
        assert interval.mean == pytest.approx(one_by_one[name].mean)
        width = one_by_one[name].high - one_by_one[name].low
        assert interval.high - interval.low == pytest.approx(width, rel=0.15)


def test_undefined_values_do_not_count():
    values = np.array([1.0, np.nan, 3.0, np.nan])

    interval = bootstrap_mean(values, np.random.default_rng(0))

    assert (interval.mean, interval.low, interval.high) == (2.0, 1.0, 3.0)


@pytest.mark.parametrize("values", [[], [np.nan, np.nan]])
def test_where_nothing_is_defined_there_is_no_mean(values):
    interval = bootstrap_mean(np.array(values, dtype=float), np.random.default_rng(0))

    assert np.isnan([interval.mean, interval.low, interval.high]).all()


def test_the_same_seed_gives_the_same_interval():
    values = np.arange(50.0)

    first, second = (bootstrap_mean(values, np.random.default_rng(8)) for _ in range(2))

    assert first == second
