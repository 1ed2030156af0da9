"""Results as a flat summary, as a table, and as JSON with all details."""

import json
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tests.benchmarks.data import Size
from tests.benchmarks.growth import CATALOG, Point
from tests.benchmarks.observability import EVERYTHING, METRICS_AND_LOGS, NOTHING, Observed
from tests.benchmarks.promotion import PromotionResult
from tests.benchmarks.rows import (
    BATCHES,
    CACHED,
    EVENTS,
    FEAST,
    FLASK,
    FLASK_MANY,
    SERVING,
    SERVING_MANY,
    ZIPF,
    Row,
)
from tests.benchmarks.stores import Online
from tests.benchmarks.traffic import BATCH_EVENTS

SUMMARY, RESULTS, TABLE = "summary.json", "results.json", "results.md"
# What has to hold, and on which side.
REQUIRED = {
    "serving_vs_flask": (">=", 0.35),
    "serving_vs_feast": (">=", 15.0),
    "cache_vs_no_cache": (">=", 1.5),
    "serving_rps": (">=", 1_000.0),
    "p99_ms_at_80_percent": ("<", 50.0),
    "catalog_cost_ratio": ("<=", 1.5),
    "materialize_vs_stock": (">=", 5.0),
    "projector_events_per_s": (">=", 5_000.0),
    "promotion_bad_requests": ("<=", 0.0),
    "ready_s": ("<", 15.0),
    "events_vs_flask": (">=", 0.25),
    "events_batch_per_s": (">=", 5_000.0),
    "freshness_p99_ms": ("<", 1_000.0),
    "observability_cost": ("<=", 0.1),
    "tracing_cost": ("<=", 0.05),
}


def summarize_rows(rows: Mapping[str, Row]) -> dict[str, float | None]:
    serving, cached = rows[SERVING], rows[CACHED]
    at_80 = serving.open_loops["80%"]
    return {
        "serving_vs_flask": _turn_by_turn(serving, rows[FLASK]),
        "serving_vs_feast": _turn_by_turn(serving, rows[FEAST]),
        "cache_vs_no_cache": _turn_by_turn(cached, rows[ZIPF]),
        "serving_rps": serving.rps,
        "p99_ms_at_80_percent": None if serving.problems else at_80.latency_ms["p99"],
        "ready_s": serving.ready_s,
        "serving_rps_300_trees": rows[SERVING_MANY].rps,
        "cached_rps": cached.rps,
        "cached_p99_ms_at_80_percent": None
        if cached.problems
        else cached.open_loops["80%"].latency_ms["p99"],
        "cached_share": _over(cached.open_loops["80%"].cached, cached.open_loops["80%"].answers),
        "flask_rps": rows[FLASK].rps,
        "feast_rps": rows[FEAST].rps,
        "events_vs_flask": _turn_by_turn(rows[EVENTS], rows[FLASK_MANY]),
        "events_batch_per_s": rows[BATCHES].rps * BATCH_EVENTS,
        "log_event_rps": rows[EVENTS].rps,
        "cpu_ms_per_log_event": rows[EVENTS].cpu_ms["service"],
        "cpu_ms_per_further_event": (rows[BATCHES].cpu_ms["service"] - rows[EVENTS].cpu_ms["service"])
        / (BATCH_EVENTS - 1),
        "cpu_ms_per_request": serving.cpu_ms["service"],
        "redis_cpu_ms_per_request": serving.cpu_ms["redis"],
        "postgres_cpu_ms_per_request": serving.cpu_ms["postgres"],
        "memory_mb_per_worker": serving.memory.pss_mb,
    }


def summarize_observability(observed: Observed) -> dict[str, float | None]:
    """What of the throughput is lost: to all three together, and to traces beside the other two."""
    rows = observed.rows
    return {
        "observability_cost": _lost(rows[EVERYTHING], rows[NOTHING]),
        "tracing_cost": _lost(rows[EVERYTHING], rows[METRICS_AND_LOGS]),
    }


def _lost(row: Row, cheaper: Row) -> float | None:
    ratio = _turn_by_turn(row, cheaper)
    return None if ratio is None or row.problems or cheaper.problems else 1 - ratio


def _turn_by_turn(row: Row, other: Row) -> float | None:
    """The median ratio of throughputs that were measured one right after the other.

    On a shared machine the two change together more than either stays the same.
    """
    pairs = zip(row.bursts, other.bursts, strict=True)
    ratios = [mine.rps / theirs.rps for mine, theirs in pairs if theirs.rps]
    return median(ratios) if ratios else None


def summarize_growth(growth: Mapping[str, Sequence[Point]]) -> dict[str, float | None]:
    """The cost at the largest size over that at the smallest; None if one of them does not count."""
    ratios = {f"{name}_cost_ratio": _ratio(points) for name, points in growth.items()}
    largest = growth[CATALOG][-1]
    return {**ratios, "largest_catalog_memory_mb_per_worker": largest.memory and largest.memory.pss_mb}


def _ratio(points: Sequence[Point]) -> float | None:
    smallest, largest = points[0], points[-1]
    if smallest.problem or largest.problem:
        return None
    return _over(largest.cpu_ms, smallest.cpu_ms)


def _over(numerator: float, denominator: float) -> float | None:
    """The ratio; None if there is nothing to compare with."""
    return numerator / denominator if denominator else None


