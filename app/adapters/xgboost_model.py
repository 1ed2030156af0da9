"""Models of XGBoost, as this service scores with them.

XGBoost itself, whose import takes two seconds and 100 MB for pandas and more, is needed only for what `Forest` cannot score.
"""

import logging
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from app.domain.errors import ModelRefused, UnsupportedForest
from app.features.assembly import MatrixSpec
from app.features.forest import Forest

if TYPE_CHECKING:
    import xgboost

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class XGBoostModel:
    """Implements `Model`: a gradient-boosted ranker, single-threaded, for one process. `content` is its file."""

    version: str
    spec: MatrixSpec
    forest: Forest | None
    content: bytes = field(repr=False)

    @cached_property
    def booster(self) -> "xgboost.Booster":
        """The trees as XGBoost holds them.

        Raises:
            ModelRefused: XGBoost cannot read them.
        """
        import xgboost

        try:
            booster = xgboost.Booster({"nthread": 1})
            booster.load_model(bytearray(self.content))
        except xgboost.core.XGBoostError as error:
            raise ModelRefused(f"model {self.version} cannot be read by XGBoost") from error
        booster.feature_names = None  # checked when it was read; not again on every prediction
        return booster

    def score(self, matrix: np.ndarray) -> np.ndarray:
        booster = self.booster
        import xgboost

        try:
            return booster.inplace_predict(matrix)
        except (xgboost.core.XGBoostError, ValueError) as error:
            raise ModelRefused(f"model {self.version} cannot score: {error}") from error


def read_model(version: str, spec: MatrixSpec, content: bytes) -> XGBoostModel:
    """The model in `content`, the JSON of XGBoost, whose columns must be those of `spec`.

    Raises:
        ModelRefused: it cannot be read, or it names other columns.
    """
    try:
        parsed = orjson.loads(content)
        names = tuple(parsed["learner"]["feature_names"])
    except (ValueError, LookupError, TypeError) as error:
        raise ModelRefused(f"model {version} is not the JSON of an XGBoost model") from error
    if names != spec.columns:
        raise ModelRefused(f"model {version} names other columns than its manifest")
    model = XGBoostModel(version, spec, _forest(version, parsed), content)
    if model.forest is None:
        _ = model.booster  # read now, when it can still be refused
    return model


def _forest(version: str, parsed: dict[str, Any]) -> Forest | None:
    """The trees for evaluation part by part; None where that is not possible."""
    try:
        return Forest.from_xgboost(parsed)
    except UnsupportedForest as error:
        log.warning("model %s is scored by XGBoost itself: %s", version, error)
        return None
