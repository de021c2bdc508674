"""The frames that a connected guest shows in its window.

Each flip is one commit. The flip ends when the compositor reports that its frame is on the screen (by wp_presentation, or by a frame
callback where wp_presentation is not offered) and has released the previous frame, which the guest draws into next. A compositor reports
nothing about a surface that is not visible. The clock ends the flips of such a surface at the screen's rate, and also those of a guest
whose compositor is gone or does not respond. A compositor that does not report gets no more frames than it processes.

Where the guest's pages are copied, a thread copies them, and the commit follows.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import structlog
import trio

from displbe.ops.log import SparseLog
from displbe.shortage import shortage
from displbe.sinks.base import Allocation, Geometry, Output, Part, SinkBuffer, SinkError
from displbe.sinks.redraw import RedrawWatch
from displbe.wire.errors import Errno
from displbe.wire.formats import fourcc_name
from displbe.xen.port import GuestBuffer

from .buffers import ACCEPTED, BufferState, WaylandBuffer, can_copy
from .copies import CopyFrame, CopyPool, FrameCopying
from .frame_digest import FrameDigest
from .guest import WaylandGuest
from .link import Link
from .surface import Prospect, SurfaceState
from .sync_gate import GateState
from .window import WaylandWindow

__all__ = ["WaylandOutput"]

ATTACH_PATIENCE: Final = 1.0
"""Maximum seconds that a guest's request waits for the compositor to accept its buffer. The guest expects the response within 3 s."""
SHORT: Final = 1.0
"""Seconds after which copying is tried again when there was no memory, file or thread for it."""
# Looked up once, for the path of every flip: access to an enum's member costs more than a call in Python 3.11.
_COPY: Final = BufferState.COPY
_OPEN: Final = GateState.OPEN
_REPORTS: Final = Prospect.REPORTS
_UNSEEN: Final = Prospect.UNSEEN
RELEASE_PATIENCE: Final = 4.0
"""Maximum seconds that a guest's request waits for the compositor to release its pages. The guest itself gives up after 3 s."""


