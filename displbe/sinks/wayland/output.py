"""One connector of a guest as a surface of the compositor.

Each flip is one commit. The flip ends when the compositor reports that its frame is on the screen (by wp_presentation, or by a frame
callback where wp_presentation is not offered) and has released the previous frame, which the guest draws into next. A compositor reports
nothing about a surface that is not visible. The clock ends the flips of such a surface at the screen's rate, and also those of a guest
whose compositor is gone or does not respond. A compositor that does not report gets no more frames than it processes.

Where the guest's pages are copied, a thread copies them, and the commit follows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import structlog
import trio

from displbe.ops.log import SparseLog
from displbe.shortage import shortage
from displbe.sinks.base import Allocation, Geometry, Output, Part, SinkBuffer, SinkError
from displbe.sinks.flip import Flip
from displbe.sinks.redraw import RedrawWatch
from displbe.sinks.seat import SeatEvent
from displbe.wire.errors import Errno
from displbe.wire.formats import fourcc_name
from displbe.wire.xs import parse_number
from displbe.xen.port import GuestBuffer

from .buffers import BufferState, WaylandBuffer, can_copy
from .copies import CopyFrame, CopyPool, FrameCopying
from .extensions import SurfaceOptions
from .frame_digest import FrameDigest
from .guest import WaylandGuest
from .link import Link
from .role import NoRole, RoleOptions
from .surface import SurfaceState, WaylandSurface
from .wl_outputs import DEFAULT_PERIOD

__all__ = ["WaylandOutput", "ivi_id"]

LATE: Final = 0.2
"""Seconds after which displbe ends a flip that the compositor does not report on; the surface counts as hidden from then on."""
ATTACH_PATIENCE: Final = 1.0
"""Maximum seconds that a guest's request waits for the compositor to accept its buffer. The guest expects the response within 3 s."""
SHORT: Final = 1.0
"""Seconds after which copying is tried again when there was no memory, file or thread for it."""
RELEASE_PATIENCE: Final = 4.0
"""Maximum seconds that a guest's request waits for the compositor to release its pages. The guest itself gives up after 3 s."""


