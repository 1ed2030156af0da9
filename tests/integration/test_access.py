"""Who is let in: keys, scopes, ports, and what answers and logs tell of it."""

import json
import logging
from io import BytesIO

import pytest
from openapi_spec_validator import validate

from app.api.access import AREAS, UNAUTHORIZED
from app.api.logs import configure_logging
from app.api.request_log import RequestFormatter
from app.domain.access import Scope
from app.domain.errors import ConfigurationError
from app.settings import load_settings

PRIVATE_PORT = 9001
GOOD_EVENT = {"event_type": "click", "proposition_id": "p"}


def public(port=8080):
    return {"environ_overrides": {"SERVER_PORT": str(port)}}


ROUTES = [
    ("POST", "/suggest", {}, Scope.SUGGEST, 200),
    ("POST", "/log_event", GOOD_EVENT, Scope.EVENTS, 202),
    ("POST", "/propositions", {"propositions": [{"proposition_id": "p", "title": "P"}]}, Scope.CATALOG, 200),
    ("GET", "/propositions/p", None, Scope.CATALOG, 404),
    ("DELETE", "/propositions/p", None, Scope.CATALOG, 204),
    ("GET", "/users/u", None, Scope.ADMIN, 404),
    ("DELETE", "/users/u", None, Scope.ADMIN, 200),
    ("GET", "/metrics", None, Scope.ADMIN, 200),
]
OPEN = ["/health", "/health/live", "/health/ready", "/docs/swagger", "/openapi.json", "/docs/openapi.json"]
everywhere = pytest.mark.parametrize(("method", "path", "body", "scope", "status"), ROUTES)


@everywhere
def test_a_route_takes_the_key_of_its_scope_and_no_other(client, holders, method, path, body, scope, status):
    statuses = {
        name: client.open(path, method=method, json=body, headers=holders.bearer(name)).status_code
        for name in Scope
    }

    assert statuses == {name: status if name == scope else 403 for name in Scope}


def test_what_is_inside_is_told_to_operators_only(client, holders):
    def details(**options) -> set[bool]:
        told = client.get("/health", **options).get_json()["dependencies"].values()
        return {one["detail"] is not None for one in told}

    assert details() == details(headers=holders.bearer(Scope.SUGGEST)) == {False}
    assert details(headers=holders.bearer(Scope.ADMIN)) == {True}


@everywhere
@pytest.mark.parametrize("name", [None, "expired", "revoked", "rotated"])
def test_without_a_good_key_every_answer_is_the_same_401(
    client, holders, method, path, body, scope, status, name
):
    answer = client.open(path, method=method, json=body, headers=holders.bearer(name) if name else {})

    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.content_type == "application/problem+json"
    assert answer.get_json()["detail"] == UNAUTHORIZED


@pytest.mark.parametrize("path", OPEN)
def test_health_and_documentation_are_open(client, path):
    assert client.get(path).status_code == 200


def test_every_route_is_in_the_table(app):
    firsts = {rule.rule.split("/")[1] for rule in app().url_map.iter_rules()}

    assert firsts == set(AREAS)


def test_a_route_that_was_forgotten_in_the_table_needs_admin(app, holders):
    forgetful = app()
    forgetful.add_url_rule("/forgotten", view_func=lambda: "secret")
    client = forgetful.test_client()

    assert client.get("/forgotten").status_code == 401
    assert client.get("/forgotten", headers=holders.bearer("suggest")).status_code == 403
    assert client.get("/forgotten", headers=holders.bearer("admin")).text == "secret"


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nowhere", 404), ("GET", "/suggest", 405)])
def test_wrong_paths_and_methods_are_told_to_those_with_a_key(client, holders, method, path, status):
    assert client.open(path, method=method).status_code == 401
    assert client.open(path, method=method, headers=holders.bearer("other")).status_code == status


