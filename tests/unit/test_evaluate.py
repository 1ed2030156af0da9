import numpy as np
import pytest

from training.evaluate import bootstrap_mean, compare, slate_metrics


def metrics(scores, relevance, starts=(0,)):
    values = slate_metrics(
        np.array(scores, dtype=float), np.array(relevance), np.array(starts), np.random.default_rng(0)
    )
    return {name: numbers.tolist() for name, numbers in values.items()}


def test_a_perfect_order_has_the_best_values():
    result = metrics([3, 2, 1, 0], [2, 1, 0, 0])

    assert result == {"ndcg@10": [1.0], "precision@3": [2 / 3], "hit_rate@3": [1.0], "mrr": [1.0]}


def test_a_click_at_the_second_place_is_discounted():
    result = metrics([3, 2, 1], [0, 1, 0])

    assert result["ndcg@10"] == [pytest.approx(1 / np.log2(3))]
    assert result["mrr"] == [0.5]


def test_slates_that_cannot_tell_good_from_bad_do_not_count():
    assert metrics([1, 2, 3, 4], [0, 0, 1, 1], starts=(0, 2))["mrr"] == []


def test_equal_scores_do_not_profit_from_the_order_of_the_data():
    count = 2_000
    relevance = np.tile([1, 0, 0, 0], count)

    result = metrics(np.zeros(4 * count), relevance, starts=np.arange(0, 4 * count, 4))

    assert np.mean(result["mrr"]) == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4, abs=0.02)


def test_rankings_are_compared_slate_by_slate():
    relevance = np.tile([1, 0], 200)
    starts = np.arange(0, 400, 2)
    rng = np.random.default_rng(1)

    report = compare(
        {"model": relevance.astype(float), "random": rng.random(400)}, "model", relevance, starts, seed=1
    )

    assert report.slate_count == 200
    assert report.rankers["model"]["mrr"].mean == 1.0
    assert 0 < report.paired["random"]["mrr"].low < report.paired["random"]["mrr"].mean


def test_the_same_seed_gives_the_same_report():
    scores = {"model": np.arange(40.0), "other": np.arange(40.0)[::-1].copy()}
    relevance, starts = np.tile([0, 1, 0, 2], 10), np.arange(0, 40, 4)

    assert compare(scores, "model", relevance, starts, 5) == compare(scores, "model", relevance, starts, 5)


def test_no_slates_have_no_mean():
    assert np.isnan(bootstrap_mean(np.array([]), np.random.default_rng(0)).mean)
