from datetime import timedelta

import numpy as np
import pytest

from app.domain.budget import TimeBudget
from app.domain.errors import FeaturesUnavailable
from app.domain.rules import RulesWeights, score_by_rules
from app.domain.types import DegradationLevel, EventType, FeatureState, Strategy
from app.features.catalog import Catalog
from app.features.fold import EVENT_ROW, Counters
from app.features.ports import OnlineRows
from app.features.rows import rows_from_records
from app.features.snapshot import SnapshotChanges, empty_snapshot
from app.serving.candidates import CandidateGenerator, Candidates, Source
from app.serving.current_scorer import CurrentScorer
from app.serving.decisions import DecisionQueue
from app.serving.rankers import DefaultRanker, Fallback, ModelRanker, RulesRanker, best
from app.serving.suggest import Suggest
from tests.builders import HOUR_S, NOON, proposition, request

HALF_LIVES = (HOUR_S, 24 * HOUR_S)
WEIGHTS = RulesWeights(frequency=1.0, recency=0.0, context=1.0, recency_half_life_s=HOUR_S)


def counters(impressions: float, clicks: float) -> Counters:
    counts = np.zeros((len(EventType), 2))
    counts[EVENT_ROW[EventType.IMPRESSION]] = impressions
    counts[EVENT_ROW[EventType.CLICK]] = clicks
    return Counters(counts, NOON.timestamp())


def snapshot(*propositions, performance=None, context_performance=None, neighbours=None, list_length=100):
    changes = SnapshotChanges(
        propositions=propositions,
        attributes={
            p.proposition_id: {"category": p.category, "value": p.value, "created_at_s": None}
            for p in propositions
        },
        performance=performance or {},
        context_performance=context_performance or {},
        neighbours=neighbours or {},
    )
    taken = empty_snapshot(HALF_LIVES).with_changes(changes)
    return taken.with_lists(WEIGHTS, 5.0, list_length, NOON.timestamp())


def plenty():
    """More time than any test takes."""
    return TimeBudget(1_000.0)


POPULAR = snapshot(
    proposition("dull", category="sport"),
    proposition("loved", category="sport"),
    performance={"dull": counters(1_000, 10), "loved": counters(1_000, 900)},
)


class FakeReader:
    """Rows from memory; a user without any reads as missing."""

    def __init__(self, known=(), state=FeatureState.FRESH, is_down=False):
        self._known, self._state, self._is_down = known, state, is_down

    def read(self, keys, half_life_count, now, timeout_s=None):
        if self._is_down:
            raise FeaturesUnavailable("down")
        return {
            view.name: OnlineRows(
                rows_from_records(view, [None] * len(entity_keys), half_life_count),
                [self._state if key in self._known else FeatureState.MISSING for key in entity_keys],
            )
            for view, entity_keys in keys.items()
        }


class FakeModel:
    """Scores by one column of the matrix."""

    version = "m1"
    forest = None

    def __init__(self, spec, column="proposition_performance.click_rate_1h"):
        self.spec = spec
        self._column = spec.columns.index(column)

    def score(self, matrix):
        return matrix[:, self._column]


def rankers(model, current=POPULAR, reader=None, budget=100):
    generator = CandidateGenerator(budget)
    rules = RulesRanker(lambda: current, generator, WEIGHTS)
    by_model = ModelRanker(
        lambda: model,
        lambda: current,
        reader or FakeReader({"u1", request().context_key}),
        generator,
        CurrentScorer(max_age_s=5.0, max_bytes=1 << 20),
    )
    default = DefaultRanker(Catalog.of([proposition("default")]), lambda: current)
    return Fallback(by_model, Fallback(rules, default, lambda reason: None), lambda reason: None)


def shown(slate):
    return [ranked.proposition_id for ranked in slate.propositions]


def test_the_model_ranks_with_fresh_features_at_level_0(spec):
    slate = rankers(FakeModel(spec)).rank(request(), "r1", NOON, plenty())

    assert shown(slate) == ["loved", "dull"]
    assert (slate.strategy, slate.degradation_level, slate.model_version) == (
        Strategy.MODEL,
        DegradationLevel.FULL,
        "m1",
    )
    assert slate.feature_states["user"] is FeatureState.FRESH


