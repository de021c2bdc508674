"""Runs in Dom0: lets a guest (domu/flips.c) measure a number of flips, and counts the CPU time of the backend meanwhile.

The arguments are the guest's domid, the backend's process id, the window's name, the number of flips of each screen, and the card's number
in /sys/kernel/debug/dri. All lit screens of the card must have the same mode. The output is JSON: `cpu_ms` and `waits` of all threads of
the process, and what the guest has measured.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

CPUCLOCK_SCHED = 2


def cpu_ns(pid: int) -> int:
    """Return the CPU time of another process in ns (include/linux/posix-timers_types.h, MAKE_PROCESS_CPUCLOCK)."""
    return time.clock_gettime_ns(~pid << 3 | CPUCLOCK_SCHED)


def switches(pid: int) -> int:
    """Return the number of times that a process's threads have waited."""
    text = subprocess.run(f"cat /proc/{pid}/task/*/status", shell=True, check=True, capture_output=True, text=True)
    return sum(int(line.split()[1]) for line in text.stdout.splitlines() if line.startswith("voluntary_"))


def period_ns(card: str) -> int:
    """Return the refresh period of a card's first CRTC that is on, as the kernel computes it (drm_calc_timestamping_constants)."""
    state = Path(f"/sys/kernel/debug/dri/{card}/state").read_text()
    # drm_crtc_atomic_print_state, DRM_MODE_FMT: "name": refresh clock, 4 horizontal and 4 vertical values; totals come last.
    modes = re.findall(
        r"\tactive=1\n(?:\t.*\n)*?\tmode: \"[^\"]*\": \d+ (\d+) \d+ \d+ \d+ (\d+) \d+ \d+ \d+ (\d+) ", state
    )
    clock, across, down = map(int, modes[0])
    return across * down * 1_000_000 // clock


def main() -> None:
    """Measure one window."""
    domid, pid, name, count, card = sys.argv[1], int(sys.argv[2]), *sys.argv[3:]
    data = f"/local/domain/{domid}/data"
    watch = subprocess.Popen(["xenstore-watch", f"{data}/flips"], stdout=subprocess.PIPE, text=True)
    assert watch.stdout is not None
    watch.stdout.readline()  # each watch fires once when it is set
    subprocess.run(["xenstore-write", f"{data}/go", f"{name} {count} {period_ns(card)}"], check=True)
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
