"""What is shown, what users do with it, and what ranks it best."""

from grafana_foundation_sdk.models import dashboard as models

from helm.dashboards.boards import PROJECTOR_VARIABLES, WEB_VARIABLES, board
from helm.dashboards.outcomes import (
    CATEGORY_OUTCOMES,
    OUTCOMES,
    click_rate,
    conversion_rate,
    dismissal_rate,
    impressions,
    outcomes,
)
from helm.dashboards.panels import FULL_WIDTH, Column, Limits, Query, figure, figures_by, graph
from helm.dashboards.promql import increase, or_zero, projector, ratio

_RANGE = "$__range"


def business() -> models.Dashboard:
    return board(
        "propositions-business",
        "Business KPIs",
        "What is shown, what users do with it, and what ranks it best. Counted by the projectors, within a second of each event.",
        [*WEB_VARIABLES, *PROJECTOR_VARIABLES],
        {
            "In the time that is shown": _totals(),
            "Over time": _courses(),
            "By what ranked the slate": _by_ranker(),
            "By category": _by_category(),
        },
    )


def _totals():
    return (
        *(
            figure(
                title, f"{title} in the time that is shown.", or_zero(_count(event_type)), "short", decimals=0
            )
            for event_type, title in (
                ("impression", "Impressions"),
                ("click", "Clicks"),
                ("conversion", "Conversions"),
            )
        ),
        figure(
            "Click rate",
            "Clicks per impression.",
            ratio(or_zero(_count("click")), _count("impression")),
            "percentunit",
            decimals=2,
        ),
        figure(
            "Conversion rate",
            "Conversions per click.",
            ratio(or_zero(_count("conversion")), _count("click")),
            "percentunit",
            decimals=2,
        ),
        figure(
            "Coverage of the catalog",
            "Share of active propositions that were shown in the last 24 hours. When it falls, ever fewer propositions get all the "
            "attention, or new ones are not found.",
            "max(propositions_catalog_coverage_ratio" + projector() + ")",
            "percentunit",
            Limits(0.2, 0.05, is_floor=True),
            decimals=1,
        ),
    )


def _courses():
    every = OUTCOMES + projector()
    return (
        graph(
            "What users do",
            "Events per second, by type.",
            Query(f"sum by (event_type) (rate({every}[$__rate_interval]))", "{{event_type}}"),
            unit="ops",
        ),
        graph(
            "Click rate",
            "Clicks per impression. A fall with steady impressions: slates suit users less (look at levels and the model), or clicks do "
            "not arrive (look at the events).",
            Query(ratio(or_zero(outcomes("click")), outcomes("impression")), "clicks per impression"),
            Query(ratio(or_zero(outcomes("dismiss")), outcomes("impression")), "dismissals per impression"),
            unit="percentunit",
        ),
        graph(
            "Conversion rate",
            "Conversions per click.",
            Query(ratio(or_zero(outcomes("conversion")), outcomes("click")), "conversions per click"),
            unit="percentunit",
        ),
    )


def _by_ranker():
    return (
        graph(
            "Click rate by strategy",
            "Clicks per impression. What the model adds to the rules; `none` are events without a slate.",
            Query(click_rate("strategy"), "{{strategy}}"),
            unit="percentunit",
        ),
        graph(
            "Click rate by model version",
            "Clicks per impression.",
            Query(click_rate("model_version"), "{{model_version}}"),
            unit="percentunit",
        ),
        graph(
            "Conversion rate by strategy",
            "Conversions per click.",
            Query(conversion_rate("strategy"), "{{strategy}}"),
            unit="percentunit",
        ),
        _compared("strategy", "Strategies compared", OUTCOMES, width=12),
        _compared("model_version", "Model versions compared", OUTCOMES, width=12),
    )


def _by_category():
    top = "topk(10, {})".format
    return (
        graph(
            "Impressions by category",
            "Per second, the ten categories with most.",
            Query(top(outcomes("impression", "category", series=CATEGORY_OUTCOMES)), "{{category}}"),
            unit="ops",
            is_stacked=True,
        ),
        graph(
            "Click rate by category",
            "Clicks per impression, the ten highest.",
            Query(top(click_rate("category", series=CATEGORY_OUTCOMES)), "{{category}}"),
            unit="percentunit",
        ),
        graph(
            "Conversion rate by category",
            "Conversions per click, the ten highest.",
            Query(top(conversion_rate("category", series=CATEGORY_OUTCOMES)), "{{category}}"),
            unit="percentunit",
        ),
        _compared("category", "Categories compared", CATEGORY_OUTCOMES, width=FULL_WIDTH),
    )


def _compared(label: str, title: str, series: str, width: int):
    return figures_by(
        label,
        title,
        "Over the time that is shown.",
        Column("Impressions", impressions(label, series), "short", decimals=0),
        Column("Clicks per impression", click_rate(label, _RANGE, series), "percentunit", decimals=2),
        Column("Conversions per click", conversion_rate(label, _RANGE, series), "percentunit", decimals=2),
        Column("Dismissals per impression", dismissal_rate(label, _RANGE, series), "percentunit", decimals=2),
        width=width,
    )


def _count(event_type: str) -> str:
    return increase(OUTCOMES + projector(f'event_type="{event_type}"'))
