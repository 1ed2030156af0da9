"""One training run: slates to a model that has been measured, judged and stored."""

import pickle
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version as package_version
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import xgboost

from app.adapters.database import batch_database, service_database
from app.adapters.feature_store import load_schema, open_feature_store
from app.adapters.model_store import BASELINE, RANKER, ModelStore
from app.domain.errors import ConfigurationError, ModelRefused
from app.domain.rules import RulesWeights
from app.features.assembly import MatrixSpec
from app.features.ports import Model
from app.features.schema import FeatureSchema
from app.settings import Settings
from training.calibration import Calibration, fit_calibration
from training.columns import learn_columns
from training.dataset import Dataset, NothingToTrainOn
from training.dataset_folder import DatasetFolder
from training.distributed import fit_ranker_distributed
from training.evaluation import Scores, evaluate, explain
from training.evaluation_report import LOGISTIC, MODEL, PROPOSITIONS, USERS, Report
from training.gate import CURRENT, GateLimits, Verdict, judge, measure_latency_ms, read_report
from training.hiding import some_propositions, without_proposition_logs, without_user_history
from training.joins import build_dataset
from training.labels import LabelOptions
from training.matrix import matrix
from training.models import (
    LogisticBaseline,
    ModelParameters,
    baseline_scores,
    fit_logistic_regression,
    fit_ranker,
)
from training.registry import GateDecisions, ModelTable
from training.report import RunFacts
from training.splits import Split, split_by_time
from training.tune import Limits, Tuning, tune

# Of the propositions of the test slates, whose logs are hidden to see what the model does without them.
HIDDEN_PROPOSITIONS = 0.2

OnStep = Callable[[str], None]


def ignore(step: str) -> None:
    """For those who do not want to be told."""


@dataclass(frozen=True, slots=True)
class Choices:
    """How a model is made. `limits` None: with the default parameters, without a search.

    `address` of a Dask scheduler, where `engine` is "dask"; None: a cluster of this machine.
    """

    seed: int = 7
    limits: Limits | None = None
    engine: str = "local"
    address: str | None = None
    parameters: ModelParameters = field(default_factory=ModelParameters)


@dataclass(frozen=True)
class TrainingData:
    """Slates in the order of time: to fit on, a part at a time, to stop and calibrate on, and to report on."""

    train_parts: Callable[[], Iterable[Dataset]]
    validation: Dataset
    test: Dataset

    @classmethod
    def of(cls, split: Split) -> "TrainingData":
        return cls(lambda: [split.train], split.validation, split.test)

    def windows(self) -> dict[str, dict[str, Any]]:
        """From when to when the slates of each part were decided, and how many there are."""
        return {
            "train": window(self.train_parts()),
            "validation": window([self.validation]),
            "test": window([self.test]),
        }


@dataclass(frozen=True)
class FittedModel:
    """A ranker with what is needed to use it, and the logistic regression that it has to be worth more than."""

    spec: MatrixSpec
    parameters: ModelParameters
    booster: xgboost.Booster
    calibration: Calibration
    logistic: LogisticBaseline
    tuning: Tuning | None = None

    def scores(self, rows: np.ndarray) -> np.ndarray:
        """Scores float64 (n,) of rows of the matrix."""
        return self.booster.inplace_predict(rows, validate_features=False).astype(np.float64)


@dataclass(frozen=True)
class TrainedModel:
    version: str
    report: Report
    verdict: Verdict
    manifest: Mapping[str, Any]

    @property
    def facts(self) -> RunFacts:
        return RunFacts(
            self.version, self.manifest["parameters"], self.manifest["windows"], self.verdict.checks
        )


def build(settings: Settings, labels: LabelOptions = LabelOptions()) -> tuple[FeatureSchema, Dataset]:
    """The schema of the feature repo, and all labelled slates with their features.

    Raises:
        ConfigurationError: the feature repo was not applied.
        NothingToTrainOn: no impressions were recorded.
        StoreUnavailable: Postgres does not answer.
    """
    store = open_feature_store(settings)
    schema = load_schema(store)
    return schema, build_dataset(store, schema, len(settings.half_lives_s), labels, batch_database(settings))


