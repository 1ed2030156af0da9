"""An application that asks for keys, over services that do nothing, and keys of all kinds for it."""

import secrets
from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client import CollectorRegistry

from app.adapters.shared_counts import SharedCounts
from app.api.admission import InProgress
from app.api.exemplars import Exemplars
from app.api.factory import ApiServices, create_app
from app.api.health import DependencyStatus
from app.api.http_metrics import LATENCY_BUCKETS_S
from app.api.worker_metrics import metrics_folder
from app.domain.access import KeyRing, Scope, make_key, revoke, rotate
from app.domain.ports import Receipt, Upserted
from app.domain.types import DegradationLevel, Slate, StoredIn, Strategy
from app.life.forget import Forgotten
from app.settings import Settings

NOW = datetime.now(UTC)


class Store:
    """Knows nothing and takes everything."""

    def find(self, entity_id):
        return None

    def upsert(self, entities):
        return Upserted(created_ids=tuple(entity.proposition_id for entity in entities))

    def delete(self, entity_id):
        return True


def suggest(request, request_id, now, budget):
    return Slate(request_id, now, (), Strategy.DEFAULT, None, DegradationLevel.STATIC_DEFAULT, {}, 0)


def record(events):
    return Receipt(tuple(event.event_id for event in events), (), StoredIn.POSTGRES)


class Holders:
    """A key for each scope, and others that are good for nothing any more."""

    def __init__(self) -> None:
        self._keys, self.presented = {}, {}
        for scope in Scope:
            self.add(scope, scopes=[scope])
        self.add("other", scopes=[Scope.SUGGEST])
        self.add("expired", expires_at=NOW - timedelta(seconds=1))
        self._change("revoked", lambda key: (revoke(key, NOW), None))
        self._change("rotated", lambda key: rotate(key, NOW, timedelta(), secrets.token_bytes))

    def add(self, name, scopes=tuple(Scope), expires_at=None):
        self._keys[name], self.presented[name] = make_key(name, scopes, NOW, expires_at, secrets.token_bytes)

    def _change(self, name, change):
        self.add(name)
        self._keys[name], _ = change(self._keys[name])

    def id_of(self, name):
        return self._keys[name].key_id

    def find(self, presented, now):
        return KeyRing(self._keys.values()).find(presented, now)

    def bearer(self, name):
        return {"Authorization": f"Bearer {self.presented[name]}"}


class NoRedis:
    def ask(self, packed, reply_count, timeout_s=None):
        raise AssertionError("a request asked Redis")


class Clock:
    now_s = 1_800_000_000.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def holders():
    return Holders()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def app(holders, clock):
    """Makes an application with some settings; keys are asked for."""

    def make(**changes):
        services = ApiServices(
            suggest=suggest,
            record_events=record,
            count_events=lambda *_: None,
            count_recorded=lambda *_: None,
            propositions=Store(),
            users=Store(),
            forget_user=lambda user_id: Forgotten({}, True),
            check_health=lambda: {
                "redis": DependencyStatus(False, "connection to 10.0.0.1:6379 refused", "opened")
            },
            flush_decisions=lambda: None,
            find_key=holders.find,
            rate_counts=SharedCounts(NoRedis(), clock),
            is_strained=lambda: False,
            is_overrun=lambda: False,
            count_shed=lambda name: None,
            is_leaving=lambda: False,
            in_progress=InProgress(),
            exemplars=Exemplars(metrics_folder(), LATENCY_BUCKETS_S),
            flush_metrics=lambda: None,
            run_aside=lambda work: work(),
        )
        settings = Settings(_env_file=None, **changes)
        return create_app(settings, services, CollectorRegistry())

    return make


@pytest.fixture
def client(app):
    return app().test_client()
