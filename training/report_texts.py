"""Names and numbers as people read them in reports."""

import math
from collections.abc import Iterable
from typing import Any

from training.evaluation_report import LOGISTIC, MODEL, POPULARITY, RANDOM, SHOWN_ORDER
from training.metrics import Interval

# In which rankings are told of; others come before the last two.
ORDER = (MODEL, LOGISTIC, "current", "rules", POPULARITY)
LAST = (SHOWN_ORDER, RANDOM)
NOTHING = "-"


def in_order(names: Iterable[str]) -> list[str]:
    def place(name: str) -> int:
        return ORDER.index(name) if name in ORDER else len(ORDER) + (name in LAST and 1 + LAST.index(name))

    return sorted(names, key=lambda name: (place(name), name))


def span(interval: Interval, format_number=None, joint: str = " to ") -> str:
    format_number = format_number or number
    return f"{format_number(interval.low)}{joint}{format_number(interval.high)}"


def gain_text(gain: Interval) -> str:
    return f"{signed(gain.mean)} [{span(gain, signed, ', ')}]"


def number(value: float | None) -> str:
    return NOTHING if value is None or math.isnan(value) else f"{value:.4f}"


def signed(value: float) -> str:
    return NOTHING if math.isnan(value) else f"{value:+.4f}"


def percent(value: float | None) -> str:
    return NOTHING if value is None or math.isnan(value) else f"{value:.1%}"


def text(value: Any) -> str:
    if value is None:
        return NOTHING
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def words(name: str) -> str:
    return name.replace("_", " ")


def title(metric: str) -> str:
    return words(metric).replace("ndcg", "NDCG").replace("mrr", "MRR").replace("auc", "AUC")
