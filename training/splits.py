"""Data sets in three: what to fit on, what to stop on, what to report on."""

import hashlib
from dataclasses import dataclass

import numpy as np

from training.dataset import Dataset, NothingToTrainOn


@dataclass(frozen=True)
class Split:
    """What to fit on, what to choose the number of trees by, and what to report on: no slate is in two of them."""

    train: Dataset
    validation: Dataset
    test: Dataset


@dataclass(frozen=True, slots=True)
class Shares:
    """How much of the data is for validation and test; the rest is to train on."""

    validation: float = 0.1
    test: float = 0.2


def split_by_time(
    dataset: Dataset, validation_share: float = 0.1, test_share: float = 0.2, embargo_s: float = 0.0
) -> Split:
    """Past to future, cut between slates: those of a part are decided no earlier than those of the part before.

    With an embargo, slates of validation and test that were decided less than `embargo_s` seconds after the last slate
    of the part before are dropped: until then its labels were not known.

    Raises:
        NothingToTrainOn: a part would be empty.
    """
    count = dataset.slate_count
    validation_from = int(count * (1 - test_share - validation_share))
    return _cut(dataset, validation_from, int(count * (1 - test_share)), embargo_s)


def split_at(
    dataset: Dataset, moment_s: float, validation_share: float = 0.1, embargo_s: float = 0.0
) -> Split:
    """Tests on the slates that were decided at `moment_s` (seconds since the epoch) or later.

    The last `validation_share` of the others is for validation; the embargo is that of `split_by_time`.

    Raises:
        NothingToTrainOn: a part would be empty.
    """
    test_from = int(np.searchsorted(dataset.slates.decided_at_s, moment_s, side="left"))
    return _cut(dataset, int(test_from * (1 - validation_share)), test_from, embargo_s)


def split_by_user(dataset: Dataset, shares: Shares = Shares(), seed: int = 0) -> Split:
    """Users as a whole: all slates of a user are in one part, which a hash of the user's id and the seed decides.

    Slates without a user go where their own ids' hashes say. Shares are kept about, not exactly.

    Raises:
        NothingToTrainOn: a part would be empty.
    """
    users = dataset.slates.user_ids
    places = _places(np.where(users == "", np.char.add("slate:", dataset.slates.ids), users), seed)
    is_test = places < shares.test
    is_validation = ~is_test & (places < shares.test + shares.validation)
    return _select(dataset, ~(is_test | is_validation), is_validation, is_test, "more users")


def _places(ids: np.ndarray, seed: int) -> np.ndarray:
    """A number in [0, 1) for each id, which looks random and depends on nothing but the id and the seed."""
    distinct, number_of_id = np.unique(ids, return_inverse=True)
    key = seed.to_bytes(8, "little", signed=True)
    digests = (hashlib.blake2b(text.encode(), digest_size=8, key=key).digest() for text in distinct.tolist())
    numbers = np.frombuffer(b"".join(digests), "<u8")
    return (numbers >> np.uint64(11))[number_of_id] / 2.0**53


def _cut(dataset: Dataset, validation_from: int, test_from: int, embargo_s: float) -> Split:
    numbers, decided_at_s = np.arange(dataset.slate_count), dataset.slates.decided_at_s

    def between(first: int, last: int) -> np.ndarray:
        is_chosen = (numbers >= first) & (numbers < last)
        if 0 < first < len(numbers) and embargo_s > 0:
            is_chosen &= decided_at_s >= decided_at_s[first - 1] + embargo_s
        return is_chosen

    return _select(
        dataset,
        between(0, validation_from),
        between(validation_from, test_from),
        between(test_from, len(numbers)),
        "more events" if embargo_s == 0 else "more events, or shorten the embargo",
    )


def _select(
    dataset: Dataset, is_train: np.ndarray, is_validation: np.ndarray, is_test: np.ndarray, wanted: str
) -> Split:
    chosen = {"train": is_train, "validation": is_validation, "test": is_test}
    empty = [name for name, is_chosen in chosen.items() if not is_chosen.any()]
    if empty:
        raise NothingToTrainOn(
            f"{dataset.slate_count} labelled slates are too few to train, validate and test on: "
            f"nothing is left for {' and '.join(empty)}; collect {wanted}"
        )
    return Split(**{name: dataset.select(np.flatnonzero(is_chosen)) for name, is_chosen in chosen.items()})
