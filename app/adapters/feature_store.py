"""Feast, seen from the service: the declared schema, and writes to the online store."""

import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from datetime import UTC, datetime

from feast import FeatureStore, FeatureView
from feast.errors import FeastObjectNotFoundException
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import DoubleList, StringList, Value
from redis.exceptions import RedisError
from sqlalchemy.exc import OperationalError, ProgrammingError

from app.domain.errors import ConfigurationError, StoreUnavailable
from app.features.fold import FOLDED_VIEWS, Counters, FeatureRow, State
from app.features.recent import RECENT_FIELD
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
_PROJECTED_KEY = "propositions:projected"


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
        return OnlineFeatureWriter(store)
    except ConfigurationError as error:
        log.warning("features go to Postgres only: %s", error)
        return None


class RegistrySchema:
    """The feature schema from Feast's registry; from local disk while that does not answer."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._path = settings.snapshot_dir / "schema.json"
        self._store: FeatureStore | None = None

    def read(self) -> FeatureSchema:
        try:
            schema = self._read_registry()
        except StoreUnavailable:
            try:
                return FeatureSchema.from_json(json.loads(self._path.read_text()))
            except (OSError, ValueError, KeyError, TypeError) as error:
                log.warning("no feature schema on disk either: %s", error)
            raise
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        draft.write_text(json.dumps(schema.to_json()))
        draft.replace(self._path)
        return schema

    def _read_registry(self) -> FeatureSchema:
        if self._store is None:
            self._store = open_feature_store(self._settings)
        else:
            self._store.refresh_registry()
        return load_schema(self._store)


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
    """Writes what the projector folded where Feast and the service read it, and remembers how far it got.

    The memory lies in the online store itself, so a store that lost its data is seen to be behind.

    Raises:
        ConfigurationError: the registry lacks a view, because the feature repo was not applied since.
    """

    def __init__(self, store: FeatureStore) -> None:
        # The projector is the only writer of newer rows: it need not ask for the older ones first.
        store.config.online_store.skip_dedup = True
        self._store = store
        try:
            self._views = {name: store.get_feature_view(name) for name in FOLDED_VIEWS}
        except FeastObjectNotFoundException as error:
            raise ConfigurationError(f"{error}: run `propositions feast apply`") from error
        self._online_store = store.provider.online_store
        self._client = self._online_store._get_client(store.config.online_store)

    def write(self, rows: Mapping[str, Sequence[FeatureRow]]) -> None:
        """Raises StoreUnavailable when the online store does not answer; writing again does no harm."""
        try:
            for name, view_rows in rows.items():
                view = self._views[name]
                join_key = view.entity_columns[0].name
                self._online_store.online_write_batch(
                    self._store.config,
                    view,
                    [_online_row(join_key, row) for row in view_rows],
                    progress=None,
                )
        except RedisError as error:
            raise StoreUnavailable(f"Redis did not take the features: {error}") from error

    def write_facts(self) -> None:
        """Materializes the views that are not folded (profiles, catalog) from their first row on.

        Feast's incremental materialization starts where it ended last, also on a store that lost its data.
        """
        views = [view for view in self._store.list_feature_views() if view.name not in FOLDED_VIEWS]
        now = datetime.now(UTC)
        try:
            with redirect_stdout(sys.stderr):  # Feast tells of its progress; stdout holds logs only
                for view in views:
                    self._store.materialize(now - view.ttl, now, [view.name])
        except RedisError as error:
            raise StoreUnavailable(f"Redis did not take the features: {error}") from error

    def projected(self) -> str | None:
        """What `set_projected` was told last; None when the store knows nothing."""
        try:
            value = self._client.get(_PROJECTED_KEY)
        except RedisError as error:
            raise StoreUnavailable(f"Redis did not answer: {error}") from error
        return None if value is None else value.decode()

    def set_projected(self, mark: str) -> None:
        try:
            self._client.set(_PROJECTED_KEY, mark)
        except RedisError as error:
            raise StoreUnavailable(f"Redis did not answer: {error}") from error


def _online_row(join_key: str, row: FeatureRow):
    return (
        EntityKey(join_keys=[join_key], entity_values=[Value(string_val=row.key)]),
        _online_values(row.state),
        row.valid_from,
        None,
    )


def _online_values(state: State) -> dict[str, Value]:
    if isinstance(state, Counters):
        return {
            **{
                name: Value(double_list_val=DoubleList(val=counts))
                for name, counts in zip(COUNTER_FIELDS, state.counts.tolist(), strict=True)
            },
            AS_OF_FIELD: Value(double_val=state.as_of_s),
        }
    return {RECENT_FIELD: Value(string_list_val=StringList(val=state.proposition_ids))}
