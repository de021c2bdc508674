"""The daemon in a process of its own, as started from a shell, but on a simulated Xen: `python -m tests.bench.whole displbe-arguments`.

The folder DISPLBE_BENCH_FOLDER is the simulated Xen's. With DISPLBE_BENCH_GUEST=1 a guest of 1920x1080 runs in the same process; it writes
to the standard output when it has flipped.
"""

# ruff: noqa: E402
from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from displbe.lean_imports import import_lean

import_lean()  # before anything else, as the daemon does it

import trio

from displbe import process, startup
from displbe.sim.guest import Guest
from displbe.sim.hypervisor import Domain, SimHypervisor, Xen
from displbe.sim.toolstack import ConnectorSpec
from displbe.xen import host

SIZE = (1920, 1080)


class Host(SimHypervisor):
    """A simulated Xen with its XenStore, in place of the real one."""

    def __init__(self, path: str | None = None) -> None:
        self.xen = Xen(Path(os.environ["DISPLBE_BENCH_FOLDER"]))  # tempfile would import half a megabyte
        self.xen.domains[0] = Domain(0)
        super().__init__(self.xen, self.xen.domains[0])

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            self.xen._nursery = nursery
            await nursery.start(self.xen.server.serve, 0)
            if os.environ.get("DISPLBE_BENCH_GUEST"):
                nursery.start_soon(self._guest)
            await super().run(task_status=task_status)

    async def _guest(self) -> None:
        async with Guest.booted(self.xen, 1, ConnectorSpec("BENCH-1", *SIZE)) as guest:
            await guest.display.connected.wait()
            buffers = [await guest.display.create_framebuffer(*SIZE) for _ in range(2)]
            await guest.display.show(0, buffers[0][1], *SIZE)
            for number in range(120):
                await guest.display.connectors[0].flip(buffers[number % 2][1])
            print("flipped", flush=True)
            await trio.sleep_forever()


if __name__ == "__main__":
    process.only_one = contextlib.nullcontext  # type: ignore[assignment]  # there is no device to lock
    host.Host = Host  # type: ignore[assignment,misc]
    sys.exit(startup.main())
