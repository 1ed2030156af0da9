"""One training run: slates to a model folder with its manifest and report."""

import pickle
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.metadata import version as package_version

import numpy as np

from app.adapters.feature_store import load_schema, open_feature_store
from app.adapters.model_store import RANKER, ModelStore
from app.domain.rules import RulesWeights, score_by_rules
from app.features.assembly import SECONDS_PER_DAY, MatrixSpec, half_life_label, learn_spec
from app.features.fold import COUNTER_VIEWS
from app.features.schema import EntityName
from app.settings import Settings
from training.dataset import Dataset, NothingToTrainOn, TimeSplit, build_dataset, split_by_time, window
from training.evaluate import Report, compare
from training.fit import RANKER_PARAMETERS, fit_logistic_regression, fit_ranker, matrix

BASELINE = "baseline.pkl"
MODEL, POPULARITY = "xgboost", "popularity"


@dataclass(frozen=True, slots=True)
class TrainedModel:
    version: str
    report: Report
    manifest: Mapping


def train_model(
    settings: Settings, now: datetime, seed: int, on_step: Callable[[str], None] = lambda step: None
) -> TrainedModel:
    """Trains on everything recorded so far and stores the model, without promoting it.

    Raises:
        NothingToTrainOn: too few labelled slates.
        StoreUnavailable: Postgres does not answer.
    """
    feast = open_feature_store(settings)
    schema = load_schema(feast)
    on_step("joining point-in-time features")
    dataset = build_dataset(feast, schema, len(settings.half_lives_s))
    split = split_by_time(dataset)
    spec = learn_spec(schema, settings.half_lives_s, split.train.rows)
    on_step(f"fitting on {len(split.train):,} impressions in {len(split.train.slate_starts):,} slates")
    baseline = fit_logistic_regression(spec, split.train)
    booster = fit_ranker(spec, split.train, split.validation, seed)
    on_step(f"testing on {len(split.test.slate_starts):,} later slates")
    test = matrix(spec, split.test)
    report = compare(
        {
            MODEL: booster.inplace_predict(test, validate_features=False),
            "logistic": baseline.predict_proba(test)[:, 1],
            "rules": _rules_scores(spec, test, settings.rules_weights),
            POPULARITY: test[:, _column(spec, EntityName.PROPOSITION, "click_rate")],
            "random": np.random.default_rng(seed).random(len(split.test)),
        },
        MODEL,
        split.test.relevance,
        split.test.slate_starts,
        seed,
    )
    if report.slate_count == 0:
        raise NothingToTrainOn(
            "no later slate has both a click and something not clicked: collect more events"
        )
    version = f"{now:%Y%m%dT%H%M%S}"
    manifest = _manifest(version, now, seed, spec, split, report, booster.num_boosted_rounds())
    files = {RANKER: bytes(booster.save_raw("ubj")), BASELINE: pickle.dumps(baseline)}
    models = ModelStore(settings.model_dir, settings.half_lives_s)
    models.write(version, files, manifest)
    models.load(version, schema)  # proves that it can be
    return TrainedModel(version, report, manifest)


def _column(spec: MatrixSpec, entity: EntityName, name: str) -> int:
    label = "" if name == "idle_days" else f"_{half_life_label(spec.half_lives_s[-1])}"
    return spec.columns.index(f"{COUNTER_VIEWS[entity]}.{name}{label}")


def _rules_scores(spec: MatrixSpec, test: np.ndarray, weights: RulesWeights) -> np.ndarray:
    return score_by_rules(
        test[:, _column(spec, EntityName.PROPOSITION, "click_rate")],
        test[:, _column(spec, EntityName.CONTEXT_PROPOSITION, "click_rate")],
        test[:, _column(spec, EntityName.PROPOSITION, "idle_days")] * SECONDS_PER_DAY,
        weights,
    )


def _manifest(
    version: str,
    now: datetime,
    seed: int,
    spec: MatrixSpec,
    split: TimeSplit,
    report: Report,
    tree_count: int,
) -> dict:
    return {
        "version": version,
        "created_at": now.isoformat(),
        "code_version": package_version("predictive-propositions"),
        "libraries": {name: package_version(name) for name in ("xgboost-cpu", "scikit-learn", "feast")},
        "feature_service": spec.schema.service,
        "schema_hash": spec.schema.hash(),
        "columns": list(spec.columns),
        "dtype": "float32",
        "matrix": spec.to_json(),
        "parameters": {**RANKER_PARAMETERS, "trees": tree_count},
        "seed": seed,
        "windows": {
            name: _window(part)
            for name, part in (
                ("train", split.train),
                ("validation", split.validation),
                ("test", split.test),
            )
        },
        "metrics": asdict(report),
    }


def _window(dataset: Dataset) -> dict:
    first, last = window(dataset)
    return {
        "first": first.isoformat(),
        "last": last.isoformat(),
        "slates": len(dataset.slate_starts),
        "impressions": len(dataset),
    }
