"""What a child process does before it becomes another program."""

import subprocess
import sys

import pytest

ORPHAN = """
import os, time
from app.adapters.child_process import ending_with_parent

parent, prepare = os.getpid(), ending_with_parent()
if os.fork() == 0:
    while os.getppid() == parent:
        time.sleep(0.001)
    prepare()
    print("still here", flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing tells of a parent that is gone")
def test_a_child_whose_parent_is_gone_before_it_is_ready_ends():
    # Returns when the child has closed its output as well.
    done = subprocess.run([sys.executable, "-c", ORPHAN], capture_output=True, text=True, timeout=60)

    assert done.stdout == "" and done.stderr == ""
