"""Copy mode: each frame is copied into the one of two dumb buffers that is not on the screen, which is then shown.

All of this runs in the output's copying thread. A guest may also draw into the frame on the screen without flipping
(Xorg's shadow framebuffer does, and Linux's frontend has no message for it). While the guest does not flip, its frame
is compared with a private copy of the pixels that were last seen in it, and copied again when they differ. The frame is
not compared with the dumb buffer, because reading a card's memory is slow wherever it is write-combined. A flip makes
no private copy, which would double its cost, so the first look after a flip always copies.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from displbe.pump.library import ffi
from displbe.sinks.base import SteadyScreen
from displbe.sinks.convert import pixel_size, turn_frame
from displbe.sinks.copy_thread import CopyThread
from displbe.sinks.frame_copy import FrameRows, copy_frame, same_frame
from displbe.sinks.redraw import SLOWEST, RedrawWatch
from displbe.sinks.turn import Turn
from displbe.xen.memory import Memory, PrivateMemory, Unmapped

from .atomic import BUSY_RETRY, FLIP, LATE, Atomic
from .buffer import DrmBuffer
from .double_buffer import DoubleBuffer, DumbBuffer
from .errors import Busy, DrmError, drm_error

__all__ = ["CopiedScanout", "CopyTarget", "copy_into"]


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
        self._into = buffers.shape[2] if converted or is_turned else rows.fourcc
        self._width = rows.row // pixel_size(rows.fourcc) if is_turned else 0
        self._pixel_size = pixel_size(self._into) if is_turned else 0
        self._upright = buffers.private(self._width * self._pixel_size * rows.rows) if is_turned else None
        """A frame in the dumb buffers' format, before it is turned. It is private: a card's memory is slow to read."""

    @property
    def is_plain(self) -> bool:
        """Whether the pixels are copied as they are."""
        return not self._converted and self._upright is None

    def steady(self, loans: ExitStack) -> Any:
        """Return a `struct pump_copy *` of what is copied where; `loans` has the memory. Raises Unmapped, ValueError."""
        rows = self.rows
        copy = ffi.new("struct pump_copy *", {"back": 1, "row": rows.row, "rows": rows.rows, "stride": rows.stride})
        copy.target_stride = self.buffers.back.pitch
        for index, buffer in enumerate((self.buffers.front, self.buffers.back)):
            view = loans.enter_context(buffer.memory.borrow())
            placed = FrameRows(rows.fourcc, self._offset, buffer.pitch, rows.row, rows.rows)
            copy.target[index] = _pointer(_address(view, placed))
            copy.fb[index] = buffer.fb
        return copy

    def copy(self, memory: Memory) -> None:
        """Copy the guest's frame into the dumb buffer that is not on the screen. Raises DrmError if the guest has taken it back."""
        self._copy(self.rows, memory)

    def copy_packed(self, packed: Memory) -> None:
        """Copy a private copy of a guest's frame into the dumb buffer that is not on the screen. Raises DrmError."""
        self._copy(self.rows.packed(), packed)

    def _copy(self, rows: FrameRows, memory: Memory) -> None:
        back, upright = self.buffers.back, self._upright
        if upright is None:
            copy_into(back, rows, memory, self._offset, converted=self._converted, into=self._into)
            return
        stride = self._width * self._pixel_size
        with _both_there():
            with memory.borrow() as view, upright.borrow() as frame:
                copy_frame(rows, view, frame, stride, converted=self._converted, into=self._into)
            with upright.borrow() as frame, back.memory.borrow() as whole, whole[self._offset :] as target:
                turn_frame(target, back.pitch, frame, self._width, rows.rows, self._pixel_size, self._turn)


def _address(view: memoryview, rows: FrameRows) -> int:
    """Return the address of the first pixel of rows in a view. Raises ValueError if they are not all in it."""
    if rows.start + rows.stride * (rows.rows - 1) + rows.row > len(view):
        raise ValueError("image is larger than its memory")
    return int(ffi.cast("uintptr_t", ffi.from_buffer(view))) + rows.start


def _pointer(address: int) -> Any:
    return ffi.cast("void *", address)


def copy_into(
    buffer: DumbBuffer, rows: FrameRows, memory: Memory, offset: int = 0, *, converted: bool, into: int
) -> None:
    """Copy a frame's rows into a dumb buffer, from `offset` bytes on; `converted`: to format `into`.

    Raises DrmError if either memory has been given back.
    """
    with _both_there(), memory.borrow() as view, buffer.memory.borrow() as whole, whole[offset:] as target:
        copy_frame(rows, view, target, buffer.pitch, converted=converted, into=into)


