"""What a child process does before it becomes another program."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def end_with_parent(niceness: int = 0) -> None:
    """Has this process told to end when the thread that started it is gone, however that ends (Linux).

    `niceness`: how far it stands back from the processor for others.
    """
    os.nice(niceness)
    if sys.platform == "linux":
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