def test_a_wrong_scope_is_told_the_one_that_is_needed(client, holders):
    answer = client.post("/log_event", json=GOOD_EVENT, headers=holders.bearer("suggest"))

    assert "scope events" in answer.get_json()["detail"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer KEY"},
        {"Authorization": "bearer  KEY "},
        {"X-Api-Key": "KEY"},
        {"X-Api-Key": "KEY", "Authorization": "Basic dTpw"},
    ],
)
def test_a_key_comes_as_a_bearer_token_or_in_a_header_of_its_own(client, holders, headers):
    headers = {n: v.replace("KEY", holders.presented["suggest"]) for n, v in headers.items()}

    assert client.post("/suggest", json={}, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "KEY"},
        {"Authorization": "Basic KEY"},
        {"Authorization": "Bearer"},
        {"Authorization": ""},
        {"Cookie": "X-Api-Key=KEY"},
        {"X-Api-Key": "KEY,KEY"},
        {"X-Api-Key": "é\udcff"},
        {"Authorization": "Bearer wrong", "X-Api-Key": "KEY"},
    ],
)
def test_a_key_anywhere_else_is_none(client, holders, headers):
    headers = {n: v.replace("KEY", holders.presented["suggest"]) for n, v in headers.items()}
    environ = {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in headers.items()}

    assert client.post("/suggest", json={}, environ_overrides=environ).status_code == 401


@pytest.mark.parametrize("query", ["api_key=KEY", "access_token=KEY&x=1", "KEY", "k=%70p_REST"])
@pytest.mark.parametrize("has_header", [True, False])
def test_a_key_in_the_address_is_never_accepted(client, holders, query, has_header):
    key = holders.presented["suggest"]
    query = query.replace("KEY", key).replace("REST", key.removeprefix("pp_"))

    answer = client.post(
        f"/suggest?{query}", json={}, headers=holders.bearer("suggest") if has_header else {}
    )

    assert answer.status_code == 401 and "never in the address" in answer.get_json()["detail"]


class Unread(BytesIO):
    def read(self, *_):
        raise AssertionError("the body was read")

    readline = readinto = read


@pytest.mark.parametrize(("name", "status"), [(None, 401), ("admin", 403)])
@pytest.mark.parametrize("length", [2, 10**12])
def test_who_may_not_is_refused_before_anything_of_the_body_is_read(client, holders, name, status, length):
    answer = client.post(
        "/suggest",
        input_stream=Unread(),
        content_type="text/plain",
        headers=holders.bearer(name) if name else {},
        environ_overrides={"CONTENT_LENGTH": str(length)},
    )

    assert answer.status_code == status


def test_in_development_mode_nobody_needs_a_key(app):
    client = app(development_mode=True).test_client()

    for method, path, body, _, status in ROUTES:
        assert client.open(path, method=method, json=body).status_code == status


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org"])
def test_development_mode_is_refused_where_others_can_reach_it(monkeypatch, host):
    monkeypatch.setenv("DEVELOPMENT_MODE", "true")
    monkeypatch.setenv("HOST", host)

    with pytest.raises(ConfigurationError, match=f"DEVELOPMENT_MODE=true.*HOST={host}"):
        load_settings()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_development_mode_is_for_loopback_addresses(monkeypatch, host):
    monkeypatch.setenv("DEVELOPMENT_MODE", "true")
    monkeypatch.setenv("HOST", host)

    assert load_settings().development_mode


def test_the_private_port_is_another_one_than_the_public(monkeypatch):
    monkeypatch.setenv("PORT", str(PRIVATE_PORT))
    monkeypatch.setenv("PRIVATE_PORT", str(PRIVATE_PORT))

    with pytest.raises(ConfigurationError, match=f"PRIVATE_PORT={PRIVATE_PORT} is PORT"):
        load_settings()


FOR_OPERATORS = ["/metrics", "/docs/swagger", "/docs", "/openapi.json", "/propositions/p", "/users/u"]


@pytest.mark.parametrize("path", FOR_OPERATORS)
@pytest.mark.parametrize("method", ["GET", "PATCH"])
def test_what_is_for_operators_does_not_exist_on_the_public_port(app, holders, path, method):
    client = app(private_port=PRIVATE_PORT).test_client()

    for name in ("admin", "catalog"):
        answer = client.open(path, method=method, headers=holders.bearer(name), **public())
        assert answer.status_code == 404


def test_on_the_private_port_metrics_and_documentation_need_no_key_and_the_rest_does(app, holders):
    client, here = app(private_port=PRIVATE_PORT).test_client(), public(PRIVATE_PORT)

    assert [client.get(path, **here).status_code for path in ("/metrics", "/openapi.json")] == [200, 200]
    assert [client.get(path, **here).status_code for path in ("/users/u", "/propositions/p")] == [401, 401]
    assert client.post("/suggest", json={}, **here).status_code == 401
    assert client.delete("/users/u", headers=holders.bearer("admin"), **here).status_code == 200


def test_the_public_port_answers_clients_and_health(app, holders):
    client = app(private_port=PRIVATE_PORT).test_client()

    assert client.get("/health", **public()).status_code == 200
    answer = client.post("/suggest", json={}, headers=holders.bearer("suggest"), **public())
    assert answer.status_code == 200


