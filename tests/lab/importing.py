"""Runs in Dom0: shows a dma-buf through displbe's DRM sink, like a guest's pages, until it is ended.

The argument is JSON: the sink's settings, the connectors, the geometry, a file with the buffer's bytes, and the source of
the dma-buf (`memory`): empty for a udmabuf, `ours` for memory of the output (be-alloc), else a card's node, for a dumb
buffer of that card. `times` is the number of times that the buffer is attached, to all connectors at once, before it is
shown.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import struct
import sys
from typing import Any

import structlog
import trio

from displbe.sinks.base import Geometry, Output, Part, SinkBuffer
from displbe.sinks.drm.device import DrmDevice
from displbe.sinks.drm.double_buffer import DumbAllocation
from displbe.sinks.drm.settings import DrmSettings
from displbe.sinks.drm.sink import DrmSink
from displbe.wire.formats import fourcc
from displbe.xen.memory import Mapping
from displbe.xen.memory import Memory as Borrowed

UDMABUF_CREATE = 0x40187542
UDMABUF_FLAGS_CLOEXEC = 1
F_ADD_SEALS, F_SEAL_SHRINK = 1033, 2


def pages_of(content: bytes) -> int:
    """Return the number of pages that the content needs."""
    return -(-len(content) // mmap.PAGESIZE)


class Memory:
    """A dma-buf of whole pages (xen.port.GuestBuffer)."""

    domid = 0

    def __init__(self, fd: int, content: bytes) -> None:
        self._fd = fd
        self.size = pages_of(content) * mmap.PAGESIZE
        self._mapping = Mapping(fd, [(0, self.size)], writable=True)
        with self._mapping.borrow() as view:
            view[: len(content)] = content

    async def map(self) -> Borrowed:
        """Return the mapped pages."""
        return self._mapping

    async def dmabuf(self) -> int:
        """Return the dma-buf."""
        return self._fd

    async def shm_fd(self) -> tuple[int, int]:
        """Not used by this sink."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """Close it."""
        self._mapping.close()
        os.close(self._fd)


def udmabuf(pages: int) -> int:
    """Return a udmabuf of this many pages."""
    memfd = os.memfd_create("pages", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(memfd, pages * mmap.PAGESIZE)
    fcntl.fcntl(memfd, F_ADD_SEALS, F_SEAL_SHRINK)
    ask = bytearray(struct.pack("=IIQQ", memfd, UDMABUF_FLAGS_CLOEXEC, 0, pages * mmap.PAGESIZE))
    with open("/dev/udmabuf", "rb") as device:
        return int(fcntl.ioctl(device, UDMABUF_CREATE, ask))


async def attach(outputs: list[Output], memory: Memory, geometry: Geometry) -> dict[Output, SinkBuffer]:
    """Attach a buffer to all outputs at once."""
    made: dict[Output, SinkBuffer] = {}

    async def one(output: Output) -> None:
        made[output] = await output.attach(memory, geometry)

    async with trio.open_nursery() as nursery:
        for output in outputs:
            nursery.start_soon(one, output)
    return made


async def show(asked: dict[str, Any]) -> None:
    """Show the buffer that the argument describes."""
    sink = DrmSink(DrmSettings(**asked["settings"]))
    async with trio.open_nursery() as nursery:
        await nursery.start(sink.run)
        width, height, code, stride, offset = asked["geometry"]
        outputs = [sink.claim(name, width, height) for name in asked["connectors"]]
        edids = [await output.edid() or b"" for output in outputs]  # this waits until the card is open
        content = open(asked["file"], "rb").read()  # noqa: ASYNC230, SIM115
        match asked["memory"]:
            case "":
                fd = udmabuf(pages_of(content))
            case "ours":
                allocation = await outputs[0].allocate(pages_of(content))
                fd = allocation.fd
            case node:
                other = DumbAllocation(DrmDevice(node), pages_of(content))
                fd = other.fd
        memory = Memory(fd, content)
        geometry = Geometry(width, height, fourcc(code), stride, offset)
        paths = set()
        for _ in range(asked["times"] - 1):
            frames = await attach(outputs, memory, geometry)
            for frame in frames.values():
                paths.add(frame.path)
                await frame.aclose()
        for output, frame in (await attach(outputs, memory, geometry)).items():
            await output.enable(frame, Part(0, 0, width, height))
            paths.add(output.path)
        said = {"path": " or ".join(sorted(paths)), "reason": outputs[0].reason, "edid": edids[0].hex()}
        print(json.dumps({"event": "shown"} | said), flush=True)
        await trio.sleep_forever()


structlog.configure(processors=[structlog.processors.JSONRenderer()])
trio.run(show, json.loads(sys.argv[1]))
