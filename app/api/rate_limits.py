"""How many requests a key and an address may send, through Flask-Limiter."""

import math
import time
from collections.abc import Callable
from functools import lru_cache
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any, Protocol

from flask import Flask, Response, g, request
from flask_limiter import ApplicationLimit, Limiter, RateLimitExceeded
from limits.storage import Storage

from app.api.problems import problem_response
from app.settings import NO_LIMIT, Settings

# A network of this size is the least that one customer gets.
_IPV6_PREFIX = 64


class Counts(Protocol):
    """Counts by name in fixed windows, which all workers share."""

    def add(self, name: str, length_s: int, amount: int = 1) -> int: ...
    def get(self, name: str) -> int: ...
    def ends_s(self, name: str) -> float: ...
    def clear(self, name: str) -> None: ...


class CountsStorage(Storage):
    """Counts as what Flask-Limiter keeps its counts in. It finds this class by the scheme of its `storage_uri`."""

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


class _FixedLimit(ApplicationLimit):
    """An application limit whose text is read once; the library reads it anew for each request."""

    def __iter__(self):
        if "_read" not in self.__dict__:
            self._read = list(super().__iter__())
        return iter(self._read)


def limit_rates(app: Flask, settings: Settings, counts: Counts) -> None:
    """Answers 429 to what is too much. Needs to know the caller: see `identify_callers`."""
    limiter = Limiter(
        _address,
        application_limits=[
            *_limit(settings.rate_limit_per_key, "key", lambda: g.api_key.key_id, lambda: g.api_key is None),
            *_limit(settings.rate_limit_per_address, "address", _address),
            *_limit(
                settings.rate_limit_unauthorized,
                "unauthorized",
                _address,
                exempt_when=lambda: g.api_key is not None,
                deduct_when=lambda response: response.status_code == 401,
            ),
        ],
        storage_uri="counts://",
        storage_options={"counts": counts},
        strategy="fixed-window",
        request_identifier=lambda: "any",  # also of requests for which there is no route
    )
    limiter.request_filter(lambda: not g.area.is_limited)
    limiter.init_app(app)

    @app.errorhandler(RateLimitExceeded)
    def too_many_requests(error: RateLimitExceeded) -> Response:
        wait_s = max(1, math.ceil(limiter.current_limit.window.reset_time - time.time()))
        response = problem_response(
            429, "Too Many Requests", f"more than {error.limit.limit}: try again in {wait_s} s"
        )
        response.headers["Retry-After"] = str(wait_s)
        return response


def _limit(
    rate: str,
    name: str,
    who: Callable[[], str],
    exempt_when: Callable[[], bool] | None = None,
    deduct_when: Callable[[Response], bool] | None = None,
) -> list[ApplicationLimit]:
    if rate == NO_LIMIT:
        return []
    return [_FixedLimit(rate, key_function=who, scope=name, exempt_when=exempt_when, deduct_when=deduct_when)]


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
