import doctest
import json
from dataclasses import replace

import numpy as np
import pytest

import training.models
from app.domain.rules import RulesWeights, score_by_rules
from app.features.forest import Forest
from tests.training_data import synthetic_dataset, synthetic_spec, synthetic_world, without_clicks
from training.dataset import Dataset, NothingToTrainOn
from training.matrix import matrix
from training.metrics import ndcg
from training.models import (
    LOGISTIC,
    NDCG,
    OBJECTIVES,
    POPULARITY,
    RANDOM,
    RULES,
    SHOWN_ORDER,
    ModelParameters,
    baseline_scores,
    fit_logistic_regression,
    fit_ranker,
    rising_columns,
)
from training.positions import MAX_POSITION, PositionOffsets, position_offsets

FEW_TREES = ModelParameters(max_trees=30, learning_rate=0.15, colsample_bytree=0.3)
WEIGHTS = RulesWeights(frequency=1.0, recency=0.3, context=1.0, recency_half_life_s=86_400.0)


def rng():
    return np.random.default_rng(7)


def mean_ndcg(scores: np.ndarray, dataset: Dataset) -> float:
    return float(
        np.nanmean(ndcg(scores, dataset.relevance, dataset.slates.starts, 10, np.random.default_rng(99)))
    )


def in_parts(dataset: Dataset, *edges: int):
    return lambda: (
        dataset.slice(a, b) for a, b in zip((0, *edges), (*edges, dataset.slate_count), strict=True)
    )


@pytest.fixture(scope="module")
def parts():
    _, dataset = synthetic_dataset(seed=1, slates=600)
    return dataset.slice(0, 400), dataset.slice(400, 480), dataset.slice(480, 600)


@pytest.fixture(scope="module")
def spec(parts):
    return synthetic_spec(parts[0])


@pytest.fixture(scope="module")
def booster(spec, parts):
    return fit_ranker(spec, in_parts(parts[0]), parts[1], FEW_TREES, seed=3)


def test_examples_in_docstrings_hold():
    assert doctest.testmod(training.models).failed == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("objective", "reg:squarederror"),
        ("max_depth", 7),
        ("subsample", 0.0),
        ("learning_rate", 1.5),
        ("max_trees", 0),
    ],
)
def test_parameters_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=name):
        ModelParameters(**{name: value})


def test_parameters_survive_their_json():
    parameters = ModelParameters(objective=NDCG, is_monotone=False)

    assert ModelParameters(**json.loads(json.dumps(parameters.to_json()))) == parameters


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_ranker_beats_popularity_on_later_slates(spec, parts, objective):
    train, validation, test = parts

    booster = fit_ranker(spec, in_parts(train), validation, replace(FEW_TREES, objective=objective), seed=3)

    rows = matrix(spec, test)
    popularity = baseline_scores(spec, test, WEIGHTS, 1)[POPULARITY]
    assert mean_ndcg(booster.inplace_predict(rows), test) > mean_ndcg(popularity, test) + 0.02


def test_the_same_slates_and_seed_give_the_same_bytes(spec, parts, booster):
    again = fit_ranker(spec, in_parts(parts[0]), parts[1], FEW_TREES, seed=3)
    other_seed = fit_ranker(spec, in_parts(parts[0]), parts[1], FEW_TREES, seed=4)

    assert again.save_raw("ubj") == booster.save_raw("ubj")
    assert other_seed.save_raw("ubj") != booster.save_raw("ubj")


@pytest.mark.parametrize(("objective", "max_rows_in_memory"), [(LOGISTIC, 1_000_000), (NDCG, 100)])
def test_slates_in_parts_and_on_disk_give_the_ranking_of_all_at_once(
    spec, parts, objective, max_rows_in_memory
):
    train, validation, test = parts
    # With all rows and columns in every tree there is no chance in it.
    parameters = replace(FEW_TREES, objective=objective, subsample=1.0, colsample_bytree=1.0, max_trees=20)
    at_once = fit_ranker(spec, in_parts(train), validation, parameters, seed=3)

    booster = fit_ranker(
        spec, in_parts(train, 100, 250), validation, parameters, seed=3, max_rows_in_memory=max_rows_in_memory
    )

    rows = matrix(spec, test)
    assert np.corrcoef(booster.inplace_predict(rows), at_once.inplace_predict(rows))[0, 1] > 0.98


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_forest_that_serves_gives_the_scores_of_xgboost(spec, parts, objective):
    train, validation, test = parts
    booster = fit_ranker(spec, in_parts(train), validation, replace(FEW_TREES, objective=objective), seed=3)
    rows = matrix(spec, test)

    forest = Forest.from_xgboost(json.loads(booster.save_raw("json")))

    masks = forest.part(slice(None)).masks(rows)
    assert forest.scores(masks) == pytest.approx(booster.inplace_predict(rows), abs=1e-5)


