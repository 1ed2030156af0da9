import json
import math
from dataclasses import replace

import numpy as np
import pytest
import xgboost

from tests.training_data import synthetic_dataset, without_clicks
from training.evaluation import Scores, evaluate, explain, retained_lift
from training.evaluation_report import Report
from training.metrics import SLATE_METRICS

METRICS_OF_PROBABILITIES = {*SLATE_METRICS, "pooled_auc", "log_loss", "calibration_error"}


@pytest.fixture(scope="module")
def dataset():
    return synthetic_dataset(seed=3, slates=160)[1]


def scored_slates(dataset, seed=0):
    """Rankers of known quality: the model sees the clicks through noise, popularity through more of it."""
    rng = np.random.default_rng(seed)
    clicked = dataset.relevance > 0

    def seen_through(noise):
        return 1.0 / (1.0 + np.exp(-(2.0 * clicked - 1.5 + rng.normal(0.0, noise, len(dataset)))))

    model, logistic = seen_through(0.8), seen_through(1.2)
    return {
        "xgboost": Scores(10.0 * model, model),
        "logistic": Scores(logistic, logistic),
        "rules": Scores(seen_through(3.0)),
        "popularity": Scores(seen_through(4.0)),
        "shown_order": Scores(-dataset.positions),
        "random": Scores(rng.random(len(dataset))),
    }


@pytest.fixture(scope="module")
def report(dataset):
    scored = scored_slates(dataset)
    hidden = {"users": scored["rules"].values, "propositions": scored["xgboost"].values}
    return evaluate(scored, dataset, seed=7, hidden=hidden, rounds=200)


def test_every_ranker_is_measured_for_users_with_and_without_history(report):
    data = report.to_json()

    assert set(data["rankers"]) == {"xgboost", "logistic", "rules", "popularity", "shown_order", "random"}
    assert set(data["rankers"]["popularity"]) == {"all", "warm", "cold"}
    assert set(data["rankers"]["xgboost"]["warm"]) == METRICS_OF_PROBABILITIES
    assert data["slates"]["warm"] + data["slates"]["cold"] == data["slates"]["all"]
    interval = data["intervals"]["xgboost"]["warm"]["ndcg@10"]
    assert interval["low"] < interval["mean"] < interval["high"]
    assert interval["mean"] == data["rankers"]["xgboost"]["warm"]["ndcg@10"]


def test_each_model_is_compared_with_every_other_ranker(report):
    gains = report.to_json()["paired"]

    assert len(gains) == 2 * 5
    assert gains["xgboost-popularity"]["ndcg@10"]["low"] > 0
    assert gains["logistic-xgboost"]["ndcg@10"]["mean"] == -gains["xgboost-logistic"]["ndcg@10"]["mean"]


def test_pairing_makes_the_interval_narrower_than_those_of_the_rankers(dataset):
    scores = np.random.default_rng(1).normal(size=len(dataset)) + dataset.relevance
    noise = np.random.default_rng(2).normal(0.0, 0.05, len(dataset))
    scored = {
        "xgboost": Scores(scores),
        "popularity": Scores(scores + noise),
        "random": Scores(np.zeros(len(dataset))),
    }

    report = evaluate(scored, dataset, seed=1, rounds=200)

    gain = report.paired["xgboost-popularity"]["ndcg@10"]
    alone = report.intervals["xgboost"]["all"]["ndcg@10"]
    assert gain.high - gain.low < 0.5 * (alone.high - alone.low)


def test_the_same_seed_gives_the_same_json_without_anything_but_numbers(dataset, report):
    scored = scored_slates(dataset)
    hidden = {"users": scored["rules"].values, "propositions": scored["xgboost"].values}

    again = evaluate(scored, dataset, seed=7, hidden=hidden, rounds=200)

    text = json.dumps(report.to_json(), allow_nan=False)
    assert json.dumps(again.to_json()) == text
    assert text == json.dumps(report.to_json(), sort_keys=True)


