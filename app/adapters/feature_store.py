"""Feast, seen from the service: the declared schema, and writes to the online store."""

import logging
import os
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from datetime import UTC, datetime, timedelta
from operator import attrgetter

import numpy as np
import psycopg
import pyarrow as pa
from feast import FeatureStore, FeatureView
from feast.errors import FeastObjectNotFoundException
from redis.exceptions import RedisError, ResponseError
from sqlalchemy.exc import OperationalError, ProgrammingError

from app.adapters.feast_values import NotInColumns
from app.adapters.redis_wire import open_wire
from app.adapters.suggestion_cache import RedisSlateStore
from app.domain.errors import ConfigurationError, StoreUnavailable
from app.features.fold import COUNTER_VIEWS, FOLDED_VIEWS, Counters, FeatureRow
from app.features.history import HISTORY_FIELDS, HISTORY_VIEW, UserHistory
from app.features.recent import RECENT_FIELD, RECENT_VIEW, Recents
from app.features.schema import (
    AS_OF_FIELD,
    COUNTER_FIELDS,
    EntityName,
    FeatureSchema,
    FieldKind,
    FieldSchema,
    ViewSchema,
)
from app.settings import Settings

log = logging.getLogger(__name__)

FEATURE_SERVICE = "ranker_v1"
_USERS_AT_A_TIME = 5_000
_ROWS_PER_BATCH = 10_000
_MARKS_KEY = "propositions:projected-slots"


def open_feature_store(settings: Settings) -> FeatureStore:
    """Feast's store for the feature repo. Make it after a fork; it reads the registry when asked.

    Raises:
        StoreUnavailable: the registry's database does not answer.
    """
    os.environ.setdefault("FEAST_USAGE", "False")
    store = FeatureStore(repo_path=str(settings.feature_repo))
    try:
        _ = store.registry
    except OperationalError as error:
        raise StoreUnavailable("Feast's registry did not answer") from error
    except ProgrammingError as error:
        raise StoreUnavailable("Feast's registry has no place yet: run `propositions migrate`") from error
    return store


def open_online_writer(settings: Settings) -> "OnlineFeatureWriter | None":
    """A writer to the online store; None while the feature repo is not applied, or only an older one is."""
    store = open_feature_store(settings)
    try:
        load_schema(store)
        return OnlineFeatureWriter(store, settings.suggest_cache_ttl)
    except ConfigurationError as error:
        log.warning("features go to Postgres only: %s", error)
        return None


def load_schema(store: FeatureStore) -> FeatureSchema:
    """The feature service as the registry holds it.

    Raises:
        ConfigurationError: the feature repo was not applied.
        StoreUnavailable: the registry's database does not answer.
    """
    try:
        service = store.get_feature_service(FEATURE_SERVICE)
        views = {p.name: store.get_feature_view(p.name) for p in service.feature_view_projections}
    except FeastObjectNotFoundException as error:
        raise ConfigurationError("the feature repo is not applied: run `propositions feast apply`") from error
    except OperationalError as error:
        raise StoreUnavailable("Feast's registry did not answer") from error
    return FeatureSchema(
        project=store.project,
        service=service.name,
        views=tuple(
            _view_schema(views[projection.name], [feature.name for feature in projection.features])
            for projection in service.feature_view_projections
        ),
    )


def _view_schema(view: FeatureView, feature_names: Sequence[str]) -> ViewSchema:
    (join_key,) = (column.name for column in view.entity_columns)
    return ViewSchema(
        name=view.name,
        entity=EntityName(view.entities[0]),
        join_key=join_key,
        fields=tuple(
            FieldSchema(field.name, str(field.dtype), _kind(field.dtype, field.tags))
            for field in view.features
            if field.name in feature_names
        ),
        ttl_s=view.ttl.total_seconds(),
        prior_view=view.tags.get("prior"),
    )


def _kind(dtype, tags: Mapping[str, str]) -> FieldKind:
    if "kind" in tags:
        return FieldKind(tags["kind"])
    return FieldKind.CATEGORY if str(dtype) == "String" else FieldKind.NUMBER


