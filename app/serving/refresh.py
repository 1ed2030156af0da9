"""What a worker holds in memory and keeps fresh in the background: snapshot, model, dependency states."""

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from app.domain.errors import ConfigurationError, ModelRefused, StoreUnavailable
from app.features.ports import Model
from app.features.schema import FeatureSchema
from app.features.snapshot import Snapshot, empty_snapshot

log = logging.getLogger(__name__)


class SnapshotFolder(Protocol):
    def open(self, half_lives_s: tuple[float, ...]) -> Snapshot | None: ...


class SchemaSource(Protocol):
    def read(self) -> FeatureSchema: ...


class ActiveModels(Protocol):
    def active(self): ...
    def load(self, version: str, schema: FeatureSchema) -> Model: ...


class LiveSnapshot:
    """The snapshot that was published last. Each refresh replaces it whole; until the first, it is empty."""

    def __init__(
        self, folder: SnapshotFolder, half_lives_s: tuple[float, ...], on_change: Callable[[], None]
    ) -> None:
        self._folder = folder
        self._half_lives_s = half_lives_s
        self._on_change = on_change
        self.current = empty_snapshot(half_lives_s)

    @property
    def is_loaded(self) -> bool:
        return len(self.current.catalog) > 0

    def refresh(self) -> None:
        published = self._folder.open(self._half_lives_s)
        if published is None or published is self.current:
            return
        if self.is_loaded and published.version.catalog_at != self.current.version.catalog_at:
            self._on_change()
        self.current = published


class LiveModel:
    """The active model. A version that is refused leaves the one before in service.

    `prove` looks at a version before it is loaded, and raises ModelRefused if that would be no good. `run` runs what takes
    long where it does not hold up requests. `prepare` makes everything ready for a model
    that is about to serve, and returns what to do in the moment in which it does.
    """

    def __init__(
        self,
        models: ActiveModels,
        schemas: SchemaSource,
        on_load: Callable[[str], None],
        run: Callable[[Callable], Any] = lambda work: work(),
        prepare: Callable[[Model], Callable[[], None]] = lambda model: lambda: None,
        prove: Callable[[str], None] = lambda version: None,
    ) -> None:
        self._models = models
        self._schemas = schemas
        self._on_load = on_load
        self._run = run
        self._prepare = prepare
        self._prove = prove
        self._refused: str | None = None
        self.current: Model | None = None
        self.problem: str | None = "not read yet"

    def refresh(self) -> None:
        try:
            active = self._models.active()
        except ModelRefused as error:
            self.problem = str(error)
            return
        if active is None:
            self.problem = "no model is promoted: rules serve"
        elif self.current is not None and active.version == self.current.version:
            self.problem, self._refused = None, None
        elif active.version != self._refused:
            self._load(active.version)

    def _load(self, version: str) -> None:
        try:
            if self.current is not None:  # else nobody waits for it who could be disturbed
                self._prove(version)
            model = self._run(lambda: self._models.load(version, self._schemas.read()))
            switch = self._run(lambda: self._prepare(model))
        except ModelRefused as error:
            self._refused, self.problem = version, str(error)
            self._on_load("refused")
            log.error("model refused, the old one stays: %s", error)
        except (StoreUnavailable, ConfigurationError) as error:
            self.problem = str(error)
        else:
            self.current = model
            switch()
            self._refused, self.problem = None, None
            self._on_load("loaded")
            log.info("model %s serves", version)


class Background:
    """Runs actions again and again, each in a thread of its own, until stopped."""

    def __init__(self, actions: Mapping[Callable[[], None], float]) -> None:
        """`actions` maps each action to the seconds between two runs."""
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._repeat, args=action, daemon=True) for action in actions.items()
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()

    def _repeat(self, action: Callable[[], None], interval_s: float) -> None:
        while not self._stop.wait(interval_s):
            try:
                action()
            except Exception:
                # A bug in one run must not end the refreshing of a worker that serves well otherwise.
                log.exception("background action failed")
