"""The generated rows are what the stock ways of writing would have written."""

import io

import numpy as np
import psycopg2
import pytest
import redis
from feast.infra.online_stores.redis import RedisOnlineStore
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import DoubleList, StringList, Value

from app.adapters.feature_store import open_feature_store
from tests.benchmarks.data import Chunk, Size, World
from tests.benchmarks.encoding import copy_binary, copy_columns, redis_commands
from tests.benchmarks.traffic import uniform_suggestions, zipf_suggestions
from tests.builders import NOON, query

HALF_LIVES_S = (3_600.0, 86_400.0)


def chunk(table: str, **values: np.ndarray) -> Chunk:
    return Chunk(table, "user_id", np.array(["u1", "u2", "u333"], dtype="S"), values)


PROFILES = chunk(
    "user_profile",
    age_years=np.array([30.0, 0.0, 41.5]),
    gender=np.array(["f", "male", "x"], dtype="S"),
    segment=np.array(["a", "bb", "ccc"], dtype="S"),
)
ACTIVITY = chunk(
    "user_activity",
    impressions=np.array([[1.0, 2.5], [0.0, 0.0], [1e9, 1e-9]]),
    clicks=np.zeros((3, 2)),
    conversions=np.ones((3, 2)),
    dismissals=np.full((3, 2), 0.1),
    as_of_s=np.array([NOON.timestamp()] * 3),
)


def test_equal_seeds_give_equal_data_and_other_seeds_others():
    def clicks(seed):
        (only,) = World(Size(50, 20), HALF_LIVES_S, NOON, seed).proposition_performance()
        return only.values["clicks"]

    assert np.array_equal(clicks(1), clicks(1))
    assert not np.array_equal(clicks(1), clicks(2))


def test_users_have_three_to_six_favourite_categories():
    chunks = World(Size(300, 20), HALF_LIVES_S, NOON).features()
    keys = next(chunk for chunk in chunks if chunk.table == "user_category_affinity").keys.tolist()

    owners, counts = np.unique([key.partition(b"\x1f")[0] for key in keys], return_counts=True)

    assert len(set(keys)) == len(keys)
    assert len(owners) == 300
    assert set(counts.tolist()) == {3, 4, 5, 6}


def test_histories_name_each_proposition_once_and_are_as_long_as_the_catalog_allows():
    chunks = [c for c in World(Size(60, 50), HALF_LIVES_S, NOON).features() if c.table == "user_history"]

    assert sorted({c.values["propositions"].shape[1] for c in chunks}) == [20, 50]
    assert sum(map(len, chunks)) == 60
    for row in (row for c in chunks for row in c.values["propositions"].tolist()):
        assert len(set(row)) == len(row)


def test_traits_of_a_proposition_are_sorted_and_its_tags_are_among_them():
    (catalog,) = World(Size(1, 200), HALF_LIVES_S, NOON).catalog()

    for traits, tags in zip(catalog.features.values["traits"].tolist(), catalog.tags, strict=True):
        assert traits == sorted(set(traits)) and len(traits) == 4
        assert {tag.encode() for tag in tags.strip("{}").split(",")} < set(traits)


def test_copied_profiles_read_as_what_was_generated(settings):
    copy(settings, PROFILES)

    assert query(
        settings,
        "SELECT user_id, age_years, gender, segment, event_timestamp FROM user_profile ORDER BY user_id",
    ) == [
        ("u1", 30.0, "f", "a", NOON),
        ("u2", 0.0, "male", "bb", NOON),
        ("u333", 41.5, "x", "ccc", NOON),
    ]


def test_copied_arrays_read_as_what_was_generated(settings):
    recent = chunk("recent", propositions=np.array([["p1", "p2"], ["p3", "p1"], ["p2", "p3"]], dtype="S"))
    query(settings, "CREATE TABLE recent (user_id text, propositions text[], event_timestamp timestamptz)")

    copy(settings, recent)
    copy(settings, ACTIVITY)

    assert query(settings, "SELECT user_id, propositions FROM recent ORDER BY user_id") == [
        ("u1", ["p1", "p2"]),
        ("u2", ["p3", "p1"]),
        ("u333", ["p2", "p3"]),
    ]
    assert query(settings, "SELECT impressions, as_of_s FROM user_activity ORDER BY user_id") == [
        ([1.0, 2.5], NOON.timestamp()),
        ([0.0, 0.0], NOON.timestamp()),
        ([1e9, 1e-9], NOON.timestamp()),
    ]