@contextmanager
def _both_there() -> Iterator[None]:
    """Raise DrmError if a memory that the block borrows has been given back."""
    try:
        yield
    except Unmapped as error:
        raise drm_error("copy a frame whose memory has been given back", errno.EFAULT) from error


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
        self._seen: PrivateMemory | None = None
        """A private copy of the pixels that were last seen in it."""
        self._seen_shown = False
        """Whether the screen shows the pixels in `_seen`."""
        self._flipped_at = float("-inf")
        """When the guest last flipped, in seconds of time.monotonic()."""
        self._steady: dict[int, DrmBuffer] = {}
        """The buffers that the copier shows, by the guest's cookies."""
        self._loans = ExitStack()
        """Their memory."""

    def can_show(self, buffer: DrmBuffer) -> bool:
        """Return whether this buffer's pages are mapped."""
        return buffer.memory is not None

    def stop(self) -> None:
        """Free what was kept to notice what the guest draws: the output is not lit any more."""
        self._thread.do(self._forget_frame)

    def flip(self, buffer: DrmBuffer, serial: int) -> None:
        """Show another frame; the card's event carries the serial number."""
        self._thread.do(partial(self._show, buffer, serial))

    def steady(self, buffers: Mapping[int, DrmBuffer]) -> SteadyScreen | None:
        """Return what the pump needs to show copies of these buffers; None: a copy is under way, or it is not plain.

        The memory is borrowed until `take_back`.
        """
        copier, target = self._thread.copier, self._target
        if copier is None or not target.is_plain:
            return None
        atomic, value = self._flip.addresses(self._slot)
        with self._thread.paused() as is_resting, ExitStack() as loans:
            if not is_resting:
                return None
            try:
                pixels = {
                    cookie: (0, _address(loans.enter_context(buffer.memory.borrow()), target.rows))
                    for cookie, buffer in buffers.items()
                    if buffer.memory is not None
                }
                copy = target.steady(loans)
            except (Unmapped, ValueError):
                return None
            copy.atomic, copy.fb_value, copy.card = _pointer(atomic), _pointer(value), self._flip.device.fd
            copy.late = LATE
            copier.set(copy)
            self._steady = dict(buffers)
            self._thread.report = self._report
            self._loans.close()
            self._loans = loans.pop_all()
        return SteadyScreen(self._flip.device.fd, atomic, value, pixels, copier)

    def take_back(self) -> None:
        """Copy frames by `flip` again. The memory of the steady frames is given back when the last one is copied."""
        loans, self._loans = self._loans, ExitStack()
        self._thread.do(loans.close)

    def watch(self, buffer: DrmBuffer, rate: float) -> None:
        """Also show what the guest draws into this frame without flipping; look at most `rate` times a second."""
        self._frame = buffer
        redraw = RedrawWatch(rate, self._since_flip)
        self._thread.watch(partial(self._look, redraw), redraw.pause)

    def _since_flip(self) -> float:
        return time.monotonic() - self._flipped_at

    # In the copying thread

    def _report(self, copied: Any) -> None:
        """Take note of what the copier has done."""
        self.copied += copied.frames
        self.copy_seconds += copied.seconds
        self._flipped_at = copied.flipped_at
        self._frame = self._steady.get(copied.cookie)
        self._seen_shown = False
        if (copied.frames - bool(copied.error)) % 2:
            self.buffers.swap()
        if copied.error:
            error = drm_error("flip", copied.error)
            self._thread.tell(partial(self._failed, error, copied.serial))

    def _forget_frame(self) -> None:
        self._frame = None
        seen, self._seen = self._seen, None
        if seen is not None:
            seen.close()

    def _show(self, buffer: DrmBuffer, serial: int) -> None:
        try:
            self._frame = buffer
            self._seen_shown = False
            self._flipped_at = time.monotonic()
            began = time.perf_counter()
            assert buffer.memory is not None
            self._target.copy(buffer.memory)
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
        if self._thread.copier is not None:
            self._thread.copier.swap()

    def _look(self, redraw: RedrawWatch) -> float:
        """Show what the guest has drawn without flipping, if it has. Return the seconds until the next look."""
        frame = self._frame
        memory = frame.memory if frame is not None and not frame.closed else None
        if memory is None:
            return SLOWEST
        try:
            if redraw.is_due():
                redrawn = not self._is_shown(memory)
                redraw.looked(redrawn=redrawn)
                if redrawn:
                    self._show_again(memory)
        except Unmapped:  # the guest has taken the frame back
            return SLOWEST
        return redraw.pause

    def _is_shown(self, memory: Memory) -> bool:
        """Return whether the screen shows the frame's pixels as they are now. Raises Unmapped."""
        rows = self._target.rows
        if self._seen is None or not self._seen_shown:
            return False
        with memory.borrow() as view, self._seen.borrow() as seen:
            return same_frame(rows, view, seen, rows.row)

    def _show_again(self, memory: Memory) -> None:
        rows = self._target.rows
        if self._seen is None:
            try:
                self._seen = PrivateMemory(rows.size)
            except OSError:  # the next look tries again
                return
        with memory.borrow() as view, self._seen.borrow() as seen:
            copy_frame(rows, view, seen, rows.row)
        try:
            self._target.copy_packed(self._seen)
            # Wait until this buffer is on the screen. The guest's next flip is copied into the other one, which then
            # has left the screen.
            self._commit("refresh", 0, 0)
            self._seen_shown = True
            self.refreshed += 1
        except DrmError as error:
            self._thread.tell(partial(self._failed, error, 0))
