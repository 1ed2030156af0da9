"""Models on slates that they were not trained on: one that is stored, or one that is made for a foreign file."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from app.adapters.model_store import ModelStore
from app.domain.errors import ModelRefused
from app.settings import Settings
from training.calibration import Calibration
from training.dataset import NothingToTrainOn
from training.evaluation_report import Report
from training.foreign import imported
from training.models import ModelParameters
from training.registry import open_promotions
from training.report import RunFacts
from training.run import (
    Choices,
    FittedModel,
    OnStep,
    TrainingData,
    assess,
    build,
    fit_model,
    ignore,
    time_split,
    window,
)
from training.splits import split_at

SERVING = "serving"


@dataclass(frozen=True)
class Measured:
    report: Report
    facts: RunFacts


def of_version(settings: Settings, version: str, seed: int) -> Measured:
    """A stored model, on the slates that were decided after those that it was fitted and calibrated on.

    Raises:
        ModelRefused: there is no such version, or its files are not those that were recorded.
        NothingToTrainOn: no slate is later than those.
    """
    store = ModelStore(settings.model_dir, settings.half_lives_s)
    if version == SERVING:
        active = store.active()
        if active is None:
            raise ModelRefused("no model serves yet: name a version of `propositions models list`")
        version = active.version
    schema, dataset = build(settings)
    model, manifest = store.load(version, schema), store.manifest(version)
    known_until_s = datetime.fromisoformat(manifest["windows"]["validation"]["last"]).timestamp()
    first = int(np.searchsorted(dataset.slates.decided_at_s, known_until_s, side="right"))
    if first == dataset.slate_count:
        raise NothingToTrainOn(f"no slate was decided after those that model {version} was trained on")
    later = dataset.slice(first, dataset.slate_count)
    parameters = dict(manifest["parameters"])
    trees = parameters.pop("trees")
    fitted = FittedModel(
        spec=model.spec,
        parameters=ModelParameters(**parameters),
        booster=model.booster,
        calibration=Calibration.from_json(manifest["calibration"]),
        logistic=open_promotions(settings).baseline(version),
    )
    report = assess(fitted, later, settings.rules_weights, seed)
    return Measured(
        report,
        RunFacts(version, {**parameters, "trees": trees}, {**manifest["windows"], "test": window([later])}),
    )


def of_file(
    path: Path, format_: str, split_at_s: float | None, choices: Choices, on_step: OnStep = ignore
) -> Measured:
    """A model made from a file's slates before a moment (None: of its first eight tenths), on those since.

    Raises:
        StepFailed: the file cannot be imported.
        NothingToTrainOn: too few slates on one side of the moment.
    """
    with imported(path, format_, on_step) as settings:
        on_step("joining point-in-time features")
        schema, dataset = build(settings)
        data = TrainingData.of(time_split(dataset) if split_at_s is None else split_at(dataset, split_at_s))
        fitted = fit_model(schema, settings.half_lives_s, data, choices, settings.data_dir, on_step)
        on_step(f"testing on {data.test.slate_count:,} later slates")
        report = assess(fitted, data.test, settings.rules_weights, choices.seed)
    parameters = {**fitted.parameters.to_json(), "trees": fitted.booster.num_boosted_rounds()}
    return Measured(report, RunFacts(path.name, parameters, data.windows()))
