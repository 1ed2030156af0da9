"""How many requests a key and an address may send, through the library `limits`."""

import math
import time
from functools import lru_cache
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any, Protocol

from flask import Flask, Response, g, request
from limits import RateLimitItem, parse_many
from limits.storage import Storage
from limits.strategies import FixedWindowRateLimiter

from app.api.problems import problem_response
from app.settings import Settings
from app.settings.web import NO_LIMIT

# A network of this size is the least that one customer gets.
_IPV6_PREFIX = 64
_UNAUTHORIZED = "unauthorized"


class Counts(Protocol):
    """Counts by name in fixed windows, which all workers share."""

    def add(self, name: str, length_s: int, amount: int = 1) -> int: ...
    def get(self, name: str) -> int: ...
    def ends_s(self, name: str) -> float: ...
    def clear(self, name: str) -> None: ...


class CountsStorage(Storage):
    """Counts as what `limits` keeps its counts in."""

    STORAGE_SCHEME = ["counts"]  # noqa: RUF012  (that is how the library reads it)
    base_exceptions = ()

    def __init__(self, uri: str, counts: Counts, **options: Any) -> None:
        super().__init__(uri, **options)
        self._counts = counts

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        return self._counts.add(key, expiry, amount)

    def get(self, key: str) -> int:
        return self._counts.get(key)

    def get_expiry(self, key: str) -> float:
        return self._counts.ends_s(key)

    def check(self) -> bool:
        return True

    def reset(self) -> None:
        raise NotImplementedError

    def clear(self, key: str) -> None:
        self._counts.clear(key)


def limit_rates(app: Flask, settings: Settings, counts: Counts) -> None:
    """Answers 429 to what is too much. Needs to know the caller: see `identify_callers`."""
    limiter = FixedWindowRateLimiter(CountsStorage("counts://", counts))
    per_key, per_address, unauthorized = map(
        _parsed,
        (settings.rate_limit_per_key, settings.rate_limit_per_address, settings.rate_limit_unauthorized),
    )

    @app.before_request
    def refuse_what_is_too_much() -> Response | None:
        here = g._get_current_object()
        if not here.area.is_limited:
            return None
        key, address = here.api_key, _address()
        asked = [(limiter.hit, limit, "address", address) for limit in per_address]
        if key is None:
            asked += [(limiter.test, limit, _UNAUTHORIZED, address) for limit in unauthorized]
        else:
            asked = [(limiter.hit, limit, "key", key.key_id) for limit in per_key] + asked
        for is_allowed, limit, *of_whom in asked:
            if not is_allowed(limit, *of_whom):
                return _too_many(limit, limiter.get_window_stats(limit, *of_whom).reset_time)
        return None

    @app.after_request
    def count_unauthorized(response: Response) -> Response:
        if response.status_code == 401 and g.area.is_limited:
            for limit in unauthorized:
                limiter.hit(limit, _UNAUTHORIZED, _address())
        return response


def _parsed(rate: str) -> list[RateLimitItem]:
    return [] if rate == NO_LIMIT else parse_many(rate)


def _too_many(limit: RateLimitItem, ends_s: float) -> Response:
    wait_s = max(1, math.ceil(ends_s - time.time()))
    response = problem_response(429, "Too Many Requests", f"more than {limit}: try again in {wait_s} s")
    response.headers["Retry-After"] = str(wait_s)
    return response


def _address() -> str:
    return _network_of(request.remote_addr or "")


@lru_cache(maxsize=4_096)
def _network_of(address: str) -> str:
    """The address, or for IPv6 its network; what is no address counts as one and the same."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return "unknown"
    if isinstance(parsed, IPv6Address):
        mapped = parsed.ipv4_mapped
        return str(mapped or ip_network((int(parsed), _IPV6_PREFIX), strict=False))
    return str(parsed)
