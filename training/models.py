"""The models: the XGBoost ranker that serves, and what it is measured against."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import xgboost
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from app.domain.rules import RulesWeights, score_by_rules
from app.features.affinity import PAIR_COLUMNS
from app.features.assembly import TREND, MatrixSpec
from app.features.fold import COUNTER_VIEWS
from app.features.schema import EntityName
from training.dataset import Dataset, NothingToTrainOn
from training.feeding import AssembledParts, Labels, Part, PartIterator, Parts, assemble_parts
from training.matrix import matrix

LOGISTIC, NDCG = "binary:logistic", "rank:ndcg"
OBJECTIVES = (LOGISTIC, NDCG)
# A tree of more leaves cannot be evaluated part by part when serving (app/features/forest.py).
MAX_DEPTH = 6
# Binned rows in memory take a byte per column, 2 GB for 90 columns; more rows are kept on disk, which costs time.
MAX_ROWS_IN_MEMORY = 20_000_000
# A logistic regression of a hundred columns gains nothing from more.
MAX_LOGISTIC_ROWS = 250_000
# Threads that wait for each other cost more than they gain on fewer rows, and very much more on a busy machine.
MIN_ROWS_FOR_THREADS = 200_000
THREADS = 2

RANDOM, SHOWN_ORDER, POPULARITY, RULES = "random", "shown_order", "popularity", "rules"
_RATE_PREFIXES = ("click_rate_", "conversion_rate_")


@dataclass(frozen=True, slots=True)
class ModelParameters:
    """How an XGBoost ranker is fitted; see its own documentation for what has its name.

    LOGISTIC learns the probability of a click and as many trees as give the validation slates' clicks the greatest
    likelihood. NDCG learns the order within slates; NDCG@10 of the validation slates is so noisy that a fit stopped by it
    needs more patience (RankLens, 9 fits: stopped after 60 trees without gain 0.6130, after 100 0.6154, after 600 trees
    0.6186; LOGISTIC stopped by NDCG@10 0.6144, by likelihood 0.6181, best possible 0.6204).

    A conversion weighs as `conversion_weight` clicks, as in NDCG, where its gain is 3: an impression's log-odds are then
    those of gain against nothing. Clicks that led to no conversion weigh 1. NDCG has these gains by itself.

    `is_monotone`: a greater click rate, conversion rate or affinity never lowers a score (RankLens: NDCG@10 0.6187 instead
    of 0.6173 on three folds).

    Raises:
        ValueError: a number out of range, by name.
    """

    objective: str = LOGISTIC
    learning_rate: float = 0.03
    max_depth: int = 4
    min_child_weight: float = 20.0
    subsample: float = 0.7
    colsample_bytree: float = 0.5
    reg_lambda: float = 5.0
    max_trees: int = 500
    patience_trees: int = 120
    conversion_weight: float = 3.0
    is_monotone: bool = True

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective is {self.objective!r}, supported are {', '.join(OBJECTIVES)}")
        for name, is_allowed in {
            "learning_rate": 0.0 < self.learning_rate <= 1.0,
            "max_depth": 1 <= self.max_depth <= MAX_DEPTH,
            "min_child_weight": self.min_child_weight >= 0.0,
            "subsample": 0.0 < self.subsample <= 1.0,
            "colsample_bytree": 0.0 < self.colsample_bytree <= 1.0,
            "reg_lambda": self.reg_lambda >= 0.0,
            "max_trees": self.max_trees >= 1,
            "patience_trees": self.patience_trees >= 1,
            "conversion_weight": self.conversion_weight > 0.0,
        }.items():
            if not is_allowed:
                raise ValueError(f"{name} is {getattr(self, name)}, which is out of range")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Targets:
    """What XGBoost is to learn: parameters for its `train`, and per part what it may know beside the matrix.

    The position offsets are a margin that trees are added to, and serving adds the trees to `base_score` alone: what is
    learned is the score at the mean position.
    """

    parameters: ModelParameters
    labels: Labels

    @property
    def base_rate(self) -> float:
        """The weighted share of clicked impressions."""
        none, clicked, converted = self.labels.relevance_counts.tolist()
        positive = clicked + self.parameters.conversion_weight * converted
        return positive / (none + positive)

    @property
    def threads(self) -> int:
        return THREADS if self.labels.row_count >= MIN_ROWS_FOR_THREADS else 1

    def xgboost_parameters(self, seed: int) -> dict[str, Any]:
        parameters, is_logistic = self.parameters, self.parameters.objective == LOGISTIC
        columns = self.labels.columns
        chosen = {
            "objective": parameters.objective,
            "eval_metric": "logloss" if is_logistic else "ndcg@10",
            "base_score": self.base_rate if is_logistic else 0.0,
            "learning_rate": parameters.learning_rate,
            "max_depth": parameters.max_depth,
            "min_child_weight": parameters.min_child_weight,
            "subsample": parameters.subsample,
            "colsample_bytree": parameters.colsample_bytree,
            "reg_lambda": parameters.reg_lambda,
            "tree_method": "hist",
            "seed": seed,
            "nthread": self.threads,
        }
        if parameters.is_monotone:
            rising = set(rising_columns(columns))
            chosen["monotone_constraints"] = tuple(int(column in rising) for column in columns)
        return chosen

    def of(self, part: Part) -> dict[str, np.ndarray]:
        """Label, weight or query, and margin of each row of a part."""
        offsets = self.labels.offsets.at(part.positions)
        if self.parameters.objective == NDCG:
            queries = part.first_slate + np.repeat(np.arange(len(part.slate_sizes)), part.slate_sizes)
            return {"label": part.relevance, "qid": queries, "base_margin": offsets.astype(np.float32)}
        margin = np.log(self.base_rate / (1.0 - self.base_rate)) + offsets
        return {
            "label": part.relevance > 0,
            "weight": np.where(part.relevance > 1, self.parameters.conversion_weight, 1.0),
            "base_margin": margin.astype(np.float32),
        }


def rising_columns(columns: tuple[str, ...]) -> tuple[str, ...]:
    """Those of which more is never worse: smoothed click and conversion rates, and affinities.

    >>> rising_columns(("user_activity.click_rate_7d", "user_activity.click_rate_trend", "user_history.trait_affinity"))
    ('user_activity.click_rate_7d', 'user_history.trait_affinity')
    """
    names = [(column, column.rpartition(".")[2]) for column in columns]
    return tuple(
        column
        for column, name in names
        if name in PAIR_COLUMNS or (name.startswith(_RATE_PREFIXES) and not name.endswith(TREND))
    )


def fit_ranker(
    spec: MatrixSpec,
    train_parts: Parts,
    validation: Dataset | None,
    parameters: ModelParameters,
    seed: int,
    folder: Path | None = None,
    max_rows_in_memory: int = MAX_ROWS_IN_MEMORY,
) -> xgboost.Booster:
    """The ranker with as many trees as do best on the validation slates; None: with `max_trees`.

    The same data and seed give the same bytes.

    Memory holds one part as it is, and bins of all rows; `folder` (default: the system's for temporary files) needs 4
    bytes for each row and column while it runs. Beyond `max_rows_in_memory` rows the bins are on disk, too.

    Raises:
        NothingToTrainOn: no slates to train on or to validate with, or every impression was clicked, or none.
    """
    if validation is not None:
        check_slates(validation)
    with TemporaryDirectory(dir=folder, prefix="training-") as cache:
        return _fit(spec, train_parts, validation, parameters, seed, Path(cache), max_rows_in_memory)


def _fit(
    spec: MatrixSpec,
    train_parts: Parts,
    validation: Dataset | None,
    parameters: ModelParameters,
    seed: int,
    folder: Path,
    max_rows_in_memory: int,
) -> xgboost.Booster:
    """Apart from `fit_ranker` because XGBoost must let go of its files before their folder is removed."""
    assembled = assemble_parts(spec, train_parts(), folder / "train")
    check_clicks(assembled.labels.relevance_counts)
    targets = Targets(parameters, assembled.labels)
    if assembled.labels.row_count <= max_rows_in_memory:
        train = bins_of(assembled, targets)
    else:
        pages = PartIterator(assembled, targets.of, cache=folder / "bins")
        train = xgboost.ExtMemQuantileDMatrix(pages, nthread=targets.threads)
    if validation is None:
        return xgboost.train(targets.xgboost_parameters(seed), train, parameters.max_trees)
    held_out = assemble_parts(spec, [validation], folder / "validation")
    return grow(targets, train, bins_like(train, held_out, targets), seed)


def check_slates(validation: Dataset) -> None:
    """Raises NothingToTrainOn if there are none."""
    if not validation.slate_count:
        raise NothingToTrainOn("no slates to validate with: collect more events")


def check_clicks(relevance_counts: np.ndarray) -> None:
    """Raises NothingToTrainOn if every impression was clicked, or none."""
    if not relevance_counts[0] or not relevance_counts[1:].any():
        raise NothingToTrainOn("all impressions were clicked, or none: there is nothing to tell apart")


def grow(targets: Targets, train: xgboost.DMatrix, validation: xgboost.DMatrix, seed: int) -> xgboost.Booster:
    """Trees for binned rows, as many as do best on the binned validation rows."""
    booster = xgboost.train(
        targets.xgboost_parameters(seed),
        train,
        num_boost_round=targets.parameters.max_trees,
        evals=[(validation, "validation")],
        early_stopping_rounds=targets.parameters.patience_trees,
        verbose_eval=False,
    )
    return booster[: booster.best_iteration + 1]


def bins_of(assembled: AssembledParts, targets: Targets) -> xgboost.QuantileDMatrix:
    """All rows in memory, a byte per column."""
    return xgboost.QuantileDMatrix(PartIterator(assembled, targets.of), nthread=targets.threads)


def bins_like(train: xgboost.DMatrix, held_out: AssembledParts, targets: Targets) -> xgboost.QuantileDMatrix:
    """Rows in the bins of others. Their offsets are those of `targets`: learned from training rows only.

    They have offsets because their clicks were made at positions, too: judged without, a ranker that believes in what was
    shown first would seem to be right.
    """
    return xgboost.QuantileDMatrix(PartIterator(held_out, targets.of), ref=train, nthread=targets.threads)


@dataclass(frozen=True)
class LogisticBaseline:
    """A logistic regression, and how many impressions it was fitted on."""

    model: Pipeline
    row_count: int

    def scores(self, matrix: np.ndarray) -> np.ndarray:
        """Probabilities of a click, float64 (n,), for rows of a matrix."""
        return self.model.predict_proba(matrix)[:, 1]


def fit_logistic_regression(
    spec: MatrixSpec, train_parts: Parts, seed: int, max_rows: int = MAX_LOGISTIC_ROWS
) -> LogisticBaseline:
    """Learns the probability of a click; codes of texts become one column per text.

    Of more than `max_rows` impressions it takes slates at random, about as many as hold half of them or more.

    Raises:
        NothingToTrainOn: every impression was clicked, or none.
    """
    rows, relevance = _sample(spec, train_parts, np.random.default_rng(seed), max_rows)
    check_clicks(np.bincount(relevance, minlength=3))
    is_category = np.isin(spec.columns, spec.category_columns)
    columns = ColumnTransformer(
        [
            (
                "numbers",
                make_pipeline(SimpleImputer(keep_empty_features=True), StandardScaler()),
                np.flatnonzero(~is_category),
            ),
            (
                "texts",
                make_pipeline(
                    SimpleImputer(strategy="constant", fill_value=-1.0, keep_empty_features=True),
                    OneHotEncoder(handle_unknown="ignore"),
                ),
                np.flatnonzero(is_category),
            ),
        ]
    )
    model = make_pipeline(columns, LogisticRegression(max_iter=500, C=0.1))
    return LogisticBaseline(model.fit(rows, relevance > 0), len(rows))


def _sample(
    spec: MatrixSpec, parts: Parts, rng: np.random.Generator, max_rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """Matrix and relevance of slates drawn at random, at most `max_rows` rows, in one pass.

    Each slate has a number drawn from [0, 1), and those below a threshold are kept. When they become too many, the
    threshold is halved.
    """
    threshold, kept = 1.0, []
    for part in parts():
        draws = rng.random(part.slate_count)
        chosen = np.flatnonzero(draws < threshold)
        drawn = part.select(chosen)
        kept.append((np.repeat(draws[chosen], drawn.slate_sizes), matrix(spec, drawn), drawn.relevance))
        while sum(len(relevance) for _, _, relevance in kept) > max_rows:
            threshold /= 2.0
            kept = [tuple(column[of_row < threshold] for column in (of_row, *rest)) for of_row, *rest in kept]
    if not kept:
        return np.zeros((0, len(spec.columns)), np.float32), np.zeros(0, np.int64)
    _, matrices, relevance = zip(*kept, strict=True)
    return np.concatenate(matrices), np.concatenate(relevance)


def baseline_scores(
    spec: MatrixSpec, dataset: Dataset, rules_weights: RulesWeights, seed: int
) -> Mapping[str, np.ndarray]:
    """Scores float64 (n,) of rankers that learn nothing, by name; they read what they need, whatever the model does."""
    rng = np.random.default_rng(seed)
    everywhere, in_context = _click_rates(spec, dataset)
    performance = dataset.rows[COUNTER_VIEWS[EntityName.PROPOSITION]]
    age_s = dataset.slates.decided_at_s[dataset.slate_of_row] - performance.as_of_s
    return {
        RANDOM: rng.random(len(dataset)),
        SHOWN_ORDER: _shown_order(dataset.positions, rng),
        POPULARITY: everywhere,
        RULES: score_by_rules(everywhere, in_context, age_s, rules_weights),
    }


def _shown_order(positions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The earlier the better; impressions of unknown position behind all others, in random order."""
    last = np.nanmax(positions, initial=0.0)
    return -np.where(np.isnan(positions), last + 1.0 + rng.random(len(positions)), positions)


def _click_rates(spec: MatrixSpec, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Smoothed click rates over the longest half-life, float64 (n,): everywhere, and in the context."""
    moments_s = dataset.slates.decided_at_s[dataset.slate_of_row]
    everywhere, in_context = (
        spec.schema.view(COUNTER_VIEWS[e]) for e in (EntityName.PROPOSITION, EntityName.CONTEXT_PROPOSITION)
    )
    rates = spec.rates(everywhere, dataset.rows[everywhere.name], moments_s, None)
    rates_in_context = spec.rates(in_context, dataset.rows[in_context.name], moments_s, rates)
    return rates[:, 0, -1], rates_in_context[:, 0, -1]
