"""Parts that queries are made of. Windows and label matchers in them are Grafana's variables."""

WEB = ('job=~"$job"', 'instance=~"$instance"')
PROJECTOR = ('job=~"$projector_job"', 'instance=~"$projector"')
# As wide as Grafana thinks fit for the width of a graph, and at least four scrapes.
WINDOW = "$__rate_interval"
# Of a single figure that tells how things are now.
NOW = "5m"


def web(*matchers: str) -> str:
    """The selector of web workers."""
    return f"{{{','.join((*WEB, *matchers))}}}"


def projector(*matchers: str) -> str:
    """The selector of projectors."""
    return f"{{{','.join((*PROJECTOR, *matchers))}}}"


def rate(series: str, by: str = "", window: str = WINDOW) -> str:
    """Per second, summed but for the labels `by`."""
    return f"{_sum(by)} (rate({series}[{window}]))"


def increase(series: str, by: str = "", window: str = "$__range") -> str:
    """How much it grew, summed but for the labels `by`."""
    return f"{_sum(by)} (increase({series}[{window}]))"


def ratio(part: str, whole: str) -> str:
    """Nothing where the whole is zero: a share of nothing is no number."""
    return f"({part}) / ({whole} > 0)"


def ratio_or_zero(part: str, whole: str) -> str:
    """By the labels that both have; zero where there is no part."""
    return ratio(f"{part} or {whole} * 0", whole)


def shares(parts: str, whole: str) -> str:
    """Of one whole, by the labels of the parts."""
    return f"({parts}) / on() group_left() ({whole} > 0)"


def quantile(q: float, histogram: str, selector: str, by: str = "", window: str = WINDOW) -> str:
    buckets = f"rate({histogram}_bucket{selector}[{window}])"
    return f"histogram_quantile({q}, sum by ({', '.join(filter(None, ('le', by)))}) ({buckets}))"


def mean(histogram: str, selector: str, by: str = "", window: str = WINDOW) -> str:
    total, count = (rate(f"{histogram}_{part}{selector}", by, window) for part in ("sum", "count"))
    return ratio(total, count)


def or_zero(expression: str, label: str = "", value: str = "none") -> str:
    """Zero where there is nothing: what never happened has no series. The zero gets a label, for the legend."""
    zero = f'label_replace(vector(0), "{label}", "{value}", "", "")' if label else "vector(0)"
    return f"{expression} or on() {zero}"


def _sum(by: str) -> str:
    return f"sum by ({by})" if by else "sum"
