"""A synthetic world of training: slates whose clicks follow a known utility, with features as of just before each."""

from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np

from app.domain.types import EventType
from app.features.affinity import Histories, Traits
from app.features.assembly import MatrixSpec, learn_spec
from app.features.columns import RaggedColumn
from app.features.fold import EVENT_ROW
from app.features.rows import NUMBER_PREFIX, Rows
from app.features.schema import EntityName, FeatureSchema, FieldKind, FieldSchema, ViewSchema
from tests.builders import DAY_S, NOON, counter_view
from training.dataset import Dataset, Slates

HALF_LIVES_S = (DAY_S, 30 * DAY_S)
CATEGORIES = ("finance", "news", "sport")
TAGS = ("calm", "funny", "long", "new", "sad", "short")
PAGES = ("cart", "home", "search")
SECONDS_BETWEEN_SLATES = 300.0
MAX_HISTORY = 100

TRAINING_SCHEMA = FeatureSchema(
    project="propositions",
    service="ranker_v1",
    views=(
        ViewSchema(
            "proposition_catalog",
            EntityName.PROPOSITION,
            "proposition_id",
            (
                FieldSchema("category", "String", FieldKind.CATEGORY),
                FieldSchema("value", "Float64", FieldKind.NUMBER),
                FieldSchema("created_at_s", "Float64", FieldKind.TIME),
                FieldSchema("traits", "Array(String)", FieldKind.TRAITS),
                FieldSchema("number_names", "Array(String)", FieldKind.NUMBER_NAMES),
                FieldSchema("number_values", "Array(Float64)", FieldKind.NUMBER_VALUES),
            ),
            3650 * DAY_S,
        ),
        ViewSchema(
            "user_history",
            EntityName.USER,
            "user_id",
            (
                FieldSchema("propositions", "Array(String)", FieldKind.HISTORY),
                FieldSchema("impressions", "Array(Float64)", FieldKind.HISTORY),
                FieldSchema("clicks", "Array(Float64)", FieldKind.HISTORY),
            ),
            365 * DAY_S,
        ),
        counter_view("user_activity", EntityName.USER, "user_id"),
        counter_view("proposition_performance", EntityName.PROPOSITION, "proposition_id"),
        counter_view("context_activity", EntityName.CONTEXT, "context_key"),
        counter_view(
            "user_category_affinity", EntityName.USER_CATEGORY, "user_category_key", "user_activity"
        ),
        counter_view(
            "context_proposition_performance",
            EntityName.CONTEXT_PROPOSITION,
            "context_proposition_key",
            "proposition_performance",
        ),
    ),
)
COUNTER_NAMES = tuple(view.name for view in TRAINING_SCHEMA.views if view.has_counters)


@dataclass(frozen=True)
class World:
    """Who there is, and what they like: all arrays by the number of the user or the proposition."""

    popularity: np.ndarray  # (p,) of the log-odds of a click
    categories: np.ndarray  # (p,) numbers in CATEGORIES
    tags: np.ndarray  # bool (p, TAGS)
    lengths: np.ndarray  # (p,) a number among the attributes, standard normal
    values: np.ndarray  # (p,) standard normal; nobody cares for it
    tag_tastes: np.ndarray  # (u, TAGS)
    length_tastes: np.ndarray  # (u,)
    category_tastes: np.ndarray  # (u, CATEGORIES)
    page_tastes: np.ndarray  # (PAGES, CATEGORIES)

    @classmethod
    def draw(cls, rng: np.random.Generator, users: int, propositions: int) -> "World":
        return cls(
            popularity=rng.normal(-1.2, 0.8, propositions),
            categories=rng.integers(len(CATEGORIES), size=propositions),
            tags=rng.random((propositions, len(TAGS))) < 0.3,
            lengths=rng.normal(size=propositions),
            values=rng.normal(size=propositions),
            tag_tastes=rng.normal(0.0, 0.8, (users, len(TAGS))),
            length_tastes=rng.normal(0.0, 0.5, users),
            category_tastes=rng.normal(0.0, 0.5, (users, len(CATEGORIES))),
            page_tastes=rng.normal(0.0, 0.5, (len(PAGES), len(CATEGORIES))),
        )

    def utility(self, user: int, page: int, propositions: np.ndarray) -> np.ndarray:
        """Log-odds of a click by the user (-1: nobody in particular) where position plays no part."""
        categories = self.categories[propositions]
        utility = self.popularity[propositions] + self.page_tastes[page, categories]
        if user >= 0:
            utility = utility + self.tags[propositions] @ self.tag_tastes[user]
            utility += self.lengths[propositions] * self.length_tastes[user]
            utility += self.category_tastes[user, categories]
        return utility

    @property
    def traits(self) -> Traits:
        lengths = self.tags.sum(axis=1).astype(np.int32)
        starts = np.cumsum(lengths, dtype=np.int64) - lengths
        codes = RaggedColumn((np.nonzero(self.tags)[1].astype(np.int32),), starts, lengths)
        return Traits(codes, len(TAGS), {"length": self.lengths})


