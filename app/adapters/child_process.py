"""What a child process does before it becomes another program."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)
# Where the numbers of all who have this variable are added up.
_METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"


def end_with_parent(niceness: int = 0) -> None:
    """Has this process told to end when the thread that started it is gone, however that ends (Linux).

    `niceness`: how far it stands back from the processor for others.
    """
    os.nice(niceness)
    if sys.platform == "linux":
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def environment_of_child() -> dict[str, str]:
    """Of this process, but what the child counts (Feast does, when it is imported) is no number of this service."""
    return {name: value for name, value in os.environ.items() if name != _METRICS_FOLDER}
