"""The data set of training from Parquet files that `propositions export` wrote, without PostgreSQL.

The same slates, labels and features as `training.joins` has, by DuckDB's ASOF joins. The labels of all of history are
made once, on disk where memory does not suffice; features are joined a part at a time, so that memory is bounded by a
part and by what DuckDB may take.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from app.adapters.parquet_export import TABLES
from app.domain.errors import ConfigurationError
from app.features.schema import FeatureSchema, ViewSchema
from training.arrow_rows import joined_column, joined_fields
from training.dataset import Dataset, NothingToTrainOn
from training.joins import assemble_dataset, impression_views, nothing_labelled, slate_views
from training.labels import DUCKDB, LabelOptions, labelled_impressions
from training.timeline import NO_TIMELINE, VERSION_SCHEMA, Timeline, timeline_fields, timeline_of, traits_view


@dataclass(frozen=True, slots=True)
class DuckDbLimits:
    """What a join may take: memory of DuckDB itself, its threads, and impressions that are joined at a time.

    `folder` is where it puts what does not fit into memory; None: the system's folder for temporary files.
    """

    memory_mb: int = 4_096
    threads: int | None = None
    part_impressions: int = 500_000
    folder: Path | None = None


def build_dataset_from_parquet(
    folder: Path,
    schema: FeatureSchema,
    half_life_count: int,
    options: LabelOptions,
    limits: DuckDbLimits = DuckDbLimits(),
) -> Dataset:
    """All labelled slates with point-in-time features, in memory.

    Raises:
        NothingToTrainOn: no impressions were exported, or no slate's label is known yet.
        ConfigurationError: the folder is no export, or lacks a view.
    """
    with ParquetHistory(folder, schema, options, limits) as history:
        return history.dataset(half_life_count, 0, history.slate_count)


def parts_from_parquet(
    folder: Path,
    schema: FeatureSchema,
    half_life_count: int,
    options: LabelOptions,
    limits: DuckDbLimits = DuckDbLimits(),
) -> Iterator[Dataset]:
    """The same in parts of consecutive slates, with one of them in memory at a time.

    Raises:
        NothingToTrainOn, ConfigurationError: as `build_dataset_from_parquet`.
    """
    with ParquetHistory(folder, schema, options, limits) as history:
        for first, last in history.part_bounds():
            yield history.dataset(half_life_count, first, last)


class ParquetHistory:
    """An export with its labelled slates, open until the end of a `with` block."""

    def __init__(
        self, folder: Path, schema: FeatureSchema, options: LabelOptions, limits: DuckDbLimits
    ) -> None:
        self._folder, self._schema, self._options, self._limits = folder, schema, options, limits

    def __enter__(self) -> "ParquetHistory":
        self._stack = ExitStack()
        try:
            self._connection = self._stack.enter_context(_connected(self._limits))
            self._declare_tables()
            self._label()
            self._timeline = self._read_timeline()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def slate_count(self) -> int:
        return len(self._slate_sizes)

    def part_bounds(self) -> list[tuple[int, int]]:
        """Numbers of the first slate of each part, and of the one after its last."""
        ends = np.cumsum(self._slate_sizes)
        bounds = [0]
        while bounds[-1] < len(ends):
            before = ends[bounds[-1] - 1] if bounds[-1] else 0
            last = int(np.searchsorted(ends, before + self._limits.part_impressions, side="right"))
            bounds.append(max(last, bounds[-1] + 1))  # one slate at least, however large
        return list(pairwise(bounds))

    def dataset(self, half_life_count: int, first: int, last: int) -> Dataset:
        """The slates with numbers in [first, last)."""
        within = f"slate_number >= {first} AND slate_number < {last}"
        self._connection.execute(
            f"CREATE OR REPLACE TEMP TABLE part_slates AS SELECT * FROM slates WHERE {within}"
        )
        self._connection.execute(
            f"CREATE OR REPLACE TEMP TABLE part_rows AS SELECT * FROM labelled WHERE {within}"
        )
        slates = self._joined("part_slates", "slate_number", slate_views(self._schema))
        impressions = self._joined("part_rows", "number", impression_views(self._schema))
        return assemble_dataset(self._schema, half_life_count, slates, impressions, self._timeline)

    def _declare_tables(self) -> None:
        """A view per exported table; an empty one where no day was written."""
        for table in TABLES:
            self._connection.register(f"empty_{table.name}", table.schema.empty_table())
            files = self._folder / table.name / "**" / "*.parquet"
            query = f"SELECT * FROM empty_{table.name}"
            if next((self._folder / table.name).glob("date=*/*.parquet"), None) is not None:
                query += (
                    f" UNION ALL BY NAME SELECT {', '.join(table.schema.names)}"
                    f" FROM read_parquet({_quoted(files)}, hive_partitioning = false, union_by_name = true)"
                )
            self._connection.execute(f"CREATE VIEW {table.name} AS {query}")
        missing = {view.name for view in self._schema.views} - {table.name for table in TABLES}
        if missing:
            raise ConfigurationError(
                f"no export has {', '.join(sorted(missing))}: join in PostgreSQL instead"
            )

    def _label(self) -> None:
        """The slates and the impressions, numbered in their order."""
        self._connection.execute(f"CREATE TABLE found AS {labelled_impressions(self._options, DUCKDB)}")
        self._connection.execute("""
            CREATE TABLE slates AS
            SELECT slate_id, any_value(user_id) AS user_id, any_value(context_key) AS context_key, decided_us,
                   bool_or(is_sampled) AS is_sampled, count(*) AS size,
                   row_number() OVER (ORDER BY decided_us, slate_id) - 1 AS slate_number
            FROM found GROUP BY decided_us, slate_id ORDER BY slate_number""")
        self._connection.execute("""
            CREATE TABLE labelled AS
            SELECT row_number() OVER (ORDER BY slate_number, proposition_id) - 1 AS number, slate_number,
                   proposition_id, position, relevance, f.decided_us,
                   f.user_id || chr(31) || category AS user_category_key,
                   f.context_key || chr(31) || proposition_id AS context_proposition_key
            FROM found f JOIN slates s ON s.slate_id = f.slate_id
            ORDER BY number""")
        self._connection.execute("DROP TABLE found")
        sizes = self._connection.execute("SELECT size FROM slates ORDER BY slate_number").fetchnumpy()
        self._slate_sizes = sizes["size"]
        if not len(self._slate_sizes):
            raise NothingToTrainOn(nothing_labelled(self._options))

    def _read_timeline(self) -> Timeline:
        view = traits_view(self._schema)
        if view is None:
            return NO_TIMELINE
        columns = [view.join_key, "epoch_us(event_timestamp)", "epoch_us(created_timestamp)"]
        columns += timeline_fields(view)
        query = self._connection.execute(f"SELECT {', '.join(columns)} FROM {view.name}")
        return timeline_of(
            view, query.to_arrow_table().rename_columns(VERSION_SCHEMA.names).cast(VERSION_SCHEMA)
        )

    def _joined(self, entities: str, number: str, views: Sequence[ViewSchema]) -> pa.Table:
        """The entity rows with all fields of the views, in the order of their numbers."""
        table = self._connection.execute(f"SELECT * FROM {entities} ORDER BY {number}").to_arrow_table()
        for view in views:
            found = self._connection.execute(_newest(view, entities, number)).to_arrow_table()
            found = found.take(np.argsort(found[number].to_numpy(), kind="stable"))
            for name in joined_fields(view):
                table = table.append_column(joined_column(view, name), found[name])
        return table


def _newest(view: ViewSchema, entities: str, number: str) -> str:
    """SQL of each entity row's number and the fields of the newest row before it that still counts, else nulls."""
    ttl_us = int(view.ttl_s) * 1_000_000
    counts = f"f.event_us >= e.decided_us - 1 - {ttl_us}" if ttl_us else "true"
    fields = [f'CASE WHEN {counts} THEN f."{name}" END AS "{name}"' for name in joined_fields(view)]
    columns = ", ".join(f'"{name}"' for name in joined_fields(view))
    # One number to compare by: of two rows of one moment the one that was written last counts.
    moment = "{}::hugeint * 9007199254740992 + {}"
    return f"""
        SELECT e.{number}, {", ".join(fields)}
        FROM {entities} e ASOF LEFT JOIN (
            SELECT {view.join_key} AS key, epoch_us(event_timestamp) AS event_us, {columns},
                   {moment.format("epoch_us(event_timestamp)", "epoch_us(created_timestamp)")} AS moment
            FROM {view.name}
            WHERE event_timestamp < (SELECT make_timestamptz(max(decided_us)) FROM {entities})
        ) f ON e.{view.join_key} = f.key AND e.decided_us::hugeint * 9007199254740992 > f.moment"""


@contextmanager
def _connected(limits: DuckDbLimits) -> Iterator[duckdb.DuckDBPyConnection]:
    with tempfile.TemporaryDirectory(prefix="propositions-join-", dir=limits.folder) as folder:
        config = {"memory_limit": f"{limits.memory_mb}MB", "temp_directory": f"{folder}/spilled"}
        if limits.threads is not None:
            config["threads"] = limits.threads
        with duckdb.connect(f"{folder}/join.duckdb", config=config) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            connection.execute("SET enable_progress_bar = false")
            yield connection


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"
