"""Features as they were just before each slate, through the Feast feature service from PostgreSQL."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import psycopg
import pyarrow as pa
from feast import FeatureStore
from feast.infra.utils.postgres.connection_utils import _get_conn
from sqlalchemy import text

from app.adapters.database import Database
from app.adapters.feast_copy import copy_batches
from app.domain.errors import StoreUnavailable
from app.features.affinity import Histories
from app.features.history import HISTORY_FIELDS
from app.features.schema import EntityName, FeatureSchema, ViewSchema
from training.arrow_rows import floats, joined_column, joined_fields, ragged, rows_from_table, texts
from training.dataset import Dataset, NothingToTrainOn, Slates
from training.labels import POSTGRES, Label, LabelOptions, labelled_impressions
from training.timeline import NO_TIMELINE, VERSION_SCHEMA, Timeline, timeline_fields, timeline_of, traits_view

# The entities that are the same for every candidate of a slate.
SLATE_ENTITIES = (EntityName.USER, EntityName.CONTEXT)

_ROWS_PER_BATCH = 50_000
_LABELLED = "labelled_impressions"
# Feast's join takes rows at the very moment, too: it is asked for one microsecond earlier. Both joins, and what they
# join to, see one state of the database.
_NUMBERED = """
    CREATE TEMP TABLE {table} ON COMMIT DROP AS
    SELECT *, timestamptz 'epoch' + (decided_us - 1) * interval '1 microsecond' AS event_timestamp,
           dense_rank() OVER (ORDER BY decided_us, slate_id COLLATE "C") - 1 AS slate_number,
           row_number() OVER (ORDER BY decided_us, slate_id COLLATE "C", proposition_id COLLATE "C") - 1 AS number
    FROM ({labelled}) AS labelled"""
# PostgreSQL does not know how many rows a WITH query has, and a nested loop over all of them would not end.
_IN_ONE_GO = "SET LOCAL enable_nestloop = off; SET LOCAL work_mem = '64MB'"
_MANY_LOOKUPS = f"SET LOCAL enable_nestloop = on; ANALYZE {_LABELLED}"
_SLATES = f"""
    SELECT DISTINCT ON (slate_number) slate_number AS number, slate_id, user_id, context_key, decided_us, is_sampled,
           event_timestamp
    FROM {_LABELLED} ORDER BY slate_number"""
_IMPRESSIONS = f"""
    SELECT number, slate_number, proposition_id, position, relevance, event_timestamp,
           user_id || chr(31) || category AS user_category_key,
           context_key || chr(31) || proposition_id AS context_proposition_key
    FROM {_LABELLED} ORDER BY number"""


def build_dataset(
    store: FeatureStore,
    schema: FeatureSchema,
    half_life_count: int,
    options: LabelOptions,
    database: Database,
) -> Dataset:
    """All labelled slates with point-in-time features.

    Raises:
        NothingToTrainOn: no impressions were recorded, or no slate's label is known yet.
        StoreUnavailable: PostgreSQL does not answer.
    """
    labelled = labelled_impressions(options, POSTGRES)
    return join_features(store, schema, half_life_count, labelled, database, nothing_labelled(options))


def join_features(
    store: FeatureStore,
    schema: FeatureSchema,
    half_life_count: int,
    labelled: str,
    database: Database,
    if_empty: str = "there are no impressions",
) -> Dataset:
    """The impressions of a query, in the columns of `labelled_impressions`, with point-in-time features.

    Raises:
        NothingToTrainOn: the query returns nothing; its text is `if_empty`.
        StoreUnavailable: PostgreSQL does not answer.
    """
    with _snapshot(store) as connection:
        connection.execute(_IN_ONE_GO)
        connection.execute(_NUMBERED.format(table=_LABELLED, labelled=labelled))
        connection.execute(_MANY_LOOKUPS)
        if not connection.execute(f"SELECT EXISTS (SELECT FROM {_LABELLED})").fetchone()[0]:
            raise NothingToTrainOn(if_empty)
        slates = _joined(store, connection, _SLATES, slate_views(schema))
        impressions = _joined(store, connection, _IMPRESSIONS, impression_views(schema))
    # Read last: versions from after the last slate do no harm, one from before it must not be missed.
    return assemble_dataset(schema, half_life_count, slates, impressions, _timeline(schema, database))


def nothing_labelled(options: LabelOptions) -> str:
    """Why there may be no labelled slates, and what to do."""
    if options.label is Label.RETENTION:
        return (
            f"no impressions were recorded {options.return_days:g} days before the last event: "
            "whether users come back is not known yet"
        )
    return "no impressions were recorded: import events, or let clients log them"


def slate_views(schema: FeatureSchema) -> list[ViewSchema]:
    """Those with a row per slate."""
    return [view for view in schema.views if view.entity in SLATE_ENTITIES]


def impression_views(schema: FeatureSchema) -> list[ViewSchema]:
    """Those with a row per impression."""
    return [view for view in schema.views if view.entity not in SLATE_ENTITIES]


def assemble_dataset(
    schema: FeatureSchema, half_life_count: int, slates: pa.Table, impressions: pa.Table, timeline: Timeline
) -> Dataset:
    """The data set of m slates and their n impressions, with their features as joined columns, in the same order.

    `slates` also has slate_id, user_id, context_key, decided_us and is_sampled; `impressions`, of which there is at least
    one, slate_number (from any number on, ascending), proposition_id, position and relevance.
    """
    slate_numbers = impressions["slate_number"].to_numpy()
    starts = np.flatnonzero(np.append(True, slate_numbers[1:] != slate_numbers[:-1]))
    before_us = slates["decided_us"].to_numpy() - 1
    sizes = np.diff(np.append(starts, impressions.num_rows))
    proposition_ids = impressions["proposition_id"].cast(pa.string())
    trait_rows = timeline.rows_at(proposition_ids, np.repeat(before_us, sizes))
    rows = {
        view.name: rows_from_table(view, table, half_life_count)
        for table, views in ((slates, slate_views(schema)), (impressions, impression_views(schema)))
        for view in views
        if not view.has_history
    }
    catalog = traits_view(schema)
    if catalog is not None:
        rows[catalog.name] = timeline.with_numbers(rows[catalog.name], trait_rows)
    return Dataset(
        slates=Slates(
            ids=texts(slates["slate_id"]),
            user_ids=texts(slates["user_id"]),
            context_keys=texts(slates["context_key"]),
            decided_at_s=slates["decided_us"].to_numpy() / 1_000_000,
            starts=starts,
            is_sampled=slates["is_sampled"].to_numpy(),
        ),
        proposition_ids=texts(proposition_ids),
        positions=floats(impressions["position"]),
        relevance=impressions["relevance"].to_numpy().astype(np.int64),
        rows=rows,
        traits=timeline.traits,
        trait_rows=trait_rows,
        histories=_histories(schema, slates, before_us, timeline),
    )


def _histories(
    schema: FeatureSchema, slates: pa.Table, before_us: np.ndarray, timeline: Timeline
) -> Histories:
    """What each slate's user had been shown, as versions of propositions that could be seen before the slate."""
    view = next((view for view in schema.views if view.has_history), None)
    if view is None:
        return Histories(
            np.zeros(len(before_us) + 1, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros(0)
        )
    propositions, impressions, clicks = (ragged(slates[joined_column(view, name)]) for name in HISTORY_FIELDS)
    lengths, ids = propositions
    return Histories(
        starts=np.concatenate([[0], np.cumsum(lengths)]),
        rows=timeline.rows_at(ids, np.repeat(before_us, lengths)),
        impressions=impressions[1].to_numpy(zero_copy_only=False).astype(np.float64),
        clicks=clicks[1].to_numpy(zero_copy_only=False).astype(np.float64),
    )


@contextmanager
def _snapshot(store: FeatureStore) -> Iterator[psycopg.Connection]:
    """A connection to where Feast reads, all of whose reads see one moment; nothing that is written there stays."""
    try:
        with _get_conn(store.config.offline_store) as connection:
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            yield connection
    except psycopg.OperationalError as error:
        raise StoreUnavailable(f"PostgreSQL did not answer: {error}") from error


def _joined(
    store: FeatureStore, connection: psycopg.Connection, entity_sql: str, views: Sequence[ViewSchema]
) -> pa.Table:
    """The entity rows with all fields of the views, in the order of their numbers."""
    job = store.get_historical_features(
        entity_df=entity_sql,
        features=[f"{view.name}:{field}" for view in views for field in joined_fields(view)],
        full_feature_names=True,
    )
    batches = copy_batches(connection, job.to_sql(), _ROWS_PER_BATCH)
    return pa.Table.from_batches(batches).sort_by("number")


def _timeline(schema: FeatureSchema, database: Database) -> Timeline:
    view = traits_view(schema)
    if view is None:
        return NO_TIMELINE
    names = timeline_fields(view)
    query = text(f"""
        SELECT {view.join_key}, {POSTGRES.microseconds("event_timestamp")},
               {POSTGRES.microseconds("created_timestamp")}, {", ".join(names)} FROM {view.name}""")
    with database.transaction() as connection:
        columns = list(zip(*connection.execute(query), strict=True)) or [()] * len(VERSION_SCHEMA)
    arrays = [pa.array(column, kind) for column, kind in zip(columns, VERSION_SCHEMA.types, strict=True)]
    return timeline_of(view, pa.table(arrays, VERSION_SCHEMA))
