"""Rules of Prometheus on another clock: what is meant for hours, in a minute."""

import re
from collections.abc import Mapping
from typing import Any

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0, "w": 604_800.0, "y": 31_536_000.0}
# Texts come first, so that nothing is looked for in them; names such as `rate5m` are no durations.
_DURATION = re.compile(r"""("[^"]*"|'[^']*')|(?<![\w.])((?:\d+(?:ms|[smhdwy]))+)(?!\w)""")
_HORIZON = re.compile(r"(predict_linear\([^\[]+\[[^\]]+\],\s*)([^)]+)\)")
_TIMES = ("for", "keep_firing_for")


def scale_rules(content: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """A file of rules with every duration `factor` times as long: windows, offsets, horizons of predictions, `for`,
    `keep_firing_for` and intervals of groups.

    What is compared with a figure stays: a share, a number of bytes, and seconds that a metric counts.
    """
    return {**content, "groups": [_scale_group(group, factor) for group in content["groups"]]}


def scale_expression(expression: str, factor: float) -> str:
    """
    >>> scale_expression("rate(requests_total[5m] offset 1d)", 1 / 60)
    'rate(requests_total[5000ms] offset 1440000ms)'
    """
    scaled = _DURATION.sub(lambda found: found[1] or scale_duration(found[2], factor), expression)
    return _HORIZON.sub(lambda found: f"{found[1]}({found[2]}) * {factor:g})", scaled)


def scale_duration(duration: str, factor: float) -> str:
    """At least a millisecond, unless it is nothing.

    >>> scale_duration("1h30m", 1 / 60)
    '90000ms'
    """
    scaled_ms = round(1_000 * factor * duration_s(duration))
    return f"{max(scaled_ms, 1) if duration_s(duration) else 0}ms"


def duration_s(duration: str) -> float:
    """
    >>> duration_s("1h30m")
    5400.0
    """
    parts = re.findall(r"(\d+)(ms|[smhdwy])", duration)
    return sum(int(number) * _UNITS_S[unit] for number, unit in parts)


def _scale_group(group: Mapping[str, Any], factor: float) -> dict[str, Any]:
    scaled = {**group, "rules": [_scale_rule(rule, factor) for rule in group["rules"]]}
    if "interval" in group:
        scaled["interval"] = scale_duration(group["interval"], factor)
    return scaled


def _scale_rule(rule: Mapping[str, Any], factor: float) -> dict[str, Any]:
    times = {name: scale_duration(rule[name], factor) for name in _TIMES if name in rule}
    return {**rule, "expr": scale_expression(rule["expr"], factor), **times}
