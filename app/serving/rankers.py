"""The rankers, best first: the model, the rules, the static default. Each is composed with its fallback."""

import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

import numpy as np

from app.domain.catalog import Catalog
from app.domain.context import crossed_key
from app.domain.errors import ModelRefused, PropositionsError
from app.domain.ports import Ranker
from app.domain.rules import RulesWeights, score_by_rules
from app.domain.types import (
    DegradationLevel,
    FeatureState,
    RankedProposition,
    Slate,
    Strategy,
    SuggestRequest,
)
from app.features.assembly import MatrixSpec
from app.features.ports import Model, OnlineReader, OnlineRows
from app.features.rows import Rows, rows_from_records
from app.features.schema import EntityName, ViewSchema
from app.features.snapshot import Snapshot

log = logging.getLogger(__name__)


class NothingToRank(PropositionsError):
    """No eligible candidates are known."""


class Fallback:
    """Asks the first ranker; when that cannot answer, the second."""

    def __init__(self, first: Ranker, second: Ranker, on_fallback: Callable[[str], None]) -> None:
        self._first, self._second, self._on_fallback = first, second, on_fallback

    def rank(self, request: SuggestRequest, request_id: str, now: datetime) -> Slate:
        try:
            return self._first.rank(request, request_id, now)
        except PropositionsError as error:
            log.debug("%s cannot rank: %s", type(self._first).__name__, error)
            reason = type(error).__name__
        except Exception:
            # A bug in one ranker costs quality and an entry in the error log, never the answer.
            log.exception("%s failed", type(self._first).__name__)
            reason = "bug"
        self._on_fallback(reason)
        return self._second.rank(request, request_id, now)


class ModelRanker:
    """Scores candidates with the active model and online features."""

    def __init__(
        self,
        current_model: Callable[[], Model | None],
        current_snapshot: Callable[[], Snapshot],
        reader: OnlineReader,
        shortlist: "RulesRanker",
        candidate_budget: int,
    ) -> None:
        self._current_model = current_model
        self._current_snapshot = current_snapshot
        self._reader = reader
        self._shortlist = shortlist
        self._candidate_budget = candidate_budget

    def rank(self, request: SuggestRequest, request_id: str, now: datetime) -> Slate:
        model, snapshot = self._current_model(), self._current_snapshot()
        if model is None:
            raise ModelRefused("no model is promoted: train one with `propositions train`")
        candidates = self._shortlist.candidates(snapshot, request, now, self._candidate_budget)
        online = self._read(model.spec, snapshot.catalog, candidates, request, now)
        rows = {
            view.name: _rows_of(view, snapshot, candidates, request, online, now)
            for view in model.spec.schema.views
        }
        matrix = model.spec.assemble(rows, now.timestamp(), len(candidates))
        states = feature_states(request, model.spec, online)
        is_full = set(states.values()) <= {FeatureState.FRESH, FeatureState.DEFAULT}
        return Slate(
            request_id=request_id,
            decided_at=now,
            propositions=best(snapshot.catalog, candidates, model.score(matrix), request.limit),
            strategy=Strategy.MODEL,
            model_version=model.version,
            degradation_level=(
                DegradationLevel.FULL if is_full else DegradationLevel.FEATURES_STALE_OR_MISSING
            ),
            feature_states=states,
            candidate_count=len(candidates),
        )

    def _read(
        self,
        spec: MatrixSpec,
        catalog: Catalog,
        candidates: np.ndarray,
        request: SuggestRequest,
        now: datetime,
    ) -> Mapping[str, OnlineRows]:
        keys: dict[ViewSchema, Sequence[str]] = {}
        for view in spec.schema.views:
            match view.entity:
                case EntityName.USER if request.user_id is not None:
                    keys[view] = [request.user_id]
                case EntityName.CONTEXT:
                    keys[view] = [request.context_key]
                case EntityName.USER_CATEGORY if request.user_id is not None:
                    keys[view] = [
                        crossed_key(request.user_id, category)
                        for category in np.unique(catalog.categories[candidates])
                    ]
        return self._reader.read(keys, len(spec.half_lives_s), now)