def test_there_are_as_many_trees_as_do_best_on_the_validation_slates(spec, parts, booster):
    train, validation, _ = parts
    noise = replace(validation, relevance=rng().permutation(validation.relevance))

    stopped = fit_ranker(spec, in_parts(train), noise, FEW_TREES, seed=3)

    assert stopped.num_boosted_rounds() < booster.num_boosted_rounds()


def test_scores_are_probabilities_of_a_click_where_clicks_weigh_the_same(spec, parts):
    train, validation, _ = parts

    booster = fit_ranker(spec, in_parts(train), validation, replace(FEW_TREES, conversion_weight=1.0), seed=3)

    predicted = booster.inplace_predict(matrix(spec, train)).mean()
    assert predicted == pytest.approx((train.relevance > 0).mean(), abs=0.01)


def test_what_is_converted_ranks_above_what_is_only_clicked(spec, parts):
    train, validation, test = (
        replace(part, relevance=(part.relevance > 0) * (1 + is_sport(part))) for part in parts
    )
    # How often it was converted before does not tell it: those counters were of other conversions.
    flat, weighted = (
        fit_ranker(spec, in_parts(train), validation, replace(FEW_TREES, conversion_weight=weight), seed=3)
        for weight in (1.0, 3.0)
    )

    rows = matrix(spec, test)
    assert (
        mean_ndcg(weighted.inplace_predict(rows), test) > mean_ndcg(flat.inplace_predict(rows), test) + 0.01
    )


def is_sport(dataset: Dataset) -> np.ndarray:
    return dataset.rows["proposition_catalog"].values["category"] == "sport"


def test_a_greater_rate_or_affinity_never_lowers_a_score(spec, parts, booster):
    rows = matrix(spec, parts[2])
    columns = [spec.columns.index(name) for name in rising_columns(spec.columns)]
    before = booster.inplace_predict(rows)
    assert len(columns) > 10

    for column in columns:
        raised = rows.copy()
        raised[:, column] += np.nanstd(rows[:, column])
        assert (booster.inplace_predict(raised) >= before - 1e-6).all()


def test_logged_positions_change_no_score(spec, parts, booster):
    test = parts[2]
    moved = replace(test, positions=rng().permutation(test.positions))

    scores, scores_moved = (booster.inplace_predict(matrix(spec, dataset)) for dataset in (test, moved))

    assert np.array_equal(scores, scores_moved)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_clicks_that_positions_explain_are_not_credited_to_propositions(objective):
    """Shown by a number that nobody cares for, the first are clicked most: a model that is not told where they were
    believes in the number."""
    _, dataset, utilities = synthetic_world(5, 600, position_bias=1.5, is_shown_by_value=True)
    train, validation, test = dataset.slice(0, 390), dataset.slice(390, 480), dataset.slice(480, 600)
    spec = synthetic_spec(train)
    rows = matrix(spec, test)
    wishes = replace(
        test, relevance=(rng().random(len(test)) < logistic(utilities[-len(test) :])).astype(int)
    )
    scores = {}
    for is_told in (True, False):
        told = [
            part if is_told else replace(part, positions=np.full(len(part), np.nan))
            for part in (train, validation)
        ]
        parameters = replace(FEW_TREES, objective=objective, max_trees=60)
        booster = fit_ranker(spec, in_parts(told[0]), told[1], parameters, seed=3)
        scores[is_told] = mean_ndcg(booster.inplace_predict(rows), wishes)

    assert scores[True] > scores[False] + 0.015


def logistic(log_odds: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-log_odds))


def test_offsets_are_of_positions_even_where_a_good_ranker_filled_them(parts):
    """Every slate is shown best first, with some noise."""
    train, generator = parts[0], rng()
    ids, numbers = np.unique(train.proposition_ids, return_inverse=True)
    appeal = generator.normal(-1.0, 1.0, len(ids))[numbers]
    order = np.lexsort((-appeal + generator.normal(0.0, 1.0, len(appeal)), train.slate_of_row))
    positions = np.empty(len(train))
    positions[order] = np.arange(len(train)) - np.repeat(train.slates.starts, train.slate_sizes) + 1.0
    clicked = generator.random(len(train)) < logistic(appeal - 0.5 * np.log(positions))

    logged = replace(train, positions=positions, relevance=clicked.astype(np.int64))
    learned = position_offsets([logged.slice(0, 100), logged.slice(100, 400)]).at(np.array([1.0, 6.0]))

    rates = [clicked[positions == position].mean() for position in (1.0, 6.0)]
    by_rates = np.log(rates[0] / (1 - rates[0])) - np.log(rates[1] / (1 - rates[1]))
    truth = 0.5 * np.log(6.0)
    assert abs(learned[0] - learned[1] - truth) < 0.35 < by_rates - truth


