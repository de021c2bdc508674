"""The limits of the daemon's process: files, threads and memory. All guests share them."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

__all__ = [
    "UNLIMITED",
    "ProcessLimits",
    "half_of_memory",
    "parse_limit",
    "process_limits",
    "raise_file_limit",
    "refuse_priorities",
]

UNLIMITED: Final = 1 << 40
"""Stands for `no limit`."""
CGROUPS: Final = "sys/fs/cgroup"


class ProcessLimits(msgspec.Struct, frozen=True):
    """The limits of one process."""

    files: int = UNLIMITED
    """Open files: LimitNOFILE= in displbe.service."""
    threads: int = UNLIMITED
    """Threads: TasksMax=."""
    memory: int = UNLIMITED
    """Bytes of memory: MemoryMax=."""
    half: int = UNLIMITED
    """Half of the bytes of memory that the machine has: guests never take more."""


def raise_file_limit() -> None:
    """Raise the soft limit of open files to the hard limit. The soft limit is for programs that use select(2), which displbe does not."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def refuse_priorities() -> None:
    """Let no more threads of this process have a real-time priority (RLIMIT_RTPRIO, getrlimit(2)). Those that have one keep it."""
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_RTPRIO, (0, 0))


def process_limits(root: Path = Path("/")) -> ProcessLimits:
    """Return the limits of this process, from its resource limits and its control groups (cgroups(7)) in the file system `root`."""
    files = _number(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    return ProcessLimits(
        files,
        min(_group_limits(root, "pids", "pids.max", "pids.max"), default=UNLIMITED),
        min(_group_limits(root, "memory", "memory.max", "memory.limit_in_bytes"), default=UNLIMITED),
        half_of_memory(),
    )


def half_of_memory() -> int:
    """Return half of this machine's memory, in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def parse_limit(text: str) -> int:
    """Return a limit as control groups and systemctl show it. `max`, `infinity`, or nothing for a limit that is not known, is none."""
    return min(int(text), UNLIMITED) if text.isdecimal() else UNLIMITED


def _number(limit: int) -> int:
    return UNLIMITED if limit == resource.RLIM_INFINITY else min(limit, UNLIMITED)


def _group_limits(root: Path, controller: str, name: str, old_name: str) -> Iterator[int]:
    """Yield the limits of the process' control group and of the groups above it; `old_name` is the file's name in version 1."""
    try:
        lines = (root / "proc/self/cgroup").read_text("utf-8", "replace").splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            top, file = root / CGROUPS, name
        elif controller in controllers.split(","):
            top, file = root / CGROUPS / controller, old_name
        else:
            continue
        group = Path(path.lstrip("/"))
        for place in (group, *group.parents):
            try:
                text = (top / place / file).read_text("ascii", "replace")
            except OSError:
                continue
            yield parse_limit(text.strip())