class RulesRanker:
    """Scores candidates by the rules, from the snapshot alone: no network, no model."""

    def __init__(self, current_snapshot: Callable[[], Snapshot], weights: RulesWeights) -> None:
        self._current_snapshot = current_snapshot
        self._weights = weights

    def rank(self, request: SuggestRequest, request_id: str, now: datetime) -> Slate:
        snapshot = self._current_snapshot()
        candidates = _eligible(snapshot.catalog, request, now)
        return Slate(
            request_id=request_id,
            decided_at=now,
            propositions=best(
                snapshot.catalog, candidates, self.score(snapshot, candidates, request, now), request.limit
            ),
            strategy=Strategy.RULES,
            model_version=None,
            degradation_level=DegradationLevel.RULES,
            feature_states=_states_without_reading(request),
            candidate_count=len(candidates),
        )

    def score(
        self, snapshot: Snapshot, candidates: np.ndarray, request: SuggestRequest, now: datetime
    ) -> np.ndarray:
        now_s = now.timestamp()
        everywhere, in_context = snapshot.click_rates(request.context_key, candidates, now_s)
        age_s = now_s - snapshot.performance.as_of_s[candidates]
        return score_by_rules(everywhere, in_context, age_s, self._weights)

    def candidates(
        self, snapshot: Snapshot, request: SuggestRequest, now: datetime, budget: int
    ) -> np.ndarray:
        """Positions of at most `budget` eligible candidates, the best by the rules."""
        candidates = _eligible(snapshot.catalog, request, now)
        if len(candidates) <= budget:
            return candidates
        scores = self.score(snapshot, candidates, request, now)
        return np.sort(candidates[np.argpartition(-scores, budget)[:budget]])


class DefaultRanker:
    """The static list from the settings, in its own order. Needs nothing and never fails.

    What the snapshot knows to be ineligible is left out here, too.
    """

    def __init__(self, catalog: Catalog, current_snapshot: Callable[[], Snapshot]) -> None:
        self._catalog = catalog
        self._current_snapshot = current_snapshot

    def rank(self, request: SuggestRequest, request_id: str, now: datetime) -> Slate:
        known = self._current_snapshot().catalog
        barred = known.index.keys() - {
            known.propositions[position].proposition_id for position in known.eligible(request, now)
        }
        candidates = np.array(
            [
                position
                for position in self._catalog.eligible(request, now)
                if self._catalog.propositions[position].proposition_id not in barred
            ],
            dtype=np.int64,
        )
        scores = np.arange(len(candidates), 0, -1, dtype=np.float64)
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
    catalog: Catalog, candidates: np.ndarray, scores: np.ndarray, limit: int
) -> tuple[RankedProposition, ...]:
    """The `limit` best candidates, best first; equal scores keep the order of the catalog."""
    order = np.argsort(-scores, kind="stable")[:limit]
    return tuple(
        RankedProposition(catalog.propositions[candidates[position]], rank, float(scores[position]))
        for rank, position in enumerate(order, start=1)
    )


def feature_states(
    request: SuggestRequest, spec: MatrixSpec, online: Mapping[str, OnlineRows]
) -> dict[str, FeatureState]:
    """How the user's and the context's features stood: the worst of their views, stale before missing.

    An entity of which one view has a row is known, so its other views may rightly have none (a user
    without a profile). `default` where the request names no user.
    """
    states: dict[str, FeatureState] = {}
    for entity in (EntityName.USER, EntityName.CONTEXT):
        seen = {
            online[view.name].states[0]
            for view in spec.schema.views
            if view.entity is entity and view.name in online
        }
        if not seen:
            states[str(entity)] = FeatureState.DEFAULT
        elif FeatureState.STALE in seen:
            states[str(entity)] = FeatureState.STALE
        elif FeatureState.FRESH in seen:
            states[str(entity)] = FeatureState.FRESH
        else:
            states[str(entity)] = FeatureState.MISSING
    return states


def _eligible(catalog: Catalog, request: SuggestRequest, now: datetime) -> np.ndarray:
    candidates = catalog.eligible(request, now)
    if not len(candidates):
        raise NothingToRank("no eligible proposition is known")
    return candidates


def _rows_of(
    view: ViewSchema,
    snapshot: Snapshot,
    candidates: np.ndarray,
    request: SuggestRequest,
    online: Mapping[str, OnlineRows],
    now: datetime,
) -> Rows:
    """The rows of a view for all candidates: one each, or one that stands for all.

    Counters past the view's TTL read as no row, as they do online and in training.
    """
    oldest_s = now.timestamp() - view.ttl_s
    if view.entity is EntityName.PROPOSITION:
        if view.has_counters:
            return snapshot.performance.take(candidates).without_older_than(oldest_s)
        return snapshot.attribute_rows(view.field_names, candidates)
    if view.entity is EntityName.CONTEXT_PROPOSITION:
        return snapshot.context_performance(request.context_key, candidates).without_older_than(oldest_s)
    if view.name not in online:
        return rows_from_records(view, [None], len(snapshot.half_lives_s))
    if view.entity is EntityName.USER_CATEGORY:
        categories = snapshot.catalog.categories[candidates]
        return online[view.name].rows.take(np.searchsorted(np.unique(categories), categories))
    return online[view.name].rows


def _states_without_reading(request: SuggestRequest) -> dict[str, FeatureState]:
    user = FeatureState.DEFAULT if request.user_id is None else FeatureState.MISSING
    return {str(EntityName.USER): user, str(EntityName.CONTEXT): FeatureState.MISSING}
