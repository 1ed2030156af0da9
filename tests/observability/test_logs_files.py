"""The files for Filebeat, Logstash, Elasticsearch and Kibana, as far as they can be judged without running these."""

import json
import re
from pathlib import Path

import pytest
import yaml
from logstash_pipeline_parser import Pipeline

from helm.kibana.objects import FILE, text
from tests.observability import elastic_files as shipped

STREAM = "logs-propositions-default"
ROOT = Path(__file__).parents[2]
LOGS = (ROOT / "docs/logs.md").read_text()


def settings_of(name: str) -> dict:
    return yaml.safe_load((shipped.FOLDER / name).read_text())


@pytest.mark.parametrize("name", ["filebeat.yml", "filebeat-docker.yml", "filebeat-stdin.yml"])
def test_filebeat_decodes_lines_and_sends_them_where_the_template_is(name):
    filebeat = settings_of(name)

    output = filebeat["output.elasticsearch"]
    assert output["index"] == STREAM
    assert filebeat["setup.template.enabled"] is filebeat["setup.ilm.enabled"] is False
    (decoding,) = (p["decode_json_fields"] for p in filebeat["processors"] if "decode_json_fields" in p)
    assert (decoding["fields"], decoding["target"]) == (["message"], "")
    assert decoding["overwrite_keys"] and decoding["expand_keys"]
    assert output["non_indexable_policy.dead_letter_index"]["index"]
    assert {"queue.mem", "queue.disk"} & filebeat.keys()


@pytest.mark.parametrize(
    "name", ["filebeat.yml", "filebeat-docker.yml", "filebeat-stdin.yml", "logstash.conf"]
)
def test_what_a_file_takes_from_the_environment_is_said_at_its_top(name):
    text = (shipped.FOLDER / name).read_text()
    begin = text[: text.index("\n", text.index("Environment:") + 200)]

    assert set(re.findall(r"\$\{(\w+)\}", text)) <= set(re.findall(r"\b[A-Z_]{5,}\b", begin))


def test_logstash_sends_to_the_same_data_stream():
    sections = dict(Pipeline((shipped.FOLDER / "logstash.conf").read_text()).parse())

    assert list(sections) == ["input", "filter", "output"]
    ((plugin, options),) = sections["output"]
    values = {name: value for name, (value,) in options}
    assert plugin == "elasticsearch" and values["data_stream"] is True
    parts = (values[f"data_stream_{part}"] for part in ("type", "dataset", "namespace"))
    assert "-".join(parts) == STREAM
    assert settings_of("logstash.yml")["queue.type"] == "persisted"


def test_templates_pipelines_and_policies_name_each_other():
    template = shipped.load("index-template.json")
    index = shipped.load("mappings.json")["template"]["settings"]["index"]

    assert re.fullmatch(template["index_patterns"][0].replace("*", ".*"), STREAM)
    assert f"_component_template/{template['composed_of'][0]}" in LOGS
    assert f"_component_template/{template['composed_of'][1]}" in LOGS
    assert f"_ingest/pipeline/{index['default_pipeline']}" in LOGS
    lifecycle = shipped.load("lifecycle.json")["template"]["settings"]["index"]["lifecycle"]["name"]
    assert f"_ilm/policy/{lifecycle}" in LOGS
    assert set(shipped.load("ilm-policy.json")["policy"]["phases"]) == {"hot", "warm", "delete"}
    feed, job = shipped.load("anomaly-datafeed.json"), shipped.load("anomaly-job.json")
    assert feed["indices"] == template["index_patterns"]
    assert f"_ml/anomaly_detectors/{feed['job_id']}" in LOGS
    known = {*shipped.mapped_fields(), *feed["runtime_mappings"]}
    assert {detector["field_name"] for detector in job["analysis_config"]["detectors"]} <= known


def test_every_file_is_in_the_document_and_every_file_there_exists():
    named = set(re.findall(r"\b([\w-]+\.(?:json|ya?ml|conf|ndjson))\b", LOGS))

    assert named == {path.name for path in shipped.FOLDER.iterdir()}


def test_what_kibana_imports_is_what_the_code_makes():
    assert FILE.read_text() == text()


def test_fields_that_runbooks_look_for_are_mapped():
    queries = re.findall(r"KQL `([^`]*)`", (ROOT / "docs/runbooks.md").read_text())

    assert len(queries) > 10
    fields = set(re.findall(r"([\w.]+)(?=:| >=)", re.sub(r'"[^"]*"', "", " ".join(queries))))
    assert fields - {"labels.key_id"} <= set(shipped.mapped_fields())


def test_references_of_saved_objects_resolve():
    objects = shipped.saved_objects()
    there = {(saved["type"], saved["id"]) for saved in objects}

    assert len(there) == len(objects)
    for saved in objects:
        assert {(reference["type"], reference["id"]) for reference in saved["references"]} <= there
        names = {reference["name"] for reference in saved["references"]}
        wanted = set(re.findall(r"RefName\W+([\w.]+)", json.dumps(saved["attributes"])))
        assert {name.split(":")[-1] for name in names} == wanted


def test_the_dashboard_shows_all_visualizations_without_overlap():
    (dashboard,) = shipped.saved_objects("dashboard")
    places = [panel["gridData"] for panel in json.loads(dashboard["attributes"]["panelsJSON"])]

    cells = [
        (x, y)
        for place in places
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 48
    shown = {reference["id"] for reference in dashboard["references"]}
    assert {saved["id"] for saved in shipped.saved_objects("visualization")} < shown


def test_fields_that_saved_objects_use_are_mapped():
    mapped = set(shipped.mapped_fields())
    stages = set(
        re.findall(r'budget\.finish\("(\w+)"\)', "".join(p.read_text() for p in (ROOT / "app").rglob("*.py")))
    )
    mapped |= {f"propositions.stage_ns.{stage}" for stage in stages}

    for saved in shipped.saved_objects():
        assert shipped.fields_used(saved) - mapped == set(), saved["id"]


def test_links_of_fields_lead_to_saved_searches():
    (view,) = shipped.saved_objects("index-pattern")
    searches = {saved["id"] for saved in shipped.saved_objects("search")}

    links = re.findall(r"discover#/view/([\w-]+)", view["attributes"]["fieldFormatMap"])

    assert len(links) == 3 and set(links) <= searches
