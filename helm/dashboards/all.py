"""The dashboards by the names of their files, and as text."""

import json
from collections.abc import Mapping
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from helm.dashboards.business import business
from helm.dashboards.events import events
from helm.dashboards.ranking import ranking
from helm.dashboards.service_health import service_health

FOLDER = Path(__file__).parents[1] / "propositions/files/grafana/dashboards"


def dashboards() -> Mapping[str, Dashboard]:
    return {
        "service-health": service_health(),
        "ranking-and-features": ranking(),
        "business": business(),
        "events-pipeline": events(),
    }


def text(dashboard: Dashboard) -> str:
    """The JSON that Grafana reads."""
    return json.dumps(dashboard, cls=JSONEncoder, indent=2, sort_keys=True) + "\n"
