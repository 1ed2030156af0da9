"""How many requests a key and an address may send."""

from collections import Counter

import pytest

from app.domain.errors import ConfigurationError
from app.settings import load_settings


def ask(client, headers, times, address="192.0.2.1", path="/suggest"):
    """The number of answers by status."""
    environ = {"REMOTE_ADDR": address}
    return Counter(
        client.post(path, json={}, headers=headers, environ_overrides=environ).status_code
        for _ in range(times)
    )


def test_a_key_has_a_limit_over_all_addresses(app, holders, clock):
    client = app(rate_limit_per_key="5 per minute").test_client()
    statuses = Counter()
    for n in range(8):
        statuses += ask(client, holders.bearer("suggest"), 1, f"192.0.2.{n}")

    assert statuses == {200: 5, 429: 3}
    assert ask(client, holders.bearer("other"), 1) == {200: 1}
    clock.now_s += 60
    assert ask(client, holders.bearer("suggest"), 1) == {200: 1}


def test_an_address_has_a_limit_over_all_keys(app, holders):
    client = app(rate_limit_per_address="5 per minute").test_client()

    assert ask(client, holders.bearer("suggest"), 3) == {200: 3}
    assert ask(client, holders.bearer("other"), 3) == {200: 2, 429: 1}
    assert ask(client, holders.bearer("other"), 1, "192.0.2.2") == {200: 1}


def test_unknown_paths_count_as_well(app, holders):
    client = app(rate_limit_per_address="5 per minute").test_client()

    assert ask(client, holders.bearer("other"), 7, path="/nowhere") == {404: 5, 429: 2}


def test_a_network_of_ipv6_counts_as_one_address(app, holders):
    client = app(rate_limit_per_address="2 per minute").test_client()
    bearer = holders.bearer("suggest")

    assert [ask(client, bearer, 1, f"2001:db8:0:1::{n}") for n in (1, 2, 3)] == [{200: 1}, {200: 1}, {429: 1}]
    assert ask(client, bearer, 1, "2001:db8:0:2::1") == {200: 1}


def test_guessing_keys_is_limited_per_address_and_does_not_lock_out_good_keys(app, holders):
    client = app(rate_limit_unauthorized="3 per minute").test_client()
    wrong = {"X-Api-Key": f"pp_{'0' * 12}_{'x' * 43}"}

    assert ask(client, wrong, 5) == {401: 3, 429: 2}
    assert ask(client, {}, 1) == {429: 1}
    assert ask(client, holders.bearer("suggest"), 5) == {200: 5}
    assert ask(client, wrong, 1, "192.0.2.2") == {401: 1}


def test_answers_other_than_401_do_not_count_as_guesses(app, holders):
    client = app(rate_limit_unauthorized="3 per minute").test_client()

    assert ask(client, holders.bearer("admin"), 5) == {403: 5}
    assert ask(client, {}, 5, path="/docs") == {405: 5}
    assert ask(client, {}, 4) == {401: 3, 429: 1}


def test_who_is_limited_is_told_when_to_try_again(app, holders, clock, monkeypatch):
    monkeypatch.setattr("app.api.rate_limits.time.time", clock)
    clock.now_s += 17.5
    client = app(rate_limit_per_key="1 per minute").test_client()
    ask(client, holders.bearer("suggest"), 1)

    answer = client.post("/suggest", json={}, headers=holders.bearer("suggest"))

    assert answer.status_code == 429
    assert answer.headers["Retry-After"] == "43"
    assert answer.content_type == "application/problem+json"
    assert "1 per 1 minute" in answer.get_json()["detail"]


def test_health_and_metrics_have_no_limit(app, holders):
    client = app(rate_limit_per_address="1 per minute", rate_limit_per_key="1 per minute").test_client()

    statuses = {
        client.get(path, headers=holders.bearer("admin")).status_code
        for path in ("/health", "/health/live", "/metrics")
        for _ in range(4)
    }

    assert statuses == {200}


def test_without_limits_nothing_is_counted(app, holders):
    limits = ("rate_limit_per_key", "rate_limit_per_address", "rate_limit_unauthorized")
    client = app(**dict.fromkeys(limits, "none")).test_client()

    assert ask(client, holders.bearer("suggest"), 20) == {200: 20}
    assert ask(client, {}, 80) == {401: 80}


@pytest.mark.parametrize(
    "setting", ["RATE_LIMIT_PER_KEY", "RATE_LIMIT_PER_ADDRESS", "RATE_LIMIT_UNAUTHORIZED"]
)
@pytest.mark.parametrize("text", ["many", "5", "5 per fortnight", "per second", "-1 per second"])
def test_a_limit_that_makes_no_sense_is_refused_by_name(monkeypatch, setting, text):
    monkeypatch.setenv(setting, text)

    with pytest.raises(ConfigurationError, match=setting):
        load_settings()


def forwarded(client, holders, text):
    return ask(client, {**holders.bearer("suggest"), "X-Forwarded-For": text}, 1)


def test_a_forwarded_address_is_ignored_unless_a_proxy_is_trusted(app, holders):
    client = app(rate_limit_per_address="2 per minute").test_client()

    assert [forwarded(client, holders, f"198.51.100.{n}") for n in range(3)][-1] == {429: 1}


def test_of_forwarded_addresses_only_those_of_trusted_proxies_count(app, holders):
    client = app(rate_limit_per_address="2 per minute", trusted_proxies=1).test_client()

    answers = [forwarded(client, holders, f"198.51.100.{n}, 203.0.113.7") for n in range(3)]
    assert answers == [{200: 1}, {200: 1}, {429: 1}]
    assert forwarded(client, holders, "203.0.113.8") == {200: 1}


@pytest.mark.parametrize("text", ["x" * 5_000, "not, an, address", "192.0.2."])
def test_what_is_no_address_shares_one_limit(app, holders, text):
    client = app(rate_limit_per_address="2 per minute", trusted_proxies=1).test_client()

    assert [forwarded(client, holders, f"{text}{n:03}x") for n in range(3)][-1] == {429: 1}
