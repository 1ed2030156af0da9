"""Labelled slates with the features as they were just before each slate was decided."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

from app.domain.errors import PropositionsError
from app.domain.types import EventType
from app.features.affinity import Histories, Traits
from app.features.fold import COUNTER_VIEWS, EVENT_ROW
from app.features.rows import Rows
from app.features.schema import EntityName


class NothingToTrainOn(PropositionsError):
    """There are no labelled slates, or only ones of one kind."""


@dataclass(frozen=True, slots=True)
class Slates:
    """m slates in the order of time.

    `ids`, `user_ids` ("" where no user was named) and `context_keys`: str (m,). `decided_at_s` float64 (m,), in seconds
    since the epoch. `starts` int64 (m,): the row of each slate's first impression. `is_sampled` bool (m,): only outcomes
    of the slate are known, and its negatives were drawn; False throughout if it is not given.
    """

    ids: np.ndarray
    user_ids: np.ndarray
    context_keys: np.ndarray
    decided_at_s: np.ndarray
    starts: np.ndarray
    is_sampled: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.is_sampled is None:
            object.__setattr__(self, "is_sampled", np.zeros(len(self.starts), np.bool_))


@dataclass(frozen=True)
class Dataset:
    """m slates with n impressions, slate after slate in the order of time.

    `proposition_ids` str (n,). `positions` float64 (n,): as logged, from 1; NaN where unknown. `relevance` int64 (n,): 0
    none, 1 a click, 2 a conversion. `rows` by feature view: m rows of views of the user and the context, n of others.
    `traits` of all propositions that occur, `trait_rows` int64 (n,) the candidates' rows in them (-1: unknown), and
    `histories` of the m slates' users.
    """

    slates: Slates
    proposition_ids: np.ndarray
    positions: np.ndarray
    relevance: np.ndarray
    rows: Mapping[str, Rows]
    traits: Traits
    trait_rows: np.ndarray
    histories: Histories

    def __len__(self) -> int:
        return len(self.relevance)

    @property
    def slate_count(self) -> int:
        return len(self.slates.starts)

    @property
    def slate_sizes(self) -> np.ndarray:
        """Impressions of each slate, int64 (m,)."""
        return np.diff(np.append(self.slates.starts, len(self)))

    @property
    def slate_of_row(self) -> np.ndarray:
        """The number of each impression's slate, int64 (n,)."""
        return np.repeat(np.arange(self.slate_count), self.slate_sizes)

    @property
    def is_cold_user(self) -> np.ndarray:
        """bool (m,): nothing was counted of the slate's user before it."""
        return np.isnan(self.rows[COUNTER_VIEWS[EntityName.USER]].as_of_s)

    @property
    def is_cold_proposition(self) -> np.ndarray:
        """bool (n,): no impression of the candidate was counted before its slate."""
        counts = self.rows[COUNTER_VIEWS[EntityName.PROPOSITION]].counts
        return counts[:, EVENT_ROW[EventType.IMPRESSION], -1] == 0.0

    def select(self, chosen: np.ndarray) -> "Dataset":
        """The slates with these numbers, ascending int64 (k,)."""
        sizes = self.slate_sizes[chosen]
        starts = np.cumsum(sizes) - sizes
        impressions = np.repeat(self.slates.starts[chosen] - starts, sizes) + np.arange(sizes.sum())
        columns = {field.name: getattr(self.slates, field.name)[chosen] for field in fields(Slates)}
        return Dataset(
            slates=Slates(**{**columns, "starts": starts}),
            proposition_ids=self.proposition_ids[impressions],
            positions=self.positions[impressions],
            relevance=self.relevance[impressions],
            rows={
                name: rows.take(chosen if len(rows) == self.slate_count != len(self) else impressions)
                for name, rows in self.rows.items()
            },
            traits=self.traits,
            trait_rows=self.trait_rows[impressions],
            histories=self.histories.select(chosen),
        )

    def slice(self, first: int, last: int) -> "Dataset":
        """The slates with numbers in [first, last)."""
        return self.select(np.arange(first, last))