def open_folder(
    settings: Settings, folder: Path, embargo_s: float = 0.0
) -> tuple[FeatureSchema, TrainingData]:
    """The schema, and what a folder of `propositions dataset build` holds.

    Of a data set in at least three parts the last is to test on and the one before it to validate with, so that one part
    at a time is in memory; any other is split as `time_split` does.

    Raises:
        ConfigurationError: the feature repo was not applied, or declares other features than those in the folder.
        NothingToTrainOn: too few slates.
    """
    schema, opened = load_schema(open_feature_store(settings)), DatasetFolder(folder)
    if opened.manifest.schema_hash != schema.hash():
        raise ConfigurationError(f"{folder} has other features than the feature repo declares: make it again")
    count = len(opened.manifest.parts)
    if count == 1:
        return schema, TrainingData.of(time_split(next(iter(opened.parts())), embargo_s))
    if count == 2:
        raise NothingToTrainOn(f"{folder} has two parts: make it anew in smaller parts, or in one")
    validation, test = islice(opened.parts(), count - 2, None)
    return schema, TrainingData(lambda: islice(opened.parts(), count - 2), validation, test)


def train_model(
    settings: Settings,
    schema: FeatureSchema,
    data: TrainingData,
    now: datetime,
    choices: Choices = Choices(),
    on_step: OnStep = ignore,
) -> TrainedModel:
    """Fits, evaluates, judges and stores a model, without promoting it.

    Raises:
        NothingToTrainOn: too few labelled slates.
        StoreUnavailable: Postgres does not answer.
    """
    store = ModelStore(settings.model_dir, settings.half_lives_s)
    current, without_current = _current_model(store, schema)
    fitted = fit_model(schema, settings.half_lives_s, data, choices, settings.data_dir, on_step)
    on_step(f"testing on {data.test.slate_count:,} later slates")
    report = assess(fitted, data.test, settings.rules_weights, choices.seed, current)
    version = f"{now:%Y%m%dT%H%M%S}"
    files = {RANKER: bytes(fitted.booster.save_raw("json")), BASELINE: pickle.dumps(fitted.logistic)}
    manifest = store.write(version, files, _manifest(version, now, fitted, data, report, choices))
    model = store.load(version, schema)  # proves that it can be
    verdict = judge(
        read_report(
            report.to_json(),
            MODEL,
            without_current,
            measure_latency_ms(model, matrix(fitted.spec, data.test)),
            fitted.spec.schema.hash(),
            schema.hash(),
        ),
        GateLimits(),
    )
    database = service_database(settings)
    ModelTable(database).add(version, manifest)
    GateDecisions(database).add_verdict(version, verdict, _serving_version(store))
    return TrainedModel(version, report, verdict, manifest)


def fit_model(
    schema: FeatureSchema,
    half_lives_s: tuple[float, ...],
    data: TrainingData,
    choices: Choices,
    folder: Path,
    on_step: OnStep = ignore,
) -> FittedModel:
    """Learns parameters, trees and calibration; the slates to report on are not looked at.

    The validation slates decide on the number of trees and on the calibration. Then as many trees are fitted anew on
    them, too: they are the newest that there are. The search for parameters, the columns and the constants of the
    matrix take the newest part to fit on. `folder` keeps the search's trials.

    Raises:
        NothingToTrainOn: too few slates, or slates of one kind only.
    """
    *_, newest = data.train_parts()
    spec = learn_columns(schema, half_lives_s, newest)
    tuning, parameters = None, choices.parameters
    if choices.limits is not None:
        tuning = tune(
            schema,
            half_lives_s,
            newest,
            choices.seed,
            folder / "tuning",
            choices.limits,
            parameters,
            lambda number, total, best: on_step(f"trial {number} of {total}: best ndcg@10 {best:.4f}"),
        )
        parameters = tuning.best
    on_step(f"fitting on {len(spec.columns)} columns; {len(spec.dropped)} tell nothing of their own")
    stopped = _fit(spec, data.train_parts, data.validation, parameters, choices)
    scores = stopped.inplace_predict(matrix(spec, data.validation), validate_features=False)
    calibration = fit_calibration(scores, data.validation.relevance > 0, data.validation.slates.starts)

    def known_parts() -> Iterable[Dataset]:
        return chain(data.train_parts(), [data.validation])

    on_step(f"fitting {stopped.num_boosted_rounds()} trees on the validation slates, too")
    enough = replace(parameters, max_trees=stopped.num_boosted_rounds())
    return FittedModel(
        spec=spec,
        parameters=parameters,
        booster=_fit(spec, known_parts, None, enough, choices),
        calibration=calibration,
        logistic=fit_logistic_regression(spec, known_parts, choices.seed),
        tuning=tuning,
    )