class WaylandOutput(Output):
    """A claimed connector. `given_back` is called when the guest has given it back."""

    def __init__(
        self,
        guest: WaylandGuest,
        name: str,
        size: tuple[int, int],
        given_back: Callable[[WaylandOutput], None],
    ) -> None:
        super().__init__(name)
        self.reason = "off"
        self._guest = guest
        self._given_back = given_back
        self._log: Any = structlog.get_logger("displbe.wayland").bind(connector=name, domid=guest.claimant.domid)
        self._say = SparseLog(self._log)
        self._flip = Flip(guest.clock, self._on_flipped, late=LATE, on_late=self._on_late)
        self.surface = WaylandSurface(self._flip, size, self._show, self._on_configured, self._on_closing)
        self._copying = FrameCopying(name, self._on_copied, self._show)
        self._current: WaylandBuffer | None = None
        """The framebuffer that the guest shows."""
        self._part: Part | None = None
        """The part of the framebuffer that the guest shows; None: the output is off."""
        self._digest = FrameDigest()
        self._watching = trio.CancelScope()
        self._seat = guest.seats.window(guest.claimant.domid, name)
        self._seat.on_change = self._follow_seat
        self.outputs_changed()

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
            if buffer is self._current:
                self._darken(str(buffer.failure))
            return
        self._say("framebuffer attached", buffer.reason, path=buffer.path, way=buffer.state.value, level="info")
        if buffer is self._current:
            self._show()

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
            # The surface may be open without a frame.
            if self.surface.attached is buffer or (self.surface.attached is None and is_current):
                self._close_surface("the guest has removed the framebuffer that it showed")
                if self._current is not None:
                    self._show()
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
        self._show()
        self._follow_seat()
        await trio.lowlevel.checkpoint()

    async def disable(self) -> None:
        if self.is_released:
            await trio.lowlevel.checkpoint()
            return
        self._current = self._part = None
        await self._copying.finished()
        self._close_surface("off", SurfaceState.CLOSED)
        self._copying.close_pools()
        self._flip.end()
        self._follow_seat()
        await trio.lowlevel.checkpoint()

    async def release(self) -> None:
        self._ignore_flips()
        self._seat.close()
        self._watching.cancel()
        await self.disable()
        await self._copying.close()
        self.is_released = True
        self._given_back(self)

    async def edid(self) -> bytes | None:
        await trio.lowlevel.checkpoint()
        return None

    async def allocate(self, pages: int) -> Allocation:
        await trio.lowlevel.checkpoint()
        raise SinkError(Errno.EOPNOTSUPP, "a compositor allocates no memory for guests")

    # The connection

    def connected(self) -> None:
        """Open the surface: there is a compositor."""
        self.outputs_changed()
        if self._current is not None:
            self._show()

    async def disconnected(self) -> None:
        """Forget the surface: the connection is gone. The clock ends flips until there is a compositor again."""
        await self._copying.finished()
        self.surface.lost()
        self._copying.close_pools()
        self._darken("there is no compositor")
        self._flip.period = DEFAULT_PERIOD
        self._flip.end_at_refresh()

    def outputs_changed(self) -> None:
        """Follow the compositor's outputs: their rate, and the one that this connector fills."""
        link = self._guest.link
        if link is not None:
            self._flip.period = link.outputs.period
            self.surface.move(link.outputs.find(self._wl_output_name))
            self._follow_seat()

    @property
    def _wl_output_name(self) -> str:
        """The name of the compositor's output that this connector fills."""
        return self._guest.settings.outputs.get(self.name, self.name)

    def _open_surface(self, link: Link) -> None:
        claimant, settings = self._guest.claimant, self._guest.settings
        names = {"guest": _printable(claimant.name) or f"domain {claimant.domid}", "connector": _printable(self.name)}
        options = RoleOptions(
            settings.title.format(**names),
            settings.app_id.format(**names),
            ivi_id(self.name, settings.surfaces),
            settings.scale,
            settings.pixels,
            settings.decorations,
        )
        more = SurfaceOptions(options.title, settings.inhibit_idle, settings.inhibit_shortcuts)
        try:
            self.surface.open(link, options, more, link.outputs.find(self._wl_output_name))
        except NoRole as error:
            self._darken(str(error))
        self._follow_seat()

    def _close_surface(self, why: str, state: SurfaceState | None = None) -> None:
        if self._guest.link is not None and self.surface.is_open:
            self._guest.link.leave(self)
        self.surface.close(state)
        self._darken(why)

    def _on_configured(self) -> None:
        if self.surface.needs_frame(self._part):
            self._show()
        else:
            self.surface.acknowledge()

    def _on_closing(self) -> None:
        """The user closes the window."""
        policy = self._guest.settings.on_close
        self._log.info("window closed by its user", policy=policy)
        if policy == "detach":
            self._close_surface("the user has closed the window", SurfaceState.DISMISSED)
            self._flip.end_at_refresh()

    def _darken(self, why: str) -> None:
        """Take note that the guest's picture is not on the screen any more."""
        if (self.path or why != self.reason) and why != "off":
            self._say("output dark", why)
        self.path, self.reason = "", why

    # Seats

    @property
    def size(self) -> tuple[int, int]:
        """The surface's size, in its own coordinates."""
        return self.surface.size

    def tell(self, event: SeatEvent) -> None:
        """Pass an event of a seat to the guest."""
        self._seat.tell(event)
        if self.surface.extensions is not None:
            self.surface.extensions.handle(event)

    @property
    def draws_cursor(self) -> bool:
        """Whether the guest draws a cursor of its own over the surface. It draws nothing while its screen is off."""
        policy = self._guest.settings.cursor
        return self._part is not None and (self._seat.takes_pointer if policy == "auto" else policy == "hide")

    def _follow_seat(self) -> None:
        """Follow the guest: its screen is on or off, and it takes pointer and keyboard or not. Follow the compositor's seats."""
        link, extensions = self._guest.link, self.surface.extensions
        if extensions is not None:
            extensions.inhibit_idle(self._part is not None)
            extensions.inhibit_shortcuts(self._seat.takes_keyboard)
        if link is not None:
            link.update_cursor(self)

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
        if not self._show():
            self._flip.end_at_refresh()

    def _on_flipped(self, token: int) -> None:
        self.flipped(token)

    def _on_late(self) -> None:
        self.surface.on_late()

    def _show(self) -> bool:
        """Give the surface the current frame. Return False if that is impossible now, or the surface is not visible."""
        link, surface, buffer, part = self._guest.link, self.surface, self._current, self._part
        if link is None or buffer is None or part is None:
            return False
        if surface.state is SurfaceState.CLOSED:
            self._open_surface(link)
        if not surface.is_ready or not buffer.is_accepted:
            return False
        is_visible = surface.is_visible
        reported = is_visible and not surface.is_unreported
        if surface.gate.passes(link.conn, reported=reported):
            if buffer.state is BufferState.COPY:
                if not self._copy(link, buffer, part):
                    return False
            else:
                self._commit(buffer, part, self._flip.serial)
            if not reported:
                surface.gate.sync(link.conn)
        return is_visible

    def _commit(self, frame: WaylandBuffer | CopyFrame, part: Part, serial: int) -> None:
        """Commit a frame of the flip with this serial number."""
        self.surface.commit(frame, part, serial)
        self._copying.close_old_pools()
        was_dark = not self.path
        self.path = frame.path
        self.reason = self._current.reason if self._current is not None else ""
        if was_dark:
            role = self.surface.role
            self._log.info("output on", role=role.name if role else "", size=self.surface.size, path=self.path)

    # Copying

    def _copy(self, link: Link, buffer: WaylandBuffer, part: Part) -> bool:
        """Copy the frame in the thread; `_on_copied` commits it. Return False if there are no resources for it. The surface then keeps the
        frame that it has.
        """
        try:
            started = self._copying.start(link, buffer, part, self._flip.serial, self.copies)
        except OSError as error:
            self._darken(f"the frame cannot be copied: {shortage(error)}")
            if not self._copying.is_short:
                self._copying.is_short = True
                self._guest.tasks.start_soon(self._try_copying_again)
            return False
        if not started:
            self._guest.tasks.start_soon(self._show_after_copying, buffer)
        return True

    async def _try_copying_again(self) -> None:
        await trio.sleep(SHORT)
        self._copying.is_short = False
        self._show()

    async def _show_after_copying(self, buffer: WaylandBuffer) -> None:
        """Show a frame of another shape when the frames of the old one have been copied."""
        async with self._digest.reading:
            await self._copying.finished()
        if self._current is buffer:
            self._show()

    def _on_copied(self, pool: CopyPool, frame: CopyFrame, serial: int) -> None:
        if self._guest.link is pool.link and self.surface.is_ready and self._part == pool.part:
            self._commit(frame, pool.part, serial)
        else:
            frame.held = False

    # Drawing without flipping

    async def watch(self, rate: float) -> None:
        """Show what the guest draws without flipping, looking at most `rate` times a second, until the output is released."""
        with self._watching:
            await RedrawWatch(rate, self._since_flip).run(self._show_redrawn)

    def _since_flip(self) -> float:
        return trio.current_time() - self._flip.began

    async def _show_redrawn(self) -> bool:
        """Show the frame again if the guest has drawn into it; return whether it has."""
        surface = self.surface
        if surface.attached is None or surface.state is SurfaceState.HIDDEN:
            self._digest.forget()
            return False
        if surface.is_unreported:
            return False
        serial = self._flip.serial
        if not await self._digest.changed(self._current, serial) or serial != self._flip.serial:
            return False
        self._show()
        return True


def ivi_id(name: str, surfaces: Mapping[str, int]) -> int | None:
    """Return the ivi id (32 bits) of a connector's surface: the one in [wayland.surfaces], else the name if it is a number; None: none."""
    if name in surfaces:
        return surfaces[name]
    return parse_number(name.encode())


def _printable(text: str) -> str:
    """Return a name for a title: no control characters, and at most 64 characters."""
    return "".join(character if character.isprintable() else "?" for character in text)[:64]
