"""What the chart makes is what Kubernetes, the Prometheus operator and this project's settings expect."""

import json
import runpy
from itertools import pairwise

import jsonschema
import kubernetes_validate
import pytest
import yaml

from app.settings import Settings
from tests.chart.custom_resources import CUSTOM_RESOURCES
from tests.chart.helm import CHART, ROOT, HelmFailed, containers_of, name_of, pod_of, scenarios
from tests.chart.renew import GOLDEN, golden_text, renewed_readme, renewed_schema

KUBERNETES_VERSIONS = ["1.30", "1.34", "1.37"]
# For Python and its libraries; everything else is a setting, or belongs to an image that is not ours.
NO_SETTINGS = {"TMPDIR", "HOME"}
FROM_SECRETS = {
    "DATABASE_URL": "postgresql://user:password@host/name",
    "REDIS_URL": "redis://host",
    "KAFKA_OPTIONS": "{}",
    "REDIS_SENTINEL_PASSWORD": "password",
}


def test_lint_has_no_complaint(helm):
    for values in scenarios().values():
        helm.run("lint", CHART, "--strict", "--values", values)


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_every_object_fits_the_schemas_of_kubernetes(releases, version):
    distinct = {json.dumps(manifest): manifest for release in releases.values() for manifest in release}

    for manifest in distinct.values():
        if manifest["kind"] in CUSTOM_RESOURCES:
            jsonschema.validate(manifest, CUSTOM_RESOURCES[manifest["kind"]])
        else:
            kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("scenario", scenarios())
def test_what_is_made_was_reviewed(releases, scenario):
    golden = GOLDEN / f"{scenario}.yaml"

    assert golden_text(releases[scenario]) == golden.read_text(), "see `git diff` after `make chart-golden`"


def test_no_two_objects_of_a_release_have_one_name(releases):
    for release in releases.values():
        names = [name_of(manifest) for manifest in release]

        assert sorted(set(names)) == sorted(names)


def test_selectors_find_pods(releases):
    for release in releases.values():
        labels = [pod["metadata"]["labels"] for manifest in release if (pod := pod_of(manifest))]
        for manifest in release:
            spec = manifest.get("spec", {})
            match manifest["kind"]:
                case "Service":
                    selector = spec["selector"]
                case "PodDisruptionBudget" | "StatefulSet" | "Deployment":
                    selector = spec["selector"]["matchLabels"]
                case "NetworkPolicy":
                    selector = spec["podSelector"]["matchLabels"]
                case _:
                    continue
            assert any(selector.items() <= of_pod.items() for of_pod in labels), name_of(manifest)


def test_service_monitors_find_services_and_their_ports(releases):
    release = releases["production"]
    monitors = [m for m in release if m["kind"] == "ServiceMonitor"]
    services = [m for m in release if m["kind"] == "Service"]

    assert len(monitors) == 2
    for monitor in monitors:
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        (service,) = [s for s in services if wanted <= s["metadata"]["labels"].items()]
        ports = {port["name"] for port in service["spec"]["ports"]}
        assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= ports


def test_every_environment_variable_is_a_setting_with_a_good_value(releases, monkeypatch):
    for release in releases.values():
        for name, container in containers_of(release):
            if "DATABASE_URL" not in {variable["name"] for variable in container.get("env", ())}:
                continue  # not the service
            variables = {v["name"]: v.get("value") for v in container["env"]}
            values = {k: FROM_SECRETS.get(k) if v is None else v for k, v in variables.items()}

            assert {key.lower() for key in variables.keys() - NO_SETTINGS} <= Settings.model_fields.keys(), (
                name
            )
            assert len(variables) == len(container["env"]), f"{name} has a variable twice"
            with monkeypatch.context() as environment:
                for key in Settings.model_fields:
                    environment.delenv(key.upper(), raising=False)
                for key, value in values.items():
                    environment.setenv(key, value)
                Settings(_env_file=None)


def test_large_numbers_reach_the_service_as_they_stand_in_the_values(releases):
    (web,) = [
        container for name, container in containers_of(releases["everything"]) if name.endswith("-web/web")
    ]

    assert {"name": "SPOOL_MAX_BYTES", "value": "1073741824"} in web["env"]


def test_a_pod_is_killed_only_after_gunicorn_would_have_ended_by_itself(releases, monkeypatch):
    for release in releases.values():
        (web,) = [m for m in release if name_of(m).endswith("-web") and m["kind"] == "StatefulSet"]
        pod = web["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        drain_s = next(v["value"] for v in container["env"] if v["name"] == "SHUTDOWN_DRAIN_S")
        monkeypatch.setenv("SHUTDOWN_DRAIN_S", drain_s)
        gunicorn = runpy.run_path(str(ROOT / "app" / "api" / "gunicorn_conf.py"))
        pre_stop_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]

        assert pod["terminationGracePeriodSeconds"] > pre_stop_s + gunicorn["graceful_timeout"]


def test_a_pod_leaves_the_balancers_before_it_takes_no_more_requests(releases):
    for release in releases.values():
        (web,) = [container for name, container in containers_of(release) if name.endswith("-web/web")]
        drain_s = next(int(v["value"]) for v in web["env"] if v["name"] == "SHUTDOWN_DRAIN_S")
        probe = web["readinessProbe"]

        assert drain_s > probe["periodSeconds"] * probe["failureThreshold"]


