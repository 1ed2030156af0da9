"""Where the keeper reads news, when PostgreSQL does not answer."""

from collections.abc import Iterator
from urllib.parse import urlsplit

import psycopg2.extensions
import pytest
from pydantic import SecretStr

from app.adapters import snapshots
from app.adapters.database import batch_database, wait_cooperatively
from app.adapters.snapshots import SnapshotSource
from app.domain.errors import StoreUnavailable
from app.features.snapshot import empty_snapshot
from app.gameday.proxy import Fault, Proxy, proxy_to


@pytest.fixture
def cooperative() -> Iterator[None]:
    wait_cooperatively(timeout_s=60.0)
    yield
    psycopg2.extensions.set_wait_callback(None)


@pytest.fixture
def proxy(settings) -> Iterator[Proxy]:
    with proxy_to(urlsplit(settings.postgres_url).port) as proxy:
        yield proxy


def test_a_postgres_that_never_replies_is_given_up_long_before_a_long_query(
    settings, proxy, cooperative, monkeypatch
):
    monkeypatch.setattr(snapshots, "_TELLING_S", 0.1)
    port = urlsplit(settings.postgres_url).port
    address = settings.postgres_url.replace(f":{port}/", f":{proxy.port}/")
    database = batch_database(settings.model_copy(update={"database_url": SecretStr(address)}))
    source, empty = SnapshotSource(database), empty_snapshot(settings.half_lives_s)
    source.refresh(empty)

    proxy.set(Fault.SILENT)
    with pytest.raises(StoreUnavailable, match=r"no reply within 0\.1 s"):
        source.refresh(empty)

    proxy.set(Fault.PASS)
    source.refresh(empty)
