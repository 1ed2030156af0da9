"""Parts of candidates are kept no longer than they hold, and renewed beside the requests."""

from dataclasses import replace

import numpy as np
import orjson
import pytest

from app.domain.context import crossed_key
from app.features.forest import Forest
from app.features.snapshot import SnapshotChanges
from app.serving import kept_parts
from app.serving.current_scorer import QUIET_FACTOR, CurrentScorer
from app.serving.kept_parts import MAX_IDLE_RENEWALS, Computed, ContextParts
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


def kept_after(renewals, asked, taken, model, *, max_bytes=1 << 20):
    """Who is kept for HERE and elsewhere, where nobody was asked for after the beginning, after so many renewals."""
    current = CurrentScorer(max_age_s=5.0, max_bytes=max_bytes, sleep=lambda _: None)
    online, everybody = OnlineFeatures(READER.read({}, 2, NOON), ()), np.arange(len(taken.catalog))
    for n in range(renewals + 1):
        scorer = current.get(model, taken, NOW_S + 20 * n)
        for context in (HERE, "elsewhere") if n == 0 else (HERE,):
            scorer.score(context, asked, taken.catalog, online, NOW_S + 20 * n)
        current.renew(model, taken, NOW_S + 20 * n + 1)  # before the next renewal is due
        if n < renewals:
            current.renew(model, taken, NOW_S + 20 * (n + 1))
    kept = current.get(model, taken, NOW_S + 20 * renewals)._contexts
    return [np.setdiff1d(everybody, kept[key].missing(everybody)).tolist() for key in (HERE, None)]


@pytest.mark.parametrize("has_forest", [True, False])
def test_where_a_quarter_of_the_catalog_was_asked_for_the_rest_is_prepared_beside_the_requests(
    spec, taken, booster, has_forest
):
    forest = Forest.from_xgboost(orjson.loads(booster.save_raw("json"))) if has_forest else None
    model, few, quarter = Trees(spec, booster, forest), np.arange(7), np.arange(5, 13)
    everybody = list(range(30))

    assert kept_after(0, few, taken, model) == [few.tolist()] * 2
    assert kept_after(0, quarter, taken, model) == [everybody] * 2
    assert kept_after(MAX_IDLE_RENEWALS, quarter, taken, model) == [everybody] * 2
    assert kept_after(MAX_IDLE_RENEWALS + 1, quarter, taken, model) == [everybody, []]
    assert kept_after(3 * MAX_IDLE_RENEWALS, quarter, taken, model) == [everybody, []]


def test_what_was_prepared_beside_the_requests_is_what_they_would_have_computed(spec, taken, booster):
    forest = Forest.from_xgboost(orjson.loads(booster.save_raw("json")))
    model, current = Trees(spec, booster, forest), CurrentScorer(max_age_s=5.0, max_bytes=1 << 20)
    online, everybody = OnlineFeatures(READER.read({}, 2, NOON), ()), np.arange(len(taken.catalog))
    scorer = current.get(model, taken, NOW_S)
    scorer.score(HERE, everybody[::3], taken.catalog, online, NOW_S)

    current.renew(model, taken, NOW_S + 1)

    assert current.get(model, taken, NOW_S + 1) is scorer and not len(
        scorer._contexts[HERE].missing(everybody)
    )
    np.testing.assert_array_equal(
        scorer.score(HERE, everybody, taken.catalog, online, NOW_S + 1),
        Scorer(model, taken, NOW_S, 1 << 20).score(HERE, everybody, taken.catalog, online, NOW_S + 1),
    )


