"""What a child process does before it becomes another program."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_AUTOGROUP = Path("/proc/self/autogroup")
_libc = ctypes.CDLL(None, use_errno=True)
# Where the numbers of all who have this variable are added up.
_METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"


def ending_with_parent(niceness: int = 0) -> Callable[[], None]:
    """A `preexec_fn` for children of this process: told to end when the thread that starts them is gone (Linux).

    `niceness`: how far they stand back from the processor for others.
    """
    parent = os.getpid()

    def prepare_child() -> None:
        _stand_back(niceness)
        if sys.platform == "linux":
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:  # it was gone before this was asked for
                os._exit(1)

    return prepare_child


def _stand_back(niceness: int) -> None:
    """Also of a session of its own: Linux may share the processor out by sessions, and niceness counts within one only."""
    os.nice(niceness)
    if niceness and os.getsid(0) == os.getpid():
        with suppress(OSError):  # a system without such groups, or one that is asked too often
            _AUTOGROUP.write_text(str(niceness))


def environment_of_child() -> dict[str, str]:
    """Of this process, but what the child counts (Feast does, when it is imported) is no number of this service."""
    return {name: value for name, value in os.environ.items() if name != _METRICS_FOLDER}