def test_offsets_are_relative_to_the_mean_impression(parts):
    offsets = position_offsets([parts[0]])

    assert offsets.at(parts[0].positions).mean() == pytest.approx(0.0, abs=1e-9)


def test_unknown_positions_have_no_offset_and_far_ones_the_last():
    offsets = PositionOffsets((0.5, -0.5))

    assert offsets.at(np.array([1.0, np.nan, 2.0, 90.0])).tolist() == [0.5, 0.0, -0.5, -0.5]


def test_positions_far_down_are_pooled(parts):
    far_down = replace(parts[0], positions=parts[0].positions + MAX_POSITION)

    assert np.allclose(position_offsets([far_down]).at(np.array([MAX_POSITION, 900.0])), 0.0)


def test_without_positions_there_are_no_offsets(parts):
    unknown = replace(parts[0], positions=np.full(len(parts[0]), np.nan))

    assert position_offsets([unknown]).at(np.array([1.0, np.nan])).tolist() == [0.0, 0.0]


def test_without_clicks_there_is_nothing_to_train_on(spec, parts):
    train, validation, _ = parts

    with pytest.raises(NothingToTrainOn, match="clicked"):
        fit_ranker(spec, in_parts(without_clicks(train)), validation, FEW_TREES, seed=3)
    with pytest.raises(NothingToTrainOn, match="clicked"):
        fit_logistic_regression(spec, in_parts(without_clicks(train)), seed=3)


def test_without_later_slates_nobody_knows_when_to_stop(spec, parts):
    with pytest.raises(NothingToTrainOn, match="validate"):
        fit_ranker(spec, in_parts(parts[0]), parts[1].slice(0, 0), FEW_TREES, seed=3)


def test_the_logistic_regression_ranks_better_than_chance(spec, parts):
    train, _, test = parts

    baseline = fit_logistic_regression(spec, in_parts(train), seed=3)

    rows = matrix(spec, test)
    chance = baseline_scores(spec, test, WEIGHTS, 1)[RANDOM]
    assert baseline.row_count == len(train)
    assert mean_ndcg(baseline.scores(rows), test) > mean_ndcg(chance, test) + 0.05


def test_the_logistic_regression_takes_no_more_rows_than_it_may(spec, parts):
    train = parts[0]

    first, again = (
        fit_logistic_regression(spec, in_parts(train, 200), seed=3, max_rows=len(train) // 2)
        for _ in range(2)
    )

    assert len(train) // 8 < first.row_count <= len(train) // 2
    assert np.array_equal(first.scores(matrix(spec, train)), again.scores(matrix(spec, train)))


def test_baselines_are_what_their_names_say(spec, parts):
    test = parts[2]
    rows = matrix(spec, test)

    def column(view, name):
        return rows[:, spec.columns.index(f"{view}.{name}")].astype(float)

    scores = baseline_scores(spec, test, WEIGHTS, seed=1)

    rate = column("proposition_performance", "click_rate_30d")
    in_context = column("context_proposition_performance", "click_rate_30d")
    age_s = test.slates.decided_at_s[test.slate_of_row] - test.rows["proposition_performance"].as_of_s
    assert set(scores) == {RANDOM, SHOWN_ORDER, POPULARITY, RULES}
    assert np.allclose(scores[POPULARITY], rate)
    assert np.array_equal(scores[SHOWN_ORDER], -test.positions)
    assert np.allclose(scores[RULES], score_by_rules(rate, in_context, age_s, WEIGHTS))


def test_baselines_read_what_they_need_also_where_the_model_does_without(spec, parts):
    blind = replace(spec, dropped=tuple(name for name in spec.columns if "click_rate" in name))

    scores, scores_blind = (baseline_scores(each, parts[2], WEIGHTS, seed=1) for each in (spec, blind))

    assert all(np.array_equal(scores[name], scores_blind[name], equal_nan=True) for name in scores)


def test_impressions_of_unknown_position_come_last_in_the_order_shown(spec, parts):
    test = parts[2].slice(0, 2)
    positions = np.where(np.arange(len(test)) < 3, np.nan, test.positions)

    scores = baseline_scores(spec, replace(test, positions=positions), WEIGHTS, 1)[SHOWN_ORDER]

    assert scores[:3].max() < scores[3:].min() and len(set(scores[:3])) == 3
