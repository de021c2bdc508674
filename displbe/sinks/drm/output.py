"""One connector of a card, which shows one guest's framebuffers full screen.

Zero copy: the guest's dma-buf is imported and scanned out as it is. Copy: each flip copies the guest's frame, in a
thread, into the one of two dumb buffers that is not on the screen. Both make one commit per flip, which does not wait,
and the card's event ends the flip.

A screen goes *dark* when the monitor, the card or DRM mastership is lost, or a commit fails. The guest does not notice:
the clock ends its flips at the mode's rate. The card lights the screen again, with the guest's current frame, as soon
as that is possible.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

import msgspec
import structlog
import trio

from displbe.ops.log import SparseLog
from displbe.sinks.base import Allocation, Geometry, Output, Part, SinkBuffer, SinkError
from displbe.sinks.copy_thread import CopyThread
from displbe.sinks.flip import Flip, FlipClock
from displbe.sinks.tasks import Tasks
from displbe.sinks.turn import Turn
from displbe.wire.errors import Errno, from_host
from displbe.xen.port import GuestBuffer

from .atomic import LATE, Pipe
from .buffer import DrmBuffer
from .copied_scanout import CopiedScanout
from .device import CardConnector, Mode
from .direct_scanout import DirectScanout
from .double_buffer import DumbAllocation
from .errors import Busy, CardGone, DrmError, NotMaster, name_connector
from .framebuffers import FramebufferSet
from .placement import placements
from .scanout import ActiveMode, ScanoutPipe, sideways_edid, upright
from .settings import DrmSettings

__all__ = ["SERIALS", "CardLink", "DrmOutput", "ScreenState"]

SERIALS: Final = 1 << 40
"""Serial numbers for one output. An output counts from its key times this number. A flip's serial number is the user
data of its event, so that the event identifies the output.
"""
OFF: Final = "off"
SWITCHING_ON: Final = "switching on"


class ScreenState(enum.Enum):
    """The state of the guest's screen. While it is OFF or DARK, the output's `reason` says why."""

    OFF = "off"
    """The guest has switched the screen off, or has not switched it on yet."""
    DARK = "dark"
    """The guest wants to show frames, but the screen cannot show them now. The clock ends its flips."""
    LIT = "lit"
    """The screen shows the guest's frames."""


class CardLink(msgspec.Struct):
    """The card's side of an output, while the card is there."""

    scanout: ScanoutPipe
    connector: CardConnector
    """The connector, as it was when it was last probed."""
    look_soon: Callable[[], None]
    """Make the card look soon: something has failed, or can be done again."""
    why_not_master: Callable[[], str]
    """Return why displbe may not change the card's screens; empty: it may."""

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The connector's modes, with their sizes as they are seen."""
        return upright(self.connector.modes, self.scanout.turn)


class _Wanted(msgspec.Struct):
    """The frame that the guest wants to show."""

    part: Part
    buffer: DrmBuffer | None
    """None: the guest has removed the framebuffer that was shown, and has not flipped since."""


class _LitScreen(msgspec.Struct, frozen=True):
    """The mode of a lit screen, and the scanout that puts frames onto it."""

    mode: ActiveMode
    scanout: DirectScanout | CopiedScanout


