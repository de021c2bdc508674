"""Copy mode: each frame is copied into the one of two dumb buffers that is not on the screen, which is then shown.

All of this runs in the output's copier thread. A guest may also draw into the frame on the screen without flipping
(Xorg's shadow framebuffer does, and Linux's frontend has no message for it). While the guest does not flip, its frame
is compared with a private copy of the pixels that were last seen in it, and copied again when they differ. The frame is
not compared with the dumb buffer, because reading a card's memory is slow wherever it is write-combined. A flip makes
no private copy, which would double its cost, so the first look after a flip always copies.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import msgspec

from displbe.sinks.convert import convert
from displbe.sinks.copier import Copier
from displbe.sinks.redraw import SLOWEST, RedrawWatch
from displbe.xen.memory import copy_rows, same_rows

from .atomic import BUSY_RETRY, FLIP, LATE, Atomic
from .buffer import DrmBuffer
from .double_buffer import DoubleBuffer, DumbBuffer
from .errors import Busy, DrmError

__all__ = ["CopiedScanout", "CopyRegion", "copy_frame"]


class CopyRegion(msgspec.Struct, frozen=True):
    """The part of a frame that is copied: `rows` rows of `row` bytes.

    `source` is its offset in the guest's buffer, `target` that in ours, both in bytes.
    """

    row: int
    rows: int
    source: int
    source_stride: int
    target: int
    converted: int = 0
    """The guest's format (a DRM fourcc), where ours is another; 0: both are the same."""


def copy_frame(buffer: DrmBuffer, region: CopyRegion, to: DumbBuffer) -> None:
    """Copy a guest's frame into a dumb buffer. The guest's pages have been mapped."""
    assert buffer.view is not None
    _copy_pixels(buffer.view[region.source :], region.source_stride, region, to)


def _copy_pixels(pixels: memoryview, stride: int, region: CopyRegion, to: DumbBuffer) -> None:
    target = to.memory.view[region.target :]
    if region.converted:
        convert(region.converted, target, to.pitch, pixels, stride, region.row, region.rows)
    else:
        copy_rows(target, to.pitch, pixels, stride, region.row, region.rows)


class CopiedScanout:
    """Shows copies of one output's frames, while the output is lit.

    `slot` is the framebuffer's index in `flip`. `failed` is called in the loop with the error and the serial number of
    a flip that could not be shown; 0: the frame was shown again without a flip.
    """

    def __init__(
        self,
        copier: Copier,
        flip: Atomic,
        slot: int,
        buffers: DoubleBuffer,
        region: CopyRegion,
        failed: Callable[[DrmError, int], None],
    ) -> None:
        self.buffers = buffers
        self.copied = 0
        """Frames that were copied for flips."""
        self.copy_seconds = 0.0
        """Seconds spent on copying them."""
        self.refreshed = 0
        """Frames that were copied because the guest drew without flipping."""
        self._copier = copier
        self._flip = flip
        self._slot = slot
        self._region = region
        self._failed = failed
        self._frame: DrmBuffer | None = None
        """The guest's frame on the screen."""
        self._seen: memoryview | None = None
        """A private copy of the pixels that were last seen in it."""
        self._seen_shown = False
        """Whether the screen shows the pixels in `_seen`."""
        self._flipped_at = float("-inf")
        """When the guest last flipped, in seconds of time.monotonic()."""

    def can_show(self, buffer: DrmBuffer) -> bool:
        """Return whether this buffer's pages are mapped."""
        return buffer.view is not None

    def flip(self, buffer: DrmBuffer, serial: int) -> None:
        """Show another frame; the card's event carries the serial number."""
        self._copier.do(partial(self._show, buffer, serial))

    def watch(self, buffer: DrmBuffer, rate: float) -> None:
        """Also show what the guest draws into this frame without flipping; look at most `rate` times a second."""
        self._frame = buffer
        redraw = RedrawWatch(rate, self._since_flip)
        self._copier.watch(partial(self._look, redraw), redraw.pause)

    def _since_flip(self) -> float:
        return time.monotonic() - self._flipped_at

    # In the copier's thread

    def _show(self, buffer: DrmBuffer, serial: int) -> None:
        try:
            self._frame = buffer
            self._seen_shown = False
            self._flipped_at = time.monotonic()
            began = time.perf_counter()
            copy_frame(buffer, self._region, self.buffers.back)
            self.copy_seconds += time.perf_counter() - began
            self.copied += 1
            self._commit("flip", FLIP, serial)
        except DrmError as error:
            self._copier.tell(partial(self._failed, error, serial))

    def _commit(self, operation: str, flags: int, serial: int) -> None:
        self._flip.set(self._slot, self.buffers.back.fb)
        until = time.monotonic() + LATE
        while True:
            try:
                self._flip.commit(operation, flags, serial)
                break
            except Busy:
                if time.monotonic() > until:
                    raise
            time.sleep(BUSY_RETRY)
        self.buffers.swap()

    def _look(self, redraw: RedrawWatch) -> float:
        """Show what the guest has drawn without flipping, if it has. Return the seconds until the next look."""
        frame = self._frame
        if frame is None or frame.view is None or frame.closed:
            return SLOWEST
        if redraw.is_due():
            redrawn = not self._is_shown(frame.view)
            redraw.looked(redrawn=redrawn)
            if redrawn:
                self._show_again(frame.view)
        return redraw.pause

    def _is_shown(self, view: memoryview) -> bool:
        """Return whether the screen shows the frame's pixels as they are now."""
        region = self._region
        if self._seen is None or not self._seen_shown:
            return False
        return same_rows(self._seen, region.row, view[region.source :], region.source_stride, region.row, region.rows)

    def _show_again(self, view: memoryview) -> None:
        region, back = self._region, self.buffers.back
        if self._seen is None:
            self._seen = memoryview(bytearray(region.row * region.rows))
        copy_rows(self._seen, region.row, view[region.source :], region.source_stride, region.row, region.rows)
        _copy_pixels(self._seen, region.row, region, back)
        try:
            # Wait until this buffer is on the screen. The guest's next flip is copied into the other one, which then
            # has left the screen.
            self._commit("refresh", 0, 0)
            self._seen_shown = True
            self.refreshed += 1
        except DrmError as error:
            self._copier.tell(partial(self._failed, error, 0))
