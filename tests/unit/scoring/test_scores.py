"""Scores from parts equal those of the whole matrix."""

from dataclasses import replace

import numpy as np
import orjson
import pytest
import xgboost

from app.features.forest import Forest
from app.features.schema import EntityName
from app.serving import kept_parts
from app.serving.online import OnlineFeatures, read_online
from app.serving.scoring import Scorer, candidate_rows, history_of
from tests.builders import NOON, request
from tests.unit.scoring.world import HERE, HISTORY, NOW_S, READER, Trees


def whole_matrix(spec, taken, positions, online, now_s):
    """As training assembles it: a row of every view for each candidate."""
    rows = {}
    for view in spec.schema.views:
        if view.entity is EntityName.USER_CATEGORY:
            categories = [
                online.categories.index(code) for code in taken.catalog.categories[positions].tolist()
            ]
            rows[view.name] = online.rows[view.name].rows.take(np.array(categories))
        elif view.name in online.rows and not view.has_history:
            rows[view.name] = online.rows[view.name].rows
        else:
            rows[view.name] = candidate_rows(view, taken, HERE, positions, now_s)
    history = history_of(HISTORY, taken.catalog, online)
    pairs = spec.affinity(taken.traits).columns(history, positions)
    return spec.assemble(rows, now_s, len(positions), pairs=pairs)


def test_a_model_without_some_columns_is_scored_from_parts_as_well(spec, taken):
    """Of the user's own view nothing is kept: the rates of user and category still shrink towards it."""
    fewer = replace(spec, dropped=tuple(n for n in spec.columns if "user_activity" in n or n.endswith("_1h")))
    rng = np.random.default_rng(5)
    matrix = rng.random((500, len(fewer.columns))).astype(np.float32)
    data = xgboost.DMatrix(matrix, label=matrix @ rng.normal(size=matrix.shape[1]))
    booster = xgboost.train({"max_depth": 3, "nthread": 1}, data, 10)
    forest = Forest.from_xgboost(orjson.loads(booster.save_raw("json")))
    scorer = Scorer(Trees(fewer, booster, forest), taken, NOW_S, max_bytes=1 << 20)
    online, positions = read_online(READER, fewer, taken, request(), NOON, 1.0), np.arange(30)

    scores = scorer.score(HERE, positions, taken.catalog, online, NOW_S)

    rows = whole_matrix(fewer, taken, positions, online, NOW_S)
    assert scores == pytest.approx(booster.inplace_predict(rows), abs=1e-5)
    logged = scorer.matrix(HERE, positions, taken.catalog, online, NOW_S)
    assert np.allclose(logged, rows, equal_nan=True)


@pytest.mark.parametrize("has_forest", [True, False])
def test_scores_from_parts_are_those_of_the_model_on_the_whole_matrix(spec, taken, booster, has_forest):
    forest = Forest.from_xgboost(orjson.loads(booster.save_raw("json"))) if has_forest else None
    scorer = Scorer(Trees(spec, booster, forest), taken, NOW_S, max_bytes=1 << 20)
    online = read_online(READER, spec, taken, request(), NOON, 1.0)

    for positions in (np.array([3, 1, 4, 15, 9]), np.arange(30)[::-1], np.array([7])):
        scores = scorer.score(HERE, positions, taken.catalog, online, NOW_S)

        expected = booster.inplace_predict(whole_matrix(spec, taken, positions, online, NOW_S))
        assert np.abs(scores - expected).max() <= 1e-5 * max(1.0, np.abs(expected).max())
    assert len(np.unique(scores)) == 1 and len(np.unique(expected)) == 1


def test_two_users_with_the_same_counters_get_other_scores_for_what_they_were_shown(spec, taken, booster):
    forest = Forest.from_xgboost(orjson.loads(booster.save_raw("json")))
    scorer = Scorer(Trees(spec, booster, forest), taken, NOW_S, max_bytes=1 << 20)
    online = read_online(READER, spec, taken, request(), NOON, 1.0)
    unseen = replace(online, rows={name: r for name, r in online.rows.items() if name != HISTORY.name})

    seen_scores, unseen_scores = (
        scorer.score(HERE, np.arange(30), taken.catalog, features, NOW_S) for features in (online, unseen)
    )

    assert (seen_scores != unseen_scores).any()


def test_a_model_that_reads_nothing_of_the_history_is_not_given_any(spec, taken):
    rng = np.random.default_rng(3)
    matrix = rng.random((500, len(spec.columns)))
    pairs = spec.columns_of[HISTORY.name]
    matrix[:, pairs.start : pairs.stop] = 0.0
    booster = xgboost.train({"max_depth": 3}, xgboost.DMatrix(matrix, label=matrix[:, 0]), 5)
    scorer = Scorer(
        Trees(spec, booster, Forest.from_xgboost(orjson.loads(booster.save_raw("json")))),
        taken,
        NOW_S,
        1 << 20,
    )

    assert scorer._pairs(taken.catalog, None, np.arange(30)) is None


def test_many_contexts_are_forgotten_when_memory_is_short_and_scored_again(spec, taken, booster):
    forest = Forest.from_xgboost(orjson.loads(booster.save_raw("json")))
    roomy = Scorer(Trees(spec, booster, forest), taken, NOW_S, max_bytes=1 << 30)
    tight = Scorer(Trees(spec, booster, forest), taken, NOW_S, max_bytes=1)
    online = OnlineFeatures(READER.read({}, 2, NOON), ())

    for context in (HERE, "elsewhere", HERE):
        positions = np.arange(30)
        assert np.array_equal(
            tight.score(context, positions, taken.catalog, online, NOW_S),
            roomy.score(context, positions, taken.catalog, online, NOW_S),
        )
    assert len(tight._contexts) == 1 and len(roomy._contexts) == 2


@pytest.mark.parametrize("has_forest", [True, False])
def test_candidates_beyond_what_is_kept_are_scored_all_the_same(
    spec, taken, booster, has_forest, monkeypatch
):
    forest = Forest.from_xgboost(orjson.loads(booster.save_raw("json"))) if has_forest else None
    online = read_online(READER, spec, taken, request(), NOON, 1.0)
    roomy, small = (Scorer(Trees(spec, booster, forest), taken, NOW_S, 1 << 20) for _ in range(2))
    expected = roomy.score(HERE, np.arange(30), taken.catalog, online, NOW_S)

    monkeypatch.setattr(kept_parts, "MAX_KEPT", 4)
    small.score(HERE, np.array([5, 2, 9]), taken.catalog, online, NOW_S)
    scores = small.score(HERE, np.arange(30), taken.catalog, online, NOW_S)

    assert np.array_equal(scores, expected)
    assert small._contexts[HERE].missing(np.arange(30)).tolist() == [
        n for n in range(30) if n not in (2, 5, 9)
    ]


def test_a_users_history_is_what_was_shown_and_what_was_clicked(spec, taken):
    online = read_online(READER, spec, taken, request(), NOON, 1.0)

    history = history_of(HISTORY, taken.catalog, online)

    assert history.rows.tolist() == [
        *taken.catalog.positions_of(["p1"]),
        -1,
        *taken.catalog.positions_of(["p4", "p29"]),
    ]
    assert history.impressions.tolist() == [2.0, 1.0, 1.0, 3.0]
    assert history.clicks.tolist() == [1.0, 1.0, 0.0, 3.0]
