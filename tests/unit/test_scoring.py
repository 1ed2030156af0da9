"""Scores from parts equal those of the whole matrix, and parts are kept no longer than they hold."""

from dataclasses import dataclass, replace

import numpy as np
import orjson
import pytest
import xgboost

from app.domain.context import crossed_key
from app.domain.types import FeatureState
from app.features.assembly import MatrixSpec
from app.features.forest import Forest
from app.features.ports import OnlineRows
from app.features.rows import rows_from_records
from app.features.schema import EntityName, FieldKind, FieldSchema, ViewSchema
from app.features.snapshot import SnapshotChanges
from app.serving import kept_parts
from app.serving.current_scorer import QUIET_FACTOR, CurrentScorer
from app.serving.kept_parts import MAX_IDLE_RENEWALS
from app.serving.online import OnlineFeatures, read_online
from app.serving.scoring import ForestScoring, Scorer, candidate_rows, history_of
from tests.builders import NOON, proposition, request
from tests.unit.test_ranking import FakeReader, counters, snapshot

NOW_S = NOON.timestamp()
HERE = request().context_key


@dataclass
class Trees:
    """A random model over the columns of a spec; with `forest` None it is scored by XGBoost itself."""

    spec: MatrixSpec
    booster: xgboost.Booster
    forest: Forest | None
    version: str = "m"

    def score(self, matrix):
        return self.booster.inplace_predict(matrix)


HISTORY = ViewSchema(
    "user_history",
    EntityName.USER,
    "user_id",
    (
        FieldSchema("propositions", "Array(String)", FieldKind.HISTORY),
        FieldSchema("impressions", "Array(Float64)", FieldKind.HISTORY),
        FieldSchema("clicks", "Array(Float64)", FieldKind.HISTORY),
    ),
    ttl_s=1e9,
)


@pytest.fixture
def spec(spec):
    """Also with what a user and a candidate have in common."""
    schema = replace(spec.schema, views=(*spec.schema.views, HISTORY))
    return replace(spec, schema=schema, ranks={"length": (0.0, 1.0, 2.0, 3.0)})


@pytest.fixture
def booster(spec):
    rng = np.random.default_rng(7)
    matrix = rng.gamma(1.0, 1.0, (4_000, len(spec.columns))).astype(np.float32)
    matrix[rng.random(matrix.shape) < 0.2] = np.nan
    target = np.nan_to_num(matrix) @ rng.normal(size=matrix.shape[1])
    parameters = {"max_depth": 5, "objective": "reg:squarederror", "nthread": 1, "eta": 0.3}
    return xgboost.train(parameters, xgboost.DMatrix(matrix, label=target), 30)


@pytest.fixture
def taken():
    return snapshot(
        *(proposition(f"p{n}", category=f"c{n % 4}", value=float(n)) for n in range(30)),
        performance={f"p{n}": counters(10 * n, n) for n in range(0, 30, 2)},
        context_performance={f"{HERE}\x1fp{n}": counters(n, n / 2) for n in range(0, 30, 3)},
    ).with_changes(
        SnapshotChanges(
            attributes={f"p{n}": {"numbers.length": float(n % 4)} for n in range(0, 30, 2)},
            traits={f"p{n}": [f"t{n % 5}", f"t{n % 3}"] for n in range(30)},
        )
    )


class ReaderWithRows(FakeReader):
    """The user has an activity, and one in each of some categories."""

    def __init__(self, known):
        super().__init__()
        self._counters = known

    def read(self, keys, half_life_count, now, timeout_s=None):
        return {
            view.name: OnlineRows(
                rows_from_records(view, [self._record(key, view) for key in entity_keys], half_life_count),
                [
                    FeatureState.FRESH if self._record(key, view) else FeatureState.MISSING
                    for key in entity_keys
                ],
            )
            for view, entity_keys in keys.items()
        }

    def _record(self, key, view):
        if key in self._counters and view.has_history:
            ids = ("p1", "gone", "p4", "p29")
            return {"propositions": ids, "impressions": (2.0, 1.0, 1.0, 3.0), "clicks": (1.0, 1.0, 0.0, 3.0)}
        if key not in self._counters or not view.has_counters:
            return None
        impressions, clicks = self._counters[key]
        names = ("impressions", "clicks", "conversions", "dismissals")
        values = ([impressions] * 2, [clicks] * 2, [0.0] * 2, [0.0] * 2)
        return dict(zip(names, values, strict=True)) | {"as_of_s": NOW_S - 60.0}


READER = ReaderWithRows({"u1": (50.0, 20.0), crossed_key("u1", "c1"): (9.0, 8.0)})


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


