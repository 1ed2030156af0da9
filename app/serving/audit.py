"""A sample of decisions is logged with the features that the model read, to be compared with those of training."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from app.domain.types import Slate, SlateFeatures, SuggestRequest
from app.features.catalog import Catalog
from app.serving.online import OnlineFeatures
from app.serving.scoring import Scorer


class FeatureSampling:
    """Marks a share of the slates, each with the same chance. `draw` gives numbers in [0, 1)."""

    def __init__(self, share: float, draw: Callable[[], float]) -> None:
        self._share = share
        self._draw = draw

    def mark(
        self, slate: Slate, request: SuggestRequest, scorer: Scorer, catalog: Catalog, online: OnlineFeatures
    ) -> Slate:
        """The slate; if it is drawn, with what computes its features later from the very rows that were read."""
        if self._draw() >= self._share:
            return slate
        return replace(slate, features=partial(served_features, slate, request, scorer, catalog, online))


NO_SAMPLING = FeatureSampling(0.0, lambda: 0.0)


def served_features(
    slate: Slate, request: SuggestRequest, scorer: Scorer, catalog: Catalog, online: OnlineFeatures
) -> SlateFeatures:
    """What `scorer` read of the propositions of a slate that it ranked."""
    positions = catalog.positions_of([ranked.proposition_id for ranked in slate.propositions])
    rows = scorer.matrix(request.context_key, positions, catalog, online, slate.decided_at.timestamp())
    return SlateFeatures(scorer.model.spec.columns, rows, scorer.as_of_s)
