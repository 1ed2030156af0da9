"""What all measurements share: how large they are, worlds to measure on, models, services."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from app.adapters.feature_store import load_schema, open_feature_store
from app.adapters.model_store import ModelStore
from tests.benchmarks import models
from tests.benchmarks.data import Size, World
from tests.benchmarks.keys import LIMITS
from tests.benchmarks.models import FEW_TREES, MANY_TREES, ModelFacts
from tests.benchmarks.service import SERVE, Service
from tests.benchmarks.stores import LoadTimes, Stores, make_template

CANDIDATES = 200
SEED = 7
FEW, MANY, OTHER = f"trees-{FEW_TREES}", f"trees-{MANY_TREES}", f"trees-{FEW_TREES}-other"


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of everything. Times in seconds."""

    size: Size
    candidate_counts: tuple[int, ...]
    catalog_sizes: tuple[int, ...]
    catalog_users: int
    user_counts: tuple[int, ...]
    training_slates: int
    workers: int
    deadline_ms: int
    closed_s: float
    closed_repeats: int
    cache_fill_s: float
    cache_repeats: int
    open_s: float
    requests: int
    promotions: int
    promotion_interval_s: float
    materialized_rows: int
    projected_events: int
    stored_slates: int
    freshness_s: float


FULL = Plan(
    size=Size(users=100_000, propositions=5_000),
    candidate_counts=(25, 50, 100, 200, 500, 1_000),
    catalog_sizes=(1_000, 10_000, 100_000, 1_000_000),
    catalog_users=10_000,
    user_counts=(10_000, 100_000, 1_000_000),
    training_slates=2_000,
    workers=2,
    deadline_ms=80,
    closed_s=2.0,
    closed_repeats=8,
    cache_fill_s=30.0,
    cache_repeats=4,
    open_s=10.0,
    requests=100_000,
    promotions=20,
    promotion_interval_s=1.5,
    materialized_rows=200_000,
    projected_events=60_000,
    stored_slates=10_000,
    freshness_s=30.0,
)
QUICK = Plan(
    size=Size(users=2_000, propositions=400),
    candidate_counts=(25, 100),
    catalog_sizes=(300, 600),
    catalog_users=500,
    user_counts=(300, 600),
    training_slates=1_000,
    workers=1,
    # Nothing is shed, however busy the machine: a quick run shows that all works, not how fast.
    deadline_ms=60_000,
    closed_s=0.2,
    closed_repeats=2,
    cache_fill_s=0.2,
    cache_repeats=2,
    open_s=0.3,
    requests=2_000,
    promotions=2,
    promotion_interval_s=1.5,
    materialized_rows=2_000,
    projected_events=600,
    stored_slates=500,
    freshness_s=1.0,
)


@dataclass(frozen=True, slots=True)
class Loaded:
    """Running stores with the data of one size in them."""

    stores: Stores
    size: Size
    times: LoadTimes


class Bench:
    """Builds worlds, models and services under `folder`, which is emptied first."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan = plan
        self.folder = folder
        self.model_facts: list[ModelFacts] = []
        shutil.rmtree(folder, ignore_errors=True)
        self._template = make_template(folder / "template")
        with self._template.running(), environment(self._template.environment):
            settings = self._template.settings
            store = open_feature_store(settings)
            schema = load_schema(store)
            self._online_views = frozenset(view.name for view in store.list_feature_views())
        self._half_lives_s = settings.half_lives_s
        self._models = ModelStore(folder / "models", self._half_lives_s)
        self._train(schema)

    @contextmanager
    def world(self, name: str, size: Size) -> Iterator[Loaded]:
        stores = self._template.copy_to(self.folder / name)
        try:
            with stores.running():
                times = stores.load(self._world(size), self._online_views)
                yield Loaded(stores, size, times)
        finally:
            shutil.rmtree(stores.folder)

    @contextmanager
    def empty_world(self, name: str) -> Iterator[Stores]:
        stores = self._template.copy_to(self.folder / name)
        try:
            with stores.running(), environment(stores.environment):
                yield stores
        finally:
            shutil.rmtree(stores.folder)

    def service(
        self,
        loaded: Loaded,
        name: str,
        command: Sequence[str] = SERVE,
        model: str = FEW,
        **settings: object,
    ) -> Service:
        """A service with data of its own on the stores of a world; response cache off unless asked for."""
        folder = self.folder / "services" / name
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.folder / "models", folder / "models")
        ModelStore(folder / "models", self._half_lives_s).activate(model)
        chosen = {
            "WEB_WORKERS": self.plan.workers,
            "CANDIDATE_BUDGET": CANDIDATES,
            "SUGGEST_CACHE_TTL_S": 0,
            "SUGGEST_DEADLINE_MS": self.plan.deadline_ms,
            **LIMITS,
            **settings,
        }
        return Service(
            command,
            {**loaded.stores.environment, **{key: str(value) for key, value in chosen.items()}},
            folder,
        )

    def _world(self, size: Size) -> World:
        return World(size, self._half_lives_s, datetime.now(UTC), SEED)

    def _train(self, schema) -> None:
        world = self._world(self.plan.size)
        sample = models.draw_sample(world, schema, self._half_lives_s, self.plan.training_slates, SEED)
        many = models.train(sample, MANY_TREES, SEED)
        other = models.train(sample, FEW_TREES, SEED + 1)
        for version, booster in ((FEW, many[:FEW_TREES]), (MANY, many), (OTHER, other)):
            self.model_facts.append(models.store(self._models, version, booster, sample.spec))


@contextmanager
def environment(names: Mapping[str, str]) -> Iterator[None]:
    """This process's environment for a while: Feast's stores read their addresses from it."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(names)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
