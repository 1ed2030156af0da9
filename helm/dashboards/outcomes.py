"""What users did with what they saw, as projectors count it."""

from helm.dashboards.promql import WINDOW, increase, projector, rate, ratio, ratio_or_zero

OUTCOMES = "propositions_outcomes_total"
CATEGORY_OUTCOMES = "propositions_category_outcomes_total"


def outcomes(event_type: str, by: str = "", window: str = WINDOW, series: str = OUTCOMES) -> str:
    """Per second."""
    return rate(series + projector(f'event_type="{event_type}"'), by, window)


def impressions(by: str = "", series: str = OUTCOMES) -> str:
    """In the time that the dashboard shows."""
    return increase(series + projector('event_type="impression"'), by)


def click_rate(by: str, window: str = WINDOW, series: str = OUTCOMES) -> str:
    """Clicks per impression."""
    return _share("click", "impression", by, window, series)


def conversion_rate(by: str, window: str = WINDOW, series: str = OUTCOMES) -> str:
    """Conversions per click."""
    return _share("conversion", "click", by, window, series)


def dismissal_rate(by: str, window: str = WINDOW, series: str = OUTCOMES) -> str:
    """Dismissals per impression."""
    return _share("dismiss", "impression", by, window, series)


def _share(part: str, whole: str, by: str, window: str, series: str) -> str:
    part, whole = (outcomes(event_type, by, window, series) for event_type in (part, whole))
    return ratio_or_zero(part, whole) if by else ratio(part, whole)
