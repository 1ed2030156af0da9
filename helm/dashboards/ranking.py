"""Is what users get as good as it can be, and if not, what is missing?"""

from grafana_foundation_sdk.models import dashboard as models

from helm.dashboards.boards import PROJECTOR_VARIABLES, WEB_VARIABLES, board
from helm.dashboards.outcomes import click_rate, conversion_rate, impressions
from helm.dashboards.panels import FULL_WIDTH, Column, Limits, Query, figure, figures_by, graph
from helm.dashboards.promql import (
    NOW,
    mean,
    or_zero,
    projector,
    quantile,
    rate,
    ratio,
    ratio_or_zero,
    shares,
    web,
)

DAY_S = 86_400

_SLATES = "propositions_slates_total" + web()
_CACHE = "propositions_cache_requests_total"
_ROWS = "propositions_feature_rows_total"


def ranking() -> models.Dashboard:
    return board(
        "propositions-ranking",
        "Ranking and features",
        "Is what users get as good as it can be, and if not, what is missing: the model, its features, or time?",
        [*WEB_VARIABLES, *PROJECTOR_VARIABLES],
        {
            "How good are slates now": _now(),
            "What ranks, and what could not": _rankers(),
            "Where the time goes": _stages(),
            "Features": _features(),
            "Models": _models(),
        },
    )


def _now():
    missing = rate(_ROWS + web('state!="fresh"'), window=NOW)
    hits = rate(_CACHE + web('outcome=~"hit|collapsed"'), window=NOW)
    return (
        figure(
            "Slates at level 0",
            "Share of slates by the model with fresh features. New users are at level 1 by their nature.",
            ratio(
                or_zero(rate("propositions_slates_total" + web('level="0"'), window=NOW)),
                rate(_SLATES, window=NOW),
            ),
            "percentunit",
            decimals=1,
        ),
        figure(
            "Slates without the model",
            "Share of slates at level 2 (the rules) or 3 (the static list).",
            ratio(
                or_zero(rate("propositions_slates_total" + web('level=~"2|3"'), window=NOW)),
                rate(_SLATES, window=NOW),
            ),
            "percentunit",
            Limits(0.01, 0.1),
            decimals=2,
        ),
        figure(
            "Feature rows not fresh",
            "Share of the rows of online features that were stale or missing when they were read.",
            ratio(or_zero(missing), rate(_ROWS + web(), window=NOW)),
            "percentunit",
            decimals=1,
        ),
        figure(
            "From the cache",
            "Share of requests that an equal request of the same user had answered already.",
            ratio(or_zero(hits), rate(_CACHE + web(), window=NOW)),
            "percentunit",
            decimals=1,
        ),
        figure(
            "Age of the model",
            "Since the active model was trained. Retraining is on a schedule: an age beyond it says that it fails, or that the gate "
            "keeps the present model.",
            "time() - max(propositions_model_trained_timestamp_seconds" + web() + " > 0)",
            "s",
            Limits(7 * DAY_S, 14 * DAY_S),
        ),
        figure(
            "Skew",
            "Of the feature whose logged values differ most from what training would have read, the share that differs. Written by "
            "`propositions skew`.",
            "max(propositions_feature_skew_mismatch_share)",
            "percentunit",
            Limits(0.01, 0.05),
            decimals=2,
        ),
    )


def _rankers():
    total = rate(_SLATES)
    return (
        graph(
            "Degradation levels",
            "Share of slates: 0 the model with fresh features, 1 features stale or missing, 2 the rules, 3 the static list.",
            Query(shares(rate(_SLATES, by="level"), total), "level {{level}}"),
            unit="percentunit",
            is_stacked=True,
            most=1,
        ),
        graph(
            "Strategies",
            "Slates per second by the ranker that made them.",
            Query(rate(_SLATES, by="strategy"), "{{strategy}}"),
            unit="ops",
            is_stacked=True,
        ),
        graph(
            "Fallbacks by reason",
            "Rankers that could not answer, per second. `bug` is one of ours and has a stack trace in the logs; others name a store or "
            "the deadline.",
            Query(or_zero(rate("propositions_fallbacks_total" + web(), by="reason"), "reason"), "{{reason}}"),
            unit="ops",
        ),
        graph(
            "What the cache did",
            "Requests per second. `down`: Redis did not answer in time. Many `stale`: users act faster than slates are reused.",
            Query(rate(_CACHE + web(), by="outcome"), "{{outcome}}"),
            unit="reqps",
            is_stacked=True,
        ),
        graph(
            "What outdated kept slates",
            "Per second: an event of the user, another model, a changed catalog.",
            Query(
                or_zero(rate("propositions_cache_invalidations_total" + web(), by="reason"), "reason"),
                "{{reason}}",
            ),
            unit="ops",
        ),
        graph(
            "Candidates scored",
            "Per slate. Fewer than usual: the catalog shrank, or filters and caps leave little.",
            Query(quantile(0.5, "propositions_candidates_scored", web(), by="strategy"), "p50 {{strategy}}"),
            Query(quantile(0.95, "propositions_candidates_scored", web(), by="strategy"), "p95 {{strategy}}"),
            unit="none",
        ),
    )