@pytest.mark.parametrize("state", [FeatureState.STALE, FeatureState.MISSING])
def test_stale_or_missing_features_are_admitted_as_level_1(spec, state):
    slate = rankers(FakeModel(spec), reader=FakeReader({"u1"}, state)).rank(request(), "r1", NOON, plenty())

    assert slate.degradation_level is DegradationLevel.FEATURES_STALE_OR_MISSING
    assert slate.feature_states["user"] is state


def test_without_a_user_the_users_features_are_default_not_missing(spec):
    slate = rankers(FakeModel(spec)).rank(request(user_id=None), "r1", NOON, plenty())

    assert slate.degradation_level is DegradationLevel.FULL
    assert slate.feature_states["user"] is FeatureState.DEFAULT


def test_rules_rank_when_the_online_store_is_down(spec):
    slate = rankers(FakeModel(spec), reader=FakeReader(is_down=True)).rank(request(), "r1", NOON, plenty())

    assert (slate.strategy, slate.degradation_level) == (Strategy.RULES, DegradationLevel.RULES)
    assert shown(slate) == ["loved", "dull"]


@pytest.mark.parametrize(("seconds_past_ttl", "is_known"), [(-60, True), (60, False)])
def test_candidates_counters_past_their_ttl_read_as_no_row(spec, seconds_past_ttl, is_known):
    ttl_s = spec.schema.view("proposition_performance").ttl_s
    now = NOON + timedelta(seconds=ttl_s + seconds_past_ttl)
    model = FakeModel(spec, "proposition_performance.idle")

    slate = rankers(model).rank(request(), "r1", now, plenty())

    idle = [ranked.score for ranked in slate.propositions]
    assert np.isnan(idle).tolist() == [not is_known] * 2


def test_a_bug_in_the_model_ranker_costs_quality_not_the_answer(spec):
    class BrokenModel(FakeModel):
        def score(self, matrix):
            raise ZeroDivisionError

    assert rankers(BrokenModel(spec)).rank(request(), "r1", NOON, plenty()).strategy is Strategy.RULES


def test_propositions_without_any_attributes_are_scored(spec):
    bare = empty_snapshot(HALF_LIVES).with_changes(
        SnapshotChanges(propositions=[proposition("a"), proposition("b")])
    )

    slate = rankers(FakeModel(spec), bare).rank(request(), "r1", NOON, plenty())

    assert slate.strategy is Strategy.MODEL
    assert shown(slate) == ["a", "b"]


def test_rules_rank_when_there_is_no_model():
    assert rankers(None).rank(request(), "r1", NOON, plenty()).strategy is Strategy.RULES


def test_the_default_list_is_shown_when_nothing_else_is_known():
    slate = rankers(None, current=empty_snapshot(HALF_LIVES)).rank(request(), "r1", NOON, plenty())

    assert (slate.strategy, slate.degradation_level) == (Strategy.DEFAULT, DegradationLevel.STATIC_DEFAULT)
    assert shown(slate) == ["default"]


@pytest.mark.parametrize("level", ["model", "rules", "default"])
def test_an_excluded_proposition_is_never_shown_at_any_level(spec, level):
    current = POPULAR if level != "default" else empty_snapshot(HALF_LIVES)
    model = FakeModel(spec) if level == "model" else None

    slate = rankers(model, current).rank(
        request(excluded_ids=frozenset({"loved", "default"})), "r1", NOON, plenty()
    )

    assert slate.strategy == level
    assert not {"loved", "default"} & set(shown(slate))


def test_the_default_list_leaves_out_what_the_catalog_says_is_not_eligible():
    current = snapshot(proposition("default", is_active=False))

    assert shown(rankers(None, current).rank(request(), "r1", NOON, plenty())) == []


