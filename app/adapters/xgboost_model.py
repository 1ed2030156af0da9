"""Models of XGBoost, as this service scores with them."""

import logging
from dataclasses import dataclass

import numpy as np
import orjson
import xgboost

from app.domain.errors import ModelRefused, UnsupportedForest
from app.features.assembly import MatrixSpec
from app.features.forest import Forest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class XGBoostModel:
    """Implements `Model`: a gradient-boosted ranker, single-threaded, for one process."""

    version: str
    spec: MatrixSpec
    booster: xgboost.Booster
    forest: Forest | None

    def score(self, matrix: np.ndarray) -> np.ndarray:
        try:
            return self.booster.inplace_predict(matrix)
        except (xgboost.core.XGBoostError, ValueError) as error:
            raise ModelRefused(f"model {self.version} cannot score: {error}") from error


def read_model(version: str, spec: MatrixSpec, content: bytes) -> XGBoostModel:
    """The model in `content`, whose columns must be those of `spec`.

    Raises:
        ModelRefused: XGBoost cannot read it, or it names other columns.
    """
    try:
        booster = xgboost.Booster({"nthread": 1})
        booster.load_model(bytearray(content))
    except xgboost.core.XGBoostError as error:
        raise ModelRefused(f"model {version} cannot be read by XGBoost") from error
    if tuple(booster.feature_names or ()) != spec.columns:
        raise ModelRefused(f"model {version} names other columns than its manifest")
    booster.feature_names = None  # checked once; not again on every prediction
    return XGBoostModel(version, spec, booster, _forest(version, booster))


def _forest(version: str, booster: xgboost.Booster) -> Forest | None:
    """The booster's trees for evaluation part by part; None where that is not possible."""
    kind = orjson.loads(booster.save_config())["learner"]["gradient_booster"]["name"]
    try:
        if kind != "gbtree":  # found out before all its trees are parsed, which holds up requests
            raise UnsupportedForest(f"it is a {kind}")
        return Forest.from_xgboost(orjson.loads(booster.save_raw("json")))
    except UnsupportedForest as error:
        log.warning("model %s is scored by XGBoost itself: %s", version, error)
        return None
