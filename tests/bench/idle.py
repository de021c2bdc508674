"""How often the daemon wakes up while a guest is connected whose picture stands still: `python -m tests.bench.idle [SINK …]`.

A wake-up is a voluntary switch of one of the process's threads (proc_pid_status(5)): it has slept and runs again. The picture has stood
still for so long that the sink looks at it as rarely as it ever does.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final
from unittest.mock import patch

import structlog
import trio

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from unit.drm_model import Board

from displbe.config import Settings
from displbe.daemon import Daemon
from displbe.ops.lag import LoopLag
from displbe.ops.settings import ControlSettings
from displbe.sim.guest import Guest
from displbe.sim.hypervisor import Xen
from displbe.sim.toolstack import ConnectorSpec
from displbe.sinks import redraw, registry
from displbe.sinks.drm import hotplug
from displbe.sinks.drm.settings import DrmSettings

from . import calls, steps

__all__ = ["SINKS", "report", "wakeups"]

SECONDS: Final = 10
"""As long as the longest period of the daemon's work, a look at all monitors."""
SIZE: Final = (320, 240)
SETTLE: Final = 4.0
"""Seconds until the first flips, messages and mode changes are over."""


@asynccontextmanager
async def _drm(folder: Path) -> AsyncIterator[Settings]:
    """A card that is a model. It is switched on, and has nothing to tell."""
    (folder / "card0").touch()
    steps._board = Board(modes=[SIZE])  # type: ignore[misc]
    with (
        patch.dict(registry.SINKS, {"drm": (steps.__name__, "_ModelSink", ())}),
        patch.object(hotplug, "POLL", 1000.0),  # a kernel reports monitors by events, which the model has not
    ):
        yield Settings(sink="drm", drm=DrmSettings(device=str(folder / "card0")), control=ControlSettings(socket=""))


SINKS: Final[dict[str, tuple[calls.Place, float]]] = {
    "headless": (calls.SINKS["headless"][0], 2.0),
    "drm": (_drm, 2.0),
    "wayland": (calls.SINKS["wayland"][0], 2.0),
    "wayland-copy": (calls.SINKS["wayland-copy"][0], 2.0),
    "x11": (calls.SINKS["x11"][0], 2.0),
}
"""The sinks -> the context in which each runs, and the limit of wake-ups a second, of all threads together."""


def switches() -> dict[str, int]:
    """Return the voluntary switches of each thread so far."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        try:
            lines = (task / "status").read_text("ascii").splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile
        name = f"{lines[0].split()[1]}-{task.name}"
        found[name] = next(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))
    return found


async def wakeups(place: calls.Place, seconds: float = SECONDS) -> dict[str, float]:
    """Return the wake-ups a second of each thread that has woken up."""
    with tempfile.TemporaryDirectory(prefix="displbe-bench-") as folder:
        async with place(Path(folder)) as settings, Xen(Path(folder)).running() as xen, trio.open_nursery() as nursery:
            await nursery.start(Daemon(settings, xen.hypervisor(0)).run)
            async with Guest.booted(
                xen, 1, ConnectorSpec("Virtual-1" if settings.sink == "drm" else "BENCH-1", *SIZE)
            ) as guest:
                await guest.display.connected.wait()
                _, framebuffer, _ = await guest.display.create_framebuffer(*SIZE)
                await guest.display.show(0, framebuffer, *SIZE)
                await trio.sleep(SETTLE)
                before = switches()
                await trio.sleep(seconds)
                after = switches()
            nursery.cancel_scope.cancel()
    return {
        name: (count - before.get(name, 0)) / seconds for name, count in after.items() if count > before.get(name, 0)
    }


def report(*wanted: str) -> bool:
    """Print the wake-ups. False: there are more than allowed."""
    quick, redraw._LATER_BACKOFF = redraw._LATER_BACKOFF, 10.0  # type: ignore[misc]  # the half minute at once
    good = True
    print(f"\nwake-ups a second while the picture stands still, over {SECONDS} s")
    try:
        for name in wanted or SINKS:
            place, most = SINKS[name]
            found = trio.run(wakeups, place, clock=LoopLag())
            total = sum(found.values())
            good &= total <= most
            by_thread = ", ".join(f"{thread}: {rate:.1f}" for thread, rate in found.items())
            print(f"{name:44} {total:8.2f}, at most {most:g}: {'good' if total <= most else 'too many'}; {by_thread}")
    finally:
        redraw._LATER_BACKOFF = quick  # type: ignore[misc]
    return good


def main() -> int:
    """Print the wake-ups. 1: there are too many."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    return 0 if report(*sys.argv[1:]) else 1


if __name__ == "__main__":
    sys.exit(main())
