"""What was promised. The alerts in helm/propositions/files/prometheus/rules/slo.yml watch the same."""

from helm.dashboards.promql import or_zero, rate, web

AVAILABILITY = 0.999
SLATE_S = 0.1
SLATES_IN_TIME = 0.99
FRESHNESS_S = 1.0

# Burn rates at which somebody is woken: the budget of a month would be gone in two days, in five.
PAGE_BURN, SLOW_PAGE_BURN = 14.4, 6.0

HTTP = "flask_http_request_duration_seconds"


def requests(route: str, window: str) -> str:
    """Per second, with those that are shed, which never reach Flask."""
    answered = rate(f"{HTTP}_count" + web(f'url_rule="{route}"'), window=window)
    return f"(({or_zero(answered)}) + {_shed(route, window)})"


def failures(route: str, window: str) -> str:
    """Per second: answered with a 5xx, or shed."""
    errors = rate(f"{HTTP}_count" + web(f'url_rule="{route}"', 'status=~"5.."'), window=window)
    return f"(({or_zero(errors)}) + {_shed(route, window)})"


def slates(window: str) -> str:
    """Per second."""
    return rate(f"{HTTP}_count" + web(*_SLATES), window=window)


def late_slates(window: str) -> str:
    """Per second: those that took longer than was promised."""
    in_time = rate(f"{HTTP}_bucket" + web(*_SLATES, f'le="{SLATE_S}"'), window=window)
    return f"({slates(window)} - {in_time})"


_SLATES = ('url_rule="/suggest"', 'status="200"')


def _shed(route: str, window: str) -> str:
    shed = rate("propositions_requests_shed_total" + web(f'route="{route}"'), window=window)
    return f"({or_zero(shed)})"
