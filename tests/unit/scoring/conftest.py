from dataclasses import replace

import numpy as np
import pytest
import xgboost

from app.features.snapshot import SnapshotChanges
from tests.builders import proposition
from tests.unit.scoring.world import HERE, HISTORY
from tests.unit.test_ranking import counters, snapshot


@pytest.fixture
def spec(spec):
    """Also with what a user and a candidate have in common."""
    schema = replace(spec.schema, views=(*spec.schema.views, HISTORY))
    return replace(spec, schema=schema, ranks={"length": (0.0, 1.0, 2.0, 3.0)})


@pytest.fixture
def booster(spec):
    rng = np.random.default_rng(7)
    matrix = rng.gamma(1.0, 1.0, (4_000, len(spec.columns))).astype(np.float32)
    matrix[rng.random(matrix.shape) < 0.2] = np.nan
    target = np.nan_to_num(matrix) @ rng.normal(size=matrix.shape[1])
    parameters = {"max_depth": 5, "objective": "reg:squarederror", "nthread": 1, "eta": 0.3}
    return xgboost.train(parameters, xgboost.DMatrix(matrix, label=target), 30)


@pytest.fixture
def taken():
    return snapshot(
        *(proposition(f"p{n}", category=f"c{n % 4}", value=float(n)) for n in range(30)),
        performance={f"p{n}": counters(10 * n, n) for n in range(0, 30, 2)},
        context_performance={f"{HERE}\x1fp{n}": counters(n, n / 2) for n in range(0, 30, 3)},
    ).with_changes(
        SnapshotChanges(
            attributes={f"p{n}": {"numbers.length": float(n % 4)} for n in range(0, 30, 2)},
            traits={f"p{n}": [f"t{n % 5}", f"t{n % 3}"] for n in range(30)},
        )
    )
