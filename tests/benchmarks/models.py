"""Rankers of an exact size, trained on generated slates through the project's own assembly."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import xgboost

from app.adapters.model_store import RANKER, ModelStore
from app.features.assembly import MatrixSpec, learn_spec
from app.features.rows import Rows, rows_from_records
from app.features.schema import AS_OF_FIELD, COUNTER_FIELDS, EntityName, FeatureSchema, ViewSchema
from tests.benchmarks.data import KEY_SEPARATOR, Chunk, World

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
    chunks = _first_chunks(world)
    pairs = _draw_pairs(chunks, slate_count, rng)
    rows = {
        view.name: _rows(view, chunks.get(view.name), pairs[view.entity], len(half_lives_s))
        for view in schema.views
    }
    spec = learn_spec(schema, half_lives_s, rows)
    matrix = spec.assemble(rows, world.now.timestamp(), slate_count * SLATE_SIZE)
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
    models.write(version, {RANKER: bytes(booster.save_raw("ubj"))}, manifest)
    return facts


def _first_chunks(world: World) -> dict[str, Chunk]:
    """The first rows of each table, sorted by key: the context tables whole."""
    chunks: dict[str, list[Chunk]] = {}
    tables = [next(world.catalog()).features, next(world.proposition_performance()), *world.context_rows()]
    users = (chunk for chunk in world.features() if chunk.table.startswith("user_"))
    for chunk in users:
        if chunk.table in {known.table for known in tables}:
            break
        tables.append(chunk)
    for chunk in tables:
        chunks.setdefault(chunk.table, []).append(chunk)
    return {table: _joined(parts) for table, parts in chunks.items() if table != "user_recent"}


def _joined(parts: list[Chunk]) -> Chunk:
    first = parts[0]
    keys = np.concatenate([part.keys for part in parts])
    values = {name: np.concatenate([part.values[name] for part in parts]) for name in first.values}
    return Chunk(first.table, first.key_column, keys, values).where(np.argsort(keys))


def _draw_pairs(
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
    return Rows(None, None, {name: _known(column[found], is_known) for name, column in chunk.values.items()})


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