def summarize_online(online: Mapping[str, Online], size: Size) -> dict[str, float]:
    """What a user and a proposition take up in Redis, each with all that is known of them alone."""
    of_users = sum((online[key] for key in ("user_id", "user_category_key")), Online())
    return {
        "redis_rows_per_user": of_users.rows / size.users,
        "redis_bytes_per_user": of_users.bytes / size.users,
        "redis_bytes_per_proposition": online["proposition_id"].bytes / size.propositions,
    }


def summarize_materialization(measured: Mapping[str, Any]) -> dict[str, float]:
    return {
        "materialize_vs_stock": measured["materialize_vs_stock"],
        "materialized_rows_per_s": measured["rows"] / measured["ours_s"],
    }


def summarize_promotions(result: PromotionResult) -> dict[str, float | None]:
    return {
        "promotion_bad_requests": result.bad_requests,
        "steady_bad_requests": result.steady_bad_requests,
    }


def machine() -> dict[str, Any]:
    return {
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
    }


def write(folder: Path, summary: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """Adds to what earlier runs of the same plan left, and returns the table of everything."""
    summary, results = _plain(summary), _plain(results)
    earlier = _read(folder / RESULTS)
    is_same_plan = earlier.get("plan") == results.get("plan")
    merged_summary = {**_read(folder / SUMMARY), **summary} if is_same_plan else summary
    merged_results = {**earlier, **results} if is_same_plan else results
    (folder / SUMMARY).write_text(json.dumps(merged_summary, indent=2) + "\n")
    (folder / RESULTS).write_text(json.dumps(merged_results, indent=2) + "\n")
    text = "\n".join(_document(merged_summary, merged_results))
    (folder / TABLE).write_text(text)
    return text


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def _plain(value: Any) -> Any:
    """As JSON can hold it: dataclasses as objects, NaN as null."""
    if is_dataclass(value):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _document(summary: Mapping[str, Any], results: Mapping[str, Any]) -> Iterable[str]:
    yield "# Benchmark\n"
    yield from _table(("figure", "measured", "required", ""), _figures(summary))
    if "rows" in results:
        yield from _table(ROW_COLUMNS, map(_row_cells, results["rows"].values()))
    if "observability" in results:
        yield from _table(ROW_COLUMNS, map(_row_cells, results["observability"]["rows"].values()))
    for name, points in results.get("growth", {}).items():
        yield from _table((name, *POINT_COLUMNS), map(_point_cells, points))
    yield from _problems(results)


def _figures(summary: Mapping[str, Any]) -> Iterable[Sequence[str]]:
    for name, value in summary.items():
        side, bound = REQUIRED.get(name, (None, None))
        if side is None:
            yield name, _number(value), "", ""
        else:
            yield (
                name,
                _number(value),
                f"{side} {bound:g}",
                "holds" if _holds(value, side, bound) else "FALLS SHORT",
            )


def _holds(value: float | None, side: str, bound: float) -> bool:
    if value is None:
        return False
    return {">=": value >= bound, "<=": value <= bound, "<": value < bound}[side]


ROW_COLUMNS = (
    "row", "requests/s", "CPU ms/request", "Redis", "Postgres", "MB/worker", "ready s",
    "load", "p50 ms", "p90", "p99", "p99.9", "errors", "levels",
)  # fmt: skip


def _row_cells(row: Mapping[str, Any]) -> Sequence[str]:
    loops = row["open_loops"]
    latencies = [loop["latency_ms"] for loop in loops.values()]
    return (
        row["title"],
        _number(row["rps"]),
        *(_number(row["cpu_ms"][name]) for name in ("service", "redis", "postgres")),
        _number(row["memory"]["pss_mb"]),
        _number(row["ready_s"]),
        " / ".join(loops),
        *(" / ".join(_number(latency[p]) for latency in latencies) for p in ("p50", "p90", "p99", "p99.9")),
        " / ".join(str(loop["errors"]) for loop in loops.values()),
        " / ".join(_shares(loop["levels"]) for loop in loops.values()),
    )


POINT_COLUMNS = ("CPU ms/request", "Redis", "requests/s", "MB/worker", "ready s", "load s", "problem")


def _point_cells(point: Mapping[str, Any]) -> Sequence[str]:
    load = point["load"]
    return (
        f"{point['size']:,}",
        _number(point["cpu_ms"]),
        _number(point["redis_cpu_ms"]),
        _number(point["rps"]),
        _number(point["memory"] and point["memory"]["pss_mb"]),
        _number(point["ready_s"]),
        _number(load and load["postgres_s"] + load["redis_s"]),
        _first_line(point["problem"]),
    )


def _problems(results: Mapping[str, Any]) -> Iterable[str]:
    observed = results.get("observability", {"rows": {}})["rows"]
    for row in (*results.get("rows", {}).values(), *observed.values()):
        for problem in row["problems"]:
            yield f"- {row['title']}: {problem}"
    if (promotion := results.get("promotion")) and promotion["problem"]:
        yield f"- promotions: {promotion['problem']}"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterable[str]:
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def _shares(levels: Mapping[str, int]) -> str:
    total = sum(levels.values())
    return ", ".join(f"{level}: {count / total:.2%}" for level, count in sorted(levels.items())) or "-"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _first_line(problem: str | None) -> str:
    return "" if problem is None else problem.strip().splitlines()[-1][:200]
