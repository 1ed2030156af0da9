"""The rankers, best first: the model, the rules, the static default. Each is composed with its fallback."""

import logging
from collections.abc import Callable, Mapping
from datetime import datetime

import numpy as np

from app.domain.budget import TimeBudget, TypicalTime
from app.domain.errors import LeftAlone, PropositionsError
from app.domain.ports import UNGUARDED, Breaker, Ranker
from app.domain.rules import RulesWeights, score_by_rules
from app.domain.types import (
    DegradationLevel,
    FeatureState,
    RankedProposition,
    Slate,
    Strategy,
    SuggestRequest,
)
from app.features.catalog import Catalog
from app.features.ports import Model, OnlineReader, OnlineRows
from app.features.schema import EntityName
from app.features.snapshot import Snapshot
from app.serving.audit import NO_SAMPLING, FeatureSampling
from app.serving.candidates import CandidateGenerator, Candidates, Source, sources_in
from app.serving.current_scorer import CurrentScorer
from app.serving.online import feature_states, read_online, taste_of

log = logging.getLogger(__name__)


class Fallback:
    """Asks the first ranker; when that cannot answer, the second."""

    def __init__(self, first: Ranker, second: Ranker, on_fallback: Callable[[str], None]) -> None:
        self._first, self._second, self._on_fallback = first, second, on_fallback

    def rank(self, request: SuggestRequest, request_id: str, now: datetime, budget: TimeBudget) -> Slate:
        try:
            return self._first.rank(request, request_id, now, budget)
        except PropositionsError as error:
            log.debug("%s cannot rank: %s", type(self._first).__name__, error)
            reason = type(error).__name__
        except Exception:
            # A bug in one ranker costs quality and an entry in the error log, never the answer.
            log.exception("%s failed", type(self._first).__name__)
            reason = "bug"
        self._on_fallback(reason)
        return self._second.rank(request, request_id, now, budget)


class Relieved:
    """While there is more to do than time for it, asks the ranker that costs less."""

    def __init__(
        self,
        usual: Ranker,
        cheap: Ranker,
        is_strained: Callable[[], bool],
        on_fallback: Callable[[str], None],
    ) -> None:
        self._usual, self._cheap = usual, cheap
        self._is_strained, self._on_fallback = is_strained, on_fallback

    def rank(self, request: SuggestRequest, request_id: str, now: datetime, budget: TimeBudget) -> Slate:
        if not self._is_strained():
            return self._usual.rank(request, request_id, now, budget)
        self._on_fallback("strained")
        return self._cheap.rank(request, request_id, now, budget)


class ModelRanker:
    """Scores candidates with the active model and online features.

    `breaker` watches the scoring. While it is open nothing is read either. `on_read` is told the rows of each request, by
    view.
    """

    def __init__(
        self,
        current_model: Callable[[], Model | None],
        current_snapshot: Callable[[], Snapshot],
        reader: OnlineReader,
        generator: CandidateGenerator,
        current_scorer: CurrentScorer,
        sampling: FeatureSampling = NO_SAMPLING,
        breaker: Breaker = UNGUARDED,
        on_read: Callable[[Mapping[str, OnlineRows]], None] = lambda rows: None,
    ) -> None:
        self._current_model = current_model
        self._current_snapshot = current_snapshot
        self._reader = reader
        self._generator = generator
        self._current_scorer = current_scorer
        self._sampling = sampling
        self._breaker = breaker
        self._on_read = on_read
        self._scoring_time = TypicalTime()

    def rank(self, request: SuggestRequest, request_id: str, now: datetime, budget: TimeBudget) -> Slate:
        if self._breaker.state != "closed":
            raise LeftAlone("the model is too slow or fails")
        snapshot = self._current_snapshot()
        scorer = self._current_scorer.get(self._current_model(), snapshot, now.timestamp())
        spec = scorer.model.spec
        self._scoring_time.require(budget.remaining_before_fallback_s)
        timeout_s = budget.remaining_before_fallback_s
        online = read_online(self._reader, spec, snapshot, request, now, timeout_s)
        self._on_read(online.rows)
        budget.finish("features")
        self._scoring_time.require(budget.remaining_before_fallback_s)
        before_s = budget.spent_s
        candidates = self._generator.find(snapshot, request, now, taste_of(spec, snapshot.catalog, online))
        budget.finish("candidates")
        scores = self._breaker.call(
            lambda: scorer.score(
                request.context_key, candidates.positions, snapshot.catalog, online, now.timestamp()
            )
        )
        self._scoring_time.learn(budget.spent_s - before_s)
        budget.finish("score")
        states = feature_states(spec, online)
        is_full = set(states.values()) <= {FeatureState.FRESH, FeatureState.DEFAULT}
        ranked = best(snapshot.catalog, candidates, scores, request.limit)
        budget.finish("policy")
        slate = Slate(
            request_id=request_id,
            decided_at=now,
            propositions=ranked,
            strategy=Strategy.MODEL,
            model_version=scorer.model.version,
            degradation_level=(
                DegradationLevel.FULL if is_full else DegradationLevel.FEATURES_STALE_OR_MISSING
            ),
            feature_states=states,
            candidate_count=len(candidates),
        )
        return self._sampling.mark(slate, request, scorer, snapshot.catalog, online)


