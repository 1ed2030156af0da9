"""What scoring one request costs: XGBoost, compiled trees if tl2cgen is installed, and bit masks.

Run with `python -m tests.benchmarks.scoring`. Every figure is the median CPU time of one thread, in microseconds
if its name does not say otherwise.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import xgboost

from app.features.forest import Forest

try:
    import tl2cgen
    import treelite
except ImportError:
    tl2cgen = treelite = None

SEED = 7
CANDIDATES, CATALOG, CATEGORIES = 200, 5_000, 8
DEPTH = 6
# The columns of the matrix: of the user and the context, of user x category, of the candidate and its pair.
REQUEST, CROSSED, CANDIDATE = slice(0, 25), slice(25, 36), slice(36, 61)
COLUMN_COUNT = 61


def measure(tree_counts: tuple[int, ...] = (100, 300), repeats: int = 300) -> dict[str, dict[str, float]]:
    """Figures by name, for each number of trees."""
    return {f"{count}_trees": _measure(_fit(count), repeats) for count in tree_counts}


def _measure(booster: xgboost.Booster, repeats: int) -> dict[str, float]:
    rng = np.random.default_rng(SEED)
    user = _values(rng, 1)[:, REQUEST]
    crossed = _values(rng, CATEGORIES)[:, CROSSED]
    catalog = _values(rng, CATALOG)[:, CANDIDATE]
    category_of = rng.integers(0, CATEGORIES, CATALOG)
    slots = rng.choice(CATALOG, CANDIDATES, replace=False)
    rows_of_user = np.broadcast_to(user, (CANDIDATES, user.shape[1]))
    matrix = np.hstack([rows_of_user, crossed[category_of[slots]], catalog[slots]])

    parsed_at = time.thread_time()
    model = json.loads(bytes(booster.save_raw("json")))
    built_at = time.thread_time()
    forest = Forest.from_xgboost(model)
    ready_at = time.thread_time()
    request, crossing, candidate = (forest.part(part) for part in (REQUEST, CROSSED, CANDIDATE))
    catalog_at = time.thread_time()
    catalog_masks = candidate.masks(catalog)
    catalog_ms = (time.thread_time() - catalog_at) * 1e3
    shared, category_masks = request.masks(user)[0], crossing.masks(crossed)

    def gathered() -> np.ndarray:
        return forest.gathered_scores(shared, [(catalog_masks, slots), (category_masks, category_of[slots])])

    def whole_request() -> np.ndarray:
        pools = [(catalog_masks, slots), (crossing.masks(crossed), category_of[slots])]
        return forest.gathered_scores(request.masks(user)[0], pools)

    joined = shared & category_masks[category_of[slots]] & catalog_masks[slots]
    timed = {
        "inplace_predict": lambda: booster.inplace_predict(matrix),
        "masks_of_user_and_context": lambda: request.masks(user),
        "masks_of_user_x_category": lambda: crossing.masks(crossed),
        "scores_of_joined_masks": lambda: forest.scores(joined),
        "gathered_scores": gathered,
        "masks_whole_request": whole_request,
    }
    figures = _medians_us(timed, repeats)
    figures.update(_compiled(booster, matrix, repeats))
    error = np.abs(whole_request() - booster.inplace_predict(matrix)).max()
    return {
        **figures,
        "speedup": figures["inplace_predict"] / figures["masks_whole_request"],
        "largest_error": float(error),
        "parse_ms": (built_at - parsed_at) * 1e3,
        "build_ms": (ready_at - built_at) * 1e3,
        "catalog_masks_ms": catalog_ms,
        "table_mb": forest.nbytes / 1e6,
        "catalog_masks_mb": catalog_masks.nbytes / 1e6,
    }


def _fit(tree_count: int) -> xgboost.Booster:
    rng = np.random.default_rng(SEED)
    matrix = _values(rng, 20_000)
    target = np.nan_to_num(matrix) @ rng.normal(size=COLUMN_COUNT) + rng.normal(size=len(matrix))
    parameters = {"objective": "reg:squarederror", "max_depth": DEPTH, "eta": 0.1, "seed": SEED}
    booster = xgboost.train(parameters, xgboost.DMatrix(matrix, label=target), tree_count)
    booster.set_param({"nthread": 1})
    return booster


def _values(rng: np.random.Generator, row_count: int) -> np.ndarray:
    values = rng.normal(size=(row_count, COLUMN_COUNT)).astype(np.float32)
    values[rng.random(values.shape) < 0.1] = np.nan
    return values


def _compiled(booster: xgboost.Booster, matrix: np.ndarray, repeats: int) -> dict[str, float]:
    """Trees compiled to C, called through the library's own predictor."""
    if tl2cgen is None:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trees.so"
        started = time.perf_counter()
        tl2cgen.export_lib(
            treelite.frontend.from_xgboost(booster),
            toolchain="gcc",
            libpath=path,
            params={"parallel_comp": 2},
        )
        compile_s = time.perf_counter() - started
        predictor = tl2cgen.Predictor(path, nthread=1)
        timed = {"tl2cgen": lambda: predictor.predict(tl2cgen.DMatrix(matrix))}
        return {**_medians_us(timed, repeats), "tl2cgen_compile_s": compile_s}


def _medians_us(timed: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Each in turn, so that a disturbance of the machine meets all of them."""
    samples: dict[str, list[int]] = {name: [] for name in timed}
    for _ in range(repeats):
        for name, run in timed.items():
            started_ns = time.thread_time_ns()
            run()
            samples[name].append(time.thread_time_ns() - started_ns)
    return {name: statistics.median(taken_ns) / 1e3 for name, taken_ns in samples.items()}


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))