def synthetic_dataset(seed: int, slates: int, **options) -> tuple[FeatureSchema, Dataset]:
    """The schema and slates of `synthetic_world`, which see for the options."""
    return TRAINING_SCHEMA, synthetic_world(seed, slates, **options)[1]


def synthetic_world(
    seed: int,
    slates: int,
    *,
    slate_sizes: tuple[int, int] = (6, 10),
    users: int = 25,
    propositions: int = 40,
    anonymous_share: float = 0.1,
    conversion_share: float = 0.2,
    position_bias: float = 0.0,
    is_shown_by_value: bool = False,
) -> tuple[World, Dataset, np.ndarray]:
    """Slates of between `slate_sizes` (inclusive) propositions, one every five minutes.

    Also returns the world, and how much each impression was wanted: its log-odds of a click float64 (n,) where position
    plays no part. `conversion_share` of clicks are conversions. `position_bias` is how much the log-odds of a click fall
    with the logarithm of the position. Propositions are shown in random order, or by their `value`, which nobody cares
    for: then positions and features are confounded.
    """
    rng = np.random.default_rng(seed)
    world = World.draw(rng, users, propositions)
    counters, log = _Counters(), _Log(world)
    for number in range(slates):
        at_s = NOON.timestamp() + number * SECONDS_BETWEEN_SLATES
        user = -1 if rng.random() < anonymous_share else int(rng.integers(users))
        page = int(rng.integers(len(PAGES)))
        size = int(rng.integers(slate_sizes[0], slate_sizes[1] + 1))
        shown = rng.choice(propositions, size, replace=False)
        if is_shown_by_value:
            shown = shown[np.argsort(-world.values[shown] + rng.normal(0.0, 0.2, size))]
        utility = world.utility(user, page, shown)
        log_odds = utility - position_bias * np.log(np.arange(1, size + 1))
        clicked = rng.random(size) < 1.0 / (1.0 + np.exp(-log_odds))
        relevance = clicked * (1 + (rng.random(size) < conversion_share))
        log.add(at_s, user, page, shown, relevance, utility, counters.before(world, user, page, shown))
        counters.add(world, user, page, shown, relevance, at_s)
    return world, log.dataset(), np.concatenate(log.utilities)


def synthetic_spec(dataset: Dataset) -> MatrixSpec:
    return learn_spec(TRAINING_SCHEMA, HALF_LIVES_S, dataset.rows)


def without_clicks(dataset: Dataset) -> Dataset:
    """The same slates, and nobody clicked anything."""
    return replace(dataset, relevance=np.zeros_like(dataset.relevance))


class _Counters:
    """Decayed counts by view and key, as the fold keeps them: the value at the time of the newest event."""

    def __init__(self) -> None:
        shape = (len(EVENT_ROW), len(HALF_LIVES_S))
        self._states: dict = defaultdict(lambda: (np.zeros(shape), np.nan))

    def _keys(self, world: World, user: int, page: int, shown: np.ndarray) -> dict[str, list]:
        """Keys by view: one of the user or the context, one for each proposition; None where nobody is known."""
        is_known = user >= 0
        return {
            "user_activity": [user if is_known else None],
            "context_activity": [page],
            "proposition_performance": shown.tolist(),
            "user_category_affinity": [
                (user, category) if is_known else None for category in world.categories[shown].tolist()
            ],
            "context_proposition_performance": [(page, proposition) for proposition in shown.tolist()],
        }

    def before(self, world: World, user: int, page: int, shown: np.ndarray) -> dict[str, list]:
        empty = (np.zeros((len(EVENT_ROW), len(HALF_LIVES_S))), np.nan)
        return {
            view: [empty if key is None else self._states[view, key] for key in keys]
            for view, keys in self._keys(world, user, page, shown).items()
        }

    def add(self, world: World, user: int, page: int, shown: np.ndarray, relevance: np.ndarray, at_s: float):
        new = np.zeros((len(shown), len(EVENT_ROW), 1))
        new[:, EVENT_ROW[EventType.IMPRESSION]] = 1.0
        new[:, EVENT_ROW[EventType.CLICK], 0] = relevance > 0
        new[:, EVENT_ROW[EventType.CONVERSION], 0] = relevance > 1
        for view, keys in self._keys(world, user, page, shown).items():
            for key, events in zip(keys, new if len(keys) == len(shown) else [new.sum(axis=0)], strict=True):
                if key is not None:
                    counts, as_of_s = self._states[view, key]
                    age_s = 0.0 if np.isnan(as_of_s) else at_s - as_of_s
                    decayed = counts * np.exp2(-age_s / np.array(HALF_LIVES_S))
                    self._states[view, key] = (decayed + events, at_s)


