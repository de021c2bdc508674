"""Runs in Dom0: shows an udmabuf through displbe's DRM sink, as it would a guest's pages, until it is ended.

Its argument is JSON: the sink's settings, a connector, the geometry, and a file with the buffer's octets.
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

from displbe.config import DrmSettings
from displbe.sinks.base import Geometry, Part
from displbe.sinks.drm.sink import DrmSink
from displbe.wire.formats import fourcc

UDMABUF_CREATE = 0x40187542
UDMABUF_FLAGS_CLOEXEC = 1
F_ADD_SEALS, F_SEAL_SHRINK = 1033, 2


class Memory:
    """Whole pages as an udmabuf (xen.port.GuestBuffer)."""

    domid = 0

    def __init__(self, content: bytes) -> None:
        self.size = -(-len(content) // mmap.PAGESIZE) * mmap.PAGESIZE
        memfd = os.memfd_create("pages", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(memfd, self.size)
        os.pwrite(memfd, content, 0)
        fcntl.fcntl(memfd, F_ADD_SEALS, F_SEAL_SHRINK)
        self._view = memoryview(mmap.mmap(memfd, self.size, access=mmap.ACCESS_READ))
        with open("/dev/udmabuf", "rb") as device:
            ask = bytearray(struct.pack("=IIQQ", memfd, UDMABUF_FLAGS_CLOEXEC, 0, self.size))
            self._fd: int = fcntl.ioctl(device, UDMABUF_CREATE, ask)

    async def view(self) -> memoryview:
        """The pages."""
        return self._view

    async def dmabuf(self) -> int:
        """The udmabuf."""
        return self._fd

    async def shm_fd(self) -> tuple[int, int]:
        """Of no use to this sink."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """Close it."""
        os.close(self._fd)


async def show(asked: dict[str, Any]) -> None:
    """Show it."""
    sink = DrmSink(DrmSettings(**asked["settings"]))
    async with trio.open_nursery() as nursery:
        await nursery.start(sink.run)
        width, height, code, stride, offset = asked["geometry"]
        output = sink.claim(asked["connector"], width, height)
        memory = Memory(open(asked["file"], "rb").read())  # noqa: ASYNC230, SIM115
        frame = await output.attach(memory, Geometry(width, height, fourcc(code), stride, offset))
        await output.enable(frame, Part(0, 0, width, height))
        print(json.dumps({"event": "shown", "path": output.path, "reason": output.reason}), flush=True)
        await trio.sleep_forever()


structlog.configure(processors=[structlog.processors.JSONRenderer()])
trio.run(show, json.loads(sys.argv[1]))
