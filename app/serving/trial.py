"""Whether a model is fast enough to serve, tried beside the requests and not at their cost."""

import math
import time
from collections.abc import Callable

import numpy as np

from app.domain.errors import ModelRefused
from app.serving.online import OnlineFeatures
from app.serving.scoring import Scorer

# The first try also computes what the next ones find computed, and a machine hiccups.
TRIES = 3
# A few candidates tell what is hopeless, at a small part of the cost.
SAMPLE_SHARE, HOPELESS = 8, 3.0


def require_fast(
    scorer: Scorer, candidate_count: int, limit_s: float, cpu_clock: Callable[[], float] = time.thread_time
) -> None:
    """Scores as many candidates as a slate has at most, for a user of whom nothing is known.

    Raises:
        ModelRefused: no try took at most `limit_s` of the processor.
    """
    catalog = scorer.snapshot.catalog
    positions = np.arange(min(len(catalog), candidate_count))
    if not len(positions):
        return

    def shortest_s(tried: np.ndarray) -> float:
        shortest_s = math.inf
        for _ in range(TRIES):
            began_s = cpu_clock()
            scorer.score("", tried, catalog, OnlineFeatures({}, ()), scorer.as_of_s)
            shortest_s = min(shortest_s, cpu_clock() - began_s)
            if shortest_s * len(positions) / len(tried) <= limit_s:
                break
        return shortest_s * len(positions) / len(tried)

    takes_s = shortest_s(positions[: max(len(positions) // SAMPLE_SHARE, 1)])
    if takes_s <= HOPELESS * limit_s:
        takes_s = shortest_s(positions)
    if takes_s > limit_s:
        raise ModelRefused(
            f"model {scorer.model.version} takes {takes_s * 1e3:.0f} ms to score {len(positions)} candidates, "
            f"and may take {limit_s * 1e3:.0f} ms: train a smaller one, or lower CANDIDATE_BUDGET"
        )
