"""Notices that a guest has drawn into its frame without flipping, by a checksum of the pixels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import trio

from displbe.sinks.base import Geometry, Part, SinkError
from displbe.sinks.copy_thread import CopyThread
from displbe.sinks.frame_copy import frame_checksum, frame_rows
from displbe.xen.memory import Memory, Unmapped

from .buffers import WaylandBuffer
from .copies import FrameCopying

__all__ = ["FrameDigest"]


class FrameDigest:
    """Notices changes of a guest's frame, by a checksum that the output's copying thread computes. `changed` is called with the serial
    number of the frame's flip. A frame that has not changed does not wake the loop.
    """

    def __init__(self, changed: Callable[[int], None]) -> None:
        self.reading = trio.Lock()
        """Held while a thread reads a guest's pages, and while the pages are taken back."""
        self._digest: tuple[WaylandBuffer, int, int] | None = None
        """The frame that was seen last: its buffer, the serial number of its flip, its checksum."""
        self._changed = changed

    async def look(self, copying: FrameCopying, buffer: WaylandBuffer | None, serial: int) -> None:
        """Look whether a frame of the flip with this serial number has changed since the last look.

        The first frame after a flip counts as changed: the guest may have drawn since it was committed.
        """
        async with self.reading:
            if buffer is None or not buffer.is_accepted:
                return
            try:
                memory = await buffer.map()
                copying.do(partial(self._look, buffer, memory, serial))
            except (SinkError, OSError):  # the guest takes the buffer back, or the machine is overloaded
                return

    def _look(self, buffer: WaylandBuffer, memory: Memory, serial: int, thread: CopyThread) -> None:
        """Look at a frame. Runs in the thread."""
        try:
            digest = (buffer, serial, _checksum(buffer.geometry, memory))
        except Unmapped:
            return
        before, self._digest = self._digest, digest
        if digest != before:
            thread.tell(partial(self._changed, serial))

    def forget(self) -> None:
        """Count the next frame as changed."""
        self._digest = None


def _checksum(shape: Geometry, memory: Memory) -> int:
    """Return a checksum of a framebuffer's pixels. Runs in a thread. Raises Unmapped."""
    rows = frame_rows(shape, Part(0, 0, shape.width, shape.height))
    with memory.borrow() as view:
        return frame_checksum(rows, view)