class DrmOutput(Output):
    """A claimed connector. It outlives its card: `attach_card` and `detach_card` say when there is one.

    `clock` and `tasks` are the sink's. `released` is called when the guest gives the output back.

    It has fourteen attributes of its own; the others are the contract's (`name`, `path`, `reason`, `flipped`).
    """

    def __init__(
        self,
        name: str,
        key: int,
        settings: DrmSettings,
        clock: FlipClock,
        tasks: Tasks,
        released: Callable[[], None],
    ) -> None:
        super().__init__(name)
        self.key = key
        self.state = ScreenState.OFF
        self.reason = OFF
        self._settings = settings
        self._tasks = tasks
        self._released = released
        self._log: Any = structlog.get_logger("displbe.drm").bind(connector=name)
        self._warn = SparseLog(self._log)
        self._framebuffers = FramebufferSet(name, settings.zero_copy, self._warn)
        self._flip = Flip(clock, self._on_flip_ended, late=LATE, on_late=self._on_late, first_serial=key * SERIALS)
        self._link: CardLink | None = None
        """The card's side; None: the card is not there."""
        self._wanted: _Wanted | None = None
        """The frame that the guest wants to show; None: the guest has switched the screen off."""
        self._lit: _LitScreen | None = None
        """Set while the state is LIT."""
        self._copy_thread: CopyThread | None = None
        self._card_lock = trio.Lock()
        """Held while the output uses the card for something that may wait, so that the card is not closed meanwhile."""

    @property
    def pipe(self) -> Pipe | None:
        """The card's objects that are used for this output; None while the card is not there."""
        return self._link.scanout.pipe if self._link is not None else None

    @property
    def turn(self) -> Turn:
        """How pictures lie on the panel."""
        return self._link.scanout.turn if self._link is not None else Turn.NONE

    def attach_card(self, link: CardLink) -> None:
        """Use this connector of a card. The card's next `reconcile` lights the screen."""
        self._link = link

    async def detach_card(self, reason: str) -> None:
        """Release everything of the card: it is gone, or about to be closed."""
        async with self._card_lock:
            if self._wanted is not None:
                self._darken(reason)
            await self._quiet()
            link, self._link = self._link, None
            if link is not None:
                await trio.to_thread.run_sync(link.scanout.close)
            self._framebuffers.forget_card()

    # Framebuffers

    async def attach(self, buffer: GuestBuffer, geometry: Geometry) -> SinkBuffer:
        async with self._card_lock:
            link = self._link
            format = self._framebuffers.scanout_format(link.scanout if link else None, geometry.fourcc)
            made = DrmBuffer(buffer, geometry, format, self._remove)
            if link is not None:
                with suppress(CardGone):  # the buffer is prepared when the card is back
                    await self._framebuffers.prepare(link.scanout, made, link.modes)
            self._framebuffers.buffers.add(made)
            self._log.debug("framebuffer attached", path=made.path)
            return made

    async def _remove(self, buffer: DrmBuffer) -> None:
        """Remove a framebuffer that the guest takes back. When this returns, nothing scans it out or reads it."""
        async with self._card_lock:
            await self._quiet()
            wanted, link, lit = self._wanted, self._link, self._lit
            shown = wanted is not None and wanted.buffer is buffer
            if buffer.fb and link is not None:
                if shown and lit is not None and isinstance(lit.scanout, DirectScanout):
                    await self._replace_last_frame(link.scanout, lit.mode, buffer)
                await trio.to_thread.run_sync(link.scanout.remove, buffer.fb)
            self._framebuffers.buffers.discard(buffer)
            buffer.fb, buffer.view = 0, None
            if wanted is not None and wanted.buffer is buffer:
                wanted.buffer = None
                self._flip.end()
            elif shown and link is not None:  # the guest has flipped meanwhile
                link.look_soon()
            self._watch()

    async def _replace_last_frame(self, scanout: ScanoutPipe, mode: ActiveMode, buffer: DrmBuffer) -> None:
        """Go dark, because the frame on the screen is about to be removed.

        With `on-exit = "keep"`, a copy of it takes its place.
        """
        self._set_dark("the guest has removed what it showed")
        if self._settings.on_exit == "keep" and self._wanted is not None:
            try:
                await self._framebuffers.map(buffer)
                await trio.to_thread.run_sync(scanout.freeze, buffer, self._wanted.part, mode)
            except (DrmError, SinkError) as error:
                self._warn("cannot keep the guest's last frame on the screen", str(error))

    # Switching on and off

    async def enable(self, buffer: SinkBuffer, part: Part) -> None:
        assert isinstance(buffer, DrmBuffer)
        async with self._card_lock:
            self._check_claimed()
            if buffer.closed:
                raise SinkError(Errno.ENOENT, "the framebuffer is gone")
            before, self._wanted = self._wanted, _Wanted(part, buffer)
            link, obstacle = self._link, self._obstacle()
            if link is None or obstacle:
                self._darken(obstacle)
                return
            if self.state is ScreenState.OFF:
                self._set_dark(SWITCHING_ON)
            try:
                await self._switch_on(link, buffer, part)
            except (DrmError, SinkError) as error:
                if isinstance(error, DrmError) and not error.refuses_frame:
                    self._darken(str(error))
                    link.look_soon()
                    return
                self._wanted = before
                if before is None:
                    self._set_off()
                self._watch()
                if isinstance(error, SinkError):
                    raise
                raise SinkError(from_host(error.number), str(error)) from error

    def _obstacle(self) -> str:
        """Return why the screen cannot show anything now; empty: it can."""
        if self._link is None:
            return "the card is gone"
        if not self._link.connector.connected:
            return "no monitor is connected"
        return self._link.why_not_master()

    async def reconcile(self, connector: CardConnector) -> None:
        """Make the screen show the guest's frame, if it does not; `connector` is the connector as last probed.

        A failure makes the screen dark; the next call tries again.
        """
        async with self._card_lock:
            link, wanted = self._link, self._wanted
            if link is None:
                return
            before, link.connector = link.connector, connector
            # Each probe reports a failed link again. The mode is set once for each probe.
            changed = connector.modes != before.modes or (connector is not before and connector.link_failed)
            if wanted is None or wanted.buffer is None:
                return
            obstacle = self._obstacle()
            if obstacle:
                await self._lose_screen(link, obstacle)
                return
            try:
                if self._lit is None or changed or not await self._is_still_shown(link, self._lit):
                    self._set_dark(SWITCHING_ON)
                    await self._switch_on(link, wanted.buffer, wanted.part)
            except (DrmError, SinkError) as error:
                self._darken(str(error))

    async def _lose_screen(self, link: CardLink, obstacle: str) -> None:
        """Go dark and switch the screen off: the monitor is unplugged, or another program has become DRM master."""
        was_lit = self.state is ScreenState.LIT
        self._darken(obstacle)
        if was_lit:
            await self._quiet()
            try:
                await trio.to_thread.run_sync(link.scanout.switch_off)
            except DrmError as error:
                self._log.debug("cannot switch the screen off", reason=str(error))

    async def _is_still_shown(self, link: CardLink, lit: _LitScreen) -> bool:
        """Return whether displbe's picture is on the screen.

        A program that was DRM master for a moment may have put its own picture there.
        """
        if isinstance(lit.scanout, CopiedScanout):
            buffers = lit.scanout.buffers
            ours = {buffers.front.fb, buffers.back.fb}
        else:
            ours = self._framebuffers.fbs
        return await trio.to_thread.run_sync(link.scanout.shows, ours)

    async def _switch_on(self, link: CardLink, buffer: DrmBuffer, part: Part) -> None:
        """Switch the screen on with this frame. Raises DrmError, SinkError; the screen then stays as it was, or dark."""
        await self._quiet()
        framebuffers, modes = self._framebuffers, link.modes
        where = placements(modes, part.width, part.height, self._settings.scale)
        await framebuffers.prepare_all(link.scanout, buffer, modes)
        refusal: DrmError | None = None
        if buffer.fb and not framebuffers.must_copy:
            try:
                mode = await trio.to_thread.run_sync(partial(link.scanout.switch_on, buffer, part, where, copy=False))
            except (NotMaster, CardGone, Busy):
                raise
            except DrmError as error:
                if framebuffers.copy_forbidden and not error.refuses_frame:
                    raise
                framebuffers.check_copy_allowed(error)
                refusal = error
            else:
                self._set_lit(mode, buffer)
                return
        await framebuffers.map_alike(buffer)
        mode = await trio.to_thread.run_sync(partial(link.scanout.switch_on, buffer, part, where, copy=True))
        if refusal is not None:  # the copy is shown, so the refusal was about this buffer and not about the screen
            framebuffers.refuse(buffer, refusal, lasting=refusal.refuses_frame)
        self._set_lit(mode, buffer)

    def _set_lit(self, mode: ActiveMode, shown: DrmBuffer) -> None:
        """Enter LIT: the screen shows this frame now."""
        self._stop_scanout()
        self.state = ScreenState.LIT
        if mode.copy is not None:
            thread = self._copy_thread = self._copy_thread or CopyThread(self.name)
            scanout = CopiedScanout(thread, mode.flip, mode.slot, mode.copy, self._on_failed)
            self._lit = _LitScreen(mode, scanout)
            self.path, self.reason = "copy", self._framebuffers.copy_reason
        else:
            direct = DirectScanout(mode.flip, mode.slot, self._tasks.start_soon, self._since_flip, self._on_failed)
            self._lit = _LitScreen(mode, direct)
            self.path, self.reason = "be-alloc" if shown.from_card else "zero copy", ""
        used, target = mode.placement.mode, mode.placement.target
        self._flip.period = 1 / max(1, used.refresh)
        name = f"{used.width}x{used.height}@{used.refresh}"
        self._log.info(
            "output on",
            mode=name,
            target=target,
            rotate=self.turn.value or None,
            path=self.path,
            reason=self.reason or None,
        )
        current = self._wanted.buffer if self._wanted is not None else None
        if current is not None and current is not shown:  # the guest has flipped meanwhile
            self._show(self._lit, current, self._flip.renew())
        self._watch()

    def _darken(self, reason: str) -> None:
        """Enter DARK: the screen cannot show the guest's frames. Log that, and let the clock end the guest's flips."""
        before = self.state, self.reason
        self._set_dark(reason)
        if before != (ScreenState.DARK, reason):
            self._warn("output dark", reason)
        self._flip.end_at_refresh()

    def _set_dark(self, reason: str) -> None:
        self._stop_scanout()
        self.state, self.reason = ScreenState.DARK, reason

    def _set_off(self) -> None:
        self._stop_scanout()
        self.state, self.reason = ScreenState.OFF, OFF

    def _stop_scanout(self) -> None:
        """Stop putting frames onto the screen. The caller sets the state."""
        lit, self._lit = self._lit, None
        self.path = ""
        if lit is None:
            return
        scanout = lit.scanout
        if isinstance(scanout, DirectScanout):
            scanout.stop()
        elif scanout.copied:
            mean = 1000 * scanout.copy_seconds / scanout.copied
            self._log.debug("copied", frames=scanout.copied, refreshed=scanout.refreshed, milliseconds=round(mean, 3))

    async def disable(self) -> None:
        async with self._card_lock:
            if self.is_released:
                return
            self._wanted = None
            await self._quiet()
            self._set_off()
            if self._link is not None:
                try:
                    await trio.to_thread.run_sync(self._link.scanout.switch_off)
                except DrmError as error:
                    self._warn("cannot switch the screen off", str(error))
        self._flip.end()
        self._log.debug("output off", flips=self._flip.serial % SERIALS, shown=self._flip.shown, late=self._flip.late)

    # Drawing without flipping

    def _watch(self) -> None:
        """Watch the frame on the screen for drawing, unless the hardware shows by itself what the guest draws."""
        rate, lit = self._settings.refresh, self._lit
        frame = self._wanted.buffer if self._wanted is not None else None
        if rate <= 0 or lit is None or frame is None:
            return
        if isinstance(lit.scanout, CopiedScanout):
            lit.scanout.watch(frame, rate)
        elif lit.mode.must_be_told:
            lit.scanout.watch(rate)

    async def _quiet(self) -> None:
        """Return when no copy is under way and the frame on the screen is not watched."""
        if self._lit is not None and isinstance(self._lit.scanout, DirectScanout):
            self._lit.scanout.unwatch()
        if self._copy_thread is not None:
            await self._copy_thread.idle()

    # Flips

    def flip(self, buffer: SinkBuffer, token: int) -> None:
        assert isinstance(buffer, DrmBuffer)
        wanted = self._wanted
        if wanted is None:
            raise SinkError(Errno.EINVAL, f"{self.name} is off")
        serial = self._flip.begin(token)
        removed, wanted.buffer = wanted.buffer is None, buffer
        if self._lit is not None:
            self._show(self._lit, buffer, serial)
            if removed:  # until now there was no frame to watch
                self._watch()
            return
        self._flip.end_at_refresh()
        if removed and self._link is not None:  # now there is a frame to show again
            self._link.look_soon()

    def _show(self, lit: _LitScreen, buffer: DrmBuffer, serial: int) -> None:
        if lit.scanout.can_show(buffer):
            lit.scanout.flip(buffer, serial)
            return
        self._darken("changing between zero copy and copy")
        if self._link is not None:
            self._link.look_soon()

    def _on_failed(self, error: DrmError, serial: int) -> None:
        """Go dark, because a frame could not be shown, until the card lights the screen again. The guest is not told."""
        lit, wanted = self._lit, self._wanted
        if lit is None or wanted is None or (serial and serial != self._flip.serial):
            return
        frame = wanted.buffer
        if frame is not None and isinstance(lit.scanout, DirectScanout) and error.refuses_frame:
            with suppress(SinkError):  # copying is forbidden: the screen stays dark until zero copy works
                self._framebuffers.refuse(frame, error)
        self._darken(str(error))
        if self._link is not None:
            self._link.look_soon()

    def on_shown(self, serial: int) -> None:
        """End the flip with this serial number: the card's event says that its frame is on the screen."""
        self._flip.on_shown(serial)

    def _since_flip(self) -> float:
        return trio.current_time() - self._flip.began

    def _on_late(self) -> None:
        self._warn("the card did not report a flip in time: it ends for the guest")

    def _on_flip_ended(self, token: int) -> None:
        self.flipped(token)

    # EDID, memory, release

    async def edid(self) -> bytes | None:
        """Return the monitor's EDID; if the panel is mounted sideways, one of its size as it is seen."""
        async with self._card_lock:
            link = self._link
            if link is None or not link.connector.connected:
                return None
            edid = await trio.to_thread.run_sync(link.scanout.pipe.device.read_edid, link.connector.id)
            if edid is None or not link.scanout.turn.swaps_sides:
                return edid
            return sideways_edid(edid, link.modes)

    async def allocate(self, pages: int) -> Allocation:
        async with self._card_lock:
            pipe = self.pipe
            if pipe is None:
                raise SinkError(Errno.ENODEV, f"{self.name}: the card is gone")
            try:
                with name_connector(pipe.name):
                    made = await trio.to_thread.run_sync(DumbAllocation, pipe.device, pages)
            except DrmError as error:
                raise SinkError(from_host(error.number), str(error)) from error
            pipe.device.allocations.add(made)
            return made

    async def release(self) -> None:
        self._ignore_flips()
        if not await self._leave_last_frame():
            await self.disable()
        self._flip.end()
        if self._copy_thread is not None:
            await self._copy_thread.close()
        async with self._card_lock:  # `enable` and `disable` see it as soon as they have the lock
            self.is_released = True
        self._released()

    async def _leave_last_frame(self) -> bool:
        """With `on-exit = "keep"`, leave the last frame on the screen.

        Return False if there is none, or it cannot be kept.
        """
        link = self._link
        if self._settings.on_exit != "keep" or self._wanted is None or link is None:
            return False
        async with self._card_lock:
            self._wanted = None
            await self._quiet()
            self._set_off()
            return await trio.to_thread.run_sync(link.scanout.leave)