class OnlineFeatureWriter:
    """Writes what projectors folded where Feast and the service read it, and remembers how far they got.

    The memory lies in the online store itself, so a store that lost its data is seen to be behind. Slates
    that were kept for users whose features change are outdated; `slates_ttl` is how long slates are kept.

    Raises:
        ConfigurationError: the registry lacks a view, because the feature repo was not applied since.
    """

    def __init__(self, store: FeatureStore, slates_ttl: timedelta = timedelta(0)) -> None:
        self._store = store
        try:
            self._views = {name: store.get_feature_view(name) for name in FOLDED_VIEWS}
        except FeastObjectNotFoundException as error:
            raise ConfigurationError(f"{error}: run `propositions feast apply`") from error
        self._facts = {v.name: v for v in store.list_feature_views() if v.name not in FOLDED_VIEWS}
        self._online_store = store.provider.online_store
        self._client = self._online_store._get_client(store.config.online_store)
        self._slates = RedisSlateStore(open_wire(self._client), slates_ttl) if slates_ttl else None

    def write(self, rows: Mapping[str, Sequence[FeatureRow]], over_newer: bool = False) -> None:
        """Newer rows that are there stay, unless they are to be overwritten, too.

        Raises StoreUnavailable when the online store does not answer; writing again does no harm.
        """
        try:
            views = ((self._views[name], view_rows) for name, view_rows in rows.items())
            self._write(((view, _online_batch(view, view_rows)) for view, view_rows in views), over_newer)
        except RedisError as error:
            raise StoreUnavailable(f"Redis did not take the features: {error}") from error
        self._outdate_slates([row.key for row in rows.get(COUNTER_VIEWS[EntityName.USER], ())])

    def _outdate_slates(self, users: Sequence[str]) -> None:
        if self._slates is not None:
            for first in range(0, len(users), _USERS_AT_A_TIME):
                self._slates.forget(users[first : first + _USERS_AT_A_TIME])

    def fact_views(self) -> Collection[str]:
        """The views that are not folded: profiles, the catalog, and whatever else the feature repo declares."""
        return self._facts.keys()

    def write_facts(self, view_name: str, after: datetime | None, until: datetime) -> None:
        """Writes the newest rows of a view that is not folded.

        Those of later than `after`, up to `until`; all if `after` is None, which is what a store that lost its data
        needs: Feast's incremental materialization starts where it ended last.

        Raises:
            StoreUnavailable: one of the stores does not answer.
        """
        until = max(until, datetime.now(UTC))
        try:
            view = self._facts[view_name]
            first = until - view.ttl if after is None else after + timedelta(microseconds=1)
            keys = self._write_newest(view, first, until, over_newer=after is None)
        except RedisError as error:
            raise StoreUnavailable(f"Redis did not take the features: {error}") from error
        except (OperationalError, psycopg.OperationalError) as error:
            raise StoreUnavailable("PostgreSQL did not answer Feast") from error
        if after is not None and view.entities == [EntityName.USER]:
            self._outdate_slates(keys)

    def _write_newest(
        self, view: FeatureView, after: datetime, until: datetime, over_newer: bool
    ) -> list[str]:
        """The keys of the rows. Past `materialize`, which adds an interval to the registry each time."""
        keys: list[str] = []

        def noted() -> Iterator[tuple[FeatureView, pa.RecordBatch]]:
            for batch in self._newest_rows(view, after, until):
                keys.extend(batch.column(view.join_keys[0]).to_pylist())
                yield view, batch

        try:
            self._write(noted(), over_newer)
        except NotInColumns:
            with redirect_stdout(sys.stderr):  # Feast tells of its progress; stdout holds logs only
                self._store.materialize(after, until, [view.name])
        return keys

    def _newest_rows(self, view: FeatureView, after: datetime, until: datetime) -> Iterator[pa.RecordBatch]:
        source = view.batch_source
        names = {column: field for field, column in source.field_mapping.items()}
        job = self._store.provider.offline_store.pull_latest_from_table_or_query(
            self._store.config,
            source,
            [names.get(key, key) for key in view.join_keys],
            [names.get(field.name, field.name) for field in view.features],
            source.timestamp_field,
            source.created_timestamp_column,
            after,
            until,
        )
        for batch in job.to_batches(_ROWS_PER_BATCH):
            yield batch.rename_columns([source.field_mapping.get(name, name) for name in batch.schema.names])

    def _write(self, batches: Iterable[tuple[FeatureView, pa.RecordBatch]], over_newer: bool) -> None:
        self._online_store.write_batches(self._store.config, batches, over_newer)

    def marks(self) -> Mapping[str, str]:
        """What `set_marks` was told, by name; empty when the store lost its data, or somebody else's lie there."""
        try:
            marks = self._client.hgetall(_MARKS_KEY)
            return {
                name.decode(errors="replace"): mark.decode(errors="replace") for name, mark in marks.items()
            }
        except ResponseError as error:
            if not str(error).startswith("WRONGTYPE"):
                raise StoreUnavailable(f"Redis refuses: {error}") from error
            self._client.delete(_MARKS_KEY)
            return {}
        except RedisError as error:
            raise StoreUnavailable(f"Redis did not answer: {error}") from error

    def set_marks(self, marks: Mapping[str, str]) -> None:
        try:
            self._client.hset(_MARKS_KEY, mapping=dict(marks))
        except RedisError as error:
            raise StoreUnavailable(f"Redis did not answer: {error}") from error


def _online_batch(view: FeatureView, rows: Sequence[FeatureRow]) -> pa.RecordBatch:
    (join_key,) = view.join_keys
    states = [row.state for row in rows]
    to_columns = _OTHER_COLUMNS.get(view.name, _counter_columns)
    return pa.RecordBatch.from_pydict(
        {
            join_key: pa.array([row.key for row in rows], pa.string()),
            **to_columns(states),
            view.batch_source.timestamp_field: pa.array([row.valid_from for row in rows], pa.timestamp("us")),
        }
    )


def _counter_columns(states: Sequence[Counters]) -> dict[str, pa.Array]:
    counts = np.stack([state.counts for state in states])  # (rows, event types, half-lives)
    offsets = pa.array(np.arange(len(states) + 1) * counts.shape[2], pa.int32())
    lists = {
        name: pa.ListArray.from_arrays(offsets, counts[:, position].ravel())
        for position, name in enumerate(COUNTER_FIELDS)
    }
    return {**lists, AS_OF_FIELD: pa.array([state.as_of_s for state in states], pa.float64())}


def _recent_columns(states: Sequence[Recents]) -> dict[str, pa.Array]:
    ids = [list(state.proposition_ids) for state in states]
    return {RECENT_FIELD: pa.array(ids, pa.list_(pa.string()))}


def _history_columns(states: Sequence[UserHistory]) -> dict[str, pa.Array]:
    ids = pa.array([state.proposition_ids for state in states], pa.list_(pa.string()))
    impressions, clicks = (
        pa.array([counts(state) for state in states], pa.list_(pa.float64()))
        for counts in (attrgetter("impressions"), attrgetter("clicks"))
    )
    return dict(zip(HISTORY_FIELDS, (ids, impressions, clicks), strict=True))


_OTHER_COLUMNS = {RECENT_VIEW: _recent_columns, HISTORY_VIEW: _history_columns}
