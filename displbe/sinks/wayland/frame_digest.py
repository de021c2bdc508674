"""Notices that a guest has drawn into its frame without flipping, by a checksum of the pixels."""

from __future__ import annotations

import trio

from displbe.sinks.base import Geometry, Part, SinkError
from displbe.sinks.frame_copy import frame_checksum, frame_rows
from displbe.threads import run_in_thread
from displbe.xen.memory import Memory, Unmapped

from .buffers import WaylandBuffer

__all__ = ["FrameDigest"]


class FrameDigest:
    """Notices changes of a guest's frame, by a checksum that a thread computes."""

    def __init__(self) -> None:
        self.reading = trio.Lock()
        """Held while a thread reads a guest's pages, and while the pages are taken back."""
        self._digest: tuple[WaylandBuffer, int, int] | None = None

    async def changed(self, buffer: WaylandBuffer | None, serial: int) -> bool:
        """Return whether a frame of the flip with this serial number has changed since the last call.

        The first frame after a flip counts as changed: the guest may have drawn since it was committed.
        """
        async with self.reading:
            if buffer is None or not buffer.is_accepted:
                return False
            try:
                memory = await buffer.map()
                digest = (buffer, serial, await run_in_thread(_checksum, buffer.geometry, memory))
            except (SinkError, OSError, Unmapped):  # the guest takes the buffer back, or the machine is overloaded
                return False
        before, self._digest = self._digest, digest
        return digest != before

    def forget(self) -> None:
        """Count the next frame as changed."""
        self._digest = None


def _checksum(shape: Geometry, memory: Memory) -> int:
    """Return a checksum of a framebuffer's pixels. Runs in a thread. Raises Unmapped."""
    rows = frame_rows(shape, Part(0, 0, shape.width, shape.height))
    with memory.borrow() as view:
        return frame_checksum(rows, view)