def test_the_scorer_is_made_anew_for_another_model_new_propositions_and_with_time(spec, taken, booster):
    model, current = Trees(spec, booster, None), CurrentScorer(max_age_s=5.0, max_bytes=1)
    first = current.get(model, taken, NOW_S)

    assert current.get(model, taken, NOW_S + 5.0 * QUIET_FACTOR) is first
    assert current.get(model, taken, NOW_S + 5.1 * QUIET_FACTOR) is not first
    again = current.get(model, taken, NOW_S)
    counted = taken.with_changes(SnapshotChanges(performance={"p1": counters(1_000, 900)}))
    assert current.get(model, counted, NOW_S + 5.0) is again
    assert current.get(model, counted, NOW_S + 5.1) is not again
    assert current.get(model, snapshot(proposition("x")), NOW_S + 5.1) is not again
    again = current.get(model, taken, NOW_S)
    assert current.get(Trees(spec, booster, None), taken, NOW_S) is not again
    assert current.get(model, taken, NOW_S - 60.0).as_of_s == NOW_S - 60.0  # the clock was set back


def test_another_database_has_other_positions(spec, taken, booster):
    current, model = CurrentScorer(max_age_s=5.0, max_bytes=1), Trees(spec, booster, None)
    first = current.get(model, taken, NOW_S)

    foreign = replace(taken, version=replace(taken.version, generation="another"))

    assert current.get(model, foreign, NOW_S) is not first


def test_a_renewed_scorer_knows_the_news_and_what_was_asked_for_lately(spec, taken, booster):
    forest = Forest.from_xgboost(orjson.loads(booster.save_raw("json")))
    model, current = Trees(spec, booster, forest), CurrentScorer(max_age_s=5.0, max_bytes=1 << 20)
    online = OnlineFeatures(READER.read({}, 2, NOON), ())
    old = current.get(model, taken, NOW_S)
    old.score(HERE, np.array([1, 2]), taken.catalog, online, NOW_S)
    old.score("elsewhere", np.array([3]), taken.catalog, online, NOW_S)
    counted = taken.with_changes(SnapshotChanges(performance={"p1": counters(1_000, 900)}))

    current.renew(model, counted, NOW_S + 4.0)

    fresh = current.get(model, counted, NOW_S + 6.0)
    assert fresh is not old and fresh.snapshot is counted
    assert not len(fresh._contexts[HERE].missing(np.array([1, 2])))
    assert not len(fresh._contexts[None].missing(np.array([3])))
    assert fresh.score(HERE, np.array([1]), counted.catalog, online, NOW_S) != old.score(
        HERE, np.array([1]), counted.catalog, online, NOW_S
    )


@pytest.mark.parametrize("has_forest", [True, False])
@pytest.mark.parametrize("days", [0.0, 0.001, 1.0, 30.0])
def test_a_renewed_scorer_scores_like_one_that_knows_nothing_of_before(
    spec, taken, booster, has_forest, days
):
    forest = Forest.from_xgboost(orjson.loads(booster.save_raw("json"))) if has_forest else None
    model, current = Trees(spec, booster, forest), CurrentScorer(max_age_s=1e9, max_bytes=1 << 20)
    online, everybody = OnlineFeatures(READER.read({}, 2, NOON), ()), np.arange(len(taken.catalog))
    for context in (HERE, "elsewhere"):
        current.get(model, taken, NOW_S).score(context, everybody, taken.catalog, online, NOW_S)
    later_s = NOW_S + days * 86_400
    news = SnapshotChanges(
        performance={"p1": counters(1_000, 900)},
        context_performance={crossed_key(HERE, "p2"): counters(9, 9)},
    )

    renewed, fresh = (
        scorer.score(HERE, everybody, taken.catalog, online, later_s)
        for scorer in (
            current.prepared(model, taken.with_changes(news), later_s),
            Scorer(model, taken.with_changes(news), later_s, 1 << 20),
        )
    )

    np.testing.assert_array_equal(renewed, fresh)


def test_a_renewal_computes_masks_only_where_a_value_came_past_a_threshold(spec, taken, booster, monkeypatch):
    forest = Forest.from_xgboost(orjson.loads(booster.save_raw("json")))
    model, current = Trees(spec, booster, forest), CurrentScorer(max_age_s=1e9, max_bytes=1 << 20)
    online, everybody = OnlineFeatures(READER.read({}, 2, NOON), ()), np.arange(len(taken.catalog))
    for positions in (everybody[:5], everybody):
        current.get(model, taken, NOW_S).score(HERE, positions, taken.catalog, online, NOW_S)
    computed: list[int] = []
    of_candidates = ForestScoring.of_candidates

    def noted(self, block):
        computed.append(len(block))
        return of_candidates(self, block)

    monkeypatch.setattr(ForestScoring, "of_candidates", noted)
    current.prepared(model, taken, NOW_S)
    assert computed == []

    counted = taken.with_changes(SnapshotChanges(performance={"p1": counters(1_000, 900)}))
    current.prepared(model, counted, NOW_S)
    assert computed == [1]


