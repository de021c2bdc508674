"""Runs in Dom0: makes the handshake in XenStore for the bare backend (tests/bench/bare.c), and executes it.

The arguments are the program, a card's name in /dev/dri, zero-copy or copy, and the number of devices to wait for. All of their connectors
are served by one process. The last line of the output is "bare: connected".
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

BACKEND = "/local/domain/0/backend/vdispl"


def xenstore(verb: str, *words: str) -> str:
    """Run xenstore-read, xenstore-list or xenstore-write. Return its output, empty if it fails."""
    return subprocess.run([f"xenstore-{verb}", *words], check=False, capture_output=True, text=True).stdout.strip()


def devices(count: int) -> list[tuple[str, str]]:
    """Wait for this many devices; let each one's guest begin. Return the guests' domids and the devices' numbers."""
    found: list[tuple[str, str]] = []
    while len(found) < count:
        for domid in xenstore("list", BACKEND).split():
            for number in xenstore("list", f"{BACKEND}/{domid}").split():
                if (domid, number) not in found:
                    found.append((domid, number))
                    xenstore("write", f"{BACKEND}/{domid}/{number}/state", "2")
        time.sleep(0.05)
    return found


def screens(domid: str, number: str, card: str) -> list[str]:
    """Wait until a frontend has published its rings. Return the bare backend's arguments for its connectors."""
    front = f"/local/domain/{domid}/device/vdispl/{number}"
    while xenstore("read", f"{front}/state") != "3":
        time.sleep(0.02)
    arguments = []
    for connector in sorted(name for name in xenstore("list", front).split() if name.isdigit()):
        keys = ("unique-id", "req-ring-ref", "evt-ring-ref", "req-event-channel", "evt-event-channel")
        name, *values = (xenstore("read", f"{front}/{connector}/{key}") for key in keys)
        identity = Path(f"/sys/class/drm/{card}-{name}/connector_id").read_text().strip()
        arguments.append(":".join([identity, domid, *values]))
    return arguments


def main() -> None:
    """Serve the devices until the backend is killed."""
    program, card, path, count = sys.argv[1:]
    found = devices(int(count))
    arguments = [screen for device in found for screen in screens(*device, card)]
    with subprocess.Popen([program, f"/dev/dri/{card}", path, *arguments], stdout=subprocess.PIPE, text=True) as bare:
        assert bare.stdout is not None
        if bare.stdout.readline() != "bare: ready\n":
            raise SystemExit(f"the bare backend ended with {bare.wait()}")
        Path("/run/bare.pid").write_text(f"{bare.pid}\n")
        for domid, number in found:
            xenstore("write", f"{BACKEND}/{domid}/{number}/state", "4")
        print("bare: connected", flush=True)
        bare.wait()
    for domid, number in found:
        xenstore("write", f"{BACKEND}/{domid}/{number}/state", "6")  # the toolstack waits for it


main()
