"""What this process takes of its machine, and what the machine has. Linux only, as the service is."""

import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

# Of a container, by the second and the first version of control groups.
_LIMIT_FILES = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True, slots=True)
class MachineUse:
    """Bytes and numbers, as of one moment."""

    resident_bytes: int
    open_descriptors: int
    descriptors_limit: int
    memory_limit_bytes: int
    disk_free_bytes: int
    disk_size_bytes: int


def machine_use(folder: Path) -> MachineUse:
    """The disk is the one that holds `folder`. May wait for it."""
    resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
    disk = shutil.disk_usage(folder)
    return MachineUse(
        resident_bytes=resident_pages * os.sysconf("SC_PAGE_SIZE"),
        open_descriptors=len(os.listdir("/proc/self/fd")),
        descriptors_limit=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        memory_limit_bytes=min(_memory_limits()),
        disk_free_bytes=disk.free,
        disk_size_bytes=disk.total,
    )


def _memory_limits() -> Iterator[int]:
    yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for path in _LIMIT_FILES:
        with suppress(OSError, ValueError):  # there is none, or it says "max"
            yield int(Path(path).read_text())
