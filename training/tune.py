"""The search for a ranker's parameters, on slates of the training part only."""

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import optuna
import xgboost
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from app.features.schema import FeatureSchema
from training.columns import learn_columns
from training.dataset import Dataset, NothingToTrainOn
from training.feeding import assemble_parts
from training.matrix import matrix
from training.metrics import ndcg
from training.models import (
    LOGISTIC,
    MAX_DEPTH,
    OBJECTIVES,
    ModelParameters,
    Targets,
    bins_like,
    bins_of,
    check_clicks,
    grow,
)

FOLDS = 3
# Slates of a fold, as shares of all: those that say how many trees there are, and those that are scored.
WINDOW = 0.12
MIN_SLATES = 50
DEPTH = 10
# NDCG of the stopping slates is noisier than their likelihood.
PATIENCE_TREES = {LOGISTIC: 60, "rank:ndcg": 150}
# Trials that are drawn at random before the sampler learns from them.
RANDOM_TRIALS = 8
_PARAMETERS = "parameters"
_SECONDS = "seconds"


@dataclass(frozen=True)
class Trial:
    """`ndcg`: the mean of NDCG@10 over the folds; over the first ones only where the trial was pruned."""

    number: int
    parameters: ModelParameters
    ndcg: float
    is_pruned: bool
    seconds: float


@dataclass(frozen=True)
class Tuning:
    """The best parameters, and all trials in their order. The first trial is of the defaults."""

    best: ModelParameters
    ndcg: float
    trials: tuple[Trial, ...]


@dataclass(frozen=True)
class Limits:
    """When the search ends: after so many trials in all, or when so many seconds have passed since this call.

    At least one trial is made. What a time limit finds depends on the machine.
    """

    trials: int = 40
    seconds: float = float("inf")


def tune(
    schema: FeatureSchema,
    half_lives_s: Sequence[float],
    train: Dataset,
    seed: int,
    folder: Path,
    limits: Limits = Limits(),
    defaults: ModelParameters = ModelParameters(),
    on_trial: Callable[[int, int, float], None] = lambda number, total, best: None,
    now_s: Callable[[], float] = time.monotonic,
) -> Tuning:
    """Tries parameters on folds of `train`, learning from each trial which to try next (TPE, Bergstra et al. 2011).

    Each fold fits on slates, stops at later ones and is scored on still later ones; columns and constants of its matrix are its own.
    Trials are kept in `folder`: a search that was cut short goes on where it ended, and finds what it would have found.
    Other slates, another seed or other defaults begin anew. The same seed gives the same result, unless time ends it.

    `on_trial(number, total, best)` is called after each trial, with numbers from 1.

    Raises:
        NothingToTrainOn: too few slates for the folds, or a fold in which everything was clicked, or nothing.
    """
    deadline_s = now_s() + limits.seconds
    with TemporaryDirectory(prefix="tuning-") as cache:
        folds = [
            _Fold.of(schema, half_lives_s, parts, Path(cache) / str(n))
            for n, parts in enumerate(time_folds(train))
        ]
        study = _open_study(folder, _fingerprint(schema, half_lives_s, train, seed, defaults), defaults)
        finished = len(_finished(study))
        while finished < limits.trials and (not finished or now_s() < deadline_s):
            # Seeded by what came before, so that it does not matter whether there was an interruption.
            study.sampler = optuna.samplers.TPESampler(n_startup_trials=RANDOM_TRIALS, seed=seed + finished)
            _run_trial(study, folds, defaults, seed)
            finished += 1
            on_trial(finished, limits.trials, study.best_value)
    return _result(study)


@dataclass(frozen=True)
class _Fold:
    """Binned rows for both objectives, and the slates that are scored."""

    rows: dict[str, tuple[xgboost.QuantileDMatrix, xgboost.QuantileDMatrix]]
    targets: dict[str, Targets]
    matrix: np.ndarray
    relevance: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(
        cls, schema: FeatureSchema, half_lives_s: Sequence[float], parts: Sequence[Dataset], folder: Path
    ) -> "_Fold":
        fitted, stopping, scored = parts
        spec = learn_columns(schema, half_lives_s, fitted)
        assembled = assemble_parts(spec, [fitted], folder / "fitted")
        check_clicks(assembled.labels.relevance_counts)
        held_out = assemble_parts(spec, [stopping], folder / "stopping")
        rows, targets = {}, {}
        for objective in OBJECTIVES:
            targets[objective] = Targets(ModelParameters(objective=objective), assembled.labels)
            train = bins_of(assembled, targets[objective])
            rows[objective] = train, bins_like(train, held_out, targets[objective])
        return cls(rows, targets, matrix(spec, scored), scored.relevance, scored.slates.starts)

    def score(self, parameters: ModelParameters, seed: int) -> float:
        """Mean NDCG@10 of the slates with a click."""
        targets = replace(self.targets[parameters.objective], parameters=parameters)
        booster = grow(targets, *self.rows[parameters.objective], seed)
        scores = booster.inplace_predict(self.matrix, validate_features=False)
        return float(
            np.nanmean(ndcg(scores, self.relevance, self.starts, DEPTH, np.random.default_rng(seed)))
        )


