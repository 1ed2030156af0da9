"""What schemathesis makes of the OpenAPI document: no request is answered with 5xx, and every answer is as declared."""

import os

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from app.api.factory import create_app
from app.bootstrap.keeper import take_snapshot
from app.bootstrap.stores import open_import
from app.bootstrap.web import build_api
from app.settings import load_settings
from tests.builders import proposition

# Per operation and kind of test; `make fuzz` asks for many more.
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "40"))


@pytest.fixture
def openapi(settings, monkeypatch):
    monkeypatch.setenv("DEVELOPMENT_MODE", "true")
    monkeypatch.setenv("RATE_LIMIT_PER_ADDRESS", "none")
    settings = load_settings()
    with open_import(settings) as loader:
        for name in ("a", "b"):
            loader.add(proposition(name, category="c"))
        loader.finish(False)
    take_snapshot(settings)
    services, _, registry = build_api(settings)
    return schemathesis.openapi.from_wsgi("/openapi.json", create_app(settings, services, registry))


CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_every_answer_is_one_that_the_document_declares(openapi, mode):
    for result in openapi.get_all_operations():
        operation = result.ok()

        @given(operation.as_strategy(generation_mode=mode))
        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        def answers_as_declared(case):
            case.call_and_validate(checks=CHECKS)

        try:
            answers_as_declared()
        except Unsatisfiable:  # nothing is wrong for an operation that takes nothing
            assert mode is GenerationMode.NEGATIVE
