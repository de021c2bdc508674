"""Zero copy: shows the guest's own framebuffers, with one commit per flip, which does not wait.

A guest may also draw into the frame on the screen without flipping. Hardware that reads the frame at each refresh shows
that by itself. Other drivers must be told that a frame has changed (a virtual card's host, a panel that refreshes
itself); those are the drivers that support DIRTYFB. While the guest does not flip, displbe tells them at the configured
rate, by a commit of the same frame. displbe does not know whether the guest has drawn, because it never reads the
pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import trio

from displbe.sinks.base import SteadyScreen
from displbe.sinks.redraw import RedrawWatch

from . import uapi
from .atomic import BUSY_RETRY, FLIP, Atomic
from .buffer import DrmBuffer
from .errors import Busy, DrmError

__all__ = ["DirectScanout"]


class DirectScanout:
    """Shows one output's frames without copying them, while the output is lit.

    `slot` is the framebuffer's index in `flip`. `start_soon` starts a background task. `since_flip` returns the seconds
    since the guest's last flip. `failed` is called with the error and the serial number of a flip that could not be
    shown; 0: the frame was shown again without a flip.
    """

    def __init__(
        self,
        flip: Atomic,
        slot: int,
        start_soon: Callable[..., Any],
        since_flip: Callable[[], float],
        failed: Callable[[DrmError, int], None],
    ) -> None:
        self.refreshed = 0
        """The number of times that the card was told that the frame may have changed without a flip."""
        self._flip = flip
        self._slot = slot
        self._start_soon = start_soon
        self._since_flip = since_flip
        self._failed = failed
        self._stopped = False
        self._serial = 0
        self._is_retrying = False
        """Whether a commit that the kernel has refused with EBUSY is tried again."""
        self._watching = trio.CancelScope()

    def stop(self) -> None:
        """Stop all commits: the output is not lit any more."""
        self._stopped = True
        self.unwatch()

    def can_show(self, buffer: DrmBuffer) -> bool:
        """Return whether the card has a framebuffer over this buffer's pages."""
        return bool(buffer.fb)

    def flip(self, buffer: DrmBuffer, serial: int) -> None:
        """Show another frame; the card's event carries the serial number."""
        self._serial = serial
        self._is_retrying = False
        self._flip.set(self._slot, buffer.fb)
        try:
            self._flip.commit("flip", FLIP, serial)
        except Busy:
            # The kernel has not finished the last commit, although its event has come.
            self._is_retrying = True
            self._start_soon(self._retry, serial)
        except DrmError as error:
            self._failed(error, serial)

    async def _retry(self, serial: int) -> None:
        while await self._is_still_busy(serial):
            pass

    async def _is_still_busy(self, serial: int) -> bool:
        """Try once more to commit this flip. Return whether the card is still busy."""
        await trio.sleep(BUSY_RETRY)
        if self._stopped or self._serial != serial:
            return False
        try:
            self._flip.commit("flip", FLIP, serial)
        except Busy:
            return True
        except DrmError as error:
            self._failed(error, serial)
        self._is_retrying = False
        return False

    def steady(self, buffers: Mapping[int, DrmBuffer]) -> SteadyScreen | None:
        """Return what the pump needs to flip between these buffers; None: a flip has not been committed yet."""
        if self._is_retrying:
            return None
        atomic, value = self._flip.addresses(self._slot)
        framebuffers = {cookie: (buffer.fb, 0) for cookie, buffer in buffers.items() if self.can_show(buffer)}
        return SteadyScreen(self._flip.device.fd, atomic, value, framebuffers)

    def watch(self, rate: float) -> None:
        """While the guest does not flip, tell the card `rate` times a second that the frame may have changed."""
        self.unwatch()
        self._watching = scope = trio.CancelScope()
        began = trio.current_time()

        def since_shown() -> float:
            """Return the seconds since the last flip, or since the watch began."""
            return min(self._since_flip(), trio.current_time() - began)

        self._start_soon(self._refresh, RedrawWatch(rate, since_shown), scope)

    def unwatch(self) -> None:
        """End the watch."""
        self._watching.cancel()

    async def _refresh(self, redraw: RedrawWatch, scope: trio.CancelScope) -> None:
        with scope:
            await redraw.run(partial(self._look, scope))

    async def _look(self, scope: trio.CancelScope) -> bool:
        """Tell the card that the frame may have changed. Return True, so that the watch keeps its rate."""
        if scope.cancel_called:  # the task had been woken before the watch ended
            return True
        try:
            self._flip.commit("refresh", uapi.DRM_MODE_ATOMIC_NONBLOCK)
            self.refreshed += 1
        except Busy:
            pass  # the next look tries again
        except DrmError as error:
            self.unwatch()
            self._failed(error, 0)
        return True
