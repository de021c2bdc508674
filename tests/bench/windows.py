"""Buffers that are attached and detached at a real compositor: `python -m tests.bench.windows [CYCLES]`.

A guest's buffer is attached, shown in every tenth cycle, and taken back, ten thousand times with a headless Weston: once where Weston
maps it, once where its frames are copied. Weston must not map a buffer that has been taken back. At the end neither this process nor
Weston may have more files, mappings or objects than before, or 1 MiB more of memory.
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Final, Literal, NamedTuple

import structlog
import trio

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sinks.headless_weston import Weston, weston

from displbe.sinks.base import Claimant, DeviceConnector, Geometry, Part
from displbe.sinks.wayland.output import WaylandOutput
from displbe.sinks.wayland.settings import WaylandSettings
from displbe.sinks.wayland.sink import WaylandSink
from displbe.wire.formats import fourcc
from displbe.xen.memory import Mapping, Memory

CYCLES: Final = 10_000
WARM_UP: Final = 1_000
WIDTH, HEIGHT = 320, 200
GUEST: Final = Claimant(1, "bench")


class Pages:
    """A guest's buffer (port.GuestBuffer), with its memory in a file."""

    domid = 1
    size = -(-WIDTH * HEIGHT * 4 // 4096) * 4096

    def __init__(self) -> None:
        self.fd = os.memfd_create("guest-of-the-bench", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, self.size)
        self._mapping: Mapping | None = None

    async def map(self) -> Memory:
        await trio.lowlevel.checkpoint()
        if self._mapping is None:
            self._mapping = Mapping(self.fd, [(0, self.size)], writable=False)
        return self._mapping

    async def dmabuf(self) -> int:
        raise NotImplementedError

    async def shm_fd(self) -> tuple[int, int]:
        await trio.lowlevel.checkpoint()
        return os.dup(self.fd), 0

    async def aclose(self) -> None:
        if self._mapping is not None:
            self._mapping.close()
        os.close(self.fd)
        await trio.lowlevel.checkpoint()


class Held(NamedTuple):
    """The files, mappings and objects that this process and Weston hold."""

    files: int
    mappings: int
    objects: int
    theirs: int
    their_mappings: int

    @classmethod
    def now(cls, output: WaylandOutput, compositor: Weston) -> Held:
        files = len(os.listdir("/proc/self/fd"))
        mappings = Path("/proc/self/maps").read_text().count("guest-of-the-bench")
        link = output._guest.link
        objects = link.conn.objects if link is not None else 0
        return cls(files, mappings, objects, compositor.files(), compositor.mapped("guest-of-the-bench"))


async def settled(output: WaylandOutput, compositor: Weston) -> Held:
    """Return what is held when events that are on their way (a frame callback, a release) have arrived: the least of ten samples in
    half a second.
    """
    seen = []
    for _ in range(10):
        await trio.sleep(0.05)
        gc.collect()
        seen.append(Held.now(output, compositor))
    return Held(*map(min, zip(*seen, strict=True)))


def memory(pid: int | str) -> int:
    """Return a process's resident memory in kB."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0])


async def cycle(output: WaylandOutput, compositor: Weston, number: int) -> None:
    """Attach a buffer, show it in every tenth cycle, and take it back: Weston must not map it then."""
    pages = Pages()
    buffer = await output.attach(pages, Geometry(WIDTH, HEIGHT, fourcc("XR24"), WIDTH * 4, 0))
    assert output._guest.imports.buffers
    if number % 10 == 0:
        await output.enable(buffer, Part(0, 0, WIDTH, HEIGHT))
        output.flip(buffer, number)
    await buffer.aclose()
    if number % 10 == 0 and compositor.mapped("guest-of-the-bench"):
        raise SystemExit("Weston maps a buffer that has been taken back")
    await pages.aclose()


async def measure(folder: Path, cycles: int, zero_copy: Literal["auto", "off"]) -> bool:
    """Print what is left over, and return whether that is nothing."""
    good = True
    async with weston(folder) as compositor, trio.open_nursery() as nursery:
        settings = WaylandSettings(
            display=str(compositor.socket), refresh=0.0, zero_copy=zero_copy, trust_compositor=True
        )
        sink = WaylandSink(settings)
        await nursery.start(sink.run)
        connector = DeviceConnector(GUEST, 0, 0, "BENCH-1", WIDTH, HEIGHT)
        sink.connector_added(connector)
        output = sink.claim(connector.name, WIDTH, HEIGHT, GUEST)
        assert isinstance(output, WaylandOutput)
        while output._guest.link is None:
            await trio.sleep(0.01)
        for number in range(WARM_UP):
            await cycle(output, compositor, number)
        before, ours, theirs = await settled(output, compositor), memory("self"), memory(compositor.pid)
        began = time.perf_counter()
        for number in range(cycles):
            await cycle(output, compositor, number)
        took = time.perf_counter() - began
        after = await settled(output, compositor)
        grown = memory("self") - ours, memory(compositor.pid) - theirs
        print(
            f"zero_copy {zero_copy}: {cycles} buffers attached and taken back in {took:.1f} s, {took / cycles * 1e6:.0f} µs each"
        )
        for name, one, other in zip(Held._fields, before, after, strict=True):
            print(f"{name:16} {one:6} before {other:6} after")
            good &= one == other
        print(f"{'resident memory':16} {grown[0]:+6} kB here, {grown[1]:+6} kB in Weston; at most 1024")
        good &= max(grown) <= 1024 and sink.clients[GUEST].connections == 1
        await output.release()
        sink.connector_removed(connector)
        nursery.cancel_scope.cancel()
    return good


def main() -> int:
    """Return 1 when something is left over, else 0."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    cycles = int(sys.argv[1]) if len(sys.argv) > 1 else CYCLES
    good = True
    for zero_copy in ("auto", "off"):
        with tempfile.TemporaryDirectory(prefix="displbe-bench-") as folder:
            good &= trio.run(measure, Path(folder), cycles, zero_copy)
    print("nothing left over" if good else "something is left over")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