class _Log:
    """What was recorded, slate after slate."""

    def __init__(self, world: World) -> None:
        self.utilities: list[np.ndarray] = []
        self._world = world
        self._slates: list[tuple[float, int, int]] = []
        self._shown: list[np.ndarray] = []
        self._relevance: list[np.ndarray] = []
        self._states: dict[str, list] = {view: [] for view in COUNTER_NAMES}
        self._seen: dict[int, dict[int, np.ndarray]] = defaultdict(dict)
        self._histories: list[dict[int, np.ndarray]] = []

    def add(
        self, at_s: float, user: int, page: int, shown, relevance, utility, states: dict[str, list]
    ) -> None:
        self._slates.append((at_s, user, page))
        self._shown.append(shown)
        self._relevance.append(relevance)
        self.utilities.append(utility)
        for view, of_slate in states.items():
            self._states[view] += of_slate
        seen = self._seen[user] if user >= 0 else {}
        self._histories.append(dict(list(seen.items())[-MAX_HISTORY:]))
        for proposition, clicked in zip(shown.tolist(), relevance > 0, strict=True):
            seen[proposition] = np.add(seen.pop(proposition, np.zeros(2)), (1.0, clicked))

    def dataset(self) -> Dataset:
        at_s, users, pages = (np.array(column) for column in zip(*self._slates, strict=True))
        sizes = np.array([len(shown) for shown in self._shown])
        shown = np.concatenate(self._shown)
        return Dataset(
            slates=Slates(
                ids=np.array([f"s{number}" for number in range(len(sizes))]),
                user_ids=np.array(["" if user < 0 else f"u{user}" for user in users.tolist()]),
                context_keys=np.array([f"page={PAGES[page]}" for page in pages]),
                decided_at_s=at_s,
                starts=np.cumsum(sizes) - sizes,
            ),
            proposition_ids=np.array([f"p{number}" for number in shown.tolist()]),
            positions=np.concatenate([np.arange(1.0, size + 1.0) for size in sizes]),
            relevance=np.concatenate(self._relevance).astype(np.int64),
            rows={"proposition_catalog": self._catalog(shown), **self._counter_rows()},
            traits=self._world.traits,
            trait_rows=shown.astype(np.int64),
            histories=self._packed_histories(),
        )

    def _catalog(self, shown: np.ndarray) -> Rows:
        values = {
            "category": np.array(CATEGORIES)[self._world.categories[shown]],
            "value": self._world.values[shown],
            "created_at_s": NOON.timestamp() - DAY_S * (1.0 + shown),
            NUMBER_PREFIX + "length": self._world.lengths[shown],
        }
        return Rows(None, None, values)

    def _counter_rows(self) -> dict[str, Rows]:
        return {
            view: Rows(
                np.stack([counts for counts, _ in states]), np.array([as_of_s for _, as_of_s in states]), {}
            )
            for view, states in self._states.items()
        }

    def _packed_histories(self) -> Histories:
        """The newest first."""
        lengths = [len(history) for history in self._histories]
        rows = [row for history in self._histories for row in reversed(history)]
        counts = [counts for history in self._histories for counts in reversed(history.values())]
        impressions, clicks = np.array(counts).reshape(-1, 2).T
        return Histories(
            np.concatenate([[0], np.cumsum(lengths)]), np.array(rows, dtype=np.int64), impressions, clicks
        )