HISTORY = chunk(
    "user_history",
    propositions=np.array([["p1", "p2"], ["p3", "p1"], ["p2", "p3"]], dtype="S"),
    impressions=np.array([[1.0, 2.0], [0.0, 3.0], [1.0, 1.0]]),
    clicks=np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]]),
)


@pytest.mark.parametrize("generated", [PROFILES, ACTIVITY, HISTORY], ids=lambda chunk: chunk.table)
def test_rows_sent_to_redis_are_byte_for_byte_those_of_stock_feast(settings, generated):
    store = open_feature_store(settings)
    view = store.get_feature_view(generated.table)
    stock = store.provider.online_store
    assert isinstance(stock, RedisOnlineStore)
    RedisOnlineStore.online_write_batch(stock, store.config, view, feast_rows(generated), progress=None)
    expected = content(settings)

    with redis.Redis.from_url(settings.redis_address) as client:
        client.flushdb()
        connection = client.connection_pool.get_connection()
        connection.send_packed_command([redis_commands(generated, store.project, NOON)])
        replies = [connection.read_response() for _ in generated.keys]
        client.connection_pool.release(connection)

    assert set(replies) == {1 + len(generated.values)}
    assert content(settings) == expected and len(expected) == len(generated)


def test_lists_of_texts_are_encoded_as_feast_does():
    recent = chunk("recent", propositions=np.array([["p1", "p2"], ["p3", "p1"], ["p2", "p3"]], dtype="S"))

    commands = redis_commands(recent, "propositions", NOON)

    for row in (["p1", "p2"], ["p3", "p1"], ["p2", "p3"]):
        assert Value(string_list_val=StringList(val=row)).SerializeToString() in commands


def copy(settings, generated: Chunk) -> None:
    connection = psycopg2.connect(settings.postgres_url)
    try:
        with connection, connection.cursor() as cursor:
            columns = ", ".join(copy_columns(generated))
            cursor.copy_expert(
                f"COPY {generated.table} ({columns}) FROM STDIN (FORMAT binary)",
                io.BytesIO(copy_binary(generated, NOON)),
            )
    finally:
        connection.close()


def content(settings) -> dict:
    with redis.Redis.from_url(settings.redis_address) as client:
        return {key: client.hgetall(key) for key in client.scan_iter()}


def feast_rows(generated: Chunk) -> list[tuple]:
    return [
        (
            EntityKey(join_keys=[generated.key_column], entity_values=[Value(string_val=key.decode())]),
            {name: feast_value(column[row]) for name, column in generated.values.items()},
            NOON,
            None,
        )
        for row, key in enumerate(generated.keys.tolist())
    ]


def feast_value(cell) -> Value:
    if isinstance(cell, np.ndarray) and cell.dtype.kind == "S":
        return Value(string_list_val=StringList(val=[text.decode() for text in cell.tolist()]))
    if isinstance(cell, np.ndarray):
        return Value(double_list_val=DoubleList(val=cell.tolist()))
    return Value(string_val=cell.decode()) if isinstance(cell, bytes) else Value(double_val=float(cell))


def test_a_zipf_mix_repeats_a_few_users_and_a_uniform_one_none_in_particular():
    size = Size(users=1_000, propositions=10)

    def share_of_the_busiest(suggestions) -> float:
        users = [suggestion["user_id"] for suggestion in suggestions]
        return np.unique(users, return_counts=True)[1].max() / len(users)

    # Of 1,000 ranks with exponent 1.1, the first has 1 / sum(r ** -1.1) = 18 %.
    assert share_of_the_busiest(zipf_suggestions(size, 5_000)) == pytest.approx(0.18, abs=0.02)
    assert share_of_the_busiest(uniform_suggestions(size, 5_000)) < 0.01
