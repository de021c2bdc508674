"""Copy mode: guests' frames into the one of two dumb buffers that is not on the screen, and that onto the screen.

All of it runs in the output's copier thread. A guest may also draw into the frame it shows without ever flipping (Xorg's shadow
framebuffer does, Linux's frontend has no way to say so): once it does not flip any more, its frame is compared with what was seen in it
last, and copied again when it differs. Compared with a private copy: reading a card's memory back is slow wherever it is
write-combined. A flip's frame goes without one, which would double its cost, so the first look after a flip always copies.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Final

import msgspec

from displbe.sinks.convert import convert
from displbe.sinks.copier import Copier
from displbe.xen.memory import copy_rows, same_rows

from .atomic import FLIP, Atomic
from .buffer import DrmBuffer
from .dumb import Dumb, Ring
from .errors import Busy, DrmError
from .flip import LATE, STILL

__all__ = ["BUSY_RETRY", "Cut", "Frames", "copy_frame"]

BUSY_RETRY: Final = 0.001
SLOWEST_LOOK: Final = 0.2
"""Seconds between comparisons of a frame that has not changed for a while."""


class Cut(msgspec.Struct, frozen=True):
    """What is copied: `rows` rows of `row` octets of the guest's, from an offset in its buffer to one in ours."""

    row: int
    rows: int
    source: int
    source_stride: int
    target: int
    converted: int = 0
    """The guest's format, where ours is another; 0: it is the same."""


def copy_frame(buffer: DrmBuffer, cut: Cut, to: Dumb) -> None:
    """A guest's frame into a dumb buffer."""
    assert buffer.view is not None
    _put(buffer.view[cut.source :], cut.source_stride, cut, to)


def _put(pixels: memoryview, stride: int, cut: Cut, to: Dumb) -> None:
    target = to.memory.view[cut.target :]
    if cut.converted:
        convert(cut.converted, target, to.pitch, pixels, stride, cut.row, cut.rows)
    else:
        copy_rows(target, to.pitch, pixels, stride, cut.row, cut.rows)


class Frames:
    """Copies for one switched-on output. `failed` is called in the loop with the error and the stamp of a flip that could not be shown."""

    def __init__(
        self,
        copier: Copier,
        flip: Atomic,
        slot: int,
        ring: Ring,
        cut: Cut,
        failed: Callable[[DrmError, int], None],
    ) -> None:
        self.ring = ring
        self.copied = 0
        """Frames copied for flips so far."""
        self.copy_seconds = 0.0
        """The time that took."""
        self.refreshed = 0
        """Frames that the guest drew without flipping."""
        self._copier = copier
        self._flip = flip
        self._slot = slot
        self._cut = cut
        self._failed = failed
        self._frame: DrmBuffer | None = None
        self._seen: memoryview | None = None
        self._seen_shown = False
        """What was seen last is what the screen shows."""
        self._flipped_at = float("-inf")
        self._shortest = self._pause = 0.0

    def shows(self, buffer: DrmBuffer) -> bool:
        """Whether a buffer's frames can go this way."""
        return buffer.view is not None

    def flip(self, buffer: DrmBuffer, stamp: int) -> None:
        """Show another frame; the card's event carries the stamp."""
        self._copier.do(partial(self._show, buffer, stamp))

    def watch(self, buffer: DrmBuffer, rate: float) -> None:
        """Also show what the guest draws without flipping, looking at most so many times a second."""
        self._frame = buffer
        self._shortest = self._pause = 1 / rate
        self._copier.watch(self._look, self._pause)

    def _show(self, buffer: DrmBuffer, stamp: int) -> None:
        try:
            self._frame = buffer
            self._seen_shown = False
            self._flipped_at = time.monotonic()
            began = time.perf_counter()
            copy_frame(buffer, self._cut, self.ring.back)
            self.copy_seconds += time.perf_counter() - began
            self.copied += 1
            self._commit("flip", FLIP, stamp)
        except DrmError as error:
            self._copier.tell(partial(self._failed, error, stamp))

    def _commit(self, operation: str, flags: int, stamp: int) -> None:
        self._flip.set(self._slot, self.ring.back.fb)
        until = time.monotonic() + LATE
        while True:
            try:
                self._flip.commit(operation, flags, stamp)
                break
            except Busy:
                if time.monotonic() > until:
                    raise
            time.sleep(BUSY_RETRY)
        self.ring.turn()

    def _look(self) -> float:
        """Has the guest drawn without flipping? The seconds until the next look: more of them while it has not."""
        frame = self._frame
        if frame is None or frame.view is None or frame.closed:
            return SLOWEST_LOOK
        early = self._flipped_at + STILL - time.monotonic()
        if early > 0:
            return early
        if self._same(frame.view):
            self._pause = min(max(self._shortest, SLOWEST_LOOK), self._pause * 1.25)
            return self._pause
        self._pause = self._shortest
        self._show_again(frame.view)
        return self._pause

    def _same(self, view: memoryview) -> bool:
        cut = self._cut
        if self._seen is None or not self._seen_shown:
            return False
        return same_rows(self._seen, cut.row, view[cut.source :], cut.source_stride, cut.row, cut.rows)

    def _show_again(self, view: memoryview) -> None:
        cut, back = self._cut, self.ring.back
        if self._seen is None:
            self._seen = memoryview(bytearray(cut.row * cut.rows))
        copy_rows(self._seen, cut.row, view[cut.source :], cut.source_stride, cut.row, cut.rows)
        _put(self._seen, cut.row, cut, back)
        try:
            # It waits until this is on the screen: the guest's next flip goes into the other buffer, which is not any more.
            self._commit("refresh", 0, 0)
            self._seen_shown = True
            self.refreshed += 1
        except DrmError as error:
            self._copier.tell(partial(self._failed, error, 0))
