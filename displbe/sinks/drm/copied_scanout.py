"""Copy mode: each frame is copied into the one of two dumb buffers that is not on the screen, which is then shown.

All of this runs in the output's copying thread. A guest may also draw into the frame on the screen without flipping
(Xorg's shadow framebuffer does, and Linux's frontend has no message for it). While the guest does not flip, its frame
is compared with a private copy of the pixels that were last seen in it, and copied again when they differ. The frame is
not compared with the dumb buffer, because reading a card's memory is slow wherever it is write-combined. A flip makes
no private copy, which would double its cost, so the first look after a flip always copies.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from displbe.sinks.convert import pixel_size, turn_frame
from displbe.sinks.copy_thread import CopyThread
from displbe.sinks.frame_copy import FrameRows, copy_frame, same_frame
from displbe.sinks.redraw import SLOWEST, RedrawWatch
from displbe.sinks.turn import Turn

from .atomic import BUSY_RETRY, FLIP, LATE, Atomic
from .buffer import DrmBuffer
from .double_buffer import DoubleBuffer
from .errors import Busy, DrmError

__all__ = ["CopiedScanout", "CopyTarget"]


class CopyTarget:
    """What is copied of each frame, and where to.

    `offset` is that of the first pixel in a dumb buffer, in bytes. `converted`: the dumb buffers' format is not the
    guest's. `turn`: the frames are turned as they are copied.
    """

    def __init__(
        self, rows: FrameRows, buffers: DoubleBuffer, offset: int, converted: bool = False, turn: Turn = Turn.NONE
    ) -> None:
        self.rows = rows
        self.buffers = buffers
        self._offset = offset
        self._converted = converted
        self._turn = turn
        is_turned = turn is not Turn.NONE
        self._into = buffers.shape[3] if converted or is_turned else rows.fourcc
        self._width = rows.row // pixel_size(rows.fourcc) if is_turned else 0
        self._pixel_size = pixel_size(self._into) if is_turned else 0
        self._upright = memoryview(bytearray(self._width * self._pixel_size * rows.rows))
        """A frame in the dumb buffers' format, before it is turned. It is private: a card's memory is slow to read."""

    def copy(self, view: memoryview) -> None:
        """Copy the guest's frame into the dumb buffer that is not on the screen."""
        self._copy(self.rows, view)

    def copy_packed(self, packed: memoryview) -> None:
        """Copy a private copy of a guest's frame into the dumb buffer that is not on the screen."""
        self._copy(self.rows.packed(), packed)

    def _copy(self, rows: FrameRows, view: memoryview) -> None:
        back = self.buffers.back
        target = back.memory.view[self._offset :]
        if self._turn is Turn.NONE:
            copy_frame(rows, view, target, back.pitch, converted=self._converted, into=self._into)
            return
        stride = self._width * self._pixel_size
        copy_frame(rows, view, self._upright, stride, converted=self._converted, into=self._into)
        turn_frame(target, back.pitch, self._upright, self._width, rows.rows, self._pixel_size, self._turn)


class CopiedScanout:
    """Shows copies of one output's frames, while the output is lit.

    `slot` is the framebuffer's index in `flip`. `failed` is called in the loop with the error and the serial number of
    a flip that could not be shown; 0: the frame was shown again without a flip.
    """

    def __init__(
        self,
        thread: CopyThread,
        flip: Atomic,
        slot: int,
        target: CopyTarget,
        failed: Callable[[DrmError, int], None],
    ) -> None:
        self.buffers = target.buffers
        self.copied = 0
        """Frames that were copied for flips."""
        self.copy_seconds = 0.0
        """Seconds spent on copying them."""
        self.refreshed = 0
        """Frames that were copied because the guest drew without flipping."""
        self._thread = thread
        self._flip = flip
        self._slot = slot
        self._target = target
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
        self._thread.do(partial(self._show, buffer, serial))

    def watch(self, buffer: DrmBuffer, rate: float) -> None:
        """Also show what the guest draws into this frame without flipping; look at most `rate` times a second."""
        self._frame = buffer
        redraw = RedrawWatch(rate, self._since_flip)
        self._thread.watch(partial(self._look, redraw), redraw.pause)

    def _since_flip(self) -> float:
        return time.monotonic() - self._flipped_at

    # In the copying thread

    def _show(self, buffer: DrmBuffer, serial: int) -> None:
        try:
            self._frame = buffer
            self._seen_shown = False
            self._flipped_at = time.monotonic()
            began = time.perf_counter()
            assert buffer.view is not None
            self._target.copy(buffer.view)
            self.copy_seconds += time.perf_counter() - began
            self.copied += 1
            self._commit("flip", FLIP, serial)
        except DrmError as error:
            self._thread.tell(partial(self._failed, error, serial))

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
        rows = self._target.rows
        return self._seen is not None and self._seen_shown and same_frame(rows, view, self._seen, rows.row)

    def _show_again(self, view: memoryview) -> None:
        rows = self._target.rows
        if self._seen is None:
            try:
                self._seen = memoryview(bytearray(rows.size))
            except MemoryError:  # the next look tries again
                return
        copy_frame(rows, view, self._seen, rows.row)
        self._target.copy_packed(self._seen)
        try:
            # Wait until this buffer is on the screen. The guest's next flip is copied into the other one, which then
            # has left the screen.
            self._commit("refresh", 0, 0)
            self._seen_shown = True
            self.refreshed += 1
        except DrmError as error:
            self._thread.tell(partial(self._failed, error, 0))
