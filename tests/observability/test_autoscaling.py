"""The metrics that the chart's autoscaler asks for are those that prometheus-adapter makes of what the service exports."""

import json
import re
from collections.abc import Mapping

import pytest
import yaml

from app.gameday.scraping import FILES
from tests.observability.alerting import ROOT, succeeds

ADAPTER = yaml.safe_load((FILES / "prometheus-adapter/values.yaml").read_text())["rules"]
RULES = {rule["name"]["as"]: rule for rule in (*ADAPTER["custom"], *ADAPTER["external"])}
AUTOSCALING = yaml.safe_load((ROOT / "helm/propositions/values.yaml").read_text())["web"]["autoscaling"]

SHOP = 'namespace="shop",endpoint="private"'
REQUESTS = "flask_http_request_duration_seconds_count"
# Per scrape of 15 s: 600 requests are 40 per second.
REQUEST_SERIES = {
    f'{REQUESTS}{{{SHOP},pod="web-0",url_rule="/suggest",method="POST",status="200"}}': "0+600x40",
    f'{REQUESTS}{{{SHOP},pod="web-0",url_rule="/log_event",method="POST",status="202"}}': "0+150x40",
    f'{REQUESTS}{{{SHOP},pod="web-1",url_rule="/suggest",method="POST",status="200"}}': "0+300x40",
    f'{REQUESTS}{{namespace="other",pod="web-0",url_rule="/suggest",method="POST",status="200"}}': "0+9000x40",
}
ONE_SPOOLS = {
    f'propositions_spool_events{{{SHOP},pod="web-0"}}': "0x40",
    f'propositions_spool_events{{{SHOP},pod="web-1"}}': "7x40",
    f'propositions_spool_events{{{SHOP},pod="web-2"}}': "0x40",
}
NONE_SPOOLS = dict.fromkeys(ONE_SPOOLS, "0x40")


def as_the_adapter_asks(name: str, matchers: str, group: str) -> str:
    series = re.match(r"\w+", RULES[name]["seriesQuery"])[0]
    query = RULES[name]["metricsQuery"]
    for part, text in (("Series", series), ("LabelMatchers", matchers), ("GroupBy", group)):
        query = query.replace(f"<<.{part}>>", text)
    return query


def prometheus_answers(
    monitoring, folder, query: str, series: Mapping[str, str], samples: Mapping[str, float]
) -> None:
    """Fails unless `query` gives `samples`, by their labels, after ten minutes of `series`."""
    path = folder / "test.yml"
    expected = [{"labels": labels, "value": value} for labels, value in samples.items()]
    test = {
        "interval": "15s",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [{"expr": query, "eval_time": "10m", "exp_samples": expected}],
    }
    path.write_text(json.dumps({"tests": [test]}))
    succeeds(monitoring.find_program("promtool"), "test", "rules", path)


def test_the_autoscaler_asks_for_metrics_that_the_adapter_makes():
    asked = {AUTOSCALING[metric]["metric"] for metric in ("requestsPerSecond", "holdWhileSpooling")}

    assert asked == set(RULES)


def test_the_adapter_makes_them_of_metrics_that_the_service_exports():
    documented = set(re.findall(r"^\| `([a-z_]+)` \|", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE))
    used = {re.match(r"\w+", rule["seriesQuery"])[0] for rule in RULES.values()}

    assert {name.removesuffix("_count") for name in used} <= documented


def test_requests_per_second_are_those_of_each_pod(monitoring, tmp_path):
    pods = 'namespace="shop",pod=~"web-0|web-1"'
    query = as_the_adapter_asks("propositions_requests_per_second", pods, "pod")

    per_pod = {'{pod="web-0"}': 50, '{pod="web-1"}': 20}
    prometheus_answers(monitoring, tmp_path, query, REQUEST_SERIES, per_pod)


@pytest.mark.parametrize(("series", "pods"), [(ONE_SPOOLS, 3), (NONE_SPOOLS, 0)])
def test_as_many_pods_are_wanted_as_there_are_while_one_spools(monitoring, tmp_path, series, pods):
    query = as_the_adapter_asks("propositions_spooling_pods", 'namespace="shop"', "namespace")

    prometheus_answers(monitoring, tmp_path, query, series, {"{}": pods})
