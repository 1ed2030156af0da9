"""Helm itself, built with the Go toolchain, and what it makes of the chart."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

# No wheel or Debian package has the engine of Helm 4; Go is what builds it from its module, in about two minutes once.
HELM = "helm.sh/helm/v4/cmd/helm@v4.3.1"
ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "propositions"
BINARY = Path(sys.prefix) / "chart" / "helm"

Manifest = dict[str, Any]


class HelmMissing(RuntimeError):
    """There is neither a built Helm nor a Go toolchain that could build one."""


class HelmFailed(RuntimeError):
    """What Helm said."""


def build_helm() -> Path:
    """Builds Helm beside the virtual environment's programs, unless it is there.

    Raises:
        HelmMissing: there is no Go, or it cannot reach the module.
    """
    if not BINARY.exists():
        if (go := shutil.which("go")) is None:
            raise HelmMissing("Helm is built with Go: put `go` on the path")
        BINARY.parent.mkdir(parents=True, exist_ok=True)
        environment = {"GOBIN": str(BINARY.parent), "CGO_ENABLED": "0"}
        built = subprocess.run([go, "install", "-trimpath", HELM], env=_environment(environment), check=False)
        if built.returncode:
            raise HelmMissing(f"`go install {HELM}` failed")
    return BINARY


def _environment(changes: dict[str, str]) -> dict[str, str]:
    return {**os.environ, **changes}


@dataclass(frozen=True)
class Helm:
    """Runs Helm's commands, without a cluster unless `environment` names one."""

    binary: Path
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, *arguments: str | Path) -> str:
        """What the command prints.

        Raises:
            HelmFailed: it ended with an error, or takes minutes.
        """
        try:
            done = subprocess.run(
                [self.binary, *arguments],
                env=_environment(self.environment),
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
        except subprocess.TimeoutExpired as late:
            raise HelmFailed(
                f"helm {arguments[0]} takes longer than {late.timeout} s: {late.stderr}"
            ) from late
        if done.returncode:
            raise HelmFailed(done.stdout + done.stderr)
        return done.stdout

    def template(
        self, values: Path | None = None, *options: str, kube_version: str = "1.37.0"
    ) -> list[Manifest]:
        """The objects of a release `shop` in the namespace `ranking`."""
        given = () if values is None else ("--values", values)
        text = self.run(
            *("template", "shop", CHART, "--namespace", "ranking", "--kube-version", kube_version),
            *given,
            *options,
        )
        return [manifest for manifest in yaml.load_all(text, Loader=yaml.CSafeLoader) if manifest]


def scenarios() -> dict[str, Path]:
    """The matrix of values, by name."""
    return {
        path.name.removesuffix("-values.yaml"): path for path in sorted((CHART / "ci").glob("*-values.yaml"))
    }


def name_of(manifest: Manifest) -> str:
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


def pod_of(manifest: Manifest) -> Manifest | None:
    """The pod that an object is or makes, with metadata and spec."""
    match manifest["kind"]:
        case "Pod":
            return manifest
        case "CronJob":
            return manifest["spec"]["jobTemplate"]["spec"]["template"]
        case "Job" | "Deployment" | "StatefulSet":
            return manifest["spec"]["template"]
    return None


def containers_of(manifests: Iterable[Manifest]) -> list[tuple[str, Manifest]]:
    """All containers, also those that run first, with names to show."""
    return [
        (f"{name_of(manifest)}/{container['name']}", container)
        for manifest in manifests
        if (pod := pod_of(manifest)) is not None
        for kind in ("initContainers", "containers")
        for container in pod["spec"].get(kind, ())
    ]
