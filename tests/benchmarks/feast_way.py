"""The straightforward way with Feast: ask the store for everything that the model reads, then score.

Stock Feast with its stock Redis store over the same Redis, the same model, the same gunicorn settings.
Per request: one `get_online_features` for a slate's worth of candidates, the matrix, the model, the best ten.
"""

import uuid
from datetime import UTC, datetime
from urllib.parse import urlsplit

import numpy as np
import orjson
import psycopg2
from feast import FeatureStore, RepoConfig
from flask import Flask, Response, request

from app.adapters.feature_store import FEATURE_SERVICE, load_schema
from app.adapters.model_store import ModelStore
from app.domain.context import complete_context, context_key, crossed_key
from app.features.rows import rows_from_columns
from app.settings import Settings, load_settings

CATALOG = """
    SELECT proposition_id, title, category, tags, value FROM propositions
    WHERE is_active ORDER BY proposition_id LIMIT %s"""


def web() -> Flask:
    settings = load_settings()
    store = open_stock_store(settings)
    service = store.get_feature_service(FEATURE_SERVICE)
    schema = load_schema(store)
    models = ModelStore(settings.model_dir, settings.half_lives_s)
    model = models.load(models.active().version, schema)
    candidates = read_candidates(settings)
    app = Flask(__name__)

    @app.post("/suggest")
    def suggest() -> Response:
        body, now = request.get_json(), datetime.now(UTC)
        context = complete_context(body["context"], now, settings.zone)
        here = context_key(context, settings.context_fields)
        user_id = body["user_id"]
        features = store.get_online_features(
            features=service,
            entity_rows=[
                {
                    "user_id": user_id,
                    "context_key": here,
                    "proposition_id": candidate["proposition_id"],
                    "user_category_key": crossed_key(user_id, candidate["category"]),
                    "context_proposition_key": crossed_key(here, candidate["proposition_id"]),
                }
                for candidate in candidates
            ],
            full_feature_names=True,
        ).to_dict()
        rows = {
            view.name: rows_from_columns(
                view,
                {name: features[f"{view.name}__{name}"] for name in view.field_names},
                len(candidates),
                len(settings.half_lives_s),
            )
            for view in schema.views
        }
        matrix = model.spec.assemble(rows, now.timestamp(), len(candidates))
        scores = model.booster.inplace_predict(matrix)
        best = np.argsort(-scores)[: body["limit"]]
        answer = {
            "request_id": str(uuid.uuid4()),
            "model_version": model.version,
            "propositions": [{**candidates[n], "score": float(scores[n])} for n in best],
        }
        return Response(orjson.dumps(answer), mimetype="application/json")

    @app.get("/health/ready")
    def ready() -> Response:
        return Response(b"{}", mimetype="application/json")

    return app


def open_stock_store(settings: Settings) -> FeatureStore:
    address = urlsplit(settings.redis_address)
    return FeatureStore(
        config=RepoConfig(
            project="propositions",
            provider="local",
            registry={
                "registry_type": "sql",
                "path": "postgresql+psycopg:///?plugin=propositions",
                "cache_ttl_seconds": 60,
            },
            online_store={
                "type": "redis",
                "connection_string": f"{address.hostname}:{address.port},password={address.password}",
            },
            entity_key_serialization_version=3,
        )
    )


def read_candidates(settings: Settings) -> list[dict]:
    """As many propositions as the service scores, with what an answer tells of them."""
    connection = psycopg2.connect(settings.postgres_url)
    try:
        with connection.cursor() as cursor:
            cursor.execute(CATALOG, (settings.candidate_budget,))
            names = [column.name for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor]
    finally:
        connection.close()
