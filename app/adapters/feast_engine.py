"""Feast's local compute engine with columns instead of Python objects: named by class path as `batch_engine`.

The same rows reach Redis in the same bytes as through Feast's own engine, in a fraction of the time.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Literal

import pyarrow as pa
from feast import FeatureView, RepoConfig
from feast.infra.common.materialization_job import MaterializationJobStatus, MaterializationTask
from feast.infra.compute_engines.dag.context import ExecutionContext
from feast.infra.compute_engines.dag.plan import ExecutionPlan
from feast.infra.compute_engines.local.compute import LocalComputeEngine, LocalComputeEngineConfig
from feast.infra.compute_engines.local.feature_builder import LocalFeatureBuilder
from feast.infra.compute_engines.local.job import LocalMaterializationJob
from feast.infra.compute_engines.local.nodes import LocalSourceReadNode
from feast.infra.compute_engines.utils import create_offline_store_retrieval_job
from feast.infra.registry.base_registry import BaseRegistry
from feast.utils import _validate_vector_field_lengths

from app.adapters.feast_stores import CopyingRetrievalJob, PropositionsRedisOnlineStore
from app.adapters.feast_values import NotInColumns

_ROWS_PER_BATCH = 10_000


class PropositionsComputeEngineConfig(LocalComputeEngineConfig):
    type: Literal["app.adapters.feast_engine.PropositionsComputeEngine"] = (
        "app.adapters.feast_engine.PropositionsComputeEngine"
    )


class PropositionsComputeEngine(LocalComputeEngine):
    """Copies columns from `PropositionsPostgresOfflineStore` to `PropositionsRedisOnlineStore`.

    Views with filters, transformations or aggregations, and types that are not handled in columns, go
    Feast's own way.
    """

    def _materialize_one(
        self, registry: BaseRegistry, task: MaterializationTask, **kwargs
    ) -> LocalMaterializationJob:
        context = self.get_execution_context(registry, task)
        plan = LocalFeatureBuilder(registry, task, self._get_backend(context)).build()
        if _only_copies(plan, context, task.feature_view):
            # A row that was written before its batch's end turned out to be Feast's stays as it is.
            with suppress(NotInColumns):
                self._copy(plan.nodes[0], context, task.feature_view)
                job_id = f"{task.feature_view.name}-{task.start_time}-{task.end_time}"
                return LocalMaterializationJob(job_id, MaterializationJobStatus.SUCCEEDED)
        return super()._materialize_one(registry, task, **kwargs)

    def _copy(self, source: LocalSourceReadNode, context: ExecutionContext, view: FeatureView) -> None:
        job = create_offline_store_retrieval_job(
            source.source, source.column_info, context, source.start_time, source.end_time
        )
        copy_rows(job, source.column_info.field_mapping, context.repo_config, context.online_store, view)


def _only_copies(plan: ExecutionPlan, context: ExecutionContext, view: FeatureView) -> bool:
    """Whether the rows that the offline store gives are those that the online store is to get."""
    return (
        [node.name for node in plan.nodes] == ["source", "filter", "dedup", "output"]
        and plan.nodes[1].filter_expr is None
        and context.repo_config.materialization_config.pull_latest_features  # nothing left to dedup
        and view.online
        and not view.offline
    )


def copy_rows(
    job: CopyingRetrievalJob,
    renamed: Mapping[str, str] | None,
    config: RepoConfig,
    online_store: PropositionsRedisOnlineStore,
    view: FeatureView,
) -> None:
    """Writes the rows of `job`; `renamed` has the view's names of columns that are called otherwise in the source.

    Raises:
        NotInColumns: Feast's own way must be taken. Some rows may be written then.
        psycopg.Error, redis.RedisError: a store failed.
    """

    def batches() -> Iterator[pa.RecordBatch]:
        names = renamed or {}
        size = config.materialization_config.online_write_batch_size or _ROWS_PER_BATCH
        for batch in job.to_batches(size):
            batch = batch.rename_columns([names.get(name, name) for name in batch.schema.names])
            _validate_vector_field_lengths(batch, view)
            yield batch

    online_store.write_batches(config, ((view, batch) for batch in batches()))
