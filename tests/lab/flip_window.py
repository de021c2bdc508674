"""Runs in Dom0: lets a guest (domu/flips.c) measure a number of flips, and counts the CPU time of the backend meanwhile.

The arguments are the guest's domid, the backend's process id, the window's name, and the number of flips of each screen. The output is
JSON: `cpu_ms` of all threads of the process, `waits` of all of them, and what the guest has measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

CPUCLOCK_SCHED = 2


def cpu_ns(pid: int) -> int:
    """Return the CPU time of another process in ns (include/linux/posix-timers_types.h, MAKE_PROCESS_CPUCLOCK)."""
    return time.clock_gettime_ns(~pid << 3 | CPUCLOCK_SCHED)


def switches(pid: int) -> int:
    """Return the number of times that a process's threads have waited."""
    text = subprocess.run(f"cat /proc/{pid}/task/*/status", shell=True, check=True, capture_output=True, text=True)
    return sum(int(line.split()[1]) for line in text.stdout.splitlines() if line.startswith("voluntary_"))


def main() -> None:
    """Measure one window."""
    domid, pid, name, count = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
    data = f"/local/domain/{domid}/data"
    watch = subprocess.Popen(["xenstore-watch", f"{data}/flips"], stdout=subprocess.PIPE, text=True)
    assert watch.stdout is not None
    watch.stdout.readline()  # each watch fires once when it is set
    subprocess.run(["xenstore-write", f"{data}/go", f"{name} {count}"], check=True)
    watch.stdout.readline()
    before, waited = cpu_ns(pid), switches(pid)
    watch.stdout.readline()
    used, waits = cpu_ns(pid) - before, switches(pid) - waited
    watch.kill()
    result = ""
    while not result.startswith(f"end {name} "):
        time.sleep(0.05)
        got = subprocess.run(["xenstore-read", f"{data}/results"], check=False, capture_output=True, text=True)
        result = got.stdout.strip()
    words = result.split()
    measured = {
        "screens": int(words[3]),
        "intervals": int(words[5]),
        "ms": float(words[7]),
        "response": [float(word) for word in words[9:12]],
        "late": [float(word) for word in words[13:16]],
    }
    print(json.dumps({"cpu_ms": used / 1e6, "waits": waits, **measured}))


main()
