"""Rankers of an exact size, trained on generated slates through the project's own assembly."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import takewhile

import numpy as np
import xgboost

from app.adapters.model_store import RANKER, ModelStore
from app.features.affinity import History, Traits
from app.features.assembly import MatrixSpec, learn_spec
from app.features.columns import RaggedColumn
from app.features.history import HISTORY_FIELDS, HISTORY_VIEW
from app.features.recent import RECENT_VIEW
from app.features.rows import NUMBER_PREFIX, Rows, rows_from_records
from app.features.schema import AS_OF_FIELD, COUNTER_FIELDS, EntityName, FeatureSchema, ViewSchema
from tests.benchmarks.data import KEY_SEPARATOR, NUMBERS, Chunk, World

DEPTH = 6
MAX_LEAVES = 2**DEPTH
SLATE_SIZE = 24
CLICKED_SHARE = 0.15
MANY_TREES = 300
FEW_TREES = 100
# A split needs little evidence: trees are to be as large as they may be, not good.
PARAMETERS = {
    "objective": "rank:pairwise",
    "max_depth": DEPTH,
    "eta": 0.1,
    "min_child_weight": 0.0,
    "colsample_bynode": 0.3,
    "tree_method": "hist",
}


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a trained model consists of. `splits` counts by the entity whose features they read."""

    version: str
    trees: int
    max_leaves: int
    mean_leaves: float
    used_columns: int
    columns: int
    splits: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Sample:
    spec: MatrixSpec
    matrix: np.ndarray
    relevance: np.ndarray


def draw_sample(
    world: World, schema: FeatureSchema, half_lives_s: tuple[float, ...], slate_count: int, seed: int
) -> Sample:
    """Slates of `SLATE_SIZE` generated propositions, shown to generated users in generated contexts."""
    rng = np.random.default_rng(seed)
    first = _first_chunks(world)
    chunks = {
        table: _joined(parts) for table, parts in first.items() if table not in (RECENT_VIEW, HISTORY_VIEW)
    }
    keys = _draw_keys(chunks, slate_count, rng)
    rows = {
        view.name: _rows(view, chunks.get(view.name), keys[view.entity], len(half_lives_s))
        for view in schema.views
        if not view.has_history
    }
    spec = learn_spec(schema, half_lives_s, rows)
    pairs = _pair_columns(spec, chunks["proposition_catalog"], first[HISTORY_VIEW], keys)
    matrix = spec.assemble(rows, world.now.timestamp(), slate_count * SLATE_SIZE, pairs)
    return Sample(spec, matrix, _clicks(matrix, rng))