@pytest.mark.parametrize(("max_age_s", "may_sleep"), [(5.0, True), (0.0, False)])
def test_a_renewal_leaves_the_processor_to_requests_while_there_is_time(
    spec, taken, booster, max_age_s, may_sleep
):
    naps_s: list[float] = []
    forest = Forest.from_xgboost(orjson.loads(booster.save_raw("json")))
    model = Trees(spec, booster, forest)
    current = CurrentScorer(max_age_s, max_bytes=1 << 20, sleep=naps_s.append)
    online = OnlineFeatures(READER.read({}, 2, NOON), ())
    for context in (HERE, "elsewhere"):
        current.get(model, taken, NOW_S).score(context, np.array([1, 2]), taken.catalog, online, NOW_S)

    current.renew(model, taken, NOW_S + 20)

    assert len(naps_s) == (2 if may_sleep else 0)  # one after each context
    assert all(nap_s > 0 for nap_s in naps_s)


def test_what_was_not_asked_for_again_is_forgotten(spec, taken, booster):
    forest = Forest.from_xgboost(orjson.loads(booster.save_raw("json")))
    model, current = Trees(spec, booster, forest), CurrentScorer(max_age_s=5.0, max_bytes=1 << 20)
    online = OnlineFeatures(READER.read({}, 2, NOON), ())
    current.get(model, taken, NOW_S).score(HERE, np.array([1, 2]), taken.catalog, online, NOW_S)

    for n in range(1, MAX_IDLE_RENEWALS + 2):
        current.renew(model, taken, NOW_S + 20 * n)
        current.get(model, taken, NOW_S + 20 * n).score(HERE, np.array([2]), taken.catalog, online, NOW_S)

    parts = current.get(model, taken, NOW_S + 20 * (MAX_IDLE_RENEWALS + 1))._contexts[HERE]
    assert parts.missing(np.array([1, 2])).tolist() == [1]


def test_a_scorer_that_nobody_asked_is_not_renewed(spec, taken, booster):
    model, current = Trees(spec, booster, None), CurrentScorer(max_age_s=5.0, max_bytes=1 << 20)
    first = current.get(model, taken, NOW_S)

    current.renew(model, taken, NOW_S + 20)

    assert current.get(model, taken, NOW_S + 20) is first


def test_a_scorer_of_another_model_can_be_made_ready_beforehand(spec, taken, booster):
    forest = Forest.from_xgboost(orjson.loads(booster.save_raw("json")))
    other = Forest.from_xgboost(orjson.loads(booster[:10].save_raw("json")))
    old, new = Trees(spec, booster, forest), Trees(spec, booster[:10], other, version="m2")
    current = CurrentScorer(max_age_s=5.0, max_bytes=1 << 20)
    online = OnlineFeatures(READER.read({}, 2, NOON), ())
    current.get(old, taken, NOW_S).score(HERE, np.array([1, 2]), taken.catalog, online, NOW_S)

    prepared = current.prepared(new, taken, NOW_S + 1)
    assert current.get(old, taken, NOW_S + 1).model is old
    current.adopt(prepared)

    assert current.get(new, taken, NOW_S + 1) is prepared
    assert not len(prepared._contexts[HERE].missing(np.array([1, 2])))
    np.testing.assert_array_equal(
        prepared.score(HERE, np.array([1, 2]), taken.catalog, online, NOW_S + 1),
        Scorer(new, taken, NOW_S + 1, 1 << 20).score(
            HERE, np.array([1, 2]), taken.catalog, online, NOW_S + 1
        ),
    )


def test_a_promotion_during_a_renewal_keeps_its_scorer(spec, taken, booster):
    old, promoted = Trees(spec, booster, None), Trees(spec, booster, None, version="m2")
    ready = Scorer(promoted, taken, NOW_S + 20, 1)

    class PromotedWhileRenewing(CurrentScorer):
        def prepared(self, model, snapshot, now_s):
            self.adopt(ready)
            return Scorer(model, snapshot, now_s, 1)

    current = PromotedWhileRenewing(max_age_s=5.0, max_bytes=1)
    current.get(old, taken, NOW_S).was_asked = True

    current.renew(old, taken, NOW_S + 20)

    assert current.get(promoted, taken, NOW_S + 20) is ready


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
