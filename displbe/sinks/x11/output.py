"""The picture of a connected guest in its connector's window.

A flip ends at the first refresh after the server has read its frame. If the picture cannot be seen, or the server is late, the flip ends
by the timer alone, and the guest does not notice.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final

import structlog
import trio

from displbe.ops.log import SparseLog
from displbe.ops.text import escape
from displbe.sinks.base import Allocation, Claimant, Geometry, Output, Part, SinkBuffer, SinkError, memory_of
from displbe.sinks.flip import Flip, FlipState
from displbe.wire.errors import Errno
from displbe.wire.formats import fourcc_name
from displbe.xen.port import GuestBuffer

from .desktop import Desktop
from .painter import Frame, Painter
from .server import LAYOUTS

__all__ = ["OutputState", "X11Output"]

LATE: Final = 0.5
"""Seconds after which a flip ends although the server has not read the frame. Linux's frontend waits 3.1 s for the event."""


class OutputState(enum.Enum):
    """Whether the guest's picture can be seen."""

    OFF = "off"
    """The guest has switched the screen off."""
    UNSEEN = "unseen"
    """There is no X server, or the window is closed or iconified. Flips end by the timer."""
    SHOWN = "shown"
    """The window is on the screen. A flip ends when the server has read its frame."""
    STALLED = "stalled"
    """The window is on the screen, but the server is late. Flips end by the timer until it has read a frame again."""


class X11Output(Output):
    """A claimed window, which `painter` draws. `on_release` is called when it is free again."""

    def __init__(
        self, desktop: Desktop, name: str, claimant: Claimant, painter: Painter, on_release: Callable[[], None]
    ) -> None:
        super().__init__(name)
        self.state = OutputState.OFF
        self.reason = "off"
        self.page_flip = Flip(
            desktop.clock, self._on_flip_end, late=LATE, on_late=self._on_late, first_serial=painter.newest_serial
        )
        """The flip that the guest waits for."""
        self.page_flip.period = 1 / desktop.settings.refresh
        self._desktop = desktop
        self._on_release = on_release
        self._log = structlog.get_logger("displbe.x11").bind(connector=name, domid=claimant.domid, guest=claimant.name)
        self._say = SparseLog(self._log)
        self._guest = escape(claimant.name) or str(claimant.domid)
        self._painter = painter
        painter.attach(self)

    # The guest's requests

    async def attach(self, buffer: GuestBuffer, geometry: Geometry) -> SinkBuffer:
        server = self._desktop.server
        if geometry.fourcc not in (LAYOUTS if server is None else server.formats):
            raise SinkError(Errno.EINVAL, f"the X server cannot show {fourcc_name(geometry.fourcc)}")
        return Frame(await memory_of(buffer), geometry, self._forget, self.copies)

    async def enable(self, buffer: SinkBuffer, part: Part) -> None:
        assert isinstance(buffer, Frame)
        self._check_claimed()
        self.page_flip.end()
        self._painter.show(buffer, part)
        self._enter_visible() if self._painter.visible else self._enter(OutputState.UNSEEN)
        await trio.lowlevel.checkpoint()

    async def disable(self) -> None:
        if not self.is_released:
            self.page_flip.end()
            self._painter.blank()
            self._enter(OutputState.OFF)
        await trio.lowlevel.checkpoint()

    def flip(self, buffer: SinkBuffer, token: int) -> None:
        assert isinstance(buffer, Frame)
        if self.state is OutputState.OFF:
            raise SinkError(Errno.EINVAL, f"{self.name} is off")
        self._painter.flip(buffer, self.page_flip.begin(token))
        if self.state is not OutputState.SHOWN:
            self.page_flip.end_at_refresh()

    async def _forget(self, frame: Frame) -> None:
        """Release a frame that the guest takes back. The server's copy of it stays on the screen."""
        if self._painter.forget(frame):
            self.page_flip.end()
        await self._painter.copied()

    async def edid(self) -> bytes | None:
        await trio.lowlevel.checkpoint()
        return None

    async def allocate(self, pages: int) -> Allocation:
        await trio.lowlevel.checkpoint()
        raise SinkError(Errno.EOPNOTSUPP, "an X11 window has no memory to allocate from")

    async def release(self) -> None:
        self._ignore_flips()
        self.page_flip.end()
        self._painter.blank()
        await self._painter.copied()
        self._painter.detach()
        self.is_released = True
        self._enter(OutputState.OFF)
        self._on_release()

    # The state

    def on_monitors(self) -> None:
        """Take note that the server has other monitors."""
        if self.state in (OutputState.SHOWN, OutputState.STALLED):
            self._enter(self.state)

    def _enter(self, state: OutputState) -> None:
        self.state = state
        match state:
            case OutputState.OFF:
                self.path, self.reason = "", "off"
            case OutputState.UNSEEN:
                self.path, self.reason = "", self._unseen_because()
                self.page_flip.end_at_refresh()
            case OutputState.SHOWN | OutputState.STALLED:
                self.path, self.reason = Frame.path, Frame.reason
                if complaint := self._painter.complaint:
                    self.reason += f"; {complaint}"
                    self._say("monitor missing", complaint)

    def _unseen_because(self) -> str:
        if self._desktop.server is None:
            return "there is no X server: the window opens when it is back"
        if obstacle := self._painter.obstacle:
            return f"the frame cannot be copied: {obstacle}"
        return f"the window is closed or iconified: displbectl reopen {self._guest} opens it again"

    def on_visibility(self) -> None:
        """Take note: the window has become visible or hidden, or the server has come or gone."""
        if self.state is OutputState.OFF:
            return
        if not self._painter.visible:
            self._enter(OutputState.UNSEEN)
        elif self.state is OutputState.UNSEEN:
            self._enter_visible()

    def _enter_visible(self) -> None:
        """A server that still has a frame to read was late, or may be: flips do not wait for it."""
        self._enter(OutputState.STALLED if self._painter.is_unread else OutputState.SHOWN)

    def on_read(self, serial: int | None) -> None:
        """Take note: the server has read the frame of this flip, which the timer may have ended already; None: it was no flip."""
        if serial is not None and self.page_flip.state is not FlipState.NONE:
            self.page_flip.on_ready(serial)
        if self.state is OutputState.STALLED:
            self._enter(OutputState.SHOWN)

    def _on_late(self) -> None:
        """The server has not read the flip's frame in time."""
        self._enter(OutputState.STALLED)
        self._log.warning("the X server is late: the guest's flips go on by the timer")

    def _on_flip_end(self, token: int) -> None:
        self.flipped(token)
