"""Feast's stores with our addresses and timeouts: named by class path in `feature_store.yaml`.

Feast makes them itself, also under its stock command line, so they read the settings themselves:
neither an address nor a password stands in the feature repo.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

import pyarrow as pa
import redis
from feast import FeatureView, RepoConfig
from feast.infra.offline_stores.contrib.postgres_offline_store.postgres import (
    PostgreSQLOfflineStore,
    PostgreSQLOfflineStoreConfig,
    PostgreSQLRetrievalJob,
)
from feast.infra.offline_stores.offline_store import RetrievalJob
from feast.infra.offline_stores.offline_utils import (
    FeatureViewQueryContext,
    get_feature_view_query_context,
)
from feast.infra.online_stores.redis import RedisOnlineStore, RedisOnlineStoreConfig, _versioned_fv_name
from feast.infra.registry.base_registry import BaseRegistry
from feast.infra.utils.postgres.connection_utils import _get_conn
from pydantic import model_validator
from sqlalchemy import URL, CreateEnginePlugin
from sqlalchemy.engine import make_url

from app.adapters.feast_copy import copy_batches
from app.adapters.feast_values import FeastRow, serialize_batch, serialize_rows
from app.adapters.feast_writes import Rows, write_rows
from app.adapters.redis_client import ClusterClient, open_redis
from app.settings import load_settings

FEAST_SCHEMA = "feast"


class PropositionsRedisOnlineStoreConfig(RedisOnlineStoreConfig):
    type: Literal["app.adapters.feast_stores.PropositionsRedisOnlineStore"] = (
        "app.adapters.feast_stores.PropositionsRedisOnlineStore"
    )


class PropositionsRedisOnlineStore(RedisOnlineStore):
    """Feast's Redis store over `REDIS_URL`, without the retries that make a dead Redis cost seconds."""

    def _get_client(self, online_store_config: RedisOnlineStoreConfig) -> redis.Redis | ClusterClient:
        if self._client is None:
            settings = load_settings()
            self._client = open_redis(settings, settings.redis_batch_timeout_ms)
        return self._client

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[FeastRow],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """As in Feast, but nobody's newer row is lost to a writer that read before and writes after it."""
        version = config.entity_key_serialization_version
        for rows in serialize_rows(data, _versioned_fv_name(table, config), config.project, version):
            self._write(config, rows)
            if progress:
                progress(len(rows))

    def write_batches(
        self,
        config: RepoConfig,
        batches: Iterable[tuple[FeatureView, pa.RecordBatch]],
        over_newer: bool = False,
    ) -> None:
        """Writes batches with the columns of their views; serializes each while Redis takes the one before.

        Newer rows that are there stay, as in Feast, unless they are to be overwritten, too.

        Raises:
            redis.RedisError: as `write_rows`.
            NotInColumns, KeyError, ValueError: as `serialize_batch`.
        """
        version = config.entity_key_serialization_version
        with ThreadPoolExecutor(max_workers=1) as writer:
            writing: Future[None] | None = None
            for view, batch in batches:
                stored_name = _versioned_fv_name(view, config)
                rows = serialize_batch(batch, view, stored_name, config.project, version)
                if writing:
                    writing.result()
                writing = writer.submit(self._write, config, rows, over_newer)
            if writing:
                writing.result()

    def _write(self, config: RepoConfig, rows: Rows, over_newer: bool = False) -> None:
        options = config.online_store
        keep_newer = not (over_newer or options.skip_dedup)
        write_rows(self._get_client(options), rows, keep_newer, options.key_ttl_seconds or 0)


class PropositionsPostgresOfflineStoreConfig(PostgreSQLOfflineStoreConfig):
    type: Literal["app.adapters.feast_stores.PropositionsPostgresOfflineStore"] = (
        "app.adapters.feast_stores.PropositionsPostgresOfflineStore"
    )

    @model_validator(mode="before")
    @classmethod
    def _address_from_settings(cls, values: dict[str, Any]) -> dict[str, Any]:
        address = urlsplit(load_settings().postgres_url)
        options = dict(parse_qsl(address.query))
        return {
            "host": address.hostname,
            "port": address.port or 5432,
            "database": address.path.lstrip("/"),
            "user": unquote(address.username or ""),
            "password": unquote(address.password or ""),
            "db_schema": FEAST_SCHEMA,
            "sslmode": options.get("sslmode", "prefer"),
            "sslkey_path": options.get("sslkey"),
            "sslcert_path": options.get("sslcert"),
            "sslrootcert_path": options.get("sslrootcert"),
            **values,
        }


