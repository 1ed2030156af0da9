"""`python -m tests.benchmarks.profile`: where the time of a /suggest goes, by function."""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.bench import FULL, QUICK, Bench
from tests.benchmarks.hot_path import TEXT
from tests.benchmarks.keys import write_requests
from tests.benchmarks.stores import ROOT
from tests.benchmarks.traffic import uniform_suggestions

REQUESTS, SAMPLE_S = 2_000, 20.0
QUICK_REQUESTS, QUICK_SAMPLE_S = 100, 0.5


def profile(out: Path, is_quick: bool) -> str:
    """The text that it leaves in `out`, beside the stacks for a flame graph."""
    out.mkdir(parents=True, exist_ok=True)
    bench = Bench(QUICK if is_quick else FULL, out / "work-profile")
    size = bench.plan.size
    bodies = uniform_suggestions(size, QUICK_REQUESTS if is_quick else REQUESTS)
    seconds = QUICK_SAMPLE_S if is_quick else SAMPLE_S
    requests = write_requests(bench.folder / "requests", "/suggest", bodies)
    with bench.world("profile", size) as loaded:
        # As the service has it, with the log in a file; there is no gunicorn to set up its metrics.
        service = bench.service(loaded, "profile")
        metrics = service.folder / "metrics"
        metrics.mkdir()
        with (out / "profile.log").open("w") as log:
            subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "tests.benchmarks.hot_path",
                    str(requests),
                    str(out),
                    f"--seconds={seconds}",
                ],
                env={**service.environment, "PROMETHEUS_MULTIPROC_DIR": str(metrics)},
                cwd=ROOT,
                stdout=log,
                check=True,
            )
    shutil.rmtree(bench.folder)
    return (out / TEXT).read_text()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.profile", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench")
    parser.add_argument("--quick", action="store_true", help="On small data.")
    options = parser.parse_args()
    print(profile(options.out.resolve(), options.quick))


if __name__ == "__main__":
    main()
