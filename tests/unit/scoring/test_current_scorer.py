"""Parts of candidates are kept no longer than they hold, and renewed beside the requests."""

from dataclasses import replace

import numpy as np
import orjson
import pytest

from app.domain.context import crossed_key
from app.features.forest import Forest
from app.features.snapshot import SnapshotChanges
from app.serving.current_scorer import QUIET_FACTOR, CurrentScorer
from app.serving.kept_parts import MAX_IDLE_RENEWALS
from app.serving.online import OnlineFeatures
from app.serving.scoring import ForestScoring, Scorer
from tests.builders import NOON, proposition
from tests.unit.scoring.world import HERE, NOW_S, READER, Trees
from tests.unit.test_ranking import counters, snapshot


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