class RulesRanker:
    """Scores candidates by the rules, from the snapshot alone: no network, no model."""

    def __init__(
        self,
        current_snapshot: Callable[[], Snapshot],
        generator: CandidateGenerator,
        weights: RulesWeights,
    ) -> None:
        self._current_snapshot = current_snapshot
        self._generator = generator
        self._weights = weights
        self._ranking_time = TypicalTime()

    def rank(self, request: SuggestRequest, request_id: str, now: datetime, budget: TimeBudget) -> Slate:
        self._ranking_time.require(budget.remaining_s)
        before_s = budget.spent_s
        snapshot = self._current_snapshot()
        candidates = self._generator.find(snapshot, request, now)
        scores = self._score(snapshot, candidates.positions, request, now)
        self._ranking_time.learn(budget.spent_s - before_s)
        budget.finish("rules")
        return Slate(
            request_id=request_id,
            decided_at=now,
            propositions=best(snapshot.catalog, candidates, scores, request.limit),
            strategy=Strategy.RULES,
            model_version=None,
            degradation_level=DegradationLevel.RULES,
            feature_states=_states_without_reading(request),
            candidate_count=len(candidates),
        )

    def _score(
        self, snapshot: Snapshot, positions: np.ndarray, request: SuggestRequest, now: datetime
    ) -> np.ndarray:
        now_s = now.timestamp()
        everywhere, in_context = snapshot.click_rates(request.context_key, positions, now_s)
        age_s = now_s - snapshot.performance.as_of_s[positions]
        return score_by_rules(everywhere, in_context, age_s, self._weights)


class DefaultRanker:
    """The static list from the settings, in its own order. Needs nothing and never fails.

    What the snapshot knows to be ineligible is left out here, too.
    """

    def __init__(self, catalog: Catalog, current_snapshot: Callable[[], Snapshot]) -> None:
        self._catalog = catalog
        self._current_snapshot = current_snapshot

    def rank(self, request: SuggestRequest, request_id: str, now: datetime, budget: TimeBudget) -> Slate:
        known = self._current_snapshot().catalog
        positions = self._catalog.eligible(request, now)
        in_catalog = known.positions_of([self._catalog.id_at(position) for position in positions])
        barred = (in_catalog >= 0) & ~np.isin(
            in_catalog, known.eligible(request, now, in_catalog[in_catalog >= 0])
        )
        candidates = Candidates.of(positions[~barred], Source.DEFAULT)
        scores = np.arange(len(candidates), 0, -1, dtype=np.float64)
        budget.finish("default")
        return Slate(
            request_id=request_id,
            decided_at=now,
            propositions=best(self._catalog, candidates, scores, request.limit),
            strategy=Strategy.DEFAULT,
            model_version=None,
            degradation_level=DegradationLevel.STATIC_DEFAULT,
            feature_states=_states_without_reading(request),
            candidate_count=len(candidates),
        )


def best(
    catalog: Catalog, candidates: Candidates, scores: np.ndarray, limit: int
) -> tuple[RankedProposition, ...]:
    """The `limit` best candidates, best first; equal scores keep the order of the candidates."""
    order = (-scores).argsort(kind="stable")[:limit]
    shown = catalog.shown(candidates.positions[order].tolist())
    chosen = zip(shown, scores[order].tolist(), candidates.source_bits[order].tolist(), strict=True)
    return tuple(
        RankedProposition(proposition_id, rank, score, sources_in(bits), details)
        for rank, ((proposition_id, details), score, bits) in enumerate(chosen, start=1)
    )


def _states_without_reading(request: SuggestRequest) -> dict[str, FeatureState]:
    user = FeatureState.DEFAULT if request.user_id is None else FeatureState.MISSING
    return {str(EntityName.USER): user, str(EntityName.CONTEXT): FeatureState.MISSING}