def _fit(
    spec: MatrixSpec,
    parts: Callable[[], Iterable[Dataset]],
    validation: Dataset | None,
    parameters: ModelParameters,
    choices: Choices,
) -> xgboost.Booster:
    if choices.engine == "dask":
        return fit_ranker_distributed(spec, parts, validation, parameters, choices.seed, choices.address)
    return fit_ranker(spec, parts, validation, parameters, choices.seed)


def assess(
    fitted: FittedModel, test: Dataset, rules_weights: RulesWeights, seed: int, current: Model | None = None
) -> Report:
    """The report of a model on slates that it has not seen, beside all baselines and the model that serves."""
    rows = matrix(fitted.spec, test)
    scores, probabilities = fitted.scores(rows), fitted.logistic.scores(rows)
    scored = {
        MODEL: Scores(scores, fitted.calibration.apply(scores)),
        LOGISTIC: Scores(probabilities, probabilities),
        **{
            name: Scores(values)
            for name, values in baseline_scores(fitted.spec, test, rules_weights, seed).items()
        },
    }
    if current is not None:
        scored[CURRENT] = Scores(current.score(matrix(current.spec, test)).astype(np.float64))
    unknown = some_propositions(test, HIDDEN_PROPOSITIONS, seed)
    report = evaluate(
        scored,
        test,
        seed,
        hidden={
            USERS: fitted.scores(matrix(fitted.spec, without_user_history(test))),
            PROPOSITIONS: fitted.scores(matrix(fitted.spec, without_proposition_logs(test, unknown))),
        },
        explanation=explain(fitted.booster, rows, fitted.spec.columns, np.random.default_rng(seed)),
    )
    if not report.slates["all"]:
        raise NothingToTrainOn("no later slate has a click: collect more events")
    return report


def time_split(dataset: Dataset, embargo_s: float = 0.0) -> Split:
    """Past to future: seven tenths to fit on, one to stop and calibrate on, two to report on."""
    return split_by_time(dataset, validation_share=0.1, test_share=0.2, embargo_s=embargo_s)


def _current_model(store: ModelStore, schema: FeatureSchema) -> tuple[Model | None, str | None]:
    """The model that serves, or why there is none to compare with."""
    try:
        active = store.active()
        if active is None:
            return None, "no model serves yet"
        return store.load(active.version, schema), None
    except ModelRefused as error:
        return None, f"the model that serves cannot be compared with: {error}"


def _serving_version(store: ModelStore) -> str | None:
    try:
        active = store.active()
    except ModelRefused:
        return None
    return active and active.version


def _manifest(
    version: str, now: datetime, fitted: FittedModel, data: TrainingData, report: Report, choices: Choices
) -> dict[str, Any]:
    return {
        "version": version,
        "created_at": now.isoformat(),
        "code_version": package_version("predictive-propositions"),
        "libraries": {name: package_version(name) for name in ("xgboost-cpu", "scikit-learn", "feast")},
        "feature_service": fitted.spec.schema.service,
        "schema_hash": fitted.spec.schema.hash(),
        "columns": list(fitted.spec.columns),
        "dtype": "float32",
        "matrix": fitted.spec.to_json(),
        "parameters": {**fitted.parameters.to_json(), "trees": fitted.booster.num_boosted_rounds()},
        "calibration": fitted.calibration.to_json(),
        "engine": choices.engine,
        "seed": choices.seed,
        "windows": data.windows(),
        "metrics": report.to_json(),
    }


def window(parts: Iterable[Dataset]) -> dict[str, Any]:
    """When the first and the last slate of some parts were decided, and how many there are."""
    spans = [(part.slates.decided_at_s[[0, -1]], part.slate_count, len(part)) for part in parts]
    first, last = (datetime.fromtimestamp(s, UTC).isoformat() for s in (spans[0][0][0], spans[-1][0][1]))
    return {
        "first": first,
        "last": last,
        "slates": sum(slates for _, slates, _ in spans),
        "impressions": sum(impressions for _, _, impressions in spans),
    }