@pytest.mark.parametrize("headers", [{"Host": f"x:{PRIVATE_PORT}"}, {"X-Forwarded-Port": str(PRIVATE_PORT)}])
def test_no_header_makes_a_request_private(app, headers):
    client = app(private_port=PRIVATE_PORT, trusted_proxies=1).test_client()

    assert client.get("/metrics", headers=headers, **public()).status_code == 404


@pytest.mark.parametrize(
    ("group", "paths"),
    [
        ("metrics", ["/metrics"]),
        ("docs", ["/docs", "/docs/swagger", "/openapi.json", "/docs/openapi.json"]),
        ("catalog", ["/propositions/p"]),
        ("users", ["/users/u"]),
    ],
)
def test_a_closed_route_does_not_exist_on_any_port(app, holders, group, paths):
    client = app(closed_routes=(group,), private_port=PRIVATE_PORT).test_client()
    holders.add("all")

    for path in paths:
        for port in (8080, PRIVATE_PORT):
            assert client.get(path, headers=holders.bearer("all"), **public(port)).status_code == 404
    assert client.get("/health").status_code == 200


def test_the_openapi_document_tells_which_scope_each_route_needs(client):
    document = client.get("/openapi.json").get_json()

    validate(document)
    assert set(document["components"]["securitySchemes"]) == {"bearer", "header"}
    for path, operations in document["paths"].items():
        scope = AREAS[path.split("/")[1]].scope
        for operation in operations.values():
            assert operation["security"] == ([{"bearer": [scope]}, {"header": [scope]}] if scope else [])
            assert {"401", "403", "429"} <= operation["responses"].keys() or scope is None
    assert "429" not in document["paths"]["/health"]["get"]["responses"]


@pytest.fixture
def everything_is_logged(capsys, monkeypatch):
    """As in a service, from DEBUG on."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    before = root.level
    configure_logging("DEBUG", "web", make_formatter=RequestFormatter)
    yield
    root.setLevel(before)


def test_no_key_is_told_to_anybody(app, holders, everything_is_logged, capsys):
    client = app(rate_limit_unauthorized="40 per minute").test_client()
    told = []
    for key in holders.presented.values():
        attempts = [
            {"headers": {"Authorization": f"Bearer {key}"}},
            {"headers": {"X-Api-Key": key, "X-Request-Id": key}},
            {"headers": {"Authorization": f"Basic {key}"}},
            {"query_string": {"key": key}},
        ]
        for attempt in attempts:
            for path in ("/suggest", "/users/u", f"/nowhere/{key}", f"/propositions/{key}"):
                answer = client.post(path, data="{", content_type="application/json", **attempt)
                told += [answer.text, str(answer.headers)]
    told += [client.get("/metrics", headers=holders.bearer("admin")).text, capsys.readouterr().out]

    secrets_ = [key.split("_", 2)[2] for key in holders.presented.values()]
    assert not [text for text in told if any(secret in text for secret in secrets_)]


def test_a_line_of_the_log_names_the_key_by_its_id(everything_is_logged, client, holders, capsys):
    client.post("/suggest", json={}, headers=holders.bearer("suggest"))
    client.post("/suggest", json={}, headers=holders.bearer("expired"))

    good, bad = map(json.loads, capsys.readouterr().out.splitlines())
    assert good["labels"] == {"key_id": holders.id_of("suggest")}
    assert "labels" not in bad


INJECTIONS = ["a\nb", 'a"} {"x": "', "\x1b[31mred", "a\x00b", "a\r\n{}", "\u2028", "\\", "é", "\x7f\x85"]


@pytest.mark.parametrize("text", INJECTIONS)
@pytest.mark.parametrize(
    "name", ["HTTP_X_REQUEST_ID", "HTTP_USER_AGENT", "HTTP_X_API_KEY", "PATH_INFO", "REMOTE_ADDR"]
)
def test_nothing_that_is_sent_makes_more_than_one_line_of_json_or_moves_a_terminal(
    everything_is_logged, client, capsys, name, text
):
    value = f"/propositions/{text}" if name == "PATH_INFO" else text

    client.post("/suggest", json={}, environ_overrides={name: value.encode().decode("latin-1")})

    output = capsys.readouterr().out
    assert output.endswith("\n") and output[:-1].isprintable()
    assert json.loads(output)["http"]["response"]["status_code"] == 401
