"""`python -m tests.benchmarks`: measures, prints a table, leaves JSON and plots."""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from tests.benchmarks import report
from tests.benchmarks.bench import FULL, QUICK, Bench, environment
from tests.benchmarks.freshness import measure_freshness
from tests.benchmarks.growth import measure_growth
from tests.benchmarks.load import has_wrk
from tests.benchmarks.observability import measure_observability
from tests.benchmarks.projection import measure_projection, summarize_projection
from tests.benchmarks.promotion import measure_promotions
from tests.benchmarks.rows import measure_rows
from tests.benchmarks.slates import measure_slates, summarize_slates
from tests.benchmarks.stores import ROOT

MATERIALIZATION = "tests.benchmarks.materialization"
FEATURES = 10


def rows(bench: Bench) -> tuple[dict, dict]:
    measured = measure_rows(bench)
    return report.summarize_rows(measured), {"rows": measured}


def observability(bench: Bench) -> tuple[dict, dict]:
    measured = measure_observability(bench)
    return report.summarize_observability(measured), {"observability": measured}


def growth(bench: Bench) -> tuple[dict, dict]:
    measured = measure_growth(bench)
    return report.summarize_growth(measured), {"growth": measured}


def promotion(bench: Bench) -> tuple[dict, dict]:
    measured = measure_promotions(bench)
    return report.summarize_promotions(measured), {"promotion": measured}


def projection(bench: Bench) -> tuple[dict, dict]:
    plan = bench.plan
    with bench.world("projection", plan.size) as loaded, environment(loaded.stores.environment):
        slates = measure_slates(loaded.stores, plan.size, plan.stored_slates)
        events = measure_projection(loaded.stores, plan.size, plan.projected_events)
    summary = {
        **summarize_projection(events),
        **summarize_slates(slates),
        **report.summarize_online(loaded.times.online, plan.size),
    }
    return summary, {"projection": events, "slates": slates, "online": loaded.times.online}


def freshness(bench: Bench) -> tuple[dict, dict]:
    measured = measure_freshness(bench)
    p99_ms = None if measured.not_felt or measured.load.errors else measured.latency_ms["p99"]
    return {"freshness_p99_ms": p99_ms}, {"freshness": measured}


def materialize(bench: Bench) -> tuple[dict, dict]:
    if find_spec(MATERIALIZATION) is None:
        problem = f"{MATERIALIZATION} is not there"
        return {"materialize_vs_stock": None}, {"materialize": {"problem": problem}}
    from tests.benchmarks.materialization import measure

    with bench.empty_world("materialize") as stores:
        measured = measure(stores.settings, rows=bench.plan.materialized_rows, features=FEATURES)
    return report.summarize_materialization(measured), {"materialize": measured}


SECTIONS: dict[str, Callable[[Bench], tuple[dict, dict]]] = {
    "rows": rows,
    "observability": observability,
    "promotion": promotion,
    "growth": growth,
    "projection": projection,
    "freshness": freshness,
    "materialize": materialize,
}


def run(sections: Sequence[str], is_quick: bool, out: Path) -> dict:
    """Measures the sections one after the other and returns the summary; each is written when it is done."""
    out.mkdir(parents=True, exist_ok=True)
    tell(
        f"{'quick' if is_quick else 'full'} run, closed loops by {'wrk' if has_wrk() else 'our own generator'}"
    )
    bench = Bench(QUICK if is_quick else FULL, out / "work")
    facts = {"machine": report.machine(), "plan": bench.plan, "models": bench.model_facts}
    for name in sections:
        started = time.monotonic()
        tell(f"{name} ...")
        summary, results = SECTIONS[name](bench)
        text = report.write(out, summary, {**facts, **results})
        tell(f"{name}: {time.monotonic() - started:.0f} s")
    shutil.rmtree(bench.folder)
    plot(out)
    print(text)
    return json.loads((out / report.SUMMARY).read_text())


def plot(out: Path) -> None:
    if find_spec("matplotlib") is None:
        tell("no plots: matplotlib is not installed (`pip install 'predictive-propositions[bench]'`)")
        return
    from tests.benchmarks.plots import plot_all

    plot_all(out, json.loads((out / report.RESULTS).read_text()))


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def ensure_wrk() -> None:
    """wrk is a Debian package; whoever may installs it."""
    if has_wrk() or shutil.which("apt-get") is None:
        return
    done = subprocess.run(["apt-get", "install", "-y", "wrk"], capture_output=True, text=True)
    if done.returncode:
        tell("wrk is not installed: `apt-get install wrk` as root gives truer throughput of fast endpoints")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--only", default=",".join(SECTIONS), help="Comma-separated: %(default)s.")
    parser.add_argument("--quick", action="store_true", help="Small and short: does everything work?")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench")
    options = parser.parse_args()
    sections = options.only.split(",")
    if unknown := set(sections) - set(SECTIONS):
        parser.error(f"--only knows {', '.join(SECTIONS)}, not {', '.join(sorted(unknown))}")
    ensure_wrk()
    run(sections, options.quick, options.out.resolve())
