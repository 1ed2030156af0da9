"""Memory and time of fitting a ranker on more impressions than one would like to hold as floats."""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from app.features.affinity import Histories, Traits
from app.features.assembly import learn_spec
from app.features.columns import RaggedColumn
from app.features.rows import NUMBER_PREFIX, Rows
from app.features.schema import EntityName
from tests.builders import DAY_S, HOUR_S, NOON
from tests.training_data import CATEGORIES, TRAINING_SCHEMA
from training.dataset import Dataset, Slates
from training.models import MAX_ROWS_IN_MEMORY, ModelParameters, fit_ranker

# With these half-lives and numbers the schema of the tests has 90 columns.
HALF_LIVES_S = (HOUR_S, DAY_S, 7 * DAY_S, 30 * DAY_S)
NUMBERS = tuple(f"number_{index}" for index in range(25))
SLATE_SIZE = 24
PART_ROWS, VALIDATION_ROWS = 500_000, 50_000
PROPOSITIONS, TRAIT_CODES, TRAITS_EACH, HISTORY = 5_000, 300, 5, 20
TREES = 50
_REQUEST_ENTITIES = (EntityName.USER, EntityName.CONTEXT)


def measure(rows: int, max_rows_in_memory: int = MAX_ROWS_IN_MEMORY) -> dict:
    """Fits on `rows` generated impressions, in parts of PART_ROWS, in a process of its own.

    Returns `rows`, `columns`, `trees`, `seconds` of all and `generating_seconds` of them, and `peak_bytes`, the largest
    resident memory, of which `base_bytes` were there before anything was generated.
    """
    command = [sys.executable, "-m", "tests.benchmarks.training_memory", str(rows), str(max_rows_in_memory)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def part(seed: int, row_count: int) -> Dataset:
    """Random slates whose clicks follow two of their columns."""
    rng = np.random.default_rng(seed)
    slate_count = row_count // SLATE_SIZE
    row_count = slate_count * SLATE_SIZE
    shown = rng.integers(PROPOSITIONS, size=row_count)
    decided_at_s = NOON.timestamp() + (seed * row_count + np.arange(slate_count) * SLATE_SIZE) * 0.1
    rows = {
        view.name: _counters(
            rng, slate_count if view.entity in _REQUEST_ENTITIES else row_count, decided_at_s
        )
        for view in TRAINING_SCHEMA.views
        if view.has_counters
    }
    numbers = _numbers()
    rows["proposition_catalog"] = Rows(
        None,
        None,
        {
            "category": np.array(CATEGORIES)[shown % len(CATEGORIES)],
            "value": numbers[0][shown],
            "created_at_s": NOON.timestamp() - DAY_S * (1.0 + shown),
            **{NUMBER_PREFIX + name: numbers[index][shown] for index, name in enumerate(NUMBERS)},
        },
    )
    clicks, impressions = (rows["proposition_performance"].counts[:, row, -1] for row in (1, 0))
    log_odds = 3.0 * clicks / (1.0 + impressions) + 0.5 * numbers[0][shown] - 2.0
    return Dataset(
        slates=Slates(
            ids=np.array([f"{seed}-{number}" for number in range(slate_count)]),
            user_ids=np.array([f"u{number}" for number in rng.integers(100_000, size=slate_count).tolist()]),
            context_keys=np.full(slate_count, "page=home"),
            decided_at_s=decided_at_s,
            starts=np.arange(slate_count) * SLATE_SIZE,
        ),
        proposition_ids=np.array([f"p{number}" for number in range(PROPOSITIONS)])[shown],
        positions=np.tile(np.arange(1.0, SLATE_SIZE + 1.0), slate_count),
        relevance=(rng.random(row_count) < 1.0 / (1.0 + np.exp(-log_odds))).astype(np.int64),
        rows=rows,
        traits=_traits(numbers),
        trait_rows=shown,
        histories=_histories(rng, slate_count),
    )


def _counters(rng: np.random.Generator, count: int, decided_at_s: np.ndarray) -> Rows:
    """Clicks are fewer than impressions, and conversions and dismissals fewer than clicks."""
    counts = rng.gamma(1.0, 20.0, (count, 1, 1)) * rng.random((count, 4, len(HALF_LIVES_S)))
    counts *= np.array([1.0, 0.3, 0.1, 0.05])[:, None]
    moments = np.repeat(decided_at_s, count // len(decided_at_s))
    return Rows(counts, moments - rng.exponential(DAY_S, count), {})


def _numbers() -> np.ndarray:
    """Of all propositions, the same in every part: float64 (NUMBERS, PROPOSITIONS)."""
    return np.random.default_rng(0).normal(size=(len(NUMBERS), PROPOSITIONS))


def _traits(numbers: np.ndarray) -> Traits:
    codes = np.random.default_rng(0).integers(TRAIT_CODES, size=PROPOSITIONS * TRAITS_EACH)
    starts = np.arange(PROPOSITIONS, dtype=np.int64) * TRAITS_EACH
    lengths = np.full(PROPOSITIONS, TRAITS_EACH, np.int32)
    column = RaggedColumn((codes.astype(np.int32),), starts, lengths)
    return Traits(column, TRAIT_CODES, dict(zip(NUMBERS, numbers, strict=True)))


def _histories(rng: np.random.Generator, count: int) -> Histories:
    items = count * HISTORY
    clicks = (rng.random(items) < 0.2).astype(np.float64)
    starts = np.arange(count + 1, dtype=np.int64) * HISTORY
    return Histories(starts, rng.integers(PROPOSITIONS, size=items), np.ones(items), clicks)


def _fit(rows: int, max_rows_in_memory: int) -> dict:
    base_bytes, started_s, generating_s = _peak_bytes(), time.perf_counter(), 0.0
    sample = part(1_000_000, VALIDATION_ROWS)
    spec = learn_spec(TRAINING_SCHEMA, HALF_LIVES_S, sample.rows)

    def parts() -> Iterator[Dataset]:
        nonlocal generating_s
        for number, first in enumerate(range(0, rows, PART_ROWS)):
            before_s = time.perf_counter()
            generated = part(number, min(PART_ROWS, rows - first))
            generating_s += time.perf_counter() - before_s
            yield generated
            del generated  # or two parts would be in memory while the next is made

    parameters = ModelParameters(max_trees=TREES, patience_trees=TREES)
    booster = fit_ranker(spec, parts, sample, parameters, seed=1, max_rows_in_memory=max_rows_in_memory)
    return {
        "rows": rows,
        "columns": len(spec.columns),
        "trees": booster.num_boosted_rounds(),
        "seconds": round(time.perf_counter() - started_s, 1),
        "generating_seconds": round(generating_s, 1),
        "peak_bytes": _peak_bytes(),
        "base_bytes": base_bytes,
    }


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    print(json.dumps(_fit(int(sys.argv[1]), int(sys.argv[2]))))
