"""Zero copy: the guest's own framebuffers on the screen, one commit per flip, which does not wait.

A guest may also draw into the frame it shows without ever flipping. Hardware that reads the frame at each refresh shows that by
itself. Other drivers have to be told that a frame has changed (a virtual card's host, a panel that refreshes itself), and say so: they
know DIRTYFB. They are told at the configured rate while the guest does not flip, by a commit of the same frame: whether it
has changed is not known, since its pixels are never looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio

from . import uapi
from .atomic import FLIP, Atomic
from .buffer import DrmBuffer
from .errors import Busy, DrmError
from .flip import STILL
from .frames import BUSY_RETRY

__all__ = ["Direct"]


class Direct:
    """Flips for one switched-on output. `failed` is called with the error and the stamp of a flip that could not be shown."""

    def __init__(
        self,
        flip: Atomic,
        slot: int,
        start_soon: Callable[..., Any],
        failed: Callable[[DrmError, int], None],
    ) -> None:
        self.refreshed = 0
        """Times that the card was told that the guest may have drawn without flipping."""
        self._flip = flip
        self._slot = slot
        self._start_soon = start_soon
        self._failed = failed
        self._over = False
        self._stamp = 0
        self._turn = 0

    def stop(self) -> None:
        """The output is not lit any more: nothing is committed from now on."""
        self._over = True
        self.unwatch()

    def shows(self, buffer: DrmBuffer) -> bool:
        """Whether a buffer's frames can go this way."""
        return bool(buffer.fb)

    def flip(self, buffer: DrmBuffer, stamp: int) -> None:
        """Show another frame; the card's event carries the stamp."""
        self._stamp = stamp
        self._flip.set(self._slot, buffer.fb)
        try:
            self._flip.commit("flip", FLIP, stamp)
        except Busy:
            # The kernel is not done with the last one, although its event has come.
            self._start_soon(self._again, stamp)
        except DrmError as error:
            self._failed(error, stamp)

    async def _again(self, stamp: int) -> None:
        while True:
            await trio.sleep(BUSY_RETRY)
            if self._over or self._stamp != stamp:
                return
            try:
                self._flip.commit("flip", FLIP, stamp)
            except Busy:
                continue
            except DrmError as error:
                self._failed(error, stamp)
            return

    def watch(self, rate: float) -> None:
        """Tell the card so many times a second that the frame on the screen may have changed, while nothing is flipped."""
        self.unwatch()
        self._start_soon(self._refresh, 1 / rate, self._turn)

    def unwatch(self) -> None:
        """No more of that."""
        self._turn += 1

    async def _refresh(self, pause: float, turn: int) -> None:
        seen, still = -1, 0.0
        while True:
            await trio.sleep(pause)
            if turn != self._turn:
                return
            still = still + pause if self._stamp == seen else 0.0
            seen = self._stamp
            if still < STILL:
                continue
            try:
                self._flip.commit("refresh", uapi.DRM_MODE_ATOMIC_NONBLOCK)
                self.refreshed += 1
            except Busy:
                continue
            except DrmError as error:
                self._failed(error, 0)
                return