def test_every_place_of_a_slate_tells_its_own_proposition_score_and_sources():
    catalog = Catalog.of([proposition("a", value=1.0), proposition("b", value=2.0), proposition("c")])
    bits = np.array(
        [Candidates.of(np.zeros(1, int), source).source_bits[0] for source in (Source.NEW, Source.POPULAR)]
    )
    candidates = Candidates(np.array([1, 0]), bits)

    first, second = best(catalog, candidates, np.array([0.25, 0.5]), limit=5)

    assert (first.proposition_id, first.rank, first.score, first.sources) == ("a", 1, 0.5, ("popular",))
    assert (second.proposition_id, second.rank, second.score, second.sources) == ("b", 2, 0.25, ("new",))
    assert (first.details, second.details) == (catalog.details_at(0), catalog.details_at(1))


def test_a_slate_is_as_long_as_asked_for(spec):
    assert len(rankers(FakeModel(spec)).rank(request(limit=1), "r1", NOON, plenty()).propositions) == 1


def test_a_large_catalog_is_cut_to_the_budget_by_the_rules(spec):
    slate = rankers(FakeModel(spec), budget=1).rank(request(), "r1", NOON, plenty())

    assert slate.candidate_count == 1
    assert shown(slate) == ["loved"]


def test_rules_prefer_what_works_in_this_context():
    here = request().context_key
    current = snapshot(
        proposition("everywhere"),
        proposition("here"),
        performance={"everywhere": counters(1_000, 500), "here": counters(1_000, 450)},
        context_performance={f"{here}\x1fhere": counters(500, 490)},
    )

    assert shown(rankers(None, current).rank(request(), "r1", NOON, plenty())) == ["here", "everywhere"]


def test_rules_add_recency_that_halves_with_the_half_life():
    weights = RulesWeights(frequency=0.0, recency=1.0, context=0.0, recency_half_life_s=HOUR_S)

    scores = score_by_rules(np.zeros(3), np.zeros(3), np.array([0.0, HOUR_S, np.nan]), weights)

    assert scores.tolist() == [1.0, 0.5, 0.0]


def test_the_current_snapshot_is_not_changed_by_news():
    later = POPULAR.with_changes(
        SnapshotChanges(
            propositions=[proposition("loved", is_active=False), proposition("new")],
            performance={"new": counters(10, 9)},
        )
    )

    assert len(POPULAR.catalog) == 2 and len(later.catalog) == 3
    assert shown(rankers(None, POPULAR).rank(request(), "r1", NOON, plenty())) == ["loved", "dull"]
    assert shown(rankers(None, later).rank(request(), "r1", NOON, plenty())) == ["new", "dull"]


def test_context_counters_are_merged_and_zero_where_unknown():
    key = f"{request().context_key}\x1f"
    first = snapshot(proposition("a"), proposition("b"), context_performance={f"{key}b": counters(5, 1)})

    both = first.with_changes(SnapshotChanges(context_performance={f"{key}a": counters(7, 2)}))

    rows = both.contexts.take(request().context_key, np.array([0, 1]))
    assert rows.counts[:, EVENT_ROW[EventType.IMPRESSION], 0].tolist() == [7, 5]
    unknown = both.contexts.take("nowhere", np.array([0, 1]))
    assert not unknown.counts.any() and np.isnan(unknown.as_of_s).all()


class FakeDecisionLog:
    def __init__(self):
        self.stored, self.is_down = [], False

    def append(self, decisions):
        if self.is_down:
            raise FeaturesUnavailable("down")
        self.stored += decisions


def test_a_decision_is_logged_off_the_path_of_the_request():
    log = FakeDecisionLog()
    queue = DecisionQueue(log, size=10, on_drop=lambda n: None)
    suggest = Suggest(rankers(None), queue.put)

    slate = suggest(request(), "r", NOON, plenty())

    assert log.stored == []
    queue.flush()
    assert log.stored == [(request(), slate)]


def test_decisions_wait_while_their_store_is_down_and_are_dropped_beyond_the_bound():
    log, dropped = FakeDecisionLog(), []
    queue = DecisionQueue(log, size=2, on_drop=dropped.append)
    suggest = Suggest(rankers(None), queue.put)
    log.is_down = True

    for _ in range(3):
        suggest(request(), "r", NOON, plenty())
    queue.flush()
    log.is_down = False
    queue.flush()

    assert len(log.stored) == 2
    assert dropped == [1]
