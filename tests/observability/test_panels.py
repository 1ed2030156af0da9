"""Every query of every panel, asked of a real Prometheus that scrapes a real service under load."""

import math
import re
import time
from collections.abc import Sequence

import pytest

from app.gameday.stack import GamedayFailed, wait_until
from helm.dashboards.reading import VARIABLES, contents, filled_in, panels
from helm.dashboards.screens import screen
from helm.dashboards.source import Source
from tests.observability.observed import Observed, observed_service

# A busy machine should not keep slates from the model.
ENVIRONMENT = {"SUGGEST_DEADLINE_MS": "5000"}
TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def observed(monitoring, tmp_path_factory):
    with observed_service(tmp_path_factory.mktemp("observed"), ENVIRONMENT) as observed:
        yield observed


def test_every_query_of_every_panel_returns_data(observed):
    began_s = time.time()
    unanswered = {
        f"{content['title']} / {panel.title} / {number}": target
        for content in contents().values()
        for panel in panels(content)
        for number, target in enumerate(panel.targets)
    }
    assert len(unanswered) > 100

    def are_all_answered() -> bool:
        observed.visitors.come()
        for name, target in list(unanswered.items()):
            if has_data(observed, target, began_s):
                del unanswered[name]
        return not unanswered

    try:
        wait_until(are_all_answered, TIMEOUT_S, "")
    except GamedayFailed:
        pytest.fail("\n".join(f"{name}: {target.expression}" for name, target in unanswered.items()))


def test_every_mark_on_the_dashboards_is_a_query_that_prometheus_takes(observed):
    for content in contents().values():
        for mark in content["annotations"]["list"]:
            observed.prometheus.query(filled_in(mark["expr"]))


def test_points_in_a_graph_of_latency_are_traces_of_requests(observed):
    (latency,) = (
        panel for panel in panels(contents()["service-health"]) if panel.title == "Latency of POST /suggest"
    )
    shown = [target["expr"] for target in latency.content["targets"] if target.get("exemplar")]

    def exemplars():
        window = {"start": time.time() - 60, "end": time.time()}
        (expression,) = shown
        found = observed.prometheus.ask("/api/v1/query_exemplars", query=filled_in(expression), **window)
        return [exemplar["labels"] for series in found["data"] for exemplar in series["exemplars"]]

    observed.visitors.come()
    wait_until(exemplars, 30, "no request left its trace")
    assert all(re.fullmatch("[0-9a-f]{32}", labels["trace_id"]) for labels in exemplars())


def test_a_dashboard_with_all_kinds_of_panels_can_be_drawn_as_a_small_picture(observed):
    content = contents()["service-health"]
    assert {panel["type"] for panel in content["panels"]} == {
        "row",
        "stat",
        "timeseries",
        "state-timeline",
        "table",
    }

    picture = screen(Source(observed.prometheus.url, time.time() - 60, time.time()), content, VARIABLES)

    assert picture.startswith(b"\x89PNG") and 30_000 < len(picture) < 150_000


def has_data(observed: Observed, target, began_s: float) -> bool:
    if target.is_instant:
        series = observed.prometheus.query(target.expression)
        return any(is_number([one["value"]]) for one in series)
    series = observed.prometheus.query_range(target.expression, began_s, time.time(), 1.0)
    return any(is_number(one["values"]) for one in series)


def is_number(points: Sequence[tuple[float, str]]) -> bool:
    return any(math.isfinite(float(value)) for _, value in points)
