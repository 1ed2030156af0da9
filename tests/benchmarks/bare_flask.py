"""The ceiling: Flask under the service's gunicorn settings, answering a fixed JSON of the usual size."""

import os
from pathlib import Path

from flask import Flask, Response

ANSWER_FILE = "BENCHMARK_ANSWER"


def web() -> Flask:
    app = Flask(__name__)
    answer = Path(os.environ[ANSWER_FILE]).read_bytes()

    @app.post("/suggest")
    def suggest() -> Response:
        return Response(answer, mimetype="application/json")

    @app.get("/health/ready")
    def ready() -> Response:
        return Response(b"{}", mimetype="application/json")

    return app
