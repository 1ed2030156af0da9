"""Every entity and every feature, once.

A crossed entity has one key: both ids, joined by the ASCII unit separator (U+001F).

A view of counters holds one array per event type, with a number per half-life, decayed to `as_of_s`.
Its tag `prior` names the view whose rates it shrinks towards where it has little data. The tag `kind`
of a field says how it becomes model input: `number` (the default for numbers), `category` (the default
for text), `time` (seconds since the epoch, read as an age), `ids` (of propositions; no model input), `history`
(lists of what a user was shown and what came of it, which are compared with each candidate), `traits` (texts that
propositions share), or `number_names` and `number_values` (numbers that only some propositions have).
"""

from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, PushSource, ValueType
from feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source import PostgreSQLSource
from feast.types import Array, Float64, String

user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)
proposition = Entity(name="proposition", join_keys=["proposition_id"], value_type=ValueType.STRING)
context = Entity(
    name="context",
    join_keys=["context_key"],
    value_type=ValueType.STRING,
    description="Where and when something is shown: field=value pairs, joined by U+001F.",
)
user_category = Entity(name="user_category", join_keys=["user_category_key"], value_type=ValueType.STRING)
context_proposition = Entity(
    name="context_proposition", join_keys=["context_proposition_key"], value_type=ValueType.STRING
)

# Counters older than a dozen of the longest half-lives say nothing any more.
COUNTERS_TTL = timedelta(days=365)
# Facts hold until they change.
FACTS_TTL = timedelta(days=3650)

COUNTERS = [
    Field(name="impressions", dtype=Array(Float64), tags={"kind": "counter"}),
    Field(name="clicks", dtype=Array(Float64), tags={"kind": "counter"}),
    Field(name="conversions", dtype=Array(Float64), tags={"kind": "counter"}),
    Field(name="dismissals", dtype=Array(Float64), tags={"kind": "counter"}),
    Field(name="as_of_s", dtype=Float64, tags={"kind": "counter"}),
]


def _source(table: str) -> PushSource:
    return PushSource(
        name=f"{table}_push",
        batch_source=PostgreSQLSource(
            name=f"{table}_table",
            table=table,
            timestamp_field="event_timestamp",
            created_timestamp_column="created_timestamp",
        ),
    )


def _counter_view(name: str, entity, prior: str | None = None) -> FeatureView:
    return FeatureView(
        name=name,
        entities=[entity],
        ttl=COUNTERS_TTL,
        schema=COUNTERS,
        source=_source(name),
        tags={"prior": prior} if prior else {},
    )


user_profile = FeatureView(
    name="user_profile",
    entities=[user],
    ttl=FACTS_TTL,
    schema=[
        Field(name="age_years", dtype=Float64),
        Field(name="gender", dtype=String),
        Field(name="segment", dtype=String),
    ],
    source=_source("user_profile"),
)
proposition_catalog = FeatureView(
    name="proposition_catalog",
    entities=[proposition],
    ttl=FACTS_TTL,
    schema=[
        Field(name="category", dtype=String),
        Field(name="value", dtype=Float64),
        Field(name="created_at_s", dtype=Float64, tags={"kind": "time"}),
        Field(name="traits", dtype=Array(String), tags={"kind": "traits"}),
        Field(name="number_names", dtype=Array(String), tags={"kind": "number_names"}),
        Field(name="number_values", dtype=Array(Float64), tags={"kind": "number_values"}),
    ],
    source=_source("proposition_catalog"),
)
user_history = FeatureView(
    name="user_history",
    entities=[user],
    ttl=COUNTERS_TTL,
    schema=[
        Field(name="propositions", dtype=Array(String), tags={"kind": "history"}),
        Field(name="impressions", dtype=Array(Float64), tags={"kind": "history"}),
        Field(name="clicks", dtype=Array(Float64), tags={"kind": "history"}),
    ],
    source=_source("user_history"),
    description="What the user was shown and clicked lately: at most 100 propositions, the newest first.",
)
# For finding candidates; no input of the model.
user_recent = FeatureView(
    name="user_recent",
    entities=[user],
    ttl=COUNTERS_TTL,
    schema=[Field(name="propositions", dtype=Array(String), tags={"kind": "ids"})],
    source=_source("user_recent"),
    description="What the user clicked or converted on last: at most 20 propositions, the newest first.",
)
context_activity = _counter_view("context_activity", context)
user_activity = _counter_view("user_activity", user)
proposition_performance = _counter_view("proposition_performance", proposition)
user_category_affinity = _counter_view("user_category_affinity", user_category, prior="user_activity")
context_proposition_performance = _counter_view(
    "context_proposition_performance", context_proposition, prior="proposition_performance"
)

ranker_v1 = FeatureService(
    name="ranker_v1",
    features=[
        user_profile,
        user_activity,
        user_history,
        proposition_catalog,
        proposition_performance,
        context_activity,
        user_category_affinity,
        context_proposition_performance,
    ],
)
