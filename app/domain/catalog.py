"""The propositions as columns, and the one place that decides which of them may be shown."""

from collections.abc import Sequence
from datetime import datetime

import numpy as np

from app.domain.types import Proposition, SuggestRequest


class Catalog:
    """An immutable list of propositions with the columns that eligibility needs.

    A proposition is eligible when it is active, `now` lies in its window [starts_at, ends_at), it was
    not excluded, it is among the request's candidates (if given), and it passes the filters. Every
    ranker, the static default included, picks from `eligible`.
    """

    def __init__(self, propositions: Sequence[Proposition]) -> None:
        self.propositions = tuple(propositions)
        self.index = {p.proposition_id: position for position, p in enumerate(self.propositions)}
        self.categories = np.array([p.category or "" for p in self.propositions], dtype=np.str_)
        self._is_active = np.array([p.is_active for p in self.propositions], dtype=bool)
        self._starts_s = np.array([_seconds(p.starts_at, -np.inf) for p in self.propositions])
        self._ends_s = np.array([_seconds(p.ends_at, np.inf) for p in self.propositions])
        self._values = np.array(
            [np.nan if p.value is None else p.value for p in self.propositions], dtype=np.float64
        )
        self._tags = [frozenset(p.tags) for p in self.propositions]

    def __len__(self) -> int:
        return len(self.propositions)

    def eligible(self, request: SuggestRequest, now: datetime) -> np.ndarray:
        """Positions of the propositions that may be shown, ascending, int64."""
        now_s = now.timestamp()
        mask = self._is_active & (self._starts_s <= now_s) & (now_s < self._ends_s)
        if request.candidate_ids is not None:
            wanted = np.zeros(len(self), dtype=bool)
            wanted[self._positions(request.candidate_ids)] = True
            mask &= wanted
        mask[self._positions(request.excluded_ids)] = False
        filters = request.filters
        if filters.categories:
            mask &= np.isin(self.categories, list(filters.categories))
        if filters.min_value is not None:
            mask &= self._values >= filters.min_value
        positions = np.flatnonzero(mask)
        if filters.tags:
            positions = np.array([i for i in positions if filters.tags <= self._tags[i]], dtype=np.int64)
        return positions

    def _positions(self, proposition_ids: frozenset[str]) -> list[int]:
        return [self.index[i] for i in proposition_ids if i in self.index]


def _seconds(moment: datetime | None, default: float) -> float:
    return default if moment is None else moment.timestamp()