class CopyingRetrievalJob(PostgreSQLRetrievalJob):
    """Feast's job, whose rows can also be had as columns."""

    def to_batches(self, size: int) -> Iterator[pa.RecordBatch]:
        """Up to `size` rows at a time. Raises NotInColumns where Feast's own way must be taken."""
        with self._query_generator() as query, _get_conn(self.config.offline_store) as connection:
            connection.read_only = True
            yield from copy_batches(connection, query, size)


class PropositionsPostgresOfflineStore(PostgreSQLOfflineStore):
    """Feast's PostgreSQL store over `DATABASE_URL`, with faster reads and a join that uses the indexes.

    Feast pairs every entity row with the whole history of its entity before it picks the latest (100,000
    impressions of MovieLens: 140 s). For entities given as SQL this looks up each row through the
    primary key instead, with the same result.
    """

    @staticmethod
    def pull_latest_from_table_or_query(config: RepoConfig, *args: Any, **kwargs: Any) -> RetrievalJob:
        """As in Feast."""
        job = PostgreSQLOfflineStore.pull_latest_from_table_or_query(config, *args, **kwargs)
        return CopyingRetrievalJob(job.to_sql(), config, full_feature_names=False)

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: Any,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = False,
        **kwargs: Any,
    ) -> RetrievalJob:
        """As in Feast. The SQL of `entity_df` must name its time `event_timestamp`."""
        if not isinstance(entity_df, str) or filter_by_created_timestamp:
            return PostgreSQLOfflineStore.get_historical_features(
                config,
                feature_views,
                feature_refs,
                entity_df,
                registry,
                project,
                full_feature_names,
                filter_by_created_timestamp,
                **kwargs,
            )
        # Only Feast's own query reads the range.
        now = datetime.now(UTC)
        views = get_feature_view_query_context(feature_refs, feature_views, registry, project, (now, now))
        return PostgreSQLRetrievalJob(
            query=_point_in_time_query(entity_df, views, full_feature_names),
            config=config,
            full_feature_names=full_feature_names,
        )


def _point_in_time_query(
    entity_sql: str, views: Sequence[FeatureViewQueryContext], full_feature_names: bool
) -> str:
    """Each entity row with the newest row of every view at or before its time, and within the TTL."""
    columns, joins = ["entity.*"], []
    for number, view in enumerate(views):
        names = [view.field_mapping.get(feature, feature) for feature in view.features]
        columns += [
            f'view_{number}."{feature}" AS "{view.name}__{name}"'
            if full_feature_names
            else f'view_{number}."{feature}" AS "{name}"'
            for feature, name in zip(view.features, names, strict=True)
        ]
        newest_first = [view.timestamp_field, view.created_timestamp_column]
        conditions = [
            *(f'source."{key}" = entity."{key}"' for key in view.entities),
            f'source."{view.timestamp_field}" <= entity.event_timestamp',
        ]
        if view.ttl:
            conditions.append(
                f"source.\"{view.timestamp_field}\" >= entity.event_timestamp - {view.ttl} * interval '1 second'"
            )
        joins.append(f"""
            LEFT JOIN LATERAL (
                SELECT {", ".join(f'source."{feature}"' for feature in view.features)}
                FROM {view.table_subquery} AS source
                WHERE {" AND ".join(conditions)}
                ORDER BY {", ".join(f'source."{column}" DESC' for column in newest_first if column)}
                LIMIT 1
            ) AS view_{number} ON true""")
    return f"SELECT {', '.join(columns)} FROM ({entity_sql}) AS entity {' '.join(joins)}"


class RegistryUrlFromSettings(CreateEnginePlugin):
    """SQLAlchemy plugin behind `?plugin=propositions` in the registry's path: `DATABASE_URL` for Feast."""

    def __init__(self, url: URL, kwargs: dict[str, Any]) -> None:
        super().__init__(url, kwargs)

    def update_url(self, url: URL) -> URL:
        settings = load_settings()
        address = make_url(settings.postgres_url.replace("postgres://", "postgresql://", 1))
        return address.set(drivername="postgresql+psycopg").update_query_dict(
            {
                "options": f"-c search_path={FEAST_SCHEMA}",
                "connect_timeout": str(settings.database_connect_timeout_s),
            }
        )
