"""Generated data: a catalog, users and their features, the same for the same seed.

Everything comes in chunks of arrays, each from a generator of its own, so memory stays flat for any
number of users and propositions, and no chunk depends on those before it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np

from app.domain.context import KEY_SEPARATOR, complete_context, context_key
from app.features.assembly import SECONDS_PER_DAY
from app.features.history import HISTORY_FIELDS, HISTORY_VIEW, MAX_HISTORY
from app.features.schema import AS_OF_FIELD, COUNTER_FIELDS

CATEGORIES = np.array([f"category-{n:02d}" for n in range(20)], dtype="S")
TAGS = np.array([f"tag-{n:02d}" for n in range(40)], dtype="S")
# As wide as the tags: rows of traits are to have one width.
MAKERS = np.array([f"by={n:03d}" for n in range(400)], dtype="S")
SERIES = np.array([f"in={n:03d}" for n in range(60)], dtype="S")
NUMBERS = np.array(["pages", "price"], dtype="S")
GENDERS = np.array(["female", "male", "other"], dtype="S")
SEGMENTS = np.array([f"segment-{n}" for n in range(8)], dtype="S")
PAGES = ("home", "search", "product", "basket", "account", "article")
DEVICES = ("phone", "tablet", "desktop")

USERS_PER_CHUNK = 20_000
PROPOSITIONS_PER_CHUNK = 20_000
PROPOSITIONS_PER_CONTEXT = 120
NEIGHBOUR_COUNT = 20
FEWEST_RECENT, MOST_RECENT = 5, 20
HISTORY_LENGTHS = (20, 50, MAX_HISTORY)
PROFILED_SHARE = 0.9
INACTIVE_SHARE, WINDOWED_SHARE = 0.02, 0.1


@dataclass(frozen=True, slots=True)
class Size:
    users: int
    propositions: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """n rows of one table: `keys` bytes (n,), `values` float64 or bytes, (n,) or (n, k) for arrays.

    `time_column` takes the moment to which the data hold.
    """

    table: str
    key_column: str
    keys: np.ndarray
    values: Mapping[str, np.ndarray]
    time_column: str = "event_timestamp"

    def __len__(self) -> int:
        return len(self.keys)

    def where(self, chosen: np.ndarray) -> "Chunk":
        """The rows at `chosen` (mask or positions)."""
        values = {name: column[chosen] for name, column in self.values.items()}
        return Chunk(self.table, self.key_column, self.keys[chosen], values, self.time_column)


@dataclass(frozen=True, slots=True)
class CatalogChunk:
    """The `propositions` table's rows and what the feature views hold of them."""

    ids: np.ndarray
    tags: Sequence[str]
    is_active: np.ndarray
    is_windowed: np.ndarray
    features: Chunk


