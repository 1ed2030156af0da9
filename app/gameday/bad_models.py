"""Models that nobody should promote: one whose file is damaged, and one that takes too long."""

import time
from dataclasses import dataclass

import numpy as np
import orjson
import xgboost

from app.adapters.model_store import BASELINE, RANKER, ModelStore

CORRUPT, SLOW = "99990101T000000Z-corrupt", "99990101T000000Z-slow"
# XGBoost scores a `dart` booster tree by tree, so that a small file takes long.
_TRIAL_TREES = 1_000


@dataclass(frozen=True, slots=True)
class BadModels:
    corrupt: str
    slow: str


def write_bad_models(store: ModelStore, good: str, row_count: int, slow_s: float) -> BadModels:
    """Both are made from the good version; the slow one takes `slow_s` for a slate of `row_count` candidates."""
    manifest = store.manifest(good)
    files = {name: (store.folder(good) / name).read_bytes() for name in (RANKER, BASELINE)}
    store.write(CORRUPT, files, manifest)
    ranker = store.folder(CORRUPT) / RANKER
    damaged = bytearray(files[RANKER])
    damaged[len(damaged) // 2] ^= 0xFF
    ranker.chmod(0o644)
    ranker.write_bytes(damaged)
    slow = _slow_booster(tuple(manifest["columns"]), row_count, slow_s)
    store.write(SLOW, {**files, RANKER: slow}, manifest)
    return BadModels(CORRUPT, SLOW)


def _slow_booster(columns: tuple[str, ...], row_count: int, slow_s: float) -> bytes:
    rows = np.linspace(0.0, 1.0, row_count * len(columns), dtype=np.float32).reshape(row_count, -1)
    data = xgboost.DMatrix(rows, rows[:, 0], feature_names=list(columns))
    stump = orjson.loads(xgboost.train({"max_depth": 1, "nthread": 1}, data, 1).save_raw("json"))
    trial = _repeated(stump, _TRIAL_TREES)
    trial.feature_names = None
    took_s = min(_seconds(trial, rows) for _ in range(3))
    slow = _repeated(stump, round(_TRIAL_TREES * slow_s / took_s))
    return bytes(slow.save_raw("json"))


def _seconds(booster: xgboost.Booster, rows: np.ndarray) -> float:
    began_s = time.perf_counter()
    booster.inplace_predict(rows)
    return time.perf_counter() - began_s


def _repeated(stump: dict, count: int) -> xgboost.Booster:
    """The one tree of a model, so many times."""
    learner = dict(stump["learner"])
    trees = learner["gradient_booster"]["model"]
    (tree,) = trees["trees"]
    learner["gradient_booster"] = {
        "name": "dart",
        "weight_drop": [1.0] * count,
        "gbtree": {
            "name": "gbtree",
            "model": {
                **trees,
                "trees": [{**tree, "id": number} for number in range(count)],
                "tree_info": [0] * count,
                "iteration_indptr": list(range(count + 1)),
                "gbtree_model_param": {**trees["gbtree_model_param"], "num_trees": str(count)},
            },
        },
    }
    booster = xgboost.Booster({"nthread": 1})
    booster.load_model(bytearray(orjson.dumps({**stump, "learner": learner})))
    return booster
