import os

import pytest

from tests.chart.helm import HELM, Helm, HelmMissing, Manifest, build_helm, scenarios


@pytest.fixture(scope="session")
def helm() -> Helm:
    try:
        return Helm(build_helm())
    except HelmMissing as missing:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def releases(helm) -> dict[str, list[Manifest]]:
    """What each of the scenarios makes."""
    return {name: helm.template(values) for name, values in scenarios().items()}


def pytest_terminal_summary(terminalreporter) -> None:
    terminalreporter.write_line(
        f"chart: {HELM}, built with Go; releases against the small API server of tests/chart/kubernetes_api.py"
    )
