"""What is asked of the service, for the load generators."""

from collections.abc import Iterable, Mapping

import numpy as np

from tests.benchmarks.data import DEVICES, PAGES, Size, proposition_ids, user_ids

ZIPF_EXPONENT = 1.1
SLATE_LIMIT = 10
BATCH_EVENTS = 100


def uniform_suggestions(size: Size, count: int, seed: int = 11) -> Iterable[Mapping]:
    """Every user as often as every other: next to nothing repeats."""
    rng = np.random.default_rng(seed)
    return _suggestions(rng.integers(0, size.users, count), rng)


def zipf_suggestions(size: Size, count: int, seed: int = 12) -> Iterable[Mapping]:
    """The user of popularity rank r comes as often as r ** -1.1, from one or two contexts."""
    rng = np.random.default_rng(seed)
    weights = np.arange(1, size.users + 1) ** -ZIPF_EXPONENT
    ranks = np.searchsorted(np.cumsum(weights / weights.sum()), rng.random(count))
    return _suggestions(rng.permutation(size.users)[np.minimum(ranks, size.users - 1)], rng)


def clicks(size: Size, count: int, seed: int = 13) -> Iterable[Mapping]:
    rng = np.random.default_rng(seed)
    shown = proposition_ids(rng.integers(0, size.propositions, count)).tolist()
    for suggestion, proposition in zip(uniform_suggestions(size, count, seed), shown, strict=True):
        yield {
            "event_type": "click",
            "user_id": suggestion["user_id"],
            "proposition_id": proposition.decode(),
            "context": suggestion["context"],
            "position": 1,
        }


def click_batches(size: Size, count: int, seed: int = 14) -> Iterable[Mapping]:
    """`count` events in all."""
    events = list(clicks(size, count, seed))
    for first in range(0, count, BATCH_EVENTS):
        yield {"events": events[first : first + BATCH_EVENTS]}


def _suggestions(users: np.ndarray, rng: np.random.Generator) -> Iterable[Mapping]:
    second_page = rng.random(len(users)) < 0.3
    for number, user, is_second in zip(
        users.tolist(), user_ids(users).tolist(), second_page.tolist(), strict=True
    ):
        yield {
            "user_id": user.decode(),
            "context": {
                "page": PAGES[(number + is_second) % len(PAGES)],
                "device": DEVICES[number % len(DEVICES)],
            },
            "limit": SLATE_LIMIT,
        }
