"""Trying a large model in a process of its own, which has no claim to the processor that requests need."""

import logging
import subprocess
import sys

from app.adapters.child_process import ending_with_parent, environment_of_child
from app.adapters.model_store import ModelStore
from app.domain.errors import ModelRefused, StoreUnavailable

log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "app", "try-model")
# Smaller ones are read within some 50 ms, and tried where they are to serve.
LARGE_BYTES = 6 * 2**20
TIMEOUT_S = 120.0
_LOWEST_PRIORITY = 19


def require_fast_if_large(store: ModelStore, version: str) -> None:
    """To be called from a greenlet, which waits for the process and lets others run.

    Raises:
        ModelRefused: it is too slow, or cannot be read.
        StoreUnavailable: the trial did not come to an end, and may do so another time.
    """
    if store.size_bytes(version) < LARGE_BYTES:
        return
    try:
        done = subprocess.run(
            [*COMMAND, version],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            env=environment_of_child(),
            preexec_fn=ending_with_parent(_LOWEST_PRIORITY),
        )
    except (subprocess.TimeoutExpired, OSError) as error:
        raise StoreUnavailable(f"the trial of model {version} did not come to an end: {error}") from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise ModelRefused(reason.removeprefix("error: "))
    log.info("model %s is large, and fast enough", version)