def test_acknowledged_events_lie_on_a_volume_that_outlives_pods_and_releases(releases):
    for release in releases.values():
        (web,) = [m for m in release if name_of(m).endswith("-web") and m["kind"] == "StatefulSet"]
        (container,) = web["spec"]["template"]["spec"]["containers"]
        data_dir = next(v["value"] for v in container["env"] if v["name"] == "DATA_DIR")
        (mount,) = [m for m in container["volumeMounts"] if m["mountPath"] == data_dir]
        claims = {claim["metadata"]["name"] for claim in web["spec"]["volumeClaimTemplates"]}

        assert mount["name"] in claims and not mount.get("readOnly")
        assert set(web["spec"]["persistentVolumeClaimRetentionPolicy"].values()) == {"Retain"}


def test_hooks_come_in_order_and_need_nothing_that_comes_later(releases):
    for name, release in releases.items():
        hooks = [
            m for m in release if "install" in m["metadata"].get("annotations", {}).get("helm.sh/hook", "")
        ]
        weights = [int(m["metadata"]["annotations"]["helm.sh/hook-weight"]) for m in hooks]
        order = sorted(zip(weights, map(name_of, hooks), strict=True))
        last_words = [full_name.rpartition("-")[2] for _, full_name in order]

        assert last_words[:3] == ["hooks", "migrate", "apply"], name
        assert all(one < other for one, other in pairwise(sorted(weights)))
        accounts = {m["metadata"]["name"] for m in hooks if m["kind"] == "ServiceAccount"}
        assert {pod["spec"]["serviceAccountName"] for m in hooks if (pod := pod_of(m))} == accounts


def test_links_in_alerts_lead_where_the_values_say(helm):
    rules = [m for m in helm.template(scenarios()["production"]) if m["kind"] == "PrometheusRule"]
    others = [m for m in helm.template(scenarios()["everything"]) if m["kind"] == "PrometheusRule"]

    assert len(rules) == len(others) == len(list(CHART.glob("files/prometheus/rules/*.yml")))
    assert "$externalLabels.grafana" not in yaml.safe_dump_all(rules)
    assert "$externalLabels.runbooks" not in yaml.safe_dump_all(rules)
    for ours, shipped in zip(others, sorted(CHART.glob("files/prometheus/rules/*.yml")), strict=True):
        assert ours["spec"] == yaml.safe_load(shipped.read_text())


def test_all_dashboards_are_there_unchanged(releases):
    shipped = {path.name: path.read_text() for path in CHART.glob("files/grafana/dashboards/*.json")}
    made = {}
    for manifest in releases["production"]:
        if manifest["kind"] == "ConfigMap":
            made |= manifest["data"]

    assert {name: json.loads(text) for name, text in made.items()} == {
        name: json.loads(text) for name, text in shipped.items()
    }


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("web.replcias=2", "replcias"),
        ("settings.SUGEST_DEADLINE_MS=80", "SUGEST_DEADLINE_MS"),
        ("settings.SUGGEST_DEADLINE_MS=soon", "SUGGEST_DEADLINE_MS"),
        ("settings.DEVELOPMENT_MODE=true", "DEVELOPMENT_MODE"),
        ("settings.DATABASE_URL=postgresql://host/name", "DATABASE_URL"),
        ("image.tag=latest", "tag"),
        ("web.drainSeconds=60", "drainSeconds"),
        ("kafka.enabled=true", "kafka.bootstrapServers"),
        ("retrain.enabled=true", "say in models"),
        ("ingress.enabled=true", "ingress.hosts"),
        ("models.objectStore.enabled=true,models.objectStore.image=client:1", "download-models"),
        ("trial.redis.image=redis:latest", "image"),
    ],
)
def test_what_cannot_be_right_is_refused(helm, setting, complaint):
    with pytest.raises(HelmFailed, match=complaint):
        helm.template(None, "--set", setting)


def test_an_older_kubernetes_is_refused(helm):
    with pytest.raises(HelmFailed, match="incompatible with Kubernetes"):
        helm.template(kube_version="1.29.0")


def test_the_schema_of_values_knows_every_value_and_setting_and_nothing_else():
    text = (CHART / "values.schema.json").read_text()

    assert renewed_schema(text) == text, "run `make chart-golden`"
    for path, part in _objects(json.loads(text)):
        is_kubernetes_own = part.get("description", "").startswith(("As in Kubernetes", "Shared by charts"))
        assert is_kubernetes_own or part.get("additionalProperties") is not None, path
        assert part.get("additionalProperties") in (None, False, {"type": "string"}), path


def _objects(part, path="values"):
    if isinstance(part, dict):
        if part.get("type") == "object":
            yield path, part
        for name, inner in part.items():
            yield from _objects(inner, f"{path}.{name}")


def test_the_readme_lists_every_value_with_its_default():
    text = (CHART / "README.md").read_text()

    assert renewed_readme(text) == text, "run `make chart-golden`"