class World:
    """All data of one size, as they are at `now`."""

    def __init__(self, size: Size, half_lives_s: Sequence[float], now: datetime, seed: int = 7) -> None:
        self.size = size
        self.now = now
        self._half_lives_days = np.asarray(half_lives_s) / SECONDS_PER_DAY
        self._seed = seed

    def catalog(self) -> Iterator[CatalogChunk]:
        for ids, rng in self._chunks("p", self.size.propositions, PROPOSITIONS_PER_CHUNK, "catalog"):
            count = len(ids)
            ages_s = rng.exponential(120 * SECONDS_PER_DAY, count)
            values = {
                "category": rng.choice(CATEGORIES, count),
                "value": np.round(rng.lognormal(3.0, 1.0, count), 2),
                "created_at_s": self.now.timestamp() - ages_s,
            }
            tags = _pairs_of(TAGS, count, rng)
            values |= _described(tags, values["value"], rng)
            yield CatalogChunk(
                ids=ids,
                tags=[f"{{{a.decode()},{b.decode()}}}" for a, b in tags.tolist()],
                is_active=rng.random(count) >= INACTIVE_SHARE,
                is_windowed=rng.random(count) < WINDOWED_SHARE,
                features=Chunk("proposition_catalog", "proposition_id", ids, values),
            )

    def features(self) -> Iterator[Chunk]:
        """The rows of all feature tables but `proposition_catalog`, which comes with the catalog."""
        yield from self.proposition_performance()
        yield from self.context_rows()
        for users, rng in self._chunks("u", self.size.users, USERS_PER_CHUNK, "users"):
            yield from self._user_rows(users, rng)

    def proposition_performance(self) -> Iterator[Chunk]:
        for ids, rng in self._chunks("p", self.size.propositions, PROPOSITIONS_PER_CHUNK, "performance"):
            daily = rng.lognormal(2.0, 1.5, len(ids))
            yield self._counters("proposition_performance", "proposition_id", ids, daily, rng)

    def context_rows(self) -> Iterator[Chunk]:
        rng = self._rng("contexts")
        keys = np.array(self.context_keys(), dtype="S")
        yield self._counters("context_activity", "context_key", keys, rng.lognormal(8.0, 0.5, len(keys)), rng)
        popular = proposition_ids(np.arange(min(self.size.propositions, 5_000)))
        for context in keys:
            shown = np.sort(rng.choice(popular, min(PROPOSITIONS_PER_CONTEXT, len(popular)), replace=False))
            yield self._counters(
                "context_proposition_performance",
                "context_proposition_key",
                _crossed(context, shown),
                rng.lognormal(1.5, 1.0, len(shown)),
                rng,
            )

    def context_keys(self) -> list[str]:
        """Keys of every page and device, for this part of the day and the one an hour from now."""
        moments = (self.now, self.now + timedelta(hours=1))
        keys = (
            context_key(
                complete_context({"page": page, "device": device}, moment, UTC),
                ("page", "device", "daypart", "weekday"),
            )
            for moment in moments
            for page in PAGES
            for device in DEVICES
        )
        return list(dict.fromkeys(keys))

    def _user_rows(self, users: np.ndarray, rng: np.random.Generator) -> Iterator[Chunk]:
        yield profiles(users, rng).where(rng.random(len(users)) < PROFILED_SHARE)
        daily = rng.lognormal(1.0, 1.0, len(users))
        yield self._counters("user_activity", "user_id", users, daily, rng)
        owners, categories = _favourites(len(users), rng)
        yield self._counters(
            "user_category_affinity",
            "user_category_key",
            _crossed(users[owners], CATEGORIES[categories]),
            daily[owners] * rng.dirichlet(np.ones(4), len(owners))[:, 0],
            rng,
        )
        yield from self._histories(users, rng)
        recent_counts = rng.integers(FEWEST_RECENT, MOST_RECENT + 1, len(users))
        for count in range(FEWEST_RECENT, MOST_RECENT + 1):
            of_them = users[recent_counts == count]
            recent = proposition_ids(rng.integers(0, self.size.propositions, (len(of_them), count)))
            counted_at_s = self.now.timestamp() - np.sort(
                rng.exponential(SECONDS_PER_DAY, recent.shape), axis=1
            )
            yield Chunk(
                "user_recent", "user_id", of_them, {"propositions": recent, "counted_at_s": counted_at_s}
            )

    def _histories(self, users: np.ndarray, rng: np.random.Generator) -> Iterator[Chunk]:
        """Different propositions for each user, most of them shown once and a tenth clicked."""
        length_of = rng.integers(0, len(HISTORY_LENGTHS), len(users))
        for number, most in enumerate(HISTORY_LENGTHS):
            of_them, count = users[length_of == number], min(most, self.size.propositions)
            first = rng.integers(0, self.size.propositions, (len(of_them), 1))
            step = rng.integers(1, self.size.propositions // count + 1, (len(of_them), 1))
            impressions = rng.geometric(0.7, (len(of_them), count))
            values = (
                proposition_ids((first + step * np.arange(count)) % self.size.propositions),
                impressions.astype(np.float64),
                rng.binomial(impressions, 0.1).astype(np.float64),
            )
            yield Chunk(HISTORY_VIEW, "user_id", of_them, dict(zip(HISTORY_FIELDS, values, strict=True)))

    def neighbours(self) -> Iterator[Chunk]:
        for ids, rng in self._chunks("p", self.size.propositions, PROPOSITIONS_PER_CHUNK, "neighbours"):
            shape = (len(ids), NEIGHBOUR_COUNT)
            values = {
                "neighbour_ids": proposition_ids(rng.integers(0, self.size.propositions, shape)),
                "weights": -np.sort(-rng.exponential(3.0, shape), axis=1),
                AS_OF_FIELD: np.full(len(ids), self.now.timestamp()),
            }
            yield Chunk("proposition_neighbours", "proposition_id", ids, values, "updated_at")

    def _counters(
        self, table: str, key_column: str, keys: np.ndarray, daily: np.ndarray, rng: np.random.Generator
    ) -> Chunk:
        """Counters as steady traffic of `daily` impressions leaves them: daily * half-life / ln 2."""
        count, half_lives = len(keys), len(self._half_lives_days)
        jitter = rng.lognormal(0.0, 0.3, (count, half_lives))
        impressions = daily[:, None] * self._half_lives_days / np.log(2.0) * jitter
        click_rate = rng.beta(2.0, 18.0, count)[:, None] * rng.lognormal(0.0, 0.2, (count, half_lives))
        clicks = impressions * np.minimum(click_rate, 0.9)
        conversions = clicks * rng.beta(1.0, 9.0, count)[:, None]
        dismissals = impressions * rng.beta(1.0, 30.0, count)[:, None]
        counts = (impressions, clicks, conversions, dismissals)
        as_of_s = self.now.timestamp() - rng.exponential(SECONDS_PER_DAY, count)
        return Chunk(
            table, key_column, keys, {**dict(zip(COUNTER_FIELDS, counts, strict=True)), AS_OF_FIELD: as_of_s}
        )

    def _chunks(
        self, letter: str, count: int, chunk_size: int, purpose: str
    ) -> Iterator[tuple[np.ndarray, np.random.Generator]]:
        for number, first in enumerate(range(0, count, chunk_size)):
            ids = _ids(letter, np.arange(first, min(first + chunk_size, count)))
            yield ids, self._rng(purpose, number)

    def _rng(self, purpose: str, number: int = 0) -> np.random.Generator:
        return np.random.default_rng([self._seed, number, *purpose.encode()])


def profiles(users: np.ndarray, rng: np.random.Generator) -> Chunk:
    count = len(users)
    values = {
        "age_years": rng.integers(16, 90, count).astype(np.float64),
        "gender": rng.choice(GENDERS, count),
        "segment": rng.choice(SEGMENTS, count),
    }
    return Chunk("user_profile", "user_id", users, values)


def _pairs_of(texts: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Two different ones of the texts for each of `count` rows, bytes (count, 2)."""
    first = rng.integers(0, len(texts), count)
    second = (first + rng.integers(1, len(texts), count)) % len(texts)
    return texts[np.stack([first, second], axis=1)]


def _described(tags: np.ndarray, prices: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """What propositions with these tags have in common, and their numbers."""
    count = len(tags)
    traits = [tags, rng.choice(MAKERS, (count, 1)), rng.choice(SERIES, (count, 1))]
    return {
        "traits": np.sort(np.concatenate(traits, axis=1), axis=1),
        "number_names": np.broadcast_to(NUMBERS, (count, len(NUMBERS))),
        "number_values": np.stack([np.ceil(rng.lognormal(5.0, 0.7, count)), prices], axis=1),
    }


def user_ids(numbers: np.ndarray) -> np.ndarray:
    return _ids("u", numbers)


def proposition_ids(numbers: np.ndarray) -> np.ndarray:
    return _ids("p", numbers)


def _ids(letter: str, numbers: np.ndarray) -> np.ndarray:
    """Ids of one width, bytes in the shape of `numbers`.

    >>> _ids("u", np.array([7]))
    array([b'u0000007'], dtype='|S8')
    """
    digits = numbers[..., None] // 10 ** np.arange(6, -1, -1) % 10 + ord("0")
    letters = np.full((*numbers.shape, 1), ord(letter))
    return np.concatenate([letters, digits], axis=-1).astype(np.uint8).view("S8")[..., 0]


def _favourites(user_count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Three to six different categories per user: positions of the users and of the categories, (n,)."""
    order = rng.random((user_count, len(CATEGORIES))).argsort(axis=1)[:, :6]
    is_kept = np.arange(6) < rng.integers(3, 7, user_count)[:, None]
    return np.nonzero(is_kept)[0], order[is_kept]


def _crossed(left: np.ndarray | bytes, right: np.ndarray) -> np.ndarray:
    return np.strings.add(np.strings.add(left, KEY_SEPARATOR.encode()), right)
