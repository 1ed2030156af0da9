"""A model of a few trees for services that need any."""

from collections.abc import Mapping, Sequence

import numpy as np
import xgboost

from app.adapters.feature_store import load_schema, open_feature_store
from app.adapters.model_store import RANKER, ModelStore
from app.features.assembly import MatrixSpec
from app.settings import Settings

VERSION = "m1"


def activate_small_model(
    settings: Settings, *categories: str, ranks: Mapping[str, Sequence[float]] | None = None
) -> MatrixSpec:
    """It fits the feature repo that is applied, and knows these categories, and the numbers in `ranks`."""
    schema = load_schema(open_feature_store(settings))
    rates = {"click_rate": 0.2, "conversion_rate": 0.1, "dismiss_rate": 0.05}
    spec = MatrixSpec(
        schema=schema,
        half_lives_s=settings.half_lives_s,
        base_rates=rates,
        prior_strengths={view.name: dict.fromkeys(rates, 10.0) for view in schema.views if view.has_counters},
        vocabularies={
            f"{view.name}.{field.name}": categories
            for view in schema.views
            for field in view.fields
            if field.kind == "category"
        },
        ranks=ranks or {},
    )
    rows = np.random.default_rng(0).random((200, len(spec.columns))).astype(np.float32)
    data = xgboost.DMatrix(rows, label=rows.sum(axis=1), feature_names=list(spec.columns))
    booster = xgboost.train({"nthread": 1, "max_depth": 3}, data, num_boost_round=5)
    store = ModelStore(settings.model_dir, settings.half_lives_s)
    store.write(VERSION, {RANKER: bytes(booster.save_raw("json"))}, {"matrix": spec.to_json()})
    store.activate(VERSION)
    return spec