def test_a_report_can_be_read_back(report):
    data = json.loads(json.dumps(report.to_json()))

    assert Report.from_json(data).to_json() == data


def test_retained_lift_is_what_is_left_of_the_gain_over_random():
    full, hidden, random = np.array([0.9, 0.7]), np.array([0.8, 0.6]), np.array([0.4, 0.4])

    assert retained_lift(full, hidden, random) == pytest.approx(0.75)
    assert retained_lift(random, hidden, full) == 0.0
    assert math.isnan(retained_lift(full[:0], hidden[:0], random[:0]))


def test_hiding_the_history_of_users_is_measured_where_there_was_one(dataset):
    scored = scored_slates(dataset)
    is_cold = dataset.is_cold_user[dataset.slate_of_row]
    # The users without history would raise the result: of theirs nothing was hidden.
    scores = np.where(is_cold, scored["xgboost"].values, scored["random"].values)

    report = evaluate(scored, dataset, seed=1, hidden={"users": scores}, rounds=10)

    assert report.retained_lift["users"] == 0.0
    assert report.rankers["xgboost"]["cold"]["ndcg@10"] > report.rankers["random"]["cold"]["ndcg@10"]


def test_a_history_that_nobody_has_cannot_be_hidden(dataset):
    cold = dataset.select(np.flatnonzero(dataset.is_cold_user))
    scored = scored_slates(cold)

    report = evaluate(scored, cold, seed=1, hidden={"users": scored["random"].values}, rounds=10)

    assert report.to_json()["retained_lift"] == {"users": None}


def test_the_surest_requests_are_answered_first(dataset):
    # Half of the requests hold three clicks that the model sees; of the others it expects nothing, and rightly so.
    relevance = np.zeros(len(dataset), np.int64)
    for first in dataset.slates.starts[::2]:
        relevance[first : first + 3] = 1
    changed = replace(dataset, relevance=relevance)
    seen = np.where(relevance > 0, 0.9, 0.1)
    scored = {
        "xgboost": Scores(seen, seen),
        "popularity": Scores(np.full(len(dataset), 0.2)),
        "random": Scores(np.random.default_rng(1).random(len(dataset))),
    }

    selective = evaluate(scored, changed, seed=1, rounds=50).selective

    assert {selective[share]["precision@3"] for share in ("0.05", "0.2", "0.5")} == {1.0}
    assert selective["1.0"]["precision@3"] == pytest.approx(0.5)
    assert selective["1.0"]["precision@3_of_clicked"] == 1.0
    assert selective["0.5"]["requests"] == 80
    assert selective["0.5"]["least_confidence"] == pytest.approx(0.9)
    assert selective["0.05"]["popularity_precision@3"] < 0.8


def test_slates_that_the_model_cannot_rank_are_not_covered_by_it(dataset):
    scored = scored_slates(dataset)
    scores = scored["xgboost"].values.copy()
    scores[dataset.slates.starts[:40]] = np.nan
    scored["xgboost"] = Scores(scores, scored["xgboost"].probabilities)

    coverage = evaluate(scored, dataset, seed=1, rounds=10).coverage

    assert coverage["model"] == 0.75
    assert coverage["requests"] == 1.0
    assert 0 < coverage["catalog"] <= 1.0


def test_a_ranking_that_shows_a_few_propositions_is_less_even(dataset):
    longer = synthetic_dataset(seed=4, slates=60, slate_sizes=(20, 20))[1]
    is_favourite = np.isin(longer.proposition_ids, [f"p{number}" for number in range(12)])
    rng = np.random.default_rng(1)
    scored = {
        "xgboost": Scores(is_favourite + 0.1 * rng.random(len(longer))),
        "random": Scores(rng.random(len(longer))),
    }

    diversity = evaluate(scored, longer, seed=1, rounds=10).diversity

    assert diversity["xgboost"]["exposure_entropy"] < diversity["random"]["exposure_entropy"] <= 1.0
    assert diversity["xgboost"]["exposure_gini"] > diversity["random"]["exposure_gini"] >= 0.0
    assert 0.1 <= diversity["random"]["distinct_categories@10"] <= 0.3  # three categories on ten places


