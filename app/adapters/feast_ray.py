"""Feast's Ray engine over this project's stores: named by class path in `feature_repo/feature_store_ray.yaml`.

Feast 0.67's own `ray.engine` reads a whole view where the command runs, makes Python objects of its rows, leaves out
those that are older than their view's time to live, and reports success when Redis refused them. Here every worker
copies the rows of some entities from PostgreSQL to Redis as columns, and when one of them fails, the job does.
"""

import os
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal

import ray
from feast import FeatureStore, FeatureView
from feast.infra.common.materialization_job import MaterializationJob, MaterializationTask
from feast.infra.compute_engines.dag.context import ExecutionContext
from feast.infra.compute_engines.local.nodes import LocalSourceReadNode
from feast.infra.compute_engines.ray.compute import RayComputeEngine
from feast.infra.compute_engines.ray.config import RayComputeEngineConfig
from feast.infra.compute_engines.utils import create_offline_store_retrieval_job
from feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source import PostgreSQLSource
from feast.infra.registry.base_registry import BaseRegistry
from psycopg import sql

from app.adapters.feast_engine import PropositionsComputeEngine, copy_rows
from app.adapters.feast_stores import CopyingRetrievalJob
from app.adapters.feature_store import open_feature_store
from app.settings import load_settings


class PropositionsRayComputeEngineConfig(RayComputeEngineConfig):
    """Feast's options; those in use are `ray_address` and `ray_conf` (the cluster), `max_workers` (the most shares
    of a view, by default one per CPU), and `worker_task_options` (Ray's options of the task that copies a share)."""

    type: Literal["app.adapters.feast_ray.PropositionsRayComputeEngine"] = (
        "app.adapters.feast_ray.PropositionsRayComputeEngine"
    )


class PropositionsRayComputeEngine(RayComputeEngine):
    """Writes what `PropositionsComputeEngine` writes, in shares on the CPUs of a Ray cluster.

    The workers take the addresses of the stores from their own environment: no password travels through Ray. Views
    that are not just copied are materialized where the command runs.
    """

    def __init__(self, **options: Any) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else Ray reports to its makers
        super().__init__(**options)
        self._engine = _SharingEngine(**options)

    def _materialize_one(
        self,
        registry: BaseRegistry,
        task: MaterializationTask,
        from_offline_store: bool = False,
        **kwargs: Any,
    ) -> MaterializationJob:
        return self._engine._materialize_one(registry, task, **kwargs)


class _SharingEngine(PropositionsComputeEngine):
    def _copy(self, source: LocalSourceReadNode, context: ExecutionContext, view: FeatureView) -> None:
        options, columns = context.repo_config.batch_engine, source.column_info
        count = options.max_workers or int(ray.cluster_resources()["CPU"])
        copy = ray.remote(_copy_share).options(**(options.worker_task_options or {}))
        shares = [_share(source.source, columns.join_keys, number, count) for number in range(count)]
        jobs = [
            create_offline_store_retrieval_job(share, columns, context, source.start_time, source.end_time)
            for share in shares
        ]
        ray.get([copy.remote(view.name, job.to_sql(), columns.field_mapping) for job in jobs])


def _share(source: PostgreSQLSource, join_keys: Sequence[str], number: int, count: int) -> PostgreSQLSource:
    """A source with all rows of every `count`th entity, by a hash of its keys."""
    query = sql.SQL(
        "SELECT * FROM {} AS share WHERE mod(hash_record_extended(ROW({}), 0), {}) IN ({}, {})"
    ).format(
        sql.SQL(source.get_table_query_string()),
        sql.SQL(", ").join(map(sql.Identifier, join_keys)),
        count,
        number,
        -number,  # the remainder has the sign of the hash
    )
    return PostgreSQLSource(
        name=source.name,
        query=query.as_string(),
        timestamp_field=source.timestamp_field,
        created_timestamp_column=source.created_timestamp_column,
        field_mapping=source.field_mapping,
    )


def _copy_share(view_name: str, query: str, renamed: Mapping[str, str] | None) -> None:
    """What a worker does."""
    store = _store()
    job = CopyingRetrievalJob(query, store.config, full_feature_names=False)
    view, online_store = store.get_feature_view(view_name), store._get_provider().online_store
    copy_rows(job, renamed, store.config, online_store, view)


@cache
def _store() -> FeatureStore:
    return open_feature_store(load_settings())
