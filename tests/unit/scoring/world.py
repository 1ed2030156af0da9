"""A random model, a user with rows of every kind, and what scores need beside them."""

from dataclasses import dataclass

import xgboost

from app.domain.context import crossed_key
from app.domain.types import FeatureState
from app.features.assembly import MatrixSpec
from app.features.forest import Forest
from app.features.ports import OnlineRows
from app.features.rows import rows_from_records
from app.features.schema import EntityName, FieldKind, FieldSchema, ViewSchema
from tests.builders import NOON, request
from tests.unit.test_ranking import FakeReader

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
