"""Reads Feast's online rows straight from Redis: all views of a request in one round trip."""

import struct
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import numpy as np

from app.adapters import feast_layout
from app.adapters.feast_layout import (
    decode_timestamp,
    decode_value,
    doubles_opening,
    entity_key_opening,
    timestamp_field,
    value_field,
)
from app.adapters.redis_wire import Wire
from app.domain.errors import FeaturesUnavailable, StoreUnavailable
from app.domain.types import FeatureState
from app.features.ports import OnlineRows
from app.features.rows import Rows, column
from app.features.schema import AS_OF_FIELD, COUNTER_FIELDS, ViewSchema

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MOST_HASHES = 256

_Reply = Sequence[bytes | None]


class RedisOnlineReader:
    """Implements `OnlineReader`, on one Redis or a cluster.

    Feast neither enforces a TTL online nor tells a missing entity from one with nulls; this does both,
    by the row's own timestamp.
    """

    def __init__(self, wire: Wire, project: str) -> None:
        self._wire = wire
        self._project = project
        self._hashes: dict[tuple[int, ...], _Hash] = {}

    def read(
        self,
        keys: Mapping[ViewSchema, Sequence[str]],
        half_life_count: int,
        now: datetime,
        timeout_s: float | None = None,
    ) -> Mapping[str, OnlineRows]:
        now_ns = _nanoseconds(now - _EPOCH)
        asked = [(self._hash(views), entity_keys) for entity_keys, views in _by_keys(keys)]
        replies = self._ask(asked, timeout_s)
        rows: dict[str, OnlineRows] = {}
        start = 0
        try:
            for hash_, entity_keys in asked:
                end = start + len(entity_keys)
                rows |= hash_.decode(replies[start:end], half_life_count, now_ns)
                start = end
        except (ValueError, TypeError, IndexError, struct.error) as error:
            raise FeaturesUnavailable(f"Redis holds something else than features: {error}") from error
        return rows

    def _ask(self, asked: Sequence[tuple["_Hash", Sequence[str]]], timeout_s: float | None) -> list[_Reply]:
        try:
            commands = b"".join([hash_.commands(entity_keys) for hash_, entity_keys in asked])
            count = sum([len(entity_keys) for _, entity_keys in asked])
            return self._wire.ask(commands, count, timeout_s) if count else []
        except StoreUnavailable as error:
            raise FeaturesUnavailable(str(error)) from error
        except UnicodeEncodeError as error:
            raise FeaturesUnavailable(f"a key is no text: {error}") from error

    def _hash(self, views: Sequence[ViewSchema]) -> "_Hash":
        # By identity, because hashing a view costs more than reading it. A `_Hash` keeps its views alive.
        identity = tuple(map(id, views))
        known = self._hashes.get(identity)
        if known is None:
            if len(self._hashes) >= _MOST_HASHES:
                self._hashes.clear()
            known = self._hashes[identity] = _Hash(self._project, views)
        return known


def _by_keys(
    keys: Mapping[ViewSchema, Sequence[str]],
) -> list[tuple[tuple[str, ...], list[ViewSchema]]]:
    """The views whose rows lie in the same hashes, with the keys of these."""
    groups: dict[tuple[str, tuple[str, ...]], list[ViewSchema]] = {}
    for view, entity_keys in keys.items():
        groups.setdefault((view.join_key, tuple(entity_keys)), []).append(view)
    return [(entity_keys, views) for (_, entity_keys), views in groups.items()]


class _Hash:
    """The commands that read some views of entities, ready but for the entities' keys."""

    def __init__(self, project: str, views: Sequence[ViewSchema]) -> None:
        self._schemas = tuple(views)
        self._views: list[_View] = []
        fields: list[bytes] = []
        for view in views:
            self._views.append(_View(view, len(fields)))
            fields += [timestamp_field(view.name), *(value_field(view.name, n) for n in view.field_names)]
        self._field_count = len(fields)
        project_bytes = project.encode()
        self._openings = _Openings(views[0].join_key, len(fields), len(project_bytes))
        self._ending = b"%b\r\n%b" % (project_bytes, b"".join(b"$%d\r\n%b\r\n" % (len(f), f) for f in fields))

    def commands(self, keys: Sequence[str]) -> bytes:
        openings, ending = self._openings, self._ending
        return b"".join([b"%b%b%b" % (openings[len(key)], key, ending) for key in map(str.encode, keys)])

    def decode(self, replies: Sequence[_Reply], half_life_count: int, now_ns: int) -> dict[str, OnlineRows]:
        """The rows by view, one per reply."""
        if unfit := set(map(len, replies)) - {self._field_count}:
            raise ValueError(f"{unfit.pop()} values where {self._field_count} were asked for")
        return {view.name: view.decode(replies, half_life_count, now_ns) for view in self._views}


class _Openings(dict[int, bytes]):
    """What stands in an HMGET before the bytes of the entity's key, by their number."""

    def __init__(self, join_key: str, field_count: int, project_length: int) -> None:
        super().__init__()
        self._words = 2 + field_count
        self._key_opening = entity_key_opening(join_key)
        self._project_length = project_length

    def __missing__(self, length: int) -> bytes:
        key_opening = self._key_opening + struct.pack("<I", length)
        redis_key_length = len(key_opening) + length + self._project_length
        self[length] = b"*%d\r\n$5\r\nHMGET\r\n$%d\r\n%b" % (self._words, redis_key_length, key_opening)
        return self[length]


