"""What browsers are told: which origins may ask, and what to do with answers."""

import pytest

from app.domain.errors import ConfigurationError
from app.settings import load_settings

ORIGIN = "https://shop.example:8443"


def preflight(client, origin=ORIGIN):
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    return client.options("/suggest", headers={"Origin": origin, **asked})


def test_no_other_origin_may_ask_unless_it_is_configured(client):
    answer = preflight(client)

    assert answer.status_code == 401
    assert not [name for name, _ in answer.headers if name.startswith("Access-Control")]


def test_a_configured_origin_may_ask_with_a_key_and_read_the_answer(app, holders):
    client = app(cors_origins=(ORIGIN,)).test_client()

    answer = preflight(client)
    assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert "authorization" in answer.headers["Access-Control-Allow-Headers"].lower()
    headers = {"Origin": ORIGIN, **holders.bearer("suggest")}
    answer = client.post("/suggest", json={}, headers=headers)
    assert answer.status_code == 200 and answer.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert client.post("/suggest", json={}, headers={"Origin": ORIGIN}).status_code == 401


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "https://shop.example", "null", "https://shop.example:8443.evil.example"],
)
def test_an_origin_that_is_not_configured_is_told_nothing(app, holders, origin):
    client = app(cors_origins=(ORIGIN,)).test_client()

    assert "Access-Control-Allow-Origin" not in preflight(client, origin).headers


@pytest.mark.parametrize(
    "origins", ["*", "https://*.example", "shop.example", "https://shop.example/path", "null"]
)
def test_origins_that_are_not_exact_are_refused(monkeypatch, origins):
    monkeypatch.setenv("CORS_ORIGINS", f"{ORIGIN},{origins}")

    with pytest.raises(ConfigurationError, match="CORS_ORIGINS"):
        load_settings()


@pytest.mark.parametrize("path", ["/health", "/nowhere", "/suggest", "/users/u", "/metrics"])
def test_answers_tell_browsers_to_keep_and_run_nothing(client, holders, path):
    headers = client.get(path, headers=holders.bearer("admin")).headers

    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["Cache-Control"] == "no-store"


def test_the_documentation_may_run_its_own_scripts_and_those_of_nobody_else(client):
    policy = client.get("/docs/swagger").headers["Content-Security-Policy"]

    directives = dict(part.split(" ", 1) for part in policy.split("; "))
    assert directives["default-src"] == "'none'"
    assert "'self'" in directives["script-src"] and "http" not in policy and "*" not in policy
