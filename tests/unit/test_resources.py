"""The limits of the process, from its resource limits and control groups; and those of the unit."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from displbe.backend.quota import OWN_THREADS
from displbe.ctl.service import service_limits
from displbe.resources import UNLIMITED, ProcessLimits, half_of_memory, process_limits
from displbe.shortage import is_shortage, shortage
from displbe.threads import DEFAULT_THREADS, NoThread

FILES = resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def write(root: Path, path: str, text: str) -> None:
    """A file."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_the_lowest_of_the_groups(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "0::/system.slice/displbe.service\n")
    groups = "sys/fs/cgroup/system.slice"
    write(tmp_path, f"{groups}/displbe.service/pids.max", "512\n")
    write(tmp_path, f"{groups}/displbe.service/memory.max", "max\n")
    write(tmp_path, f"{groups}/pids.max", "max\n")
    write(tmp_path, f"{groups}/memory.max", "65536\n")
    assert process_limits(tmp_path) == ProcessLimits(FILES, 512, 65536, half_of_memory())
    write(tmp_path, f"{groups}/pids.max", "100\n")
    write(tmp_path, f"{groups}/displbe.service/memory.max", f"{1 << 60}\n")
    write(tmp_path, f"{groups}/memory.max", "rubbish\n")
    assert process_limits(tmp_path) == ProcessLimits(FILES, 100, UNLIMITED, half_of_memory())


def test_version_1_of_control_groups(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "11:pids:/a\n4:cpu,memory:/b/c\n1:name=systemd:/d\n")
    write(tmp_path, "sys/fs/cgroup/pids/a/pids.max", "77\n")
    write(tmp_path, "sys/fs/cgroup/memory/b/memory.limit_in_bytes", "4096\n")
    assert process_limits(tmp_path) == ProcessLimits(FILES, 77, 4096, half_of_memory())


def test_no_groups(tmp_path: Path) -> None:
    assert process_limits(tmp_path) == ProcessLimits(FILES, UNLIMITED, UNLIMITED, half_of_memory())
    here = process_limits()
    assert here.memory > 0
    assert here.half == half_of_memory()
    assert here.threads > 0


def test_the_soft_limit_is_raised() -> None:
    code = (
        "import resource; from displbe.resources import process_limits, raise_file_limit;"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, 200)); raise_file_limit(); print(process_limits().files)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "200\n"


def test_without_a_unit_check_sees_the_limits_that_displbe_would_have() -> None:
    code = (
        "import resource; from displbe.ctl import machine; machine.service_limits = lambda: None;"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, 200)); print(machine.this_machine().limits.files)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "200\n"


def test_the_limits_of_the_unit() -> None:
    def says(**unit: str) -> ProcessLimits | None:
        return service_limits(["printf", "%s\n", *(f"{key}={value}" for key, value in unit.items())])

    assert says(LoadState="loaded", LimitNOFILE="4096", TasksMax="512", MemoryMax="65536") == ProcessLimits(
        4096, 512, 65536, half_of_memory()
    )
    assert says(LoadState="loaded", LimitNOFILE="infinity", TasksMax="infinity", MemoryMax="infinity") == ProcessLimits(
        half=half_of_memory()
    )
    assert says(LoadState="not-found", LimitNOFILE="4096") is None
    assert service_limits(["/nonexistent"]) is None


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(24, "Too many open files"), "Too many open files: raise LimitNOFILE= in displbe.service"),
        (OSError(12, "Cannot allocate memory"), "Cannot allocate memory: raise MemoryMax= in displbe.service"),
        (MemoryError(), "Cannot allocate memory: raise MemoryMax= in displbe.service"),
        (NoThread(), "no thread can be started: raise TasksMax= in displbe.service"),
        (OSError(12, "all guests have too many"), "all guests have too many"),
    ],
)
def test_a_shortage_says_the_way_out(error: BaseException, said: str) -> None:
    assert is_shortage(error)
    assert shortage(error).startswith(said)


def test_other_errors_are_no_shortage() -> None:
    assert shortage(OSError(2, "No such file or directory")) == "No such file or directory"
    assert not is_shortage(OSError(2, ""))
    assert not is_shortage(ValueError())
    assert shortage(ValueError("odd")) == "odd"


async def test_threads_for_work_without_a_limiter() -> None:
    """The daemon keeps as many for itself."""
    assert trio.to_thread.current_default_thread_limiter().total_tokens == DEFAULT_THREADS < OWN_THREADS