class _View:
    """One view's part of the replies, which begins at their value number `start`."""

    def __init__(self, view: ViewSchema, start: int) -> None:
        self.name = view.name
        self._start = start
        self._ttl_ns = round(view.ttl_s * 1e9)
        positions = {name: start + 1 + number for number, name in enumerate(view.field_names)}
        self._counters = [positions.pop(name) for name in COUNTER_FIELDS] if view.has_counters else []
        self._as_of = positions.pop(AS_OF_FIELD) if view.has_counters else None
        self._others = [
            (field.name, field.dtype, positions[field.name], _types_of(field.dtype))
            for field in view.fields
            if field.name in positions
        ]

    def decode(self, replies: Sequence[_Reply], half_life_count: int, now_ns: int) -> OnlineRows:
        """Raises ValueError, TypeError or IndexError for what is no row of this view."""
        states, fresh, newest_ns = _freshness(replies, self._start, now_ns - self._ttl_ns)
        counts = as_of_s = None
        if self._as_of is not None:
            counts, as_of_s = self._counts(replies, fresh, half_life_count)
        values = {
            name: column(dtype, self._values(replies, fresh, position, types))
            for name, dtype, position, types in self._others
        }
        age_s = None if newest_ns is None else (now_ns - newest_ns) / 1e9
        return OnlineRows(Rows(counts, as_of_s, values), states, age_s)

    def _counts(
        self, replies: Sequence[_Reply], fresh: Sequence[int], half_life_count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Counts (n, event types, half-lives) and their times (n,): the stored bytes, put side by side."""
        opening, nothing = _counter_bytes(half_life_count)
        if (compiled := feast_layout.compiled_layout) is not None:
            counts = np.empty((len(replies), len(COUNTER_FIELDS), half_life_count))
            as_of_s = np.empty(len(replies))
            if compiled.counters(replies, fresh, self._counters, self._as_of, opening, counts, as_of_s):
                return counts, as_of_s
        length = len(opening) + 8 * half_life_count
        rows = [nothing] * len(replies)
        for row in fresh:
            reply = replies[row]
            numbers = [
                serialized[len(opening) :]
                if (serialized := reply[position])
                and len(serialized) == length
                and serialized.startswith(opening)
                else _counters(serialized, half_life_count)
                for position in self._counters
            ]
            rows[row] = b"".join([*numbers, _as_of(reply[self._as_of])])
        matrix = np.frombuffer(bytearray().join(rows)).reshape(len(rows), len(nothing) // 8)
        return matrix[:, :-1].reshape(-1, len(COUNTER_FIELDS), half_life_count), matrix[:, -1]

    def _values(
        self, replies: Sequence[_Reply], fresh: Sequence[int], position: int, types: tuple[type, ...]
    ) -> list[Any]:
        values: list[Any] = [None] * len(replies)
        for row in fresh:
            values[row] = _checked(decode_value(replies[row][position]), types)
        return values


def _freshness(
    replies: Sequence[_Reply], place: int, oldest_ns: int
) -> tuple[list[FeatureState], list[int], int | None]:
    """The state of each reply by its timestamp, at `place`; which are fresh; and the newest timestamp of all."""
    missing, fresh, stale = FeatureState.MISSING, FeatureState.FRESH, FeatureState.STALE
    if (compiled := feast_layout.compiled_layout) is not None:
        return compiled.freshness(replies, place, oldest_ns, missing, fresh, stale)
    written = [reply[place] for reply in replies]
    written_ns = [None if serialized is None else decode_timestamp(serialized) for serialized in written]
    states = [missing if at_ns is None else fresh if at_ns >= oldest_ns else stale for at_ns in written_ns]
    of_fresh = [number for number, state in enumerate(states) if state is fresh]
    return states, of_fresh, max(filter(None, written_ns), default=None)


def _types_of(dtype: str) -> tuple[type, ...]:
    """The Python types of a field's values: Feast stores a value of whatever type it is given."""
    if dtype == "String":
        return (str,)
    return (tuple,) if dtype.startswith("Array(") else (float, int)


def _checked(value: Any, types: tuple[type, ...]) -> Any:
    if value is not None and not isinstance(value, types):
        raise ValueError(f"a value of type {type(value).__name__} where {types[0].__name__} belongs")
    return value


@cache
def _counter_bytes(half_life_count: int) -> tuple[bytes, bytes]:
    """What stands before a counter's numbers, and the numbers and time of a row that is not there."""
    no_row = np.zeros(len(COUNTER_FIELDS) * half_life_count + 1)
    no_row[-1] = np.nan
    return doubles_opening(half_life_count), no_row.tobytes()


def _counters(serialized: bytes | None, half_life_count: int) -> bytes:
    """The bytes of a counter's numbers; zeros where there are none, or for other half-lives."""
    numbers = _checked(decode_value(serialized), (tuple,)) or ()
    if len(numbers) != half_life_count:
        numbers = (0.0,) * half_life_count
    return np.array(numbers, dtype=np.float64).tobytes()


def _as_of(serialized: bytes | None) -> bytes:
    as_of_s = _checked(decode_value(serialized), (float, int))
    return struct.pack("=d", np.nan if as_of_s is None else as_of_s)


def _nanoseconds(delta: timedelta) -> int:
    return ((delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds) * 1_000
