"""The API key of all measurements: services ask for one, as they do where they are deployed."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from app.adapters.database import service_database
from app.adapters.key_store import KeyStore
from app.domain.access import Scope, make_key
from app.gameday import load
from app.settings import Settings

# Always the same: it opens nothing but the throw-away stores of a measurement.
_KEY, API_KEY = make_key("benchmark", Scope, datetime(2026, 1, 1, tzinfo=UTC), None, bytes)
HEADERS = {"Content-Type": "application/json", "Authorization": f"Bearer {API_KEY}"}
# Counted as usual and reached by nobody.
LIMITS = {
    "RATE_LIMIT_PER_KEY": "1000000 per second",
    "RATE_LIMIT_PER_ADDRESS": "1000000 per second",
    "DEVELOPMENT_MODE": False,
}


def add_key(settings: Settings) -> None:
    KeyStore(service_database(settings)).add(_KEY)


def write_requests(path: Path, route: str, bodies: Iterable[Mapping]) -> Path:
    return load.write_requests(path, route, bodies, API_KEY)
