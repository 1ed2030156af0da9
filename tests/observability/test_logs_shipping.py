"""Lines of a real run, brought by a real shipper into a real search server as it is set up in production, and found there.

OpenSearch stands in for Elasticsearch and rsyslog for Filebeat: docs/logs.md says what that leaves out.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from typer.testing import CliRunner

from app.cli import logs
from app.cli.logs import EXIT_ANOMALIES
from app.domain.errors import ConfigurationError
from app.gameday.stack import wait_until
from tests.observability import elastic_files as shipped
from tests.observability.log_lines import SUGGESTIONS, TRACE_ID, ServiceRun, field_names, run_service
from tests.observability.rsyslog import find_rsyslog, shipping
from tests.observability.search_server import NotYet, SearchServer, search_server

STREAM = "logs-propositions-default"
ALL = "logs-propositions-*"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> ServiceRun:
    return run_service(tmp_path_factory.mktemp("service"))


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[SearchServer]:
    try:
        find_rsyslog()
        with search_server(tmp_path_factory.mktemp("search") / "server") as server:
            set_up(server)
            yield server
    except ConfigurationError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))


def set_up(server: SearchServer) -> None:
    """As docs/logs.md has it, without what OpenSearch does not know: lifecycles, machine learning, Kibana."""
    server.ask("PUT", "/_ingest/pipeline/logs-propositions", shipped.load("ingest-pipeline.json"))
    server.ask("PUT", "/_component_template/logs-propositions@mappings", shipped.load("mappings.json"))
    server.ask("PUT", "/_component_template/logs-propositions@lifecycle", {"template": {}})
    server.ask("PUT", "/_index_template/logs-propositions", shipped.load("index-template.json"))


@pytest.fixture(scope="module")
def stored(run: ServiceRun, server: SearchServer, tmp_path_factory) -> SearchServer:
    """The server, when all lines have arrived."""
    with shipping(run.files, tmp_path_factory.mktemp("shipper") / "rsyslog", server.port, STREAM) as refused:
        wait_until(lambda: has_all(server, run), 30, f"lines are missing: {refused}")
        assert not refused.exists(), refused.read_text()
    return server


def has_all(server: SearchServer, run: ServiceRun) -> bool:
    try:
        return count(server) >= len(run.lines())
    except NotYet:
        return False


def count(server: SearchServer) -> int:
    server.ask("POST", f"/{ALL}/_refresh")
    return server.ask("GET", f"/{ALL}/_count")["count"]


def found(server: SearchServer, query: str, **more) -> list[dict]:
    body = {"query": {"query_string": {"query": query}}, "size": 1_000, "sort": ["@timestamp"], **more}
    return [hit["_source"] for hit in server.search(ALL, **body)["hits"]["hits"]]


def test_every_line_of_every_process_arrives_with_all_its_fields(run, stored):
    lines = run.lines()
    roles = stored.search(ALL, size=0, aggs={"roles": {"terms": {"field": "service.node.roles"}}})

    assert count(stored) == len(lines)
    assert found(stored, "_exists_:_ignored OR _exists_:tags OR _exists_:labels.pipeline_failure") == []
    assert {bucket["key"] for bucket in roles["aggregations"]["roles"]["buckets"]} == {
        "web",
        "keeper",
        "projector",
    }
    for line in found(stored, "*"):
        assert line["event"]["ingested"] > line["@timestamp"]
    by_message = Counter(line["message"] for line in lines)
    assert {message: by_message[message] for message in run.asked} == run.asked


def test_all_lines_of_a_trace_are_found_also_warnings(stored):
    lines = found(stored, f'trace.id:"{TRACE_ID}"')

    told = [(line["log"]["logger"], line["message"].partition(":")[0]) for line in lines]
    assert told[:3] == [("app.access", "POST /suggest 200")] * 2 + [("app.access", "POST /log_event 202")]
    assert told[3:] == [("app.api.problems", "a store is down"), ("app.access", "PUT /users/<id")] * 2
    assert lines[3]["http"]["request"]["id"] == lines[4]["http"]["request"]["id"]


def test_a_decision_is_found_by_its_id(run, stored):
    (line,) = found(stored, f'propositions.decision.id:"{run.decision_id}"')

    assert line["trace"]["id"] == TRACE_ID
    assert line["propositions"]["slate"] == {"strategy": "rules", "level": 2, "cached": False}


def test_failures_are_counted_by_route(stored):
    failures = stored.search(
        ALL,
        size=0,
        query={"term": {"event.outcome": "failure"}},
        aggs={
            "routes": {
                "terms": {"field": "http.route"},
                "aggs": {"requests": {"sum": {"field": "transaction.representative_count"}}},
            }
        },
    )

    buckets = failures["aggregations"]["routes"]["buckets"]
    assert [(bucket["key"], bucket["requests"]["value"]) for bucket in buckets] == [
        ("/users/<id:user_id>", 2.0)
    ]


def test_latencies_have_the_percentiles_that_they_had_in_the_lines(run, stored):
    answer = stored.search(
        ALL,
        size=0,
        query={"query_string": {"query": 'http.route:"/suggest" AND propositions.slate.strategy:model'}},
        aggs={"latency": {"percentiles": {"field": "event.duration", "percents": [50, 95]}}},
    )

    durations = [
        line["event"]["duration"]
        for line in run.lines()
        if line.get("propositions", {}).get("slate", {}).get("strategy") == "model"
    ]
    assert len(durations) > SUGGESTIONS
    for percent, value in answer["aggregations"]["latency"]["values"].items():
        assert np.mean(np.array(durations) <= value) == pytest.approx(float(percent) / 100, abs=0.03)


def test_every_field_of_a_line_is_mapped_on_purpose(run):
    known = set(shipped.mapped_fields())

    fields = {name for line in run.lines() for name in field_names(line)}

    assert {
        name for name in fields - known if not name.startswith(("propositions.stage_ns.", "labels."))
    } == set()


def test_every_field_that_kibana_and_the_anomaly_job_use_is_in_real_lines(run, stored):
    there = {name for line in found(stored, "*") for name in field_names(line)}
    # Exceptions that nothing has caught, which a good run has none of.
    there |= {"error.type", "error.message"}
    assert len(there) > 40
    used = set().union(*map(shipped.fields_used, shipped.saved_objects()))
    job = shipped.load("anomaly-job.json")["analysis_config"]
    used |= {*job["influencers"], *(detector["partition_field_name"] for detector in job["detectors"])}
    used |= {detector["field_name"] for detector in job["detectors"]} - {"failures"}

    assert used - there == set()


@pytest.mark.parametrize("name", [saved["id"] for saved in shipped.saved_objects("search")])
def test_a_saved_search_finds_what_it_is_for(stored, name):
    (saved,) = (saved for saved in shipped.saved_objects("search") if saved["id"] == name)

    assert found(stored, shipped.query_of(saved)) != []


@pytest.mark.parametrize("name", [saved["id"] for saved in shipped.saved_objects("visualization")])
def test_a_visualization_has_something_to_show(stored, name):
    (saved,) = (saved for saved in shipped.saved_objects("visualization") if saved["id"] == name)
    asked = shipped.request_of(json.loads(saved["attributes"]["visState"])["aggs"])

    answer = stored.search(
        ALL, size=0, query={"query_string": {"query": shipped.query_of(saved)}}, aggs=asked
    )

    numbers = re.findall(r'"(?:value|99\.0|doc_count)": ([\d.]+)', json.dumps(answer["aggregations"]))
    assert numbers and all(float(number) >= 0 for number in numbers)
    assert (
        "null" not in json.dumps(answer["aggregations"])
        or name == "propositions-time-of-a-suggestion-by-stage"
    )


def test_the_anomaly_job_reads_requests_and_counts_failures(run, stored):
    feed = shipped.load("anomaly-datafeed.json")
    emitted = re.fullmatch(r"emit\((.*)\)", feed["runtime_mappings"]["failures"]["script"]["source"])[1]

    answer = stored.search(
        ",".join(feed["indices"]),
        size=0,
        track_total_hits=True,
        query=feed["query"],
        aggs={"failures": {"sum": {"script": emitted}}},
    )

    lines = [line for line in run.lines() if line["log"]["logger"] == "app.access"]
    with_route = [line for line in lines if "route" in line["http"]]
    assert answer["hits"]["total"]["value"] == len(with_route)
    assert answer["aggregations"]["failures"]["value"] == 2


def test_nothing_is_dropped_whatever_a_shipper_sends(server):
    stream = "logs-propositions-odd"
    line = '{"@timestamp":"2026-01-01T00:00:05Z","log.level":"error","message":"in","ecs.version":"8.11.0","log":{"logger":"x"}}'
    documents = (
        {"@timestamp": "2026-01-01T00:00:00Z", "message": line},
        {"@timestamp": "2026-01-01T00:00:00Z", "message": "{no json"},
        {"message": "plain text", "event": {"duration": "long"}},
        {"@timestamp": "2026-01-01T00:00:00Z", "message": "m", "kubernetes": {"pod": {"name": "p-1"}}},
    )
    bulk = "".join(f'{{"create":{{}}}}\n{json.dumps(document)}\n' for document in documents)

    answer = server.ask("POST", f"/{stream}/_bulk?refresh=true", bulk)

    assert not answer["errors"], answer
    hits = server.search(stream, sort=["_seq_no"])["hits"]["hits"]
    decoded, broken, wrong, enriched = (hit["_source"] for hit in hits)
    assert (decoded["message"], decoded["log"]) == ("in", {"level": "error", "logger": "x"})
    assert (broken["message"], broken["tags"]) == ("{no json", ["not_json"])
    assert hits[2]["_ignored"] == ["event.duration"] and wrong["@timestamp"] == wrong["event"]["ingested"]
    assert enriched["kubernetes"] == {"pod": {"name": "p-1"}}
    assert (
        server.search(stream, query={"term": {"kubernetes.pod.name": "p-1"}})["hits"]["total"]["value"] == 1
    )


def test_the_outage_is_an_anomaly_of_the_log(run):
    options = ("--json", "--window", "1", "--baseline", "0")

    done = CliRunner().invoke(logs.commands, ["anomalies", *options, *map(str, run.files)])

    told = json.loads(done.output)
    assert (done.exit_code, told["unreadable"], told["lines"]) == (EXIT_ANOMALIES, 0, len(run.lines()))
    new = {anomaly["subject"] for anomaly in told["anomalies"] if anomaly["kind"] == "new signature"}
    assert "app.access: PUT /users/<id:user_id> 503" in new
    assert any(subject.startswith("app.api.problems: a store is down: PostgreSQL") for subject in new)
    assert any(subject.startswith("app.serving.keeper: the last good snapshot serves") for subject in new)


def test_no_line_of_a_run_says_whom_it_was_about(run):
    text = "".join(path.read_text() for path in run.files)

    assert "alice" not in text
    assert not re.search(r'"u\d+"', text)
    hashes = {line["user"]["hash"] for line in run.lines() if "user" in line}
    assert len(hashes) > 10
