"""How events lie in the spool: records that tell by themselves whether they are whole."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from struct import Struct
from typing import Any

import orjson

from app.domain.types import Event, EventType

# Holds bytes that UTF-8 never does, so no payload contains it. The last byte is the version.
MARKER = b"\xfe\xedE\x01"
# Marker, length of the payload in bytes, CRC-32 of length and payload.
HEADER = Struct(">4sII")
_LENGTH = Struct(">I")
# Far more than an event can take.
MAX_PAYLOAD_BYTES = 1_048_576


@dataclass(frozen=True, slots=True)
class Scan:
    """What bytes hold: records as (start, payload), and damaged stretches between them as (start, end).

    `end` is the end of the last whole record. What follows it is no record, or not all of one.
    """

    records: list[tuple[int, bytes]]
    damaged: list[tuple[int, int]]
    end: int


def encode_record(event: Event) -> bytes:
    payload = orjson.dumps(_fields(event))
    length = _LENGTH.pack(len(payload))
    return HEADER.pack(MARKER, len(payload), zlib.crc32(payload, zlib.crc32(length))) + payload


def decode_event(payload: bytes) -> Event:
    """Raises ValueError for what this version of the service did not write."""
    try:
        fields: Mapping[str, Any] = orjson.loads(payload)
        return Event(
            **{
                **fields,
                "event_type": EventType(fields["event_type"]),
                "occurred_at": datetime.fromisoformat(fields["occurred_at"]),
            }
        )
    except (TypeError, KeyError) as error:
        raise ValueError(f"not an event: {error}") from error


def scan_records(data: bytes) -> Scan:
    """Every whole record, whatever lies between them. Never raises."""
    records: list[tuple[int, bytes]] = []
    damaged: list[tuple[int, int]] = []
    at = 0
    while at < len(data):
        payload = _payload_at(data, at)
        if payload is None:
            following = _next_record(data, at + 1)
            if following is None:
                break
            damaged.append((at, following))
            at = following
        else:
            records.append((at, payload))
            at += HEADER.size + len(payload)
    return Scan(records, damaged, at)


def _payload_at(data: bytes, at: int) -> bytes | None:
    """None if there is no whole record."""
    if len(data) - at < HEADER.size:
        return None
    marker, length, checksum = HEADER.unpack_from(data, at)
    begin = at + HEADER.size
    if marker != MARKER or length > MAX_PAYLOAD_BYTES or length > len(data) - begin:
        return None
    payload = data[begin : begin + length]
    return payload if zlib.crc32(payload, zlib.crc32(_LENGTH.pack(length))) == checksum else None


def _next_record(data: bytes, at: int) -> int | None:
    while (at := data.find(MARKER, at)) >= 0:
        if _payload_at(data, at) is not None:
            return at
        at += 1
    return None


def _fields(event: Event) -> dict[str, Any]:
    return {
        "event_id": event.event_id,
        "event_type": event.event_type,
        "proposition_id": event.proposition_id,
        "occurred_at": event.occurred_at.isoformat(),
        "user_id": event.user_id,
        "context": dict(event.context),
        "request_id": event.request_id,
        "position": event.position,
        "value": event.value,
    }
