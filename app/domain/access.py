"""API keys: who may ask for what, and how a presented key is recognized.

A key reads `pp_<id>_<secret>`. Only the SHA-256 digest of the secret is kept. That is enough, and a slow hash would be
waste: the secret has 256 random bits, so nobody finds it by trying, however fast a try is.
"""

import re
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from hashlib import sha256
from hmac import compare_digest

from app.domain.errors import KeyRefused

ID_BYTES, SECRET_BYTES = 6, 32
MAX_NAME = 200
_KEY = re.compile(r"pp_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")

RandomBytes = Callable[[int], bytes]


class Scope(StrEnum):
    """What a key is good for. None includes another."""

    SUGGEST = "suggest"
    EVENTS = "events"
    CATALOG = "catalog"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What is kept of a key. After a rotation the secret of before is as good as the new one until `previous_until`."""

    key_id: str
    name: str
    scopes: frozenset[Scope]
    digest: bytes = field(repr=False)
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    previous_digest: bytes | None = field(default=None, repr=False)
    previous_until: datetime | None = None

    def is_valid_at(self, now: datetime) -> bool:
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)

    def is_previous_valid_at(self, now: datetime) -> bool:
        return self.previous_until is not None and now < self.previous_until


def make_key(
    name: str,
    scopes: Iterable[Scope],
    now: datetime,
    expires_at: datetime | None,
    random_bytes: RandomBytes,
) -> tuple[ApiKey, str]:
    """A new key, and the only copy of what its holder presents.

    Raises:
        KeyRefused: the name is empty, too long or not printable, or there is no scope.
    """
    name, scopes = name.strip(), frozenset(scopes)
    if not (0 < len(name) <= MAX_NAME and name.isprintable()):
        raise KeyRefused(f"the name of a key is 1 to {MAX_NAME} printable characters: say who will use it")
    if not scopes:
        raise KeyRefused(f"a key needs at least one scope of {', '.join(Scope)}")
    key_id, secret = random_bytes(ID_BYTES).hex(), _make_secret(random_bytes)
    return ApiKey(key_id, name, scopes, digest_of(secret), now, expires_at), _presented(key_id, secret)


def rotate(key: ApiKey, now: datetime, overlap: timedelta, random_bytes: RandomBytes) -> tuple[ApiKey, str]:
    """The key with a new secret, and what its holder presents from now on.

    The secret of now stays good for `overlap`; one that was replaced earlier ends at once.

    Raises:
        KeyRefused: the key is revoked or expired.
    """
    if not key.is_valid_at(now):
        raise KeyRefused(f"key {key.key_id} is revoked or expired: create a new one")
    secret = _make_secret(random_bytes)
    rotated = replace(
        key,
        digest=digest_of(secret),
        previous_digest=key.digest if overlap else None,
        previous_until=now + overlap if overlap else None,
    )
    return rotated, _presented(key.key_id, secret)


def revoke(key: ApiKey, now: datetime) -> ApiKey:
    """The key as one that is good for nothing any more; one that was revoked before keeps its moment."""
    return replace(key, revoked_at=key.revoked_at or now, previous_digest=None, previous_until=None)


def digest_of(secret: str) -> bytes:
    return sha256(secret.encode()).digest()


def mask_keys(text: str) -> str:
    """The text with the secrets of all keys in it left out."""
    return _KEY.sub(r"pp_\1_...", text) if "pp_" in text else text


def has_key(text: str) -> bool:
    """Whether something that looks like a whole key stands in a text."""
    return _KEY.search(text) is not None


# Compared with what comes under an unknown id, so that the id is not told by the time that the answer takes.
_NOBODY = ApiKey("", "", frozenset(), bytes(32), datetime.min, previous_digest=bytes(32))


class KeyRing:
    """All keys that may be good, by id."""

    def __init__(self, keys: Iterable[ApiKey] = ()) -> None:
        self._keys = {key.key_id: key for key in keys}

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, presented: str, now: datetime) -> ApiKey | None:
        """The key that was presented, if it is good now. The same work is done for every text of a key's form."""
        match = _KEY.fullmatch(presented)
        key_id, secret = match.groups() if match else ("", "")
        key = self._keys.get(key_id, _NOBODY)
        digest = digest_of(secret)
        is_current = compare_digest(digest, key.digest)
        is_previous = compare_digest(digest, key.previous_digest or _NOBODY.digest)
        if key is _NOBODY:
            return None
        if is_current or (is_previous and key.is_previous_valid_at(now)):
            return key if key.is_valid_at(now) else None
        return None


def _make_secret(random_bytes: RandomBytes) -> str:
    return urlsafe_b64encode(random_bytes(SECRET_BYTES)).rstrip(b"=").decode()


def _presented(key_id: str, secret: str) -> str:
    return f"pp_{key_id}_{secret}"