def train(sample: Sample, tree_count: int, seed: int) -> xgboost.Booster:
    data = xgboost.DMatrix(sample.matrix, label=sample.relevance, feature_names=list(sample.spec.columns))
    data.set_group(np.full(len(sample.matrix) // SLATE_SIZE, SLATE_SIZE))
    booster = xgboost.train({**PARAMETERS, "seed": seed, "nthread": 2}, data, num_boost_round=tree_count)
    assert booster.num_boosted_rounds() == tree_count
    return booster


def store(models: ModelStore, version: str, booster: xgboost.Booster, spec: MatrixSpec) -> ModelFacts:
    """Writes a model as `propositions train` does; `propositions models promote` takes it from there.

    Raises:
        ValueError: its trees are not as large as the benchmark says they are.
    """
    facts = _facts(version, booster, spec)
    if facts.max_leaves != MAX_LEAVES:
        raise ValueError(f"the largest tree of {version} has {facts.max_leaves} leaves, not {MAX_LEAVES}")
    manifest = {
        "version": version,
        "schema_hash": spec.schema.hash(),
        "feature_service": spec.schema.service,
        "columns": list(spec.columns),
        "dtype": "float32",
        "matrix": spec.to_json(),
        "parameters": {**PARAMETERS, "trees": facts.trees},
        "metrics": {"rankers": {"xgboost": {"ndcg@10": {"mean": 0.0, "low": 0.0, "high": 0.0}}}},
        "facts": asdict(facts),
    }
    models.write(version, {RANKER: bytes(booster.save_raw("json"))}, manifest)
    return facts


def _first_chunks(world: World) -> dict[str, list[Chunk]]:
    """The first rows of each table: the context tables whole."""
    chunks: dict[str, list[Chunk]] = {}
    tables = [next(world.catalog()).features, next(world.proposition_performance()), *world.context_rows()]
    users = (chunk for chunk in world.features() if chunk.table.startswith("user_"))
    first = next(users)
    for chunk in (*tables, first, *takewhile(lambda chunk: chunk.table != first.table, users)):
        chunks.setdefault(chunk.table, []).append(chunk)
    return chunks


def _joined(parts: list[Chunk]) -> Chunk:
    """The rows of all parts, sorted by key."""
    first = parts[0]
    keys = np.concatenate([part.keys for part in parts])
    values = {name: np.concatenate([part.values[name] for part in parts]) for name in first.values}
    return Chunk(first.table, first.key_column, keys, values).where(np.argsort(keys))


def _draw_keys(
    chunks: Mapping[str, Chunk], slate_count: int, rng: np.random.Generator
) -> Mapping[EntityName, np.ndarray]:
    """The keys of every entity for each row of the slates, bytes (rows,)."""
    row_count = slate_count * SLATE_SIZE
    users = np.repeat(rng.choice(chunks["user_activity"].keys, slate_count), SLATE_SIZE)
    contexts = np.repeat(rng.choice(chunks["context_activity"].keys, slate_count), SLATE_SIZE)
    catalog = chunks["proposition_catalog"]
    shown = rng.integers(0, len(catalog), row_count)
    separator = KEY_SEPARATOR.encode()

    def crossed(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return np.strings.add(np.strings.add(left, separator), right)

    return {
        EntityName.USER: users,
        EntityName.PROPOSITION: catalog.keys[shown],
        EntityName.CONTEXT: contexts,
        EntityName.USER_CATEGORY: crossed(users, catalog.values["category"][shown]),
        EntityName.CONTEXT_PROPOSITION: crossed(contexts, catalog.keys[shown]),
    }


def _rows(view: ViewSchema, chunk: Chunk | None, keys: np.ndarray, half_life_count: int) -> Rows:
    """The rows of a view for `keys`; for a view that is not generated, none."""
    if chunk is None:
        return rows_from_records(view, [None] * len(keys), half_life_count)
    found = np.minimum(np.searchsorted(chunk.keys, keys), len(chunk) - 1)
    is_known = chunk.keys[found] == keys
    if view.has_counters:
        counts = np.stack([chunk.values[name][found] for name in COUNTER_FIELDS], axis=1)
        as_of_s = np.where(is_known, chunk.values[AS_OF_FIELD][found], np.nan)
        return Rows(np.where(is_known[:, None, None], counts, 0.0), as_of_s, {})
    columns = {name: column for name, column in chunk.values.items() if column.ndim == 1} | _numbers(chunk)
    return Rows(None, None, {name: _known(column[found], is_known) for name, column in columns.items()})


def _numbers(chunk: Chunk, prefix: str = NUMBER_PREFIX) -> dict[str, np.ndarray]:
    """The numbers of propositions by their names; none for other tables."""
    values = chunk.values.get("number_values", np.zeros((len(chunk), 0)))
    return {prefix + name.decode(): values[:, place] for place, name in enumerate(NUMBERS[: values.shape[1]])}


def _pair_columns(
    spec: MatrixSpec, catalog: Chunk, histories: list[Chunk], keys: Mapping[EntityName, np.ndarray]
) -> np.ndarray:
    """What each slate's user has in common with its propositions, float32 (rows, 2)."""
    affinity = spec.affinity(_traits(catalog))
    history_of = {
        user: _history(catalog, chunk, row)
        for chunk in histories
        for row, user in enumerate(chunk.keys.tolist())
    }
    users = keys[EntityName.USER][::SLATE_SIZE].tolist()
    slates = np.searchsorted(catalog.keys, keys[EntityName.PROPOSITION]).reshape(-1, SLATE_SIZE)
    columns = [affinity.columns(history_of[user], rows) for user, rows in zip(users, slates, strict=True)]
    return np.concatenate(columns)


def _traits(catalog: Chunk) -> Traits:
    texts, codes = np.unique(catalog.values["traits"], return_inverse=True)
    count, width = catalog.values["traits"].shape
    column = RaggedColumn(
        (codes.ravel().astype(np.int32),), np.arange(count) * width, np.full(count, width, np.int32)
    )
    return Traits(column, len(texts), _numbers(catalog, prefix=""))


def _history(catalog: Chunk, chunk: Chunk, row: int) -> History:
    ids, impressions, clicks = (chunk.values[name][row] for name in HISTORY_FIELDS)
    found = np.minimum(np.searchsorted(catalog.keys, ids), len(catalog) - 1)
    return History(np.where(catalog.keys[found] == ids, found, -1), impressions, clicks)


def _known(column: np.ndarray, is_known: np.ndarray) -> np.ndarray:
    if column.dtype.kind == "S":
        return np.where(is_known, column.astype(np.str_), "")
    return np.where(is_known, column, np.nan)


def _clicks(matrix: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Clicks that depend on all columns, alone and in pairs, and on chance: 0 or 1 per row."""
    known = np.nan_to_num(matrix.astype(np.float64))
    standard = np.clip((known - known.mean(axis=0)) / (known.std(axis=0) + 1e-9), -3.0, 3.0)
    alone = standard @ rng.normal(size=standard.shape[1])
    shuffled = standard[:, rng.permutation(standard.shape[1])]
    in_pairs = (standard * shuffled) @ rng.normal(size=standard.shape[1])
    utility = alone + in_pairs + rng.normal(scale=4.0, size=len(matrix))
    return (utility > np.quantile(utility, 1.0 - CLICKED_SHARE)).astype(np.float32)


def _facts(version: str, booster: xgboost.Booster, spec: MatrixSpec) -> ModelFacts:
    nodes = booster.trees_to_dataframe()
    is_leaf = nodes["Feature"] == "Leaf"
    leaves = nodes[is_leaf].groupby("Tree").size()
    split_columns = nodes[~is_leaf]["Feature"]
    entity_of_view = {view.name: str(view.entity) for view in spec.schema.views}
    splits = Counter(entity_of_view[column.partition(".")[0]] for column in split_columns)
    return ModelFacts(
        version=version,
        trees=booster.num_boosted_rounds(),
        max_leaves=int(leaves.max()),
        mean_leaves=float(leaves.mean()),
        used_columns=split_columns.nunique(),
        columns=len(spec.columns),
        splits=dict(splits),
    )
