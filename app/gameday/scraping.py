"""The scrape configuration as it is shipped, with targets and intervals of a test or a game day."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

FILES = Path(__file__).parents[2] / "helm/propositions/files"
PROMETHEUS = FILES / "prometheus"
RULES = PROMETHEUS / "rules"


def scrape_configuration(
    targets: Mapping[str, Sequence[str]],
    interval: str = "1s",
    rules: Sequence[Path] = (),
    alertmanagers: Sequence[str] = (),
) -> dict[str, Any]:
    """`targets` by job; jobs without any are left out. All the rest of a job is as in prometheus.yml."""
    configuration = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    for name in ("scrape_interval", "scrape_timeout", "evaluation_interval"):
        configuration["global"][name] = interval
    configuration["rule_files"] = [str(path) for path in rules]
    configuration["alerting"]["alertmanagers"] = [{"static_configs": [{"targets": list(alertmanagers)}]}]
    configuration["scrape_configs"] = [
        _with_targets(job, targets[job["job_name"]])
        for job in configuration["scrape_configs"]
        if job["job_name"] in targets
    ]
    return configuration


def _with_targets(job: Mapping[str, Any], addresses: Sequence[str]) -> dict[str, Any]:
    discovered = {name: value for name, value in job.items() if not name.endswith("_sd_configs")}
    return {**discovered, "static_configs": [{"targets": list(addresses)}]}
