"""The context of a request or an event, and the keys under which entities meet.

A key that crosses two entities joins their ids with the ASCII unit separator. Ids must not hold
control characters, so two different pairs never share a key.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, tzinfo

KEY_SEPARATOR = "\x1f"
MAX_ID_BYTES = 200
# Keys are indexed, and an index entry of PostgreSQL holds 2,704 bytes.
MAX_CONTEXT_KEY_BYTES = 1_000

DAYPARTS = ("night", "morning", "afternoon", "evening")
WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def is_valid_id(value: str) -> bool:
    """True for printable text of 1 to 200 bytes (UTF-8) that does not begin or end with a space."""
    return value.isprintable() and value == value.strip() and 0 < len(value.encode()) <= MAX_ID_BYTES


def crossed_key(left: str, right: str) -> str:
    return f"{left}{KEY_SEPARATOR}{right}"


def crossed_keys(left: str, rights: Iterable[str]) -> list[str]:
    """As `crossed_key`, one for each of `rights`.

    >>> crossed_keys("u1", ["tea"]) == [crossed_key("u1", "tea")]
    True
    """
    opening = crossed_key(left, "")
    return [opening + right for right in rights]


def daypart(local_time: datetime) -> str:
    """Quarter of the day, from six hours of the clock: night 0-5, morning 6-11, afternoon, evening."""
    return DAYPARTS[local_time.hour // 6]


def complete_context(context: Mapping[str, str], at: datetime, timezone: tzinfo) -> dict[str, str]:
    """The context with `daypart` and `weekday` of `at` filled in where the sender left them out."""
    local_time = at.astimezone(timezone)
    return {"daypart": daypart(local_time), "weekday": WEEKDAYS[local_time.weekday()], **context}


def context_key(context: Mapping[str, str], fields: Sequence[str]) -> str:
    """One key per combination of the configured fields, in their order; absent fields are left out.

    A key that would be too long for an index is replaced by its SHA-256.

    >>> context_key({"page": "home", "weekday": "fri", "ab": "7"}, ["page", "device", "weekday"])
    'page=home\\x1fweekday=fri'
    """
    key = KEY_SEPARATOR.join(f"{field}={context[field]}" for field in fields if field in context)
    if len(key.encode()) > MAX_CONTEXT_KEY_BYTES:
        return f"sha256={hashlib.sha256(key.encode()).hexdigest()}"
    return key
