"""What a child process does before it becomes another program."""

import subprocess
import sys
from pathlib import Path

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


@pytest.mark.skipif(
    not Path("/proc/self/autogroup").exists(), reason="sessions have no share of their own here"
)
@pytest.mark.parametrize(("has_own_session", "niceness"), [(True, "7"), (False, "0")])
def test_a_session_of_its_own_stands_back_as_a_whole_and_never_that_of_its_parent(has_own_session, niceness):
    leader = "import os, sys; os.setsid(); os.execvp(sys.executable, [sys.executable, *sys.argv[1:]])"
    start = (
        "import subprocess, sys; from app.adapters.child_process import ending_with_parent; "
        "subprocess.run(['cat', '/proc/self/autogroup'], preexec_fn=ending_with_parent(7), "
        f"start_new_session={has_own_session})"
    )
    done = subprocess.run([sys.executable, "-c", leader, "-c", start], capture_output=True, text=True)

    assert done.stdout.split()[-1] == niceness
