"""What one request's rows cost: our reader beside stock `get_online_features`, on the same Redis.

One user, one context and 20 of the user's categories, of which 4 have a row. Run as a module for a table
in JSON: `python -m tests.benchmarks.online_reader`.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from feast import FeatureStore
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import DoubleList, StringList, Value

from app.adapters.embedded import EmbeddedServers
from app.adapters.feature_store import load_schema, open_feature_store
from app.adapters.online_reader import RedisOnlineReader
from app.adapters.redis_client import connect_redis
from app.adapters.redis_wire import open_wire
from app.bootstrap.stores import migrate_database
from app.features.schema import EntityName, ViewSchema
from app.settings import Settings, load_settings

CATEGORY_COUNT, KNOWN_CATEGORY_COUNT = 20, 4
KEYS: Mapping[EntityName, Sequence[str]] = {
    EntityName.USER: ["user-1"],
    EntityName.CONTEXT: ["page=home\x1fdevice=phone\x1fdaypart=noon\x1fweekday=fri"],
    EntityName.USER_CATEGORY: [f"user-1\x1fcategory-{number}" for number in range(CATEGORY_COUNT)],
}


def measure(rounds: int = 7, reads_per_round: int = 1_000) -> dict[str, float]:
    """Microseconds per request: medians over rounds in which the two take turns.

    `_cpu_us` is this process alone; `_us` includes waiting for Redis.
    """
    with _applied_feature_repo() as settings:
        store, now = open_feature_store(settings), datetime.now(UTC)
        views = [view for view in load_schema(store).views if view.entity in KEYS]
        half_life_count = len(settings.half_lives_s)
        for view in views:
            _write(store, view, KEYS[view.entity][:KNOWN_CATEGORY_COUNT], half_life_count, now)
        client = connect_redis(settings.redis_address, settings.redis_batch_timeout_ms)
        reader = RedisOnlineReader(open_wire(client), store.project)
        keys = {view: KEYS[view.entity] for view in views}
        requests = _stock_requests(views)

        def read_ours() -> None:
            reader.read(keys, half_life_count, now)

        def read_stock() -> None:
            for features, entity_rows in requests:
                store.get_online_features(features=features, entity_rows=entity_rows)

        return _compare(read_ours, read_stock, rounds, reads_per_round)


def _compare(
    read_ours: Callable[[], None], read_stock: Callable[[], None], rounds: int, reads_per_round: int
) -> dict[str, float]:
    times = [
        (_time(read_ours, reads_per_round), _time(read_stock, reads_per_round // 20 or 1))
        for _ in range(rounds)
    ]
    ours_us, ours_cpu_us = (statistics.median(column) for column in zip(*(t for t, _ in times), strict=True))
    stock_us, stock_cpu_us = (
        statistics.median(column) for column in zip(*(t for _, t in times), strict=True)
    )
    return {
        "online_reader_us": ours_us,
        "online_reader_cpu_us": ours_cpu_us,
        "stock_feast_us": stock_us,
        "stock_feast_cpu_us": stock_cpu_us,
        "online_reader_vs_stock": stock_us / ours_us,
        "online_reader_vs_stock_cpu": stock_cpu_us / ours_cpu_us,
    }


def _time(read: Callable[[], None], count: int) -> tuple[float, float]:
    """(microseconds, microseconds of CPU) per call."""
    read()
    started, cpu_started = time.perf_counter(), time.process_time()
    for _ in range(count):
        read()
    return (
        (time.perf_counter() - started) / count * 1e6,
        (time.process_time() - cpu_started) / count * 1e6,
    )


def _stock_requests(views: Sequence[ViewSchema]) -> list[tuple[list[str], list[dict[str, str]]]]:
    """The same features as Feast takes them: a call per entity, because each has its own number of rows."""
    requests = []
    for entity, keys in KEYS.items():
        of_entity = [view for view in views if view.entity is entity]
        features = [f"{view.name}:{field}" for view in of_entity for field in view.field_names]
        requests.append((features, [{of_entity[0].join_key: key} for key in keys]))
    return requests


def _write(
    store: FeatureStore, view: ViewSchema, keys: Sequence[str], half_life_count: int, now: datetime
) -> None:
    values = {
        "Float64": Value(double_val=now.timestamp()),
        "String": Value(string_val="writer"),
        "Array(Float64)": Value(double_list_val=DoubleList(val=[0.5] * half_life_count)),
        "Array(String)": Value(string_list_val=StringList(val=["p1", "p2"])),
    }
    row = {field.name: values[field.dtype] for field in view.fields}
    data = [
        (EntityKey(join_keys=[view.join_key], entity_values=[Value(string_val=key)]), row, now, None)
        for key in keys
    ]
    online_store = store._get_provider().online_store
    online_store.online_write_batch(store.config, store.get_feature_view(view.name), data, None)


@contextmanager
def _applied_feature_repo() -> Iterator[Settings]:
    """Servers of its own with the feature repo applied, in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        servers = EmbeddedServers(Path(folder) / "embedded")
        with servers.running():
            os.environ |= {"DATA_DIR": folder} | {n.upper(): a for n, a in servers.addresses().items()}
            settings = load_settings()
            migrate_database(settings)
            feast = Path(sys.executable).with_name("feast")
            subprocess.run([feast, "apply"], cwd=settings.feature_repo, check=True, capture_output=True)
            yield settings


if __name__ == "__main__":
    print(json.dumps({name: round(value, 2) for name, value in measure().items()}, indent=2))
