"""One process per machine keeps the snapshot, started and watched by whichever worker holds its lock."""

import fcntl
import logging
import os
import subprocess
import sys
from pathlib import Path

from app.adapters.child_process import ending_with_parent, environment_of_child

log = logging.getLogger(__name__)

# Requests come first; half as much of the processor as a worker is enough to stay current.
NICENESS = 5
COMMAND = (sys.executable, "-m", "app", "snapshot", "--follow")


class KeeperProcess:
    """The keeper for all workers that share `folder`.

    The keeper inherits the lock, so it is free again only when both the keeper and the worker that
    started it are gone. The keeper ends with that worker; another worker then starts the next one.
    """

    def __init__(self, folder: Path) -> None:
        self._lock_path = folder / "keeper.lock"
        self._process: subprocess.Popen | None = None

    def ensure(self) -> None:
        """Starts the keeper unless it runs, here or under another worker."""
        if self._process is not None and self._process.poll() is None:
            return
        if self._process is not None:
            log.error("the keeper of the snapshot ended with status %s", self._process.returncode)
            self._process = None
        self._lock_path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._process = subprocess.Popen(
                COMMAND,
                pass_fds=(lock,),
                env=environment_of_child(),
                preexec_fn=ending_with_parent(NICENESS),
            )
        except BlockingIOError:
            pass  # another worker has it
        finally:
            os.close(lock)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