def test_what_was_prepared_is_neither_prepared_again_nor_forgotten_while_it_may_be_asked_for(
    spec, taken, booster, monkeypatch
):
    forest = Forest.from_xgboost(orjson.loads(booster.save_raw("json")))
    naps_s: list[float] = []
    model, current = Trees(spec, booster, forest), CurrentScorer(1e9, 1 << 20, sleep=naps_s.append)
    online = OnlineFeatures(READER.read({}, 2, NOON), ())
    current.get(model, taken, NOW_S).score(HERE, np.arange(8), taken.catalog, online, NOW_S)
    current.renew(model, taken, NOW_S)
    assert len(naps_s) == 1 and naps_s[0] > 0
    monkeypatch.setattr(ForestScoring, "of_candidates", lambda self, block: pytest.fail("computed again"))

    for _ in range(2 * MAX_IDLE_RENEWALS):
        current.renew(model, taken, NOW_S)
        current.get(model, taken, NOW_S).score(HERE, np.arange(8), taken.catalog, online, NOW_S)
        current.adopt(current.prepared(model, taken, NOW_S))

    assert not len(current.get(model, taken, NOW_S)._contexts[HERE].missing(np.arange(30)))


def test_who_was_only_prepared_does_not_count_as_asked_for(spec, taken, booster):
    forest = Forest.from_xgboost(orjson.loads(booster.save_raw("json")))
    model, current = Trees(spec, booster, forest), CurrentScorer(max_age_s=1e9, max_bytes=1 << 20)
    online = OnlineFeatures(READER.read({}, 2, NOON), ())
    current.get(model, taken, NOW_S).score(HERE, np.arange(7), taken.catalog, online, NOW_S)
    for renewal in range(MAX_IDLE_RENEWALS + 1):
        if renewal == 5:
            current.get(model, taken, NOW_S).score(HERE, np.array([7]), taken.catalog, online, NOW_S)
            current.renew(model, taken, NOW_S)
            assert not len(current.get(model, taken, NOW_S)._contexts[HERE].missing(np.arange(30)))
        current.adopt(current.prepared(model, taken, NOW_S))

    positions, renewals = current.get(model, taken, NOW_S)._contexts[HERE].wanted()

    assert positions.tolist() == [7] and renewals.tolist() == [MAX_IDLE_RENEWALS + 1 - 5 + 1]


def test_renewals_since_someone_was_asked_for_are_counted_no_further_than_matters():
    parts = ContextParts(catalog_size=4)
    everybody = np.arange(4)
    parts.add(everybody, Computed(np.zeros((4, 1)), np.zeros((4, 1), np.int32)))
    for _ in range(300):
        parts.pool(np.array([2]))
        positions, renewals = parts.wanted()
        parts.set_idle(positions, renewals)

    assert parts.idle_renewals_by_position().tolist() == [MAX_IDLE_RENEWALS] * 2 + [1] + [MAX_IDLE_RENEWALS]


def test_nothing_is_prepared_that_there_is_no_room_for(spec, taken, booster, monkeypatch):
    forest = Forest.from_xgboost(orjson.loads(booster.save_raw("json")))
    model, asked = Trees(spec, booster, forest), np.arange(15)
    scorer = CurrentScorer(5.0, 1 << 20).get(model, taken, NOW_S)
    scorer.score(HERE, asked, taken.catalog, OnlineFeatures(READER.read({}, 2, NOON), ()), NOW_S)
    half_bytes, whole_bytes = (scorer._contexts[HERE].size_bytes, scorer._contexts[HERE].completed_bytes)
    everybody = list(range(30))

    assert kept_after(0, asked, taken, model, max_bytes=half_bytes + whole_bytes - 1) == [asked.tolist()] * 2
    # The context that was asked last comes first.
    assert kept_after(0, asked, taken, model, max_bytes=half_bytes + whole_bytes) == [
        asked.tolist(),
        everybody,
    ]
    assert kept_after(0, asked, taken, model, max_bytes=2 * whole_bytes) == [everybody] * 2
    monkeypatch.setattr(kept_parts, "MAX_KEPT", 58)
    assert kept_after(0, asked, taken, model) == [asked.tolist()] * 2


