"""The life of a release: Helm's own commands against an API server that validates what they send.

The server is a small one of these tests (`tests/chart/kubernetes_api.py`), not a kube-apiserver.
"""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import yaml

from tests.chart.cluster import Cluster
from tests.chart.helm import CHART, Helm, HelmFailed, scenarios
from tests.chart.kubernetes_api import KubernetesApi, serve_api

PRODUCTION = ("--values", scenarios()["production"])
WAIT = ("--wait", "--timeout", "30s")


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def server(cluster) -> Iterator[tuple[KubernetesApi, str]]:
    with serve_api(cluster.live) as server:
        yield server


@pytest.fixture
def api(server) -> KubernetesApi:
    return server[0]


@pytest.fixture
def helm_there(helm, server, tmp_path) -> Helm:
    """Helm with that server, in a namespace of its own."""
    config = {
        **{"apiVersion": "v1", "kind": "Config", "current-context": "there"},
        "clusters": [{"name": "there", "cluster": {"server": server[1]}}],
        "users": [{"name": "there", "user": {}}],
        "contexts": [
            {"name": "there", "context": {"cluster": "there", "user": "there", "namespace": "ranking"}}
        ],
    }
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    return replace(helm, environment={"KUBECONFIG": str(path), "HELM_CACHE_HOME": str(tmp_path)})


def test_a_release_is_installed_upgraded_rolled_back_tested_and_uninstalled(helm_there, api):
    helm_there.run("install", "shop", CHART, *PRODUCTION, *WAIT)

    created = [name for name in api.history if not name.startswith("Secret/")]
    assert created[:3] == [
        "ServiceAccount/shop-propositions-hooks",
        "Job/shop-propositions-migrate",
        "Job/shop-propositions-feast-apply",
    ]
    assert "StatefulSet/shop-propositions-web" in created[3:]
    assert api.objects("Job") == []  # those of hooks are removed when they have succeeded
    (web,) = api.objects("StatefulSet")
    assert "SUGGEST_DEADLINE_MS" in str(web) and "password" not in str(api.objects("ConfigMap"))

    helm_there.run("upgrade", "shop", CHART, *PRODUCTION, "--set", "web.workers=8", *WAIT)

    assert api.history.count("Job/shop-propositions-migrate") == 2
    assert workers(api) == "8"

    helm_there.run("rollback", "shop", "1", *WAIT)

    assert workers(api) == "4"

    helm_there.run("test", "shop", "--timeout", "30s")

    assert "Pod/shop-propositions-test" in api.history

    helm_there.run("uninstall", "shop", *WAIT)

    assert (
        api.objects("StatefulSet", "Deployment", "CronJob", "Service", "ServiceAccount", "Pod", "Secret")
        == []
    )


def test_nothing_is_installed_when_the_migration_fails(helm_there, api, cluster):
    cluster.failing.add("-migrate")

    with pytest.raises(HelmFailed, match="migrate"):
        helm_there.run("install", "shop", CHART, *WAIT)

    assert api.objects("StatefulSet", "Deployment") == []
    (job,) = api.objects("Job")  # stays, to be looked at
    assert job["metadata"]["name"] == "shop-propositions-migrate"


def test_the_old_release_goes_on_when_the_migration_of_the_next_fails(helm_there, api, cluster):
    helm_there.run("install", "shop", CHART, *PRODUCTION, *WAIT)
    cluster.failing.add("-migrate")

    with pytest.raises(HelmFailed, match="migrate"):
        helm_there.run("upgrade", "shop", CHART, *PRODUCTION, "--set", "web.workers=8", *WAIT)

    assert workers(api) == "4"


def test_helm_test_says_so_when_the_service_does_not_answer(helm_there, cluster):
    helm_there.run("install", "shop", CHART, *WAIT)
    cluster.failing.add("-test")

    with pytest.raises(HelmFailed):
        helm_there.run("test", "shop", "--timeout", "30s")


def test_a_trial_migrates_when_its_postgresql_is_there(helm_there, api):
    helm_there.run("install", "shop", CHART, "--values", scenarios()["trial"], *WAIT)

    created = api.history
    assert created.index("StatefulSet/shop-propositions-postgresql") < created.index(
        "Job/shop-propositions-migrate"
    )


@pytest.mark.parametrize("scenario", ["cluster", "everything", "kafka"])
def test_the_other_scenarios_are_taken_by_the_server(helm_there, api, scenario):
    helm_there.run("install", "shop", CHART, "--values", scenarios()[scenario], *WAIT)

    assert api.objects("StatefulSet")


def workers(api: KubernetesApi) -> str:
    (web,) = api.objects("StatefulSet")
    (container,) = web["spec"]["template"]["spec"]["containers"]
    return next(v["value"] for v in container["env"] if v["name"] == "WEB_WORKERS")
