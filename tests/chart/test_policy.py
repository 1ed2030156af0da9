"""Rules that kube-linter, kube-score and the restricted Pod Security Standard have, for every scenario."""

import re
from collections.abc import Iterator

import pytest

from tests.chart.helm import Manifest, containers_of, name_of, pod_of

_UNITS = {"m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
# Of one replica, or of a command that ends.
_NOT_SPREAD = ("-postgresql", "-redis")


@pytest.fixture(scope="module")
def pods(releases) -> list[tuple[str, Manifest]]:
    return [
        (f"{scenario}: {name_of(manifest)}", pod)
        for scenario, release in releases.items()
        for manifest in release
        if (pod := pod_of(manifest)) is not None
    ]


@pytest.fixture(scope="module")
def containers(releases) -> list[tuple[str, Manifest]]:
    return [
        (f"{scenario}: {name}", container)
        for scenario, release in releases.items()
        for name, container in containers_of(release)
    ]


def long_lived(releases) -> Iterator[tuple[str, Manifest, list[Manifest]]]:
    """Every StatefulSet and Deployment with what else is in its release."""
    for scenario, release in releases.items():
        for manifest in release:
            if manifest["kind"] in ("StatefulSet", "Deployment"):
                yield f"{scenario}: {name_of(manifest)}", manifest, release


def test_images_have_a_version(containers):
    for name, container in containers:
        assert re.search(r"(:(?!latest$)[\w][\w.-]*|@sha256:[0-9a-f]{64})$", container["image"]), name


def test_requests_and_limits_are_set_and_requests_are_the_smaller(containers):
    for name, container in containers:
        resources = container["resources"]
        for amount in ("cpu", "memory", "ephemeral-storage"):
            assert _number(resources["requests"][amount]) <= _number(resources["limits"][amount]), name


def test_pods_fulfil_the_restricted_standard(pods, containers):
    for name, pod in pods:
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["runAsUser"] > 0, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), name
        kinds = {kind for volume in spec.get("volumes", ()) for kind in volume.keys() - {"name"}}
        assert kinds <= {"emptyDir", "secret", "configMap", "persistentVolumeClaim", "projected"}, name
    for name, container in containers:
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False, name
        assert security["capabilities"] == {"drop": ["ALL"]}, name
        assert security["runAsNonRoot"] is True and "privileged" not in security, name
        assert all("hostPort" not in port for port in container.get("ports", ())), name


def test_root_file_systems_are_read_only_and_temporary_files_have_a_bounded_volume(pods, containers):
    for name, container in containers:
        assert container["securityContext"]["readOnlyRootFilesystem"] is True, name
    for name, pod in pods:
        volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", ())}
        for container in pod["spec"]["containers"]:
            mounts = {mount["mountPath"]: mount for mount in container.get("volumeMounts", ())}
            if "TMPDIR" in {v["name"] for v in container.get("env", ())}:
                assert mounts["/tmp"]["name"] in volumes, name
        assert all("sizeLimit" in v["emptyDir"] for v in volumes.values() if "emptyDir" in v), name


def test_no_pod_has_a_token_or_the_default_service_account(pods, releases):
    for name, pod in pods:
        assert pod["spec"]["automountServiceAccountToken"] is False, name
        assert pod["spec"]["serviceAccountName"] not in ("", "default"), name
    for release in releases.values():
        accounts = {m["metadata"]["name"] for m in release if m["kind"] == "ServiceAccount"}
        assert {p["spec"]["serviceAccountName"] for m in release if (p := pod_of(m))} == accounts
        assert not [m for m in release if "Role" in m["kind"]]


def test_long_lived_containers_have_probes_that_a_busy_moment_does_not_fail(releases):
    for name, manifest, _ in long_lived(releases):
        for container in manifest["spec"]["template"]["spec"]["containers"]:
            liveness, readiness = container["livenessProbe"], container["readinessProbe"]
            assert {"startupProbe", "readinessProbe"} <= container.keys(), name
            assert liveness["periodSeconds"] * liveness["failureThreshold"] >= 60, name
            assert liveness["timeoutSeconds"] >= readiness["timeoutSeconds"] > 1, name


def test_pods_are_spread_and_their_eviction_is_bounded(releases):
    for name, manifest, release in long_lived(releases):
        if name.endswith(_NOT_SPREAD):
            assert manifest["spec"]["replicas"] == 1, name
            continue
        template = manifest["spec"]["template"]
        labels = template["metadata"]["labels"].items()
        spreads = template["spec"]["topologySpreadConstraints"]
        budgets = [m for m in release if m["kind"] == "PodDisruptionBudget"]
        (budget,) = [b for b in budgets if b["spec"]["selector"]["matchLabels"].items() <= labels]

        topologies = {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}
        assert {s["topologyKey"] for s in spreads} == topologies, name
        assert all(s["labelSelector"]["matchLabels"].items() <= labels for s in spreads), name
        assert budget["spec"]["maxUnavailable"] == 1, name


def test_only_a_policy_lets_anybody_in(releases):
    for scenario, release in releases.items():
        policies = [m["spec"] for m in release if m["kind"] == "NetworkPolicy"]
        for manifest in release:
            if (pod := pod_of(manifest)) is None:
                continue
            labels = pod["metadata"]["labels"].items()
            ours = [p for p in policies if p["podSelector"]["matchLabels"].items() <= labels]
            assert any("Ingress" in p["policyTypes"] for p in ours), f"{scenario}: {name_of(manifest)}"
            assert any("Egress" in p["policyTypes"] for p in ours), f"{scenario}: {name_of(manifest)}"
        for policy in policies:
            for rule in policy.get("ingress", ()):
                is_public = [port["port"] for port in rule["ports"]] == ["public"]
                assert is_public or rule["from"], scenario


def test_secrets_come_from_secrets(releases, containers):
    for scenario, release in releases.items():
        assert not [m for m in release if m["kind"] == "Secret"], scenario
    for name, container in containers:
        for variable in container.get("env", ()):
            if re.search(r"PASSWORD|_URL$|OPTIONS|API_KEY", variable["name"]):
                assert "secretKeyRef" in variable["valueFrom"], name


def test_commands_that_end_do_so_in_a_bounded_time(releases):
    for scenario, release in releases.items():
        for manifest in release:
            match manifest["kind"]:
                case "CronJob":
                    job = manifest["spec"]["jobTemplate"]["spec"]
                    assert manifest["spec"]["concurrencyPolicy"] == "Forbid"
                case "Job":
                    job = manifest["spec"]
                case _:
                    continue
            assert job["activeDeadlineSeconds"] > 0 and "backoffLimit" in job, scenario


def test_labels_are_those_that_kubernetes_recommends(releases):
    for scenario, release in releases.items():
        for manifest in release:
            labels = manifest["metadata"]["labels"]
            for name in ("name", "instance", "version", "managed-by", "part-of"):
                assert labels[f"app.kubernetes.io/{name}"], f"{scenario}: {name_of(manifest)}"


def _number(quantity: str | int) -> float:
    digits, unit = re.fullmatch(r"([0-9.]+)(\w*)", str(quantity)).groups()
    return float(digits) * _UNITS.get(unit, 1)
