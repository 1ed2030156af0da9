import os
from types import ModuleType

import pytest

from app.domain.errors import ConfigurationError
from app.gameday import monitoring as monitoring_servers


@pytest.fixture(scope="session")
def monitoring() -> ModuleType:
    """`app.gameday.monitoring`, once it is sure that Prometheus and Alertmanager are to be had."""
    try:
        for program in ("prometheus", "promtool", "alertmanager", "amtool"):
            monitoring_servers.find_program(program)
    except ConfigurationError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))
    return monitoring_servers