def _stages():
    stages = "propositions_stage_seconds"
    return (
        graph(
            "Time per stage, on average",
            "`turn` waits for others to be ranked, `cache` and `features` for Redis; `score` is the model's prediction; `candidates` and `rules` are computed in memory.",
            Query(mean(stages, web(), by="stage"), "{{stage}}"),
            unit="s",
        ),
        graph(
            "Time per stage, p99",
            "One stage of a hundred took longer than this.",
            Query(quantile(0.99, stages, web(), by="stage"), "{{stage}}"),
            unit="s",
        ),
        graph(
            "Seconds of work per second, by stage",
            "How many requests are in each stage at any moment: what grows here takes the machine, or waits for a store.",
            Query(rate(f"{stages}_sum" + web(), by="stage"), "{{stage}}"),
            unit="none",
            is_stacked=True,
        ),
    )


def _features():
    rows = rate(_ROWS + web(), by="view")
    return (
        graph(
            "Missing by view",
            "Share of the rows that were read and not there: unknown users, or features that never arrived.",
            Query(ratio_or_zero(rate(_ROWS + web('state="missing"'), by="view"), rows), "{{view}}"),
            unit="percentunit",
            width=6,
        ),
        graph(
            "Stale by view",
            "Share of the rows that were read and past their TTL. If it rises everywhere, the projector or materialization stands still.",
            Query(ratio_or_zero(rate(_ROWS + web('state="stale"'), by="view"), rows), "{{view}}"),
            unit="percentunit",
            width=6,
        ),
        graph(
            "Age of rows that were read",
            "Of the newest row of a view that a request read; half were younger. Who comes back after days has old rows: look for jumps.",
            Query(quantile(0.5, "propositions_feature_age_seconds", web(), by="view"), "{{view}}"),
            unit="s",
            width=6,
        ),
        graph(
            "Age of the newest row of a view",
            "As long as users act, it stays at seconds for views that are folded from events.",
            Query("min by (view) (propositions_feature_view_age_seconds" + projector() + ")", "{{view}}"),
            unit="s",
            width=6,
        ),
        graph(
            "Skew by feature",
            "Share of logged values that differ from what training would have read, for the ten features with most.",
            Query("topk(10, max by (feature) (propositions_feature_skew_mismatch_share))", "{{feature}}"),
            unit="percentunit",
            width=12,
            limit=0.05,
        ),
        graph(
            "Catalog",
            "Propositions in the snapshot that workers rank from.",
            Query("max by (instance) (propositions_catalog_propositions" + web() + ")", "{{instance}}"),
            unit="none",
            width=12,
        ),
    )


def _models():
    return (
        graph(
            "Active versions",
            "Workers by the model that they serve with. More than one for longer than a deployment takes is wrong.",
            Query("sum by (version) (propositions_model_active" + web() + ")", "{{version}}"),
            unit="none",
            is_stacked=True,
        ),
        graph(
            "Models loaded and refused",
            "Per second. A refused one is damaged, too slow or of another schema; the one before goes on serving.",
            Query(
                or_zero(rate("propositions_model_loads_total" + web(), by="outcome"), "outcome"),
                "{{outcome}}",
            ),
            unit="ops",
        ),
        graph(
            "Click rate by model version",
            "Clicks per impression. Versions are compared fairly only while they serve at the same time.",
            Query(click_rate("model_version"), "{{model_version}}"),
            unit="percentunit",
        ),
        figures_by(
            "model_version",
            "Models compared",
            "Over the time that the dashboard shows. `none`: slates by the rules or the static list, and events without a slate.",
            Column("Impressions", impressions("model_version"), "short", decimals=0),
            Column("Click rate", click_rate("model_version", "$__range"), "percentunit", decimals=2),
            Column(
                "Conversions per click",
                conversion_rate("model_version", "$__range"),
                "percentunit",
                decimals=2,
            ),
            width=FULL_WIDTH,
        ),
    )
