"""What the small API server says that it has."""

from dataclasses import dataclass
from functools import cache
from typing import Any

VERSION = "1.37"
_PARAMETERS = ("dryRun", "fieldManager", "fieldValidation", "force")
_KINDS = {
    "v1": "ConfigMap Secret Service ServiceAccount Pod PersistentVolumeClaim",
    "apps/v1": "Deployment StatefulSet ReplicaSet",
    "batch/v1": "Job CronJob",
    "networking.k8s.io/v1": "Ingress NetworkPolicy",
    "policy/v1": "PodDisruptionBudget",
    "autoscaling/v2": "HorizontalPodAutoscaler",
    "monitoring.coreos.com/v1": "ServiceMonitor PrometheusRule",
}


def _plural(kind: str) -> str:
    lower = kind.lower()
    return lower[:-1] + "ies" if lower.endswith("y") else lower + ("es" if lower.endswith("s") else "s")


@dataclass(frozen=True)
class Resource:
    """A kind of object, by the name that stands in addresses."""

    api_version: str
    kind: str
    plural: str

    @property
    def root(self) -> str:
        return f"/api/{self.api_version}" if self.api_version == "v1" else f"/apis/{self.api_version}"


RESOURCES = [Resource(v, kind, _plural(kind)) for v, kinds in _KINDS.items() for kind in kinds.split()]


@cache
def discovery() -> dict[str, Any]:
    """What the server has, by address."""
    groups = [version.split("/") for version in _KINDS if "/" in version]
    answers: dict[str, Any] = {
        "/version": {"major": "1", "minor": "37", "gitVersion": f"v{VERSION}.0"},
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/apis": {
            **{"kind": "APIGroupList", "apiVersion": "v1"},
            "groups": [
                {
                    "name": group,
                    "versions": [{"groupVersion": f"{group}/{version}", "version": version}],
                    "preferredVersion": {"groupVersion": f"{group}/{version}", "version": version},
                }
                for group, version in groups
            ],
        },
    }
    paths = {}
    for api_version in _KINDS:
        ours = [resource for resource in RESOURCES if resource.api_version == api_version]
        root = ours[0].root
        answers[root] = {
            **{"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api_version},
            "resources": [
                {
                    **{"name": resource.plural, "singularName": resource.kind.lower(), "kind": resource.kind},
                    "namespaced": True,
                    "verbs": ["create", "delete", "get", "list", "patch", "update", "watch"],
                }
                for resource in ours
            ],
        }
        paths[root[1:]] = {"serverRelativeURL": f"/openapi/v3{root}"}
        answers[f"/openapi/v3{root}"] = _open_api(ours)
    return {**answers, "/openapi/v3": {"paths": paths}}


def _open_api(resources: list[Resource]) -> dict[str, Any]:
    """Says of each kind that it exists and can be applied, and nothing of what is in it."""
    gvks = {}
    for resource in resources:
        group, _, version = resource.api_version.rpartition("/")
        gvks[resource] = {"group": group, "version": version, "kind": resource.kind}
    parameters = [{"name": name, "in": "query", "schema": {"type": "string"}} for name in _PARAMETERS]
    return {
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": VERSION},
        "paths": {
            f"{r.root}/namespaces/{{namespace}}/{r.plural}/{{name}}": {
                "patch": {
                    "parameters": parameters,
                    "x-kubernetes-group-version-kind": gvk,
                    "responses": {"200": {"description": "OK"}},
                }
            }
            for r, gvk in gvks.items()
        },
        "components": {
            "schemas": {
                r.kind: {"type": "object", "x-kubernetes-group-version-kind": [gvk]}
                for r, gvk in gvks.items()
            }
        },
    }
