"""`python -m tests.observability.screens`: pictures of the dashboards while a service is used, and loses Redis and PostgreSQL."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from helm.dashboards.reading import VARIABLES
from helm.dashboards.screens import write_screens
from helm.dashboards.source import Source
from tests.observability.observed import Observed, observed_service
from tests.observability.visitors import Visitors

IMAGES = Path(__file__).parents[2] / "docs/images"
# Redis is away for so long that somebody is told.
CALM_S, REDIS_DOWN_S, POSTGRES_FROZEN_S = 30.0, 150.0, 40.0
SIDES, PAUSE_S = 2, 1.0


def main() -> None:
    with TemporaryDirectory() as folder, observed_service(Path(folder), {}) as observed, _used(observed):
        time.sleep(CALM_S)
        from_s = time.time()
        time.sleep(CALM_S)
        observed.stack.redis.kill()
        time.sleep(REDIS_DOWN_S)
        observed.stack.redis.start()
        time.sleep(CALM_S)
        observed.stack.postgres.freeze()
        time.sleep(POSTGRES_FROZEN_S)
        observed.stack.postgres.thaw()
        time.sleep(CALM_S)
        to_s = time.time()
        variables = {**VARIABLES, "__rate_interval": "30s", "__range": f"{to_s - from_s:.0f}s"}
        write_screens(Source(observed.prometheus.url, from_s, to_s), IMAGES, variables)


@contextmanager
def _used(observed: Observed) -> Iterator[None]:
    """People come and go, a few at a time, until the block ends."""
    is_over = threading.Event()

    def come(visitors: Visitors) -> None:
        while not is_over.wait(PAUSE_S):
            visitors.come()

    with ThreadPoolExecutor(SIDES) as pool:
        done = [pool.submit(come, observed.visitors.like_these(seed)) for seed in range(SIDES)]
        try:
            yield
        finally:
            is_over.set()
    for one in done:
        one.result()


if __name__ == "__main__":
    main()
