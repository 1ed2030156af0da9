"""Kibana's saved objects: a data view, searches, visualizations and a dashboard over the log.

Queries are in Lucene's syntax, which a search server itself understands. Visualizations are of the aggregation-based kind,
whose description says in full what they ask for.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[1] / "propositions/files/elastic/kibana.ndjson"
DATA_VIEW = "logs-propositions"
# The oldest formats that Kibana 8.8 and later take as they are; it brings them to its own.
CORE_VERSION = "8.8.0"
VERSIONS = {"index-pattern": "8.0.0", "search": "7.9.3", "visualization": "8.5.0", "dashboard": "8.7.0"}
COLUMNS, HEIGHT = 48, 12

REQUESTS = "log.logger:app.access"
# 80 ms in nanoseconds, the default of SUGGEST_DEADLINE_MS.
SLOW = 80_000_000
IDS = ("http.request.id", "trace.id", "propositions.decision.id")
STAGES = ("cache", "turn", "features", "candidates", "score", "policy", "rules")

Saved = dict[str, Any]


def saved_objects() -> list[Saved]:
    shown = list(_visualizations())
    return [_data_view(), *_searches(), *shown, _dashboard(shown)]


def text() -> str:
    """What Kibana imports."""
    return "".join(f"{json.dumps(saved)}\n" for saved in saved_objects())


def _saved(
    kind: str, id_: str, title: str, references: Iterable[Mapping[str, str]], **attributes: Any
) -> Saved:
    return {
        "type": kind,
        "id": id_,
        "attributes": {"title": title, **attributes},
        "references": list(references),
        "coreMigrationVersion": CORE_VERSION,
        "typeMigrationVersion": VERSIONS[kind],
    }


def _data_view() -> Saved:
    milliseconds = {"inputFormat": "nanoseconds", "outputFormat": "asMilliseconds", "outputPrecision": 1}
    formats = {
        "event.duration": {"id": "duration", "params": milliseconds},
        "http.request.id": _link("propositions-request", "http.request.id"),
        "trace.id": _link("propositions-trace", "trace.id"),
        "propositions.decision.id": _link("propositions-decision", "propositions.decision.id"),
    }
    return _saved(
        "index-pattern",
        DATA_VIEW,
        "logs-propositions-*",
        (),
        name="Propositions: logs",
        timeFieldName="@timestamp",
        fieldFormatMap=json.dumps(formats),
    )


def _link(search: str, field: str) -> dict[str, Any]:
    """From an id in a table to all lines that have it."""
    query = f"(query:(language:lucene,query:'{field}:%22{{{{value}}}}%22'))"
    return {
        "id": "url",
        "params": {
            "type": "a",
            "urlTemplate": f"/app/discover#/view/{search}?_a={query}",
            "labelTemplate": "{{rawValue}}",
            "openLinkInCurrentTab": False,
        },
    }


def _source(query: str) -> dict[str, str]:
    name = "kibanaSavedObjectMeta.searchSourceJSON.index"
    return {
        "searchSourceJSON": json.dumps(
            {"query": {"query": query, "language": "lucene"}, "filter": [], "indexRefName": name}
        )
    }


def _of_data_view() -> list[dict[str, str]]:
    return [
        {"name": "kibanaSavedObjectMeta.searchSourceJSON.index", "type": "index-pattern", "id": DATA_VIEW}
    ]


def _searches() -> Iterator[Saved]:
    yield _search(
        "errors",
        "Failed requests, and what any process reports as an error",
        "log.level:(error OR critical)",
        ("service.node.roles", "log.logger", "message", "error.type", "error.message", *IDS),
    )
    yield _search(
        "warnings",
        "What processes warn of: outages that are lived with, by their text",
        "log.level:warning",
        ("service.node.roles", "log.logger", "message", "http.route", *IDS),
    )
    slate = ("propositions.slate.strategy", "propositions.slate.level")
    yield _search(
        "slow",
        "Requests of any route that took longer than 80 ms, the default of SUGGEST_DEADLINE_MS",
        f"{REQUESTS} AND event.duration:>{SLOW}",
        ("http.route", "event.duration", "http.response.status_code", *slate, *IDS),
    )
    yield _search(
        "degraded",
        "Slates that are not of level 0",
        "propositions.slate.level:>0",
        (*slate, "event.duration", "transaction.representative_count", *IDS),
    )
    story = ("log.level", "service.node.roles", "log.logger", "message", "event.duration")
    for name, field in (("request", IDS[0]), ("trace", IDS[1]), ("decision", IDS[2])):
        more = (*slate, "propositions.slate.model_version") if name == "decision" else ()
        yield _search(
            name,
            f"All lines of a {name}: type its {field}",
            f"_exists_:{field}",
            (*story, *more, *IDS),
            "asc",
        )


def _search(name: str, description: str, query: str, columns: Sequence[str], order: str = "desc") -> Saved:
    return _saved(
        "search",
        f"propositions-{name}",
        f"Propositions: {name}",
        _of_data_view(),
        description=description,
        columns=list(columns),
        sort=[["@timestamp", order]],
        kibanaSavedObjectMeta=_source(query),
    )


def _visualizations() -> Iterator[Saved]:
    requests = _metric(1, "sum", "transaction.representative_count", "requests")
    yield _visualization(
        "requests by status",
        "histogram",
        REQUESTS,
        [requests, _over_time(2), _terms(3, "http.response.status_code", "group")],
        _axes("histogram", "stacked", "requests", [1]),
    )
    yield _visualization(
        "latency of suggestions",
        "line",
        f'{REQUESTS} AND http.route:"/suggest"',
        [_metric(1, "percentiles", "event.duration", percents=[50, 95, 99]), _over_time(2)],
        _axes("line", "normal", "duration", [1]),
    )
    yield _visualization(
        "failures by route",
        "table",
        f"{REQUESTS} AND event.outcome:failure",
        [
            requests,
            *_rows("http.route", "http.response.status_code", "event.reason"),
        ],
        _TABLE,
    )
    yield _visualization(
        "slates by degradation level",
        "area",
        "_exists_:propositions.slate.level",
        [requests, _over_time(2), _terms(3, "propositions.slate.level", "group")],
        _axes("area", "stacked", "slates", [1]),
    )
    stages = [
        _metric(n, "avg", f"propositions.stage_ns.{stage}", stage) for n, stage in enumerate(STAGES, start=1)
    ]
    yield _visualization(
        "time of a suggestion by stage",
        "line",
        "_exists_:propositions.slate.strategy",
        [*stages, _over_time(len(stages) + 1)],
        _axes("line", "normal", "nanoseconds", range(1, len(stages) + 1)),
    )
    yield _visualization(
        "warnings and errors by logger",
        "table",
        f"log.level:(warning OR error OR critical) AND NOT {REQUESTS}",
        [_metric(1, "count", None, "lines"), *_rows("service.node.roles", "log.logger", "log.level")],
        _TABLE,
    )


def _visualization(
    title: str, kind: str, query: str, aggregations: Sequence[Mapping], parameters: Mapping[str, Any]
) -> Saved:
    title = f"Propositions: {title}"
    state = {"title": title, "type": kind, "aggs": list(aggregations), "params": parameters}
    return _saved(
        "visualization",
        title.lower().replace(": ", "-").replace(" ", "-"),
        title,
        _of_data_view(),
        description="",
        version=1,
        uiStateJSON="{}",
        visState=json.dumps(state),
        kibanaSavedObjectMeta=_source(query),
    )


def _aggregation(number: int, kind: str, schema: str, **parameters: Any) -> dict[str, Any]:
    return {"id": str(number), "enabled": True, "type": kind, "schema": schema, "params": parameters}


def _metric(
    number: int, kind: str, field: str | None, label: str | None = None, **more: Any
) -> dict[str, Any]:
    named = {"customLabel": label} if label else {}
    return _aggregation(number, kind, "metric", **({"field": field} if field else {}), **named, **more)


def _over_time(number: int) -> dict[str, Any]:
    return _aggregation(
        number,
        "date_histogram",
        "segment",
        field="@timestamp",
        useNormalizedEsInterval=True,
        scaleMetricValues=False,
        interval="auto",
        drop_partials=False,
        min_doc_count=1,
        extended_bounds={},
    )


def _terms(number: int, field: str, schema: str) -> dict[str, Any]:
    return _aggregation(
        number,
        "terms",
        schema,
        field=field,
        orderBy="1",
        order="desc",
        size=10,
        otherBucket=False,
        missingBucket=False,
    )


def _rows(*fields: str) -> list[dict[str, Any]]:
    return [_terms(number, field, "bucket") for number, field in enumerate(fields, start=2)]


_TABLE = {
    "perPage": 10,
    "showPartialRows": False,
    "showMetricsAtAllLevels": False,
    "showTotal": True,
    "totalFunc": "sum",
    "percentageCol": "",
}


def _axes(kind: str, mode: str, label: str, metrics: Iterable[int]) -> dict[str, Any]:
    labels = {"show": True, "filter": True, "truncate": 100}
    series = [
        {
            "show": True,
            "type": kind,
            "mode": mode,
            "data": {"label": label, "id": str(number)},
            "valueAxis": "ValueAxis-1",
            "drawLinesBetweenPoints": True,
            "lineWidth": 2,
            "showCircles": True,
        }
        for number in metrics
    ]
    return {
        "type": kind,
        "grid": {"categoryLines": False},
        "categoryAxes": [
            {
                "id": "CategoryAxis-1",
                "type": "category",
                "position": "bottom",
                "show": True,
                "style": {},
                "scale": {"type": "linear"},
                "labels": labels,
                "title": {},
            }
        ],
        "valueAxes": [
            {
                "id": "ValueAxis-1",
                "name": "LeftAxis-1",
                "type": "value",
                "position": "left",
                "show": True,
                "style": {},
                "scale": {"type": "linear", "mode": "normal"},
                "labels": {**labels, "rotate": 0},
                "title": {"text": label},
            }
        ],
        "seriesParams": series,
        "addTooltip": True,
        "addLegend": True,
        "legendPosition": "right",
        "times": [],
        "addTimeMarker": False,
    }


def _dashboard(shown: Sequence[Saved]) -> Saved:
    """Two visualizations in each row, and the errors below."""
    panels, references = [], []
    wide = {"type": "search", "id": "propositions-errors"}
    for number, saved in enumerate((*shown, wide)):
        is_wide = saved is wide
        name = f"panel_{number}"
        panels.append(
            {
                "version": CORE_VERSION,
                "type": saved["type"],
                "gridData": {
                    "x": 0 if is_wide else number % 2 * COLUMNS // 2,
                    "y": (number + 1) // 2 * HEIGHT if is_wide else number // 2 * HEIGHT,
                    "w": COLUMNS if is_wide else COLUMNS // 2,
                    "h": HEIGHT,
                    "i": str(number),
                },
                "panelIndex": str(number),
                "embeddableConfig": {"enhancements": {}},
                "panelRefName": name,
            }
        )
        references.append({"name": f"{number}:{name}", "type": saved["type"], "id": saved["id"]})
    everything = json.dumps({"query": {"query": "", "language": "lucene"}, "filter": []})
    return _saved(
        "dashboard",
        "propositions-logs",
        "Propositions: logs",
        references,
        description="Requests, failures, degradation and warnings; numbers of requests are those that lines stand for",
        panelsJSON=json.dumps(panels),
        optionsJSON=json.dumps({"useMargins": True, "syncColors": False, "hidePanelTitles": False}),
        timeRestore=True,
        timeFrom="now-1h",
        timeTo="now",
        refreshInterval={"pause": False, "value": 60_000},
        version=1,
        kibanaSavedObjectMeta={"searchSourceJSON": everything},
    )
