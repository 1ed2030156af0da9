"""Rows into Redis with few large commands: a script compares timestamps and writes, in one step.

Feast asks for the stored timestamps first and writes afterwards, so that two writers at once may leave
the older row. A script runs alone on the server, and one answer stands for many rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import redis

from app.adapters.feast_bytes import BYTES, content, join

# Bounds how long one script keeps the server from others (under a millisecond); more is no faster.
_VALUES_PER_SCRIPT = 300

# A stored row stays if it is newer or as old, as in Feast; Feast also overwrites whatever is not after 1970.
_SCRIPT = b"""
local fields, ttl, keep_newer = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3] == '1'

local function instant(timestamp)
  local parts, at = {[8] = 0, [16] = 0}, 1
  while at <= #timestamp do
    local tag, value, scale, byte = timestamp:byte(at), 0, 1
    repeat
      at = at + 1
      byte = timestamp:byte(at)
      if not byte then return -1, 0 end -- garbage
      value, scale = value + byte % 128 * scale, scale * 128
    until byte < 128
    parts[tag], at = value, at + 1
  end
  return parts[8] < 2 ^ 63 and parts[8] or -1, parts[16]
end

local function is_newer(timestamp, stored)
  local seconds, nanos = instant(timestamp)
  local stored_seconds, stored_nanos = instant(stored)
  if stored_seconds < 0 or stored_seconds + stored_nanos == 0 then return true end
  return seconds > stored_seconds or seconds == stored_seconds and nanos > stored_nanos
end

local row, at = {}, 3 + fields
for field = 1, fields do row[2 * field - 1] = ARGV[3 + field] end
for _, key in ipairs(KEYS) do
  -- What is no hash is nobody's row.
  if redis.call('TYPE', key).ok ~= 'hash' then redis.call('DEL', key) end
  local stored = keep_newer and redis.call('HGET', key, row[1])
  if not stored or is_newer(ARGV[at + 1], stored) then
    for field = 1, fields do row[2 * field] = ARGV[at + field] end
    for first = 1, 2 * fields, 4000 do
      redis.call('HSET', key, unpack(row, first, math.min(first + 3999, 2 * fields)))
    end
    if ttl > 0 then redis.call('EXPIRE', key, ttl) end
  end
  at = at + fields
end
"""


@dataclass(frozen=True, slots=True)
class ListedRows:
    """Rows of one feature view as Redis is to hold them: keys, and per row the hash's values.

    `names` are the hash's fields in the order of the values; the first is the timestamp's.
    """

    names: tuple[bytes, ...]
    keys: Sequence[bytes]
    values: Sequence[Sequence[bytes]]

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[tuple[bytes, Sequence[bytes]]]:
        return zip(self.keys, self.values, strict=True)

    def packed(self) -> tuple[pa.LargeBinaryArray, pa.LargeBinaryArray]:
        """Keys and rows of values in Redis' protocol."""
        keys = [_bulk_string(key) for key in self.keys]
        values = [b"".join(map(_bulk_string, row)) for row in self.values]
        return pa.array(keys, BYTES), pa.array(values, BYTES)


@dataclass(frozen=True, slots=True)
class ColumnarRows:
    """The same as large_binary arrays of equal length, one per name."""

    names: tuple[bytes, ...]
    keys: pa.LargeBinaryArray
    columns: tuple[pa.LargeBinaryArray, ...]

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[tuple[bytes, Sequence[bytes]]]:
        columns = zip(*(column.to_pylist() for column in self.columns), strict=True)
        return zip(self.keys.to_pylist(), columns, strict=True)

    def packed(self) -> tuple[pa.LargeBinaryArray, pa.LargeBinaryArray]:
        """Keys and rows of values in Redis' protocol."""
        return _bulk_strings(self.keys), join(*map(_bulk_strings, self.columns))


Rows = ListedRows | ColumnarRows


def write_rows(client: redis.Redis, rows: Rows, keep_newer: bool, ttl_s: int) -> None:
    """Writes the rows in their order; with `keep_newer` only over older ones.

    A key that was written expires `ttl_s` seconds later; never with 0.

    Raises:
        redis.RedisError: the server refused, or did not answer in time. Some rows may be written then.
    """
    if not isinstance(client, redis.Redis):
        _write_in_cluster(client, rows, keep_newer, ttl_s)
        return
    commands = list(_commands(rows, keep_newer, ttl_s))
    connection = client.connection_pool.get_connection()
    try:
        connection.send_packed_command([b"".join(commands)])
        for _ in commands:
            connection.read_response()
    except BaseException:
        connection.disconnect()  # answers may still be under way
        raise
    finally:
        client.connection_pool.release(connection)


def _write_in_cluster(client: redis.RedisCluster, rows: Rows, keep_newer: bool, ttl_s: int) -> None:
    """A script may touch the keys of one slot only, so each row gets one of its own."""
    options = [len(rows.names), ttl_s, int(keep_newer), *rows.names]
    with client.pipeline(transaction=False) as pipeline:
        for key, values in rows:
            pipeline.execute_command("EVAL", _SCRIPT, 1, key, *options, *values)
        pipeline.execute()


def _commands(rows: Rows, keep_newer: bool, ttl_s: int) -> Iterator[bytes]:
    """EVAL of some rows each, in Redis' protocol."""
    keys, values = rows.packed()
    options = [b"%d" % len(rows.names), b"%d" % ttl_s, b"%d" % keep_newer, *rows.names]
    packed_options = b"".join(_bulk_string(option) for option in options)
    rows_per_script = max(1, _VALUES_PER_SCRIPT // len(rows.names))
    for start in range(0, len(rows), rows_per_script):
        stop = min(start + rows_per_script, len(rows))
        count = stop - start
        argument_count = 3 + count + len(options) + count * len(rows.names)
        yield b"".join(
            (
                b"*%d\r\n" % argument_count,
                _bulk_string(b"EVAL"),
                _bulk_string(_SCRIPT),
                _bulk_string(b"%d" % count),
                content(keys, start, stop),
                packed_options,
                content(values, start, stop),
            )
        )


def _bulk_string(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)


def _bulk_strings(values: pa.LargeBinaryArray) -> pa.LargeBinaryArray:
    lengths = pc.binary_length(values).cast(pa.string()).cast(BYTES)
    return join(b"$", lengths, b"\r\n", values, b"\r\n")
