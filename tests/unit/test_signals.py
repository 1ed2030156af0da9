"""A process that is told to end does so, whatever it is about."""

import subprocess
import sys

TOLD_WHILE_IT_HOLDS_THE_LOCK = """
import os, signal
from app.adapters.signals import set_when_told_to_end

told = set_when_told_to_end()
with told._cond:  # as at the begin and at the end of told.wait()
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
print(told.wait(30))
"""


def test_being_told_twice_at_the_worst_moment_ends_the_wait():
    command = [sys.executable, "-c", TOLD_WHILE_IT_HOLDS_THE_LOCK]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert done.stdout == "True\n", done.stderr
