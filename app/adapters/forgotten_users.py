"""Who asked to be forgotten, and when: kept as digests that say nothing without this database's secret."""

import hmac
from collections.abc import Collection
from datetime import datetime

from sqlalchemy import Connection, text

_SINCE = text("SELECT digest, forgotten_at FROM forgotten_users WHERE digest = ANY(:digests)")
_FORGET = text("""
    INSERT INTO forgotten_users AS known VALUES (:digest, :at)
    ON CONFLICT (digest) DO UPDATE SET forgotten_at = greatest(known.forgotten_at, excluded.forgotten_at)""")


class ForgottenUsers:
    """Reads and writes on the caller's connection, so that it decides what is seen and when."""

    def __init__(self) -> None:
        self._secret: bytes | None = None

    def since(self, connection: Connection, user_ids: Collection[str]) -> dict[str, datetime]:
        """When each of these users was forgotten, of those who were: they are somebody new from then on."""
        by_digest = {self._digest(connection, user_id): user_id for user_id in user_ids}
        rows = connection.execute(_SINCE, {"digests": list(by_digest)})
        return {by_digest[bytes(digest)]: forgotten_at for digest, forgotten_at in rows}

    def add(self, connection: Connection, user_id: str, at: datetime) -> None:
        connection.execute(_FORGET, {"digest": self._digest(connection, user_id), "at": at})

    def _digest(self, connection: Connection, user_id: str) -> bytes:
        if self._secret is None:
            self._secret = bytes(connection.execute(text("SELECT secret FROM erasure_secret")).scalar_one())
        return hmac.digest(self._secret, user_id.encode(), "sha256")
