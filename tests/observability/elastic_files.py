"""What is shipped for Elasticsearch and Kibana, as data."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "helm/propositions/files/elastic"


def load(name: str) -> Any:
    return json.loads((FOLDER / name).read_text())


def saved_objects(kind: str | None = None) -> list[dict[str, Any]]:
    """Kibana's, of a kind or all of them."""
    lines = (FOLDER / "kibana.ndjson").read_text().splitlines()
    return [found for found in map(json.loads, lines) if kind in (None, found["type"])]


def query_of(saved: Mapping[str, Any]) -> str:
    """What a saved search or visualization looks for, in Lucene's syntax, which the server itself understands."""
    source = json.loads(saved["attributes"]["kibanaSavedObjectMeta"]["searchSourceJSON"])
    assert source["query"]["language"] == "lucene"
    return source["query"]["query"]


def mapped_fields(properties: Mapping[str, Any] | None = None, path: str = "") -> Iterator[str]:
    """The dotted names of the fields that the mappings name."""
    if properties is None:
        properties = load("mappings.json")["template"]["mappings"]["properties"]
    for name, mapping in properties.items():
        if "properties" in mapping:
            yield from mapped_fields(mapping["properties"], f"{path}{name}.")
        else:
            yield f"{path}{name}"


def fields_in_query(query: str) -> set[str]:
    return set(re.findall(r"([@\w.]+):", query.replace("_exists_:", ""))) | set(
        re.findall(r"_exists_:([\w.]+)", query)
    )


def fields_used(saved: Mapping[str, Any]) -> set[str]:
    """Those that a saved object or an anomaly job names."""
    attributes = saved["attributes"]
    fields = set(attributes.get("columns", ()))
    fields |= {field for field, _ in attributes.get("sort", ())}
    fields |= set(json.loads(attributes.get("fieldFormatMap", "{}")))
    if saved["type"] in ("search", "visualization"):
        fields |= fields_in_query(query_of(saved))
    for aggregation in json.loads(attributes.get("visState", "{}")).get("aggs", ()):
        fields |= {aggregation["params"]["field"]} if "field" in aggregation["params"] else set()
    return fields


def request_of(aggregations: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What a visualization asks the server: its metrics inside of its buckets."""
    metrics, buckets = {}, []
    for aggregation in aggregations:
        wanted = {
            name: aggregation["params"][name]
            for name in ("field", "percents", "size")
            if name in aggregation["params"]
        }
        if aggregation["type"] == "date_histogram":
            buckets.append(
                (aggregation["id"], {"date_histogram": {"field": wanted["field"], "fixed_interval": "1m"}})
            )
        elif aggregation["schema"] == "metric" and aggregation["type"] != "count":
            metrics[aggregation["id"]] = {aggregation["type"]: wanted}
        elif aggregation["schema"] != "metric":
            buckets.append((aggregation["id"], {aggregation["type"]: wanted}))
    request: dict[str, Any] = metrics
    for name, bucket in reversed(buckets):
        request = {name: {**bucket, **({"aggs": request} if request else {})}}
    return request