def test_what_was_prepared_in_all_the_memory_there_is_outlives_the_renewals(spec, taken, booster):
    forest = Forest.from_xgboost(orjson.loads(booster.save_raw("json")))
    model, asked = Trees(spec, booster, forest), np.arange(15)
    scorer = CurrentScorer(5.0, 1 << 20).get(model, taken, NOW_S)
    scorer.score(HERE, asked, taken.catalog, OnlineFeatures(READER.read({}, 2, NOON), ()), NOW_S)
    max_bytes = 2 * scorer._contexts[HERE].completed_bytes

    assert kept_after(3, asked, taken, model, max_bytes=max_bytes) == [list(range(30))] * 2


@pytest.fixture
def asked_for_half(spec, taken, booster):
    """Half of the catalog was asked for HERE and elsewhere. Also what scores need besides."""
    model = Trees(spec, booster, Forest.from_xgboost(orjson.loads(booster.save_raw("json"))))
    scorer, online = Scorer(model, taken, NOW_S, 1 << 20), OnlineFeatures(READER.read({}, 2, NOON), ())
    for context in ("elsewhere", HERE):
        scorer.score(context, np.arange(15), taken.catalog, online, NOW_S)
    return scorer, online


def test_what_loses_its_place_while_it_is_prepared_stays_forgotten(asked_for_half):
    scorer, _ = asked_for_half

    scorer.complete(lambda *_: scorer._contexts.clear(), is_over=lambda: False)

    assert not scorer._contexts


def test_requests_are_answered_from_what_is_there_while_the_rest_is_prepared(asked_for_half, taken):
    scorer, online = asked_for_half
    later, scores = np.arange(12, 20), []

    def request_comes(*_):
        scores.append(scorer.score(HERE, later, taken.catalog, online, NOW_S))

    scorer.complete(request_comes, is_over=lambda: False)

    expected = Scorer(scorer.model, taken, NOW_S, 1).score(HERE, later, taken.catalog, online, NOW_S)
    assert len(scores) == 2 and all(np.array_equal(some, expected) for some in scores)
    parts = scorer._contexts[HERE]
    assert not len(parts.missing(np.arange(30)))
    assert parts.idle_renewals_by_position().tolist() == [0] * 20 + [MAX_IDLE_RENEWALS] * 10


def test_preparing_keeps_within_memory_that_requests_take_meanwhile(asked_for_half, taken):
    scorer, online = asked_for_half
    half_bytes, whole_bytes = scorer._contexts[HERE].size_bytes, scorer._contexts[HERE].completed_bytes
    scorer._max_bytes = 2 * whole_bytes

    def another_context_comes(*_):
        taken.contexts.numbers["new"] = taken.contexts.numbers[HERE]
        scorer.score("new", np.arange(3), taken.catalog, online, NOW_S)

    scorer.complete(another_context_comes, is_over=lambda: False)

    sizes = {key: parts.size_bytes for key, parts in scorer._contexts.items()}
    assert (sizes[HERE], sizes[None]) == (whole_bytes, half_bytes) and "new" in sizes
    assert sum(sizes.values()) <= scorer._max_bytes


def test_preparing_ends_with_the_context_under_way_when_another_scorer_serves(asked_for_half, taken):
    scorer, _ = asked_for_half
    another = Scorer(scorer.model, taken, NOW_S, 1 << 20)
    current = CurrentScorer(max_age_s=5.0, max_bytes=1 << 20, sleep=lambda _: current.adopt(another))
    current.adopt(scorer)

    current.renew(scorer.model, taken, NOW_S + 1)

    missing = {key: len(parts.missing(np.arange(30))) for key, parts in scorer._contexts.items()}
    assert missing == {HERE: 0, None: 15}


def test_preparing_begins_with_no_context_after_its_time(asked_for_half, taken):
    scorer, _ = asked_for_half
    without_time = CurrentScorer(max_age_s=0.0, max_bytes=1 << 20)
    without_time.adopt(scorer)

    without_time.renew(scorer.model, taken, NOW_S - 1)  # the clock was set back: no renewal is due

    assert [len(parts.missing(np.arange(30))) for parts in scorer._contexts.values()] == [15, 15]


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