class WaylandOutput(Output):
    """A claimed window. `given_back` is called when the guest has given it back.

    It has sixteen attributes: the window, what the guest shows, and what copies it and looks at it.
    """

    def __init__(self, guest: WaylandGuest, window: WaylandWindow, given_back: Callable[[WaylandOutput], None]) -> None:
        super().__init__(window.connector.name)
        self.window = window
        self.surface = window.surface
        self._guest = guest
        self._given_back = given_back
        self._log: Any = structlog.get_logger("displbe.wayland").bind(connector=self.name, domid=guest.claimant.domid)
        self._say = SparseLog(self._log)
        self._flip = window.flip
        self._copying = FrameCopying(self.name, self._on_copied, self.show)
        self._current: WaylandBuffer | None = None
        """The framebuffer that the guest shows."""
        self._part: Part | None = None
        """The part of the framebuffer that the guest shows; None: the output is off."""
        self._obstacle = ""
        """Why the frame cannot be copied: there is no memory, file or thread for it. It is tried again."""
        self._reported = (False, "off")
        """Whether the log says that the guest's picture is on the screen, and why it is not."""
        self._digest = FrameDigest(self._on_redrawn)
        self._redraw: RedrawWatch | None = None
        self._watching = trio.CancelScope()
        window.attach(self)

    # Buffers

    async def attach(self, buffer: GuestBuffer, geometry: Geometry) -> SinkBuffer:
        imports = self._guest.imports
        if imports.link is not None and not can_copy(imports.link, geometry.fourcc):
            raise SinkError(Errno.EINVAL, f"the compositor cannot show format {fourcc_name(geometry.fourcc)}")
        made = WaylandBuffer(
            buffer, geometry, imports.history, self._remove, self._on_decided, self.surface.on_released
        )
        imports.add(made)
        if imports.link is not None:
            try:
                with trio.move_on_after(ATTACH_PATIENCE):
                    await made.wait_decided()
            except BaseException:
                with trio.CancelScope(shield=True):
                    await made.aclose()
                raise
            if made.failure is not None:
                imports.buffers.discard(made)
                raise made.failure
        return made

    def _on_decided(self, buffer: WaylandBuffer) -> None:
        """Show a buffer that the compositor has accepted, if it is the current one; go dark if the compositor has refused it.

        The guest's request may have waited for this. If it did not, the guest's `enable` fails.
        """
        if buffer.failure is not None:
            self._say("framebuffer refused", str(buffer.failure))
            self.on_changed()
            return
        self._say("framebuffer attached", buffer.reason, path=buffer.path, way=buffer.state.value, level="info")
        if buffer is self._current:
            self.show()

    async def _remove(self, buffer: WaylandBuffer) -> None:
        """Take a buffer off the surface. When this returns, neither the compositor nor a thread of this process reads it."""
        self._guest.imports.buffers.discard(buffer)
        async with self._digest.reading:
            is_current = self._current is buffer
            if is_current:
                self._current = None
                self._flip.end()
            self.surface.on_released(buffer)
            await self._copying.finished()  # no copy is started any more
            if self.surface.attached is buffer:
                self.surface.blacken()
                self.show()
            self.on_changed()
            if not await self._guest.imports.take_back(buffer, RELEASE_PATIENCE):
                event = "the compositor does not respond, and may still map pages that the guest takes back"
                self._say(event, level="error")
            buffer.memory = None

    # Switching on and off

    async def enable(self, buffer: SinkBuffer, part: Part) -> None:
        assert isinstance(buffer, WaylandBuffer)
        self._check_claimed()
        if buffer.is_closed:
            raise SinkError(Errno.ENOENT, "the framebuffer is gone")
        if buffer.failure is not None:
            raise buffer.failure
        self._current, self._part = buffer, part
        self.show()
        self.on_changed()
        self.window.follow_guest()
        await trio.lowlevel.checkpoint()

    async def disable(self) -> None:
        if self.is_released:
            await trio.lowlevel.checkpoint()
            return
        self._current = self._part = None
        self._obstacle = ""
        await self._copying.finished()
        if self.surface.attached is not None:
            self.surface.blacken()
        self._copying.close_pools()
        self._flip.end()
        self.on_changed()
        self.window.follow_guest()
        await trio.lowlevel.checkpoint()

    async def release(self) -> None:
        self._ignore_flips()
        self._watching.cancel()
        await self.disable()
        await self._copying.close()
        self.is_released = True
        self.window.detach()
        self._given_back(self)

    async def edid(self) -> bytes | None:
        await trio.lowlevel.checkpoint()
        return None

    async def allocate(self, pages: int) -> Allocation:
        await trio.lowlevel.checkpoint()
        raise SinkError(Errno.EOPNOTSUPP, "a compositor allocates no memory for guests")

    # The connection

    async def disconnected(self) -> None:
        """Stop copying into frames of a connection that is gone. The window forgets its surface afterwards."""
        await self._copying.finished()

    def forget_frames(self) -> None:
        """Forget the frames of a connection that is gone, and of which the surface is forgotten."""
        self._copying.close_pools()

    @property
    def is_on(self) -> bool:
        """Whether the guest has its screen on."""
        return self._part is not None

    # Darkness

    def _darkness(self) -> str:
        """Return why the guest's picture is not on the screen, and the way out; empty: it is."""
        if self._part is None:
            return "off"
        current = self._current
        if current is not None and current.failure is not None:
            return str(current.failure)
        if self._obstacle:
            return self._obstacle
        if self.surface.attached is None and self.surface.is_ready and self.surface.is_visible:
            if current is None:
                return "the guest has removed the framebuffer that it showed"
            return "the compositor has not been given a frame yet"
        return self.window.darkness()

    @property
    def path(self) -> str:  # type: ignore[override]
        """How frames get to the screen now; empty: the guest's picture is not on the screen."""
        attached = self.surface.attached
        return attached.path if attached is not None and not self._darkness() else ""

    @property
    def reason(self) -> str:  # type: ignore[override]
        """Why no better path is possible, or why the guest's picture is not on the screen."""
        return self._darkness() or (self._current.reason if self._current is not None else "")

    def on_changed(self) -> None:
        """Log whether the guest's picture is on the screen, if that has changed."""
        dark = self._darkness()
        surface = self.surface
        if (not dark, dark) == self._reported:
            return
        if surface.attached is not None and surface.is_unreported and surface.is_visible:
            return  # the compositor is about to report
        self._reported = (not dark, dark)
        if not dark:
            role = surface.role
            self._log.info("output on", role=role.name if role else "", size=surface.size, path=self.path)
        elif dark != "off":
            self._say("output dark", dark)

    # Frames

    @property
    def shown(self) -> int:
        """The number of frames that the compositor has shown."""
        return self.surface.shown

    @property
    def late(self) -> int:
        """The number of flips that the compositor did not report on in time."""
        return self._flip.late

    def flip(self, buffer: SinkBuffer, token: int) -> None:
        assert isinstance(buffer, WaylandBuffer)
        if self._part is None:
            raise SinkError(Errno.EINVAL, f"{self.name} is off")
        self._flip.begin(token)
        self.surface.begin_flip()
        self._current = buffer
        if not self.show():
            self._flip.end_at_refresh()

    def show(self) -> bool:
        """Give the surface the current frame. Return False if that is impossible now, or the surface is not visible."""
        link, surface, buffer, part = self._guest.link, self.surface, self._current, self._part
        if link is None or buffer is None or part is None or buffer.state not in ACCEPTED:
            return False
        prospect = surface.prospect()
        if prospect is None:
            return False
        reported, gate = prospect is _REPORTS, surface.gate
        if (reported and gate.state is _OPEN) or gate.passes(link.conn, reported=reported):
            if buffer.state is _COPY:
                if not self._copy(link, buffer, part):
                    return False
            else:
                self._commit(buffer, part, self._flip.serial)
            if not reported:
                gate.sync(link.conn)
        return prospect is not _UNSEEN

    def _commit(self, frame: WaylandBuffer | CopyFrame, part: Part, serial: int) -> None:
        """Commit a frame of the flip with this serial number."""
        self.surface.commit(frame, part, serial)
        if self._copying.old_pools:
            self._copying.close_old_pools()
        self._obstacle = ""

    # Copying

    def _copy(self, link: Link, buffer: WaylandBuffer, part: Part) -> bool:
        """Copy the frame in the thread; `_on_copied` commits it. Return False if there are no resources for it. The surface then keeps the
        frame that it has, unless that is a copy of another shape, whose memory may suffice for the next try.
        """
        try:
            started = self._copying.start(link, buffer, part, self._flip.serial, self.copies)
        except OSError as error:
            self._obstacle = f"the frame cannot be copied: {shortage(error)}"
            self.on_changed()
            if not self._copying.is_short:
                self._copying.is_short = True
                self._guest.tasks.start_soon(self._try_copying_again)
            if self._copying.old_pools:
                with suppress(OSError):  # no memory or file for the black frame: the copy stays
                    self.surface.blacken()
                    self._copying.close_old_pools()
            return False
        if not started:
            self._guest.tasks.start_soon(self._show_after_copying, buffer)
        return True

    async def _try_copying_again(self) -> None:
        await trio.sleep(SHORT)
        self._copying.is_short = False
        self.show()

    async def _show_after_copying(self, buffer: WaylandBuffer) -> None:
        """Show a frame of another shape when the frames of the old one have been copied."""
        async with self._digest.reading:
            await self._copying.finished()
        if self._current is buffer:
            self.show()

    def _on_copied(self, pool: CopyPool, frame: CopyFrame, serial: int) -> None:
        if self._guest.link is pool.link and self.surface.is_ready and self._part == pool.part:
            self._commit(frame, pool.part, serial)
        else:
            frame.held = False

    # Drawing without flipping

    async def watch(self, rate: float) -> None:
        """Show what the guest draws without flipping, looking at most `rate` times a second, until the output is released."""
        with self._watching:
            self._redraw = RedrawWatch(rate, self._since_flip, waits_for_rest=True)
            self._flip.on_rest = self._redraw.rest
            await self._redraw.run(self._look)

    def _since_flip(self) -> float:
        return trio.current_time() - self._flip.began

    async def _look(self) -> bool:
        """Look whether the guest has drawn into the frame that is shown; `_on_redrawn` follows if it has."""
        if self.surface.attached is None or self.surface.state is SurfaceState.HIDDEN:
            self._digest.forget()
        elif not self.surface.is_unreported:
            await self._digest.look(self._copying, self._current, self._flip.serial)
        return False

    def _on_redrawn(self, serial: int) -> None:
        """Show the frame again: the guest has drawn into it."""
        if self._redraw is not None and serial == self._flip.serial and self.surface.attached is not None:
            self._redraw.hurry()
            self.show()
