"""Labelled slates with the features as they were just before each slate was decided."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
from feast import FeatureStore

from app.domain.errors import PropositionsError
from app.features.rows import Rows, rows_from_columns
from app.features.schema import FeatureSchema

# Relevance of what followed an impression: 1 a click, 2 a conversion.
#
# A slate is what shares a request_id; impressions without one count as one slate per user and hour. It
# was decided when, for whom and where the decision log says, else as its first impression says. Features are
# joined one microsecond earlier, because Feast's join takes rows at the same instant, too.
_LABELLED_IMPRESSIONS = """
    WITH slated AS (
        SELECT *, coalesce(request_id, user_id || '@' || date_trunc('hour', occurred_at)) AS slate_id
        FROM events
    ), outcomes AS (
        SELECT slate_id, proposition_id,
               max(CASE event_type WHEN 'conversion' THEN 2 WHEN 'click' THEN 1 ELSE 0 END) AS relevance
        FROM slated WHERE event_type <> 'impression' AND slate_id IS NOT NULL
        GROUP BY slate_id, proposition_id
    ), impressions AS (
        SELECT slate_id, proposition_id, min(user_id) AS user_id, min(context_key) AS context_key,
               min(category) AS category, min(least(occurred_at, received_at)) AS shown_at
        FROM slated WHERE event_type = 'impression' AND slate_id IS NOT NULL
        GROUP BY slate_id, proposition_id
    ), slates AS (
        SELECT i.slate_id, coalesce(min(d.decided_at), min(i.shown_at)) AS slate_at,
               min(d.user_id) AS user_id, min(d.context_key) AS context_key
        FROM impressions i LEFT JOIN decisions d ON d.request_id = i.slate_id
        GROUP BY i.slate_id
    ), shown AS (
        SELECT i.slate_id, i.proposition_id, i.category, s.slate_at,
               coalesce(s.user_id, i.user_id) AS user_id, coalesce(s.context_key, i.context_key) AS context_key
        FROM impressions i JOIN slates s USING (slate_id)
    )
    SELECT slate_id, user_id, proposition_id, context_key,
           user_id || chr(31) || category AS user_category_key,
           context_key || chr(31) || proposition_id AS context_proposition_key,
           coalesce(relevance, 0)::bigint AS relevance,
           extract(epoch FROM slate_at)::float8 AS slate_at_s,
           slate_at - interval '1 microsecond' AS event_timestamp
    FROM shown LEFT JOIN outcomes USING (slate_id, proposition_id)
"""


class NothingToTrainOn(PropositionsError):
    """There are no labelled slates, or only ones of one kind."""


@dataclass(frozen=True)
class Dataset:
    """n impressions, slate after slate in the order of time.

    `relevance` int64 (n,): 0 none, 1 click, 2 conversion. `slate_at_s` float64 (n,): when the slate was
    decided, in seconds since the epoch. `slate_starts` int64: position of each slate's first impression.
    `rows` has n rows per feature view.
    """

    rows: Mapping[str, Rows]
    relevance: np.ndarray
    slate_at_s: np.ndarray
    slate_starts: np.ndarray

    def __len__(self) -> int:
        return len(self.relevance)

    @property
    def slate_sizes(self) -> np.ndarray:
        return np.diff(np.append(self.slate_starts, len(self)))

    def slates(self, first: int, last: int) -> "Dataset":
        """The slates with numbers in [first, last)."""
        ends = np.append(self.slate_starts, len(self))
        chosen = np.arange(ends[first], ends[last])
        return Dataset(
            rows={name: rows.take(chosen) for name, rows in self.rows.items()},
            relevance=self.relevance[chosen],
            slate_at_s=self.slate_at_s[chosen],
            slate_starts=self.slate_starts[first:last] - ends[first],
        )


def build_dataset(store: FeatureStore, schema: FeatureSchema, half_life_count: int) -> Dataset:
    """All labelled slates with point-in-time features through the feature service.

    Raises:
        NothingToTrainOn: no impressions were recorded.
    """
    table = store.get_historical_features(
        entity_df=_LABELLED_IMPRESSIONS,
        features=store.get_feature_service(schema.service),
        full_feature_names=True,
    ).to_arrow()
    if table.num_rows == 0:
        raise NothingToTrainOn("no impressions were recorded: import events, or let clients log them")
    # Features come without an order; ties are broken by what has no meaning for the label.
    table = table.sort_by([(name, "ascending") for name in ("slate_at_s", "slate_id", "proposition_id")])
    slate_ids = table["slate_id"].to_numpy(zero_copy_only=False)
    return Dataset(
        rows={view.name: _view_rows(table, view, half_life_count) for view in schema.views},
        relevance=table["relevance"].to_numpy().astype(np.int64),
        slate_at_s=table["slate_at_s"].to_numpy().astype(np.float64),
        slate_starts=np.flatnonzero(np.append(True, slate_ids[1:] != slate_ids[:-1])),
    )


def _view_rows(table: pa.Table, view, half_life_count: int) -> Rows:
    columns = {name: table[f"{view.name}__{name}"].to_pylist() for name in view.field_names}
    return rows_from_columns(view, columns, table.num_rows, half_life_count)


@dataclass(frozen=True)
class TimeSplit:
    """Past to future: what to fit on, what to stop on, what to report on."""

    train: Dataset
    validation: Dataset
    test: Dataset


def split_by_time(dataset: Dataset, validation_share: float = 0.1, test_share: float = 0.2) -> TimeSplit:
    """Cuts between slates, so that every slate of a part is decided no earlier than the part before.

    Raises:
        NothingToTrainOn: a part would be empty.
    """
    count = len(dataset.slate_starts)
    validation_from = int(count * (1 - test_share - validation_share))
    test_from = int(count * (1 - test_share))
    if not 0 < validation_from < test_from < count:
        raise NothingToTrainOn(f"{count} labelled slates are too few to train, validate and test on")
    return TimeSplit(
        dataset.slates(0, validation_from),
        dataset.slates(validation_from, test_from),
        dataset.slates(test_from, count),
    )


def window(dataset: Dataset) -> tuple[datetime, datetime]:
    """When the first and the last slate were decided."""
    return tuple(datetime.fromtimestamp(s, UTC) for s in (dataset.slate_at_s[0], dataset.slate_at_s[-1]))
