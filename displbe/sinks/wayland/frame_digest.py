"""Notices that a guest has drawn into its frame without flipping, by a checksum of the pixels."""

from __future__ import annotations

import zlib

import trio

from displbe.sinks.base import SinkError

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
                view = await buffer.map()
            except SinkError:
                return False
            geometry = buffer.geometry
            frame = view[geometry.offset : geometry.offset + geometry.stride * geometry.height]
            try:
                digest = (buffer, serial, await trio.to_thread.run_sync(zlib.crc32, frame))
            finally:
                frame.release()
        before, self._digest = self._digest, digest
        return digest != before

    def forget(self) -> None:
        """Count the next frame as changed."""
        self._digest = None