def time_folds(train: Dataset) -> Iterator[tuple[Dataset, Dataset, Dataset]]:
    """Slates to fit on, to stop at and to score, fold by fold; each is later than the one before."""
    count = train.slate_count
    if count < MIN_SLATES:
        raise NothingToTrainOn(f"{count} slates are too few to tune with: {MIN_SLATES} are needed")
    for fold in range(FOLDS):
        last = 1.0 - WINDOW * (FOLDS - 1 - fold)
        edges = [0, *(round(share * count) for share in (last - 2 * WINDOW, last - WINDOW, last))]
        yield tuple(train.slice(first, last) for first, last in pairwise(edges))


def _run_trial(study: optuna.Study, folds: Sequence[_Fold], defaults: ModelParameters, seed: int) -> None:
    started_s = time.monotonic()
    trial = study.ask()
    parameters = _suggest(trial, defaults)
    scores = []
    for number, fold in enumerate(folds):
        scores.append(fold.score(parameters, seed))
        trial.report(float(np.mean(scores)), number)
        if number < len(folds) - 1 and trial.should_prune():
            break
    trial.set_user_attr(_SECONDS, time.monotonic() - started_s)
    is_pruned = len(scores) < len(folds)
    state = optuna.trial.TrialState.PRUNED if is_pruned else optuna.trial.TrialState.COMPLETE
    study.tell(trial, None if is_pruned else float(np.mean(scores)), state)


def _suggest(trial: optuna.Trial, defaults: ModelParameters) -> ModelParameters:
    objective = trial.suggest_categorical("objective", OBJECTIVES)
    parameters = replace(
        defaults,
        objective=objective,
        learning_rate=trial.suggest_float("learning_rate", 0.03, 0.15, log=True),
        max_depth=trial.suggest_int("max_depth", 2, MAX_DEPTH),
        min_child_weight=trial.suggest_float("min_child_weight", 1.0, 200.0, log=True),
        subsample=trial.suggest_float("subsample", 0.5, 1.0),
        colsample_bytree=trial.suggest_float("colsample_bytree", 0.15, 1.0),
        reg_lambda=trial.suggest_float("reg_lambda", 0.1, 100.0, log=True),
        is_monotone=trial.suggest_categorical("is_monotone", (False, True)),
        patience_trees=PATIENCE_TREES[objective],
    )
    trial.set_user_attr(_PARAMETERS, parameters.to_json())
    return parameters


def _open_study(folder: Path, name: str, defaults: ModelParameters) -> optuna.Study:
    folder.mkdir(parents=True, exist_ok=True)
    logging.getLogger("optuna").setLevel(logging.WARNING)
    study = optuna.create_study(
        # A file that is only appended to: SQLite costs 25 commits a trial.
        storage=JournalStorage(JournalFileBackend(str(folder / "trials.log"))),
        study_name=name,
        direction="maximize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=RANDOM_TRIALS),
        load_if_exists=True,
    )
    is_first_tried = any(
        t.state.is_finished() or t.state is optuna.trial.TrialState.WAITING for t in study.trials
    )
    if not is_first_tried:
        study.enqueue_trial(_searched(defaults))
    return study


def _searched(parameters: ModelParameters) -> dict:
    unsearched = ("max_trees", "patience_trees", "conversion_weight")
    return {name: value for name, value in parameters.to_json().items() if name not in unsearched}


def _finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """A trial that was cut short is none of them: it is made again."""
    return [trial for trial in study.trials if trial.state.is_finished()]


def _result(study: optuna.Study) -> Tuning:
    trials = tuple(
        Trial(
            number=number,
            parameters=ModelParameters(**trial.user_attrs[_PARAMETERS]),
            ndcg=trial.intermediate_values[max(trial.intermediate_values)],
            is_pruned=trial.state is optuna.trial.TrialState.PRUNED,
            seconds=trial.user_attrs[_SECONDS],
        )
        for number, trial in enumerate(_finished(study))
    )
    best = max((trial for trial in trials if not trial.is_pruned), key=lambda trial: trial.ndcg)
    return Tuning(best.parameters, best.ndcg, trials)


def _fingerprint(
    schema: FeatureSchema, half_lives_s: Sequence[float], train: Dataset, seed: int, defaults: ModelParameters
) -> str:
    """Names the study: SHA-256 (hex) over all that its result depends on, the features by their slates and their schema."""
    digest = hashlib.sha256(f"{schema.hash()} {tuple(half_lives_s)} {seed} {defaults}".encode())
    for field in fields(train.slates):
        digest.update(np.ascontiguousarray(getattr(train.slates, field.name)).tobytes())
    for column in (train.proposition_ids, train.positions, train.relevance):
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()
