"""What can be said of the dashboards without a server; test_panels.py asks a real one."""

import json
import re
from itertools import combinations
from pathlib import Path

import promql_parser
import pytest
import yaml

from app.gameday.scraping import FILES
from helm.dashboards.all import FOLDER, dashboards, text
from helm.dashboards.boards import TAG
from helm.dashboards.reading import contents, panels
from helm.dashboards.units import written

ROOT = Path(__file__).parents[2]
# Prometheus' own.
ALERTS = "ALERTS"
BOARDS = contents()


@pytest.fixture(params=BOARDS)
def board(request):
    return BOARDS[request.param]


def metrics_in(expression: str) -> set[str]:
    names = set()

    def collect(node):
        if isinstance(node, promql_parser.VectorSelector):
            names.add(node.name)
        for part in ("expr", "lhs", "rhs", "param", "vector_selector", "args"):
            child = getattr(node, part, None)
            for one in child if isinstance(child, list) else [child]:
                if isinstance(one, promql_parser.Expr):
                    collect(one)

    collect(promql_parser.parse(expression))
    return names


def documented_metrics() -> set[str]:
    return set(re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE))


def data_view() -> str:
    """The id of the logs in Kibana."""
    saved = [json.loads(line) for line in (FILES / "elastic/kibana.ndjson").read_text().splitlines()]
    (found,) = (one["id"] for one in saved if one.get("type") == "index-pattern")
    return found


def test_the_files_are_what_the_code_makes():
    assert {path.stem: path.read_text() for path in FOLDER.iterdir()} == {
        name: text(made) for name, made in dashboards().items()
    }


def test_every_query_can_be_parsed_and_asks_for_documented_metrics_only(board):
    documented = documented_metrics() | {ALERTS}
    for panel in panels(board):
        for target in panel.targets:
            asked = {re.sub("_(bucket|sum|count)$", "", name) for name in metrics_in(target.expression)}
            assert asked and asked <= documented, f"{panel.title}: {asked - documented}"


def test_every_documented_metric_is_on_a_dashboard():
    asked = {
        re.sub("_(bucket|sum|count)$", "", name)
        for board in BOARDS.values()
        for panel in panels(board)
        for target in panel.targets
        for name in metrics_in(target.expression)
    }

    # Said by others already: requests by the count of the histogram, and the version of a library.
    assert documented_metrics() - asked == {"flask_http_request_total", "flask_exporter_info"}


def test_every_panel_says_what_it_means_and_in_which_unit(board):
    for panel in panels(board):
        defaults = panel.content["fieldConfig"]["defaults"]
        assert len(panel.content["description"]) > 10, panel.title
        assert panel.kind in ("table", "state-timeline") or defaults["unit"], panel.title


def test_panels_fill_the_width_and_do_not_overlap(board):
    cells = [
        (panel["title"], x, y)
        for panel in board["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]

    assert len({(x, y) for _, x, y in cells}) == len(cells)
    assert {x for _, x, _ in cells} == set(range(24))
    lowest = max(y for _, _, y in cells)
    assert len(cells) == 24 * (lowest + 1)


def test_every_variable_in_a_query_is_one_of_the_dashboard(board):
    defined = {variable["name"] for variable in board["templating"]["list"]}
    marks = [mark["expr"] for mark in board["annotations"]["list"]]
    queries = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]

    for expression in marks + queries:
        used = set(re.findall(r"\$\{?(\w+)", expression))
        assert used <= defined | {"__rate_interval", "__range"}, expression


def test_dashboards_lead_to_each_other_and_to_the_logs_of_a_request(board):
    assert board["tags"] == [TAG]
    links = {link["title"]: link for link in board["links"]}
    assert links["Dashboards"]["tags"] == [TAG] and links["Dashboards"]["keepTime"]
    url = links["Logs of the request or trace"]["url"]
    assert url.startswith("${kibana}/app/discover#/") and "http.request.id" in url and "trace.id" in url
    assert f"index:{data_view()}," in url


def test_dashboards_have_ids_of_their_own():
    for one, other in combinations(BOARDS.values(), 2):
        assert one["uid"] != other["uid"] and one["title"] != other["title"]
    for board in BOARDS.values():
        ids = [panel["id"] for panel in board["panels"]]
        assert len(set(ids)) == len(ids)


def test_grafana_is_told_where_dashboards_and_metrics_are():
    provisioning = FILES / "grafana/provisioning"
    (provider,) = yaml.safe_load((provisioning / "dashboards/propositions.yml").read_text())["providers"]
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]

    assert provider["options"]["path"] == "/etc/grafana/dashboards"
    assert source["type"] == "prometheus" and source["isDefault"]
    (exemplars,) = source["jsonData"]["exemplarTraceIdDestinations"]
    assert exemplars["name"] == "trace_id" and "trace.id" in exemplars["url"]
    assert f"index:{data_view()}," in exemplars["url"]


@pytest.mark.parametrize(
    ("value", "unit", "decimals", "text"),
    [
        (0.99972, "percentunit", 2, "99.97%"),
        (0.0359, "s", None, "35.9 ms"),
        (0.0004, "s", None, "400 µs"),
        (90, "s", None, "90 s"),
        (7_200, "s", None, "2.0 h"),
        (1_234, "short", 0, "1 K"),
        (1_536, "bytes", None, "1.5 KiB"),
        (53.94, "reqps", None, "53.9 req/s"),
        (0, "ops", None, "0/s"),
    ],
)
def test_pictures_write_numbers_as_grafana_does(value, unit, decimals, text):
    assert written(value, unit, decimals) == text