def test_contexts_are_measured_apart_by_each_of_their_fields(dataset):
    number = np.arange(dataset.slate_count)
    keys = np.array([f"page={'home' if i % 4 else 'cart'}\x1fdaypart=night" for i in number])
    changed = replace(dataset, slates=replace(dataset.slates, context_keys=keys))

    report = evaluate(scored_slates(changed), changed, seed=1, rounds=10)

    contexts = report.segments["context"]
    assert list(contexts) == ["daypart=night", "page=home", "page=cart"]
    night = contexts["daypart=night"]["xgboost"]["mrr"]
    assert night == pytest.approx(report.rankers["xgboost"]["all"]["mrr"])
    counts = report.slates["context"]
    assert counts["page=home"] + counts["page=cart"] == counts["daypart=night"] == report.slates["all"]


def test_slates_of_unknown_propositions_are_measured_apart(dataset):
    report = evaluate(scored_slates(dataset), dataset, seed=1, rounds=10)

    assert set(report.segments) == {"warm_propositions", "cold_propositions", "context"}
    assert report.slates["cold_propositions"] < report.slates["warm_propositions"]
    assert 0 < report.segments["warm_propositions"]["popularity"]["ndcg@10"] < 1


def test_the_ceiling_is_what_an_order_reaches_that_knows_the_clicks(dataset, report):
    clicks = np.add.reduceat(dataset.relevance > 0, dataset.slates.starts)

    assert report.ceiling["ndcg@10"] == 1.0
    assert report.ceiling["precision@3_of_all_requests"] == pytest.approx(np.mean(np.minimum(clicks, 3) / 3))
    assert report.ceiling["click_rate"] == pytest.approx((dataset.relevance > 0).mean())


def test_the_notes_say_what_a_precision_of_70_percent_would_take(dataset):
    rare = replace(dataset, relevance=np.zeros(len(dataset), np.int64))
    rare.relevance[rare.slates.starts] = 1

    notes = " ".join(evaluate(scored_slates(rare), rare, seed=1, rounds=50).notes)

    assert "only 0% of the slates have three clicks" in notes
    assert "above 70% over all requests cannot be reached by any ranking" in notes
    assert "popularity" in notes


def test_slates_without_a_click_are_reported_without_figures(dataset):
    nothing = without_clicks(dataset)

    data = evaluate(scored_slates(dataset), nothing, seed=1, rounds=10).to_json()

    assert data["slate_count"] == 160
    assert data["rankers"]["xgboost"]["all"]["ndcg@10"] is None
    assert data["paired"]["xgboost-popularity"]["ndcg@10"] == {"high": None, "low": None, "mean": None}
    assert "Nothing was clicked" in data["notes"][-1]


def test_a_column_that_decides_explains_the_model():
    rng = np.random.default_rng(1)
    matrix = rng.normal(size=(300, 3)).astype(np.float32)
    columns = ("idle", "decisive", "constant")
    matrix[:, 2] = 1.0
    data = xgboost.DMatrix(matrix, label=matrix[:, 1] > 0, feature_names=list(columns))
    booster = xgboost.train({"objective": "binary:logistic", "max_depth": 2, "nthread": 1}, data, 5)

    first, second = (explain(booster, matrix, columns, np.random.default_rng(2)) for _ in range(2))

    assert first == second
    assert (
        max(first.shap, key=first.shap.get) == max(first.importance, key=first.importance.get) == "decisive"
    )
    assert first.importance["constant"] == first.shap["constant"] == 0.0
    assert sum(first.importance.values()) == pytest.approx(1.0)
