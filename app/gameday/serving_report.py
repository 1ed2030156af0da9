"""How a game day of serving is shown: a table, and a plot of every request."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from app.gameday.series import Answer, percentile
from app.gameday.serving import ServingReport

PLOT_BUCKET_S = 0.25
LEVELS = (
    (0, "full", "#4c956c"),
    (1, "features missing", "#f2c14e"),
    (2, "rules", "#f78154"),
    (3, "default", "#b4436c"),
)
OTHER = ("shed or failed", "#333333")


def serving_table_rows(report: ServingReport) -> Iterator[Sequence[str]]:
    """Header and rows of the table that people read."""
    yield (
        "phase",
        "requests",
        "errors",
        "shed",
        "levels 0/1/2/3 %",
        "p50 before, during, after",
        "p99 before, during, after",
        "detected",
        "recovered",
        "passed",
    )
    for phase in report.phases:
        figures = ", ".join(f"{name} {value:.4g}" for name, value in phase.figures.items())
        yield (
            phase.name,
            f"{phase.requests:,}",
            f"{phase.errors:,}",
            f"{phase.shed:,}",
            _shares(phase.levels),
            _times(phase.before_p50_ms, phase.p50_ms, phase.after_p50_ms),
            _times(phase.before_p99_ms, phase.p99_ms, phase.after_p99_ms),
            _seconds(phase.detected_s),
            _seconds(phase.recovery_s),
            ("yes" if phase.passed else f"NO {'; '.join(phase.broken)}")
            + (f" ({figures})" if figures else ""),
        )


def _shares(levels: Mapping[str, float]) -> str:
    return "/".join(f"{100 * levels.get(str(level), 0.0):.0f}" for level, *_ in LEVELS)


def _times(*values_ms: float | None) -> str:
    return ", ".join("-" if value is None else f"{value:.0f}" for value in values_ms)


def _seconds(value_s: float | None) -> str:
    return "-" if value_s is None else f"{value_s:.1f} s"


def plot(report: ServingReport, path: Path) -> None:
    """Latency and level over time, with the faults shaded: red where a promise was broken."""
    from matplotlib.figure import Figure  # takes a second

    answers = sorted(report.answers, key=lambda answer: answer.due_s)
    begin_s = answers[0].due_s
    figure = Figure(figsize=(24, 9), layout="constrained")
    latency, level = figure.subplots(2, 1, sharex=True)
    for axes in (latency, level):
        for phase in report.phases:
            began_s, over_s = phase.moments.began_s - begin_s, phase.moments.over_s - begin_s
            axes.axvspan(began_s, over_s, color="#4477aa" if phase.passed else "#cc3311", alpha=0.2)
    for phase in report.phases:
        latency.text(
            phase.moments.began_s - begin_s,
            1.02,
            phase.name,
            rotation=30,
            fontsize=9,
            transform=latency.get_xaxis_transform(),
        )
    slates = [answer for answer in answers if answer.status == 200]
    latency.plot(
        [a.due_s - begin_s for a in slates],
        [a.latency_ms for a in slates],
        ",",
        color="#777777",
        label="a slate",
    )
    buckets = _buckets(answers, begin_s)
    starts = [PLOT_BUCKET_S * number for number in range(len(buckets))]
    latency.step(
        starts, [_p99(bucket) for bucket in buckets], where="post", label=f"p99 of {PLOT_BUCKET_S:g} s"
    )
    latency.axhline(100.0, linestyle="--", color="#cc3311", label="promised p99")
    latency.set_yscale("log")
    latency.set_ylabel("ms from when it was due")
    latency.legend(loc="upper right")
    shares = [[_share(bucket, number) for bucket in buckets] for number, *_ in LEVELS]
    shares.append(
        [
            1.0 - sum(one) if bucket else 0.0
            for bucket, one in zip(buckets, zip(*shares, strict=True), strict=True)
        ]
    )
    level.stackplot(
        starts,
        *shares,
        labels=[*(f"{number} {name}" for number, name, _ in LEVELS), OTHER[0]],
        colors=[*(color for *_, color in LEVELS), OTHER[1]],
        step="post",
    )
    level.set_ylabel("share of requests by level")
    level.set_xlabel("seconds")
    level.legend(loc="lower right")
    figure.savefig(path, dpi=100)


def _buckets(answers: Sequence[Answer], begin_s: float) -> list[list[Answer]]:
    buckets: list[list[Answer]] = [[] for _ in range(int((answers[-1].due_s - begin_s) / PLOT_BUCKET_S) + 1)]
    for answer in answers:
        buckets[int((answer.due_s - begin_s) / PLOT_BUCKET_S)].append(answer)
    return buckets


def _p99(bucket: Sequence[Answer]) -> float:
    return percentile(sorted(answer.latency_ms for answer in bucket if answer.status == 200), 99.0)


def _share(bucket: Sequence[Answer], level: int) -> float:
    good = sum(answer.level == level and answer.problem is None for answer in bucket)
    return good / len(bucket) if bucket else 0.0
