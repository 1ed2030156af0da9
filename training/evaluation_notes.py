"""What the figures of an evaluation say, in plain words."""

import math
from collections.abc import Iterator, Mapping

from training.evaluation_report import (
    HEADLINE,
    LOGISTIC,
    MODEL,
    POPULARITY,
    SHARES,
    SHOWN_ORDER,
    TARGET_PRECISION,
    Report,
)


def notes_on(report: Report) -> Iterator[str]:
    """Sentences, the most important ones first."""
    yield (
        f"Tested on {report.slate_count:,} slates with {report.slates['impressions']:,} impressions. "
        f"Metrics of the order are means over the {report.slates['all']:,} slates with a click."
    )
    if not report.slates["all"]:
        yield "Nothing was clicked in the tested slates, so no ranking can be judged on them."
        return
    yield from _notes_on_gains(report)
    yield from _notes_on_precision(report)
    yield from _notes_on_cold_start(report)
    calibration = report.calibration.get(MODEL)
    if calibration:
        yield (
            "The chance of a click that the model states is off by "
            f"{100 * calibration['expected_calibration_error']:.1f} percentage points on average."
        )
    yield (
        f"The top 10 of all slates together show {report.coverage['catalog']:.0%} of the propositions "
        "that were candidates."
    )


def _notes_on_gains(report: Report) -> Iterator[str]:
    for other in (POPULARITY, SHOWN_ORDER, LOGISTIC, "rules"):
        gain = report.paired.get(f"{MODEL}-{other}", {}).get(HEADLINE)
        if gain is not None:
            model, baseline = (report.rankers[name]["all"][HEADLINE] for name in (MODEL, other))
            verdict = (
                "the model is better"
                if gain.low > 0
                else "the model is worse"
                if gain.high < 0
                else "no difference can be told"
            )
            yield (
                f"NDCG@10 is {model:.3f}, that of {other.replace('_', ' ')} {baseline:.3f}: {verdict} "
                f"({gain.mean:+.4f}, 95 % between {gain.low:+.4f} and {gain.high:+.4f})."
            )


def _notes_on_precision(report: Report) -> Iterator[str]:
    ceiling, everyone = report.ceiling, report.selective[str(SHARES[-1])]
    best = ceiling["precision@3_of_all_requests"]
    yield (
        f"{ceiling['click_rate']:.0%} of the candidates were clicked, which is about what the top 3 in random order reach, "
        f"and only {ceiling['slates_with_three_clicks']:.0%} of the slates have three clicks to find: the best possible "
        f"order reaches a precision of the top 3 of {best:.0%} over all requests, the model "
        f"{everyone['precision@3']:.0%}{_beside(everyone)}."
    )
    if best < TARGET_PRECISION:
        yield (
            f"A precision of the top 3 above {TARGET_PRECISION:.0%} over all requests cannot be reached by any ranking of "
            "these slates."
        )
    else:
        yield (
            f"A precision of the top 3 above {TARGET_PRECISION:.0%} over all requests would be "
            f"{TARGET_PRECISION / best:.0%} of what an order that knows the clicks reaches."
        )
    reached = {share: row for share, row in report.selective.items() if row["precision@3"] > TARGET_PRECISION}
    if not reached:
        yield (
            f"The model does not get above {TARGET_PRECISION:.0%} on the requests it is surest of either: it reaches "
            f"{max(row['precision@3'] for row in report.selective.values()):.0%} at most."
        )
        return
    share = max(reached, key=float)
    row = reached[share]
    yield (
        f"The model gets above {TARGET_PRECISION:.0%} if it answers the {float(share):.0%} of the requests it is surest of: "
        f"{row['precision@3']:.0%} there (95 % between {row['precision@3_low']:.0%} and {row['precision@3_high']:.0%})"
        f"{_beside(row)}. That says which requests are easy, and not how good the order of the others is."
    )


def _beside(row: Mapping[str, float]) -> str:
    value = row.get(f"{POPULARITY}_precision@3")
    return "" if value is None else f", popularity {value:.0%}"


def _notes_on_cold_start(report: Report) -> Iterator[str]:
    for whose, lift in report.retained_lift.items():
        if math.isnan(lift):
            yield f"No slate with a click has a history of {whose} to hide."
        else:
            yield f"Without the history of {whose} {lift:.0%} of the lift over a random order is left."
    warm, cold = (report.rankers[MODEL][group][HEADLINE] for group in ("warm", "cold"))
    if not math.isnan(warm) and not math.isnan(cold):
        yield (
            f"NDCG@10 is {warm:.3f} for users with history ({report.slates['warm']:,} slates) and {cold:.3f} for users "
            f"without ({report.slates['cold']:,}); these are different slates, so the two do not compare."
        )
