"""One connector of a card, showing one guest's framebuffers full screen.

Zero copy: the guest's dma-buf is imported and scanned out as it lies. Copy: each flip copies the guest's frame, off the loop, into that
one of two dumb buffers which is not on the screen. Either way one commit per flip, which does not wait, and the card's event ends it.

An output is *lit* while the screen shows what the guest asked for. It goes *dark* when the monitor, the card or the right to it is
away, or a commit fails. The guest does not notice: its flips are completed by a timer, and the card's keeper lights the output
again, with the guest's current frame, as soon as that can be done.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import structlog
import trio

from displbe.sinks.base import Allocation, Geometry, Output, Part, SinkBuffer, SinkError
from displbe.sinks.copier import Copier
from displbe.wire.errors import Errno, from_host
from displbe.wire.formats import FORMATS, fourcc_name
from displbe.xen.port import GuestBuffer, HypervisorError

from .atomic import FLIP, Pipe
from .buffer import DrmBuffer
from .device import Connector
from .dumb import DumbAllocation
from .errors import Busy, CardGone, DrmError, NotMaster
from .frames import BUSY_RETRY, LATE, Frames
from .scaling import placements
from .stage import Lit, Stage

if TYPE_CHECKING:
    from .sink import DrmSink

__all__ = ["SERIALS", "DrmOutput"]

SERIALS: Final = 1 << 40
"""An event's user data is a flip's serial number; each output counts from a multiple of this, its key."""
SAY_AGAIN: Final = 10.0
"""Seconds before the same thing is logged again: it may be the guest that makes it happen."""


class DrmOutput(Output):
    """A claimed connector."""

    def __init__(self, sink: DrmSink, name: str, key: int) -> None:
        super().__init__(name)
        self.key = key
        self.connector: Connector | None = None
        """As it was when it was last probed; None: never seen."""
        self.dark = "off"
        """Why nothing of the guest's is on the screen; empty: it is."""
        self.shown = 0
        """Flips that the card has shown."""
        self.late = 0
        """Flips that were completed because the card did not say so in time."""
        self._sink = sink
        self._log: Any = structlog.get_logger("displbe.drm").bind(connector=name)
        self._said: dict[tuple[str, str], float] = {}
        self._stage: Stage | None = None
        self._lit: Lit | None = None
        self._frames: Frames | None = None
        self._buffers: set[DrmBuffer] = set()
        self._current: DrmBuffer | None = None
        self._part: Part | None = None
        self._token: int | None = None
        self._serial = key * SERIALS
        self._since = 0.0
        self._period = 1 / 60
        self._copier: Copier | None = None
        # Held by whatever uses the card and takes its time; the card is not closed meanwhile.
        self._slow = trio.Lock()

    @property
    def pipe(self) -> Pipe | None:
        """The card, connector, CRTC and plane; None while there is no such card."""
        return self._stage.pipe if self._stage is not None else None

    @property
    def path(self) -> str:
        """How the pixels get to the screen; empty: they do not."""
        return "" if self._lit is None else "zero copy" if self._frames is None else "copy"

    def moor(self, pipe: Pipe, connector: Connector) -> None:
        """This is the card's connector."""
        self._stage = Stage(pipe)
        self.connector = connector

    async def unmoor(self) -> None:
        """The card has gone: hold nothing of it."""
        async with self._slow:
            self._darken("the card is gone")
            await self._copies_done()
            stage, self._stage = self._stage, None
            if stage is not None:
                await trio.to_thread.run_sync(stage.close)
            for buffer in self._buffers:
                buffer.fb, buffer.refused = 0, False

    # Buffers

    async def attach(self, buffer: GuestBuffer, geometry: Geometry) -> SinkBuffer:
        async with self._slow:
            made = DrmBuffer(buffer, geometry, self._scanout_format(geometry), self._remove)
            if self._stage is not None:
                await self._prepare(self._stage, made)
            self._buffers.add(made)
            return made

    def _scanout_format(self, geometry: Geometry) -> int:
        """The format for the plane: the guest's, or its twin without alpha; there is nothing below a full screen to blend with."""
        pipe, opaque = self.pipe, FORMATS[geometry.fourcc].opaque
        if pipe is None:
            return opaque
        for code in (geometry.fourcc, opaque):
            if code in pipe.plane.formats:
                return code
        raise SinkError(Errno.EINVAL, f"{self.name} cannot show {fourcc_name(geometry.fourcc)}")

    async def _prepare(self, stage: Stage, buffer: DrmBuffer) -> None:
        """The cheapest way that the card and the buffer share. Raises SinkError."""
        if self._sink.settings.zero_copy != "off":
            modes = self.connector.modes if self.connector is not None else ()
            try:
                dmabuf = await buffer.guest.dmabuf()
                buffer.fb = await trio.to_thread.run_sync(stage.import_buffer, buffer, dmabuf, modes)
                return
            except (DrmError, HypervisorError) as error:
                self._refuse_zero_copy(buffer, error)
        await self._map(buffer)

    async def _prepare_all(self, stage: Stage) -> None:
        """Those that the guest attached while there was no card. Raises SinkError when it is what is to be shown."""
        for buffer in list(self._buffers):
            if not buffer.fb and buffer.view is None:
                try:
                    buffer.fourcc = self._scanout_format(buffer.geometry)
                    await self._prepare(stage, buffer)
                except SinkError:
                    if buffer is self._current:
                        raise

    def _refuse_zero_copy(self, buffer: DrmBuffer, error: Exception) -> None:
        """Frames of this buffer are copied from now on. Raises SinkError where that is not wanted."""
        if self._sink.settings.zero_copy == "require":
            raise SinkError(Errno.EINVAL, f"no zero copy: {error}") from error
        buffer.refused = True
        self._say("frames are copied", str(error))

    async def _map(self, buffer: DrmBuffer) -> None:
        if buffer.view is None:
            try:
                buffer.view = await buffer.guest.view()
            except HypervisorError as error:
                raise SinkError(Errno.EINVAL, str(error)) from error

    async def _map_others(self, shown: DrmBuffer) -> None:
        """Frames that the guest will flip to go the way of the one that is shown."""
        for buffer in list(self._buffers):
            if buffer.geometry == shown.geometry:
                with suppress(SinkError):
                    await self._map(buffer)

    async def _remove(self, buffer: DrmBuffer) -> None:
        """The guest takes a buffer back: nothing scans it out or reads it when this returns."""
        async with self._slow:
            await self._copies_done()
            shown = self._current is buffer
            if buffer.fb and self._stage is not None:
                if shown and self._lit is not None and self._frames is None:
                    await self._last_frame_goes(self._stage, self._lit, buffer)
                await trio.to_thread.run_sync(self._stage.remove, buffer.fb)
            self._buffers.discard(buffer)
            buffer.fb, buffer.view = 0, None
            if shown:
                self._current = None
                self._complete()
            self._watch()

    async def _last_frame_goes(self, stage: Stage, lit: Lit, buffer: DrmBuffer) -> None:
        """The frame on the screen is about to be removed: with `on-exit = "keep"` a copy takes its place."""
        self._lit = None
        self.dark = "the guest has removed what it showed"
        if self._sink.settings.on_exit == "keep" and self._part is not None:
            try:
                await self._map(buffer)
                await trio.to_thread.run_sync(stage.freeze, buffer, self._part, lit)
            except (DrmError, SinkError) as error:
                self._say("last frame not kept", str(error))

    # Switching

    async def enable(self, buffer: SinkBuffer, part: Part) -> None:
        assert isinstance(buffer, DrmBuffer)
        async with self._slow:
            if buffer.closed:
                raise SinkError(Errno.ENOENT, "the framebuffer is gone")
            before = self._current, self._part
            self._current, self._part = buffer, part
            why = self._why_dark()
            if why:
                self._darken(why)
                return
            try:
                await self._light()
            except (NotMaster, CardGone) as error:
                self._darken(str(error))
            except (DrmError, SinkError) as error:
                self._current, self._part = before
                self._watch()
                if isinstance(error, SinkError):
                    raise
                raise SinkError(from_host(error.number), str(error)) from error

    def _why_dark(self) -> str:
        """Why the screen cannot show anything now; empty: nothing stands against it."""
        if self._stage is None or self.connector is None:
            return "the card is gone"
        if not self.connector.connected:
            return "no monitor is connected"
        if not self._sink.is_master(self._stage.pipe.card):
            return "another program is DRM master"
        return ""

    async def settle(self, connector: Connector) -> None:
        """Make the screen show what the guest shows, if it does not. What cannot be done now is tried again by the next call."""
        async with self._slow:
            changed = self.connector is not None and connector.modes != self.connector.modes
            self.connector = connector
            if self._part is None or self._current is None or self._stage is None:
                return
            why = self._why_dark()
            if why:
                await self._lose_screen(self._stage, why)
                return
            try:
                if self._lit is None or changed or not await self._still_shown(self._stage):
                    self._lit = None
                    await self._light()
            except (DrmError, SinkError) as error:
                self._darken(str(error))

    async def _lose_screen(self, stage: Stage, why: str) -> None:
        """The monitor is unplugged, or another program draws now."""
        lit = self._lit
        self._darken(why)
        if lit is not None:
            await self._copies_done()
            try:
                await trio.to_thread.run_sync(stage.switch_off)
            except DrmError as error:
                self._log.debug("not switched off", reason=str(error))

    async def _still_shown(self, stage: Stage) -> bool:
        """Whether nobody has put a picture of theirs on our screen, between taking the right to it and giving it back."""
        if self._frames is not None:
            ours = {self._frames.ring.front.fb, self._frames.ring.back.fb}
        else:
            ours = {buffer.fb for buffer in self._buffers} - {0}
        return await trio.to_thread.run_sync(stage.shows, ours)

    async def _light(self) -> None:
        """Switch on and show the current frame. Raises DrmError, SinkError: the screen stays as it was, or dark."""
        stage, buffer, part, connector = self._stage, self._current, self._part, self.connector
        assert stage is not None
        assert buffer is not None
        assert part is not None
        assert connector is not None
        await self._copies_done()
        where = placements(connector.modes, part.width, part.height, self._sink.settings.scale)
        await self._prepare_all(stage)
        lit: Lit | None = None
        # One frame that must be copied, and all are: to change from the one to the other costs more than a copy.
        if buffer.fb and not any(other.refused for other in self._buffers):
            try:
                lit = await trio.to_thread.run_sync(partial(stage.light, buffer, part, where, copy=False))
            except (NotMaster, CardGone):
                raise
            except DrmError as error:
                self._refuse_zero_copy(buffer, error)
        if lit is None:
            await self._map(buffer)
            await self._map_others(buffer)
            lit = await trio.to_thread.run_sync(partial(stage.light, buffer, part, where, copy=True))
        self._lit_now(lit, buffer)

    def _lit_now(self, lit: Lit, shown: DrmBuffer) -> None:
        self._tell_copies()
        self._lit, self._frames = lit, None
        if lit.ring is not None and lit.cut is not None:
            self._copier = self._copier or Copier(self.name)
            self._frames = Frames(self._copier, lit.flip, lit.slot, lit.ring, lit.cut, self._failed)
        self._period = 1 / max(1, lit.mode.refresh)
        self.dark = ""
        mode = f"{lit.mode.width}x{lit.mode.height}@{lit.mode.refresh}"
        self._log.info("output on", mode=mode, target=lit.target, path=self.path)
        if self._current is not None and self._current is not shown:  # the guest has flipped meanwhile
            self._serial += 1
            self._flip_lit(lit, self._current, self._serial)
        self._watch()

    def _watch(self) -> None:
        """In copy mode: also show what the guest draws without flipping."""
        rate = self._sink.settings.refresh
        if rate > 0 and self._lit is not None and self._frames is not None and self._current is not None:
            self._frames.watch(self._current, rate)

    def _darken(self, why: str) -> None:
        """The screen does not show the guest's frames from now on; its flips are completed by a timer."""
        self._lit = None
        if why != self.dark:
            self.dark = why
            self._say("output dark", why)
        if self._token is not None:
            self._complete_by_timer()

    async def disable(self) -> None:
        async with self._slow:
            self._current = self._part = self._lit = None
            self.dark = "off"
            await self._copies_done()
            if self._stage is not None:
                try:
                    await trio.to_thread.run_sync(self._stage.switch_off)
                except DrmError as error:
                    self._say("not switched off", str(error))
        self._tell_copies()
        self._complete()
        self._log.debug("output off", flips=self._serial % SERIALS, shown=self.shown, late=self.late)

    async def _copies_done(self) -> None:
        if self._copier is not None:
            await self._copier.idle()

    def _tell_copies(self) -> None:
        """How long copying took, for who looks for it."""
        frames, self._frames = self._frames, None
        if frames is not None and frames.copied:
            mean = 1000 * frames.copy_seconds / frames.copied
            self._log.debug("copied", frames=frames.copied, refreshed=frames.refreshed, milliseconds=round(mean, 3))

    # Flips

    def flip(self, buffer: SinkBuffer, token: int) -> None:
        assert isinstance(buffer, DrmBuffer)
        if self._part is None:
            raise SinkError(Errno.EINVAL, f"{self.name} is off")
        self._token = token
        self._serial += 1
        self._since = trio.current_time()
        gone, self._current = self._current is None, buffer
        if self._lit is not None:
            self._flip_lit(self._lit, buffer, self._serial)
            return
        self._complete_by_timer()
        if gone:  # there is something to show again
            self._look_soon()

    def _flip_lit(self, lit: Lit, buffer: DrmBuffer, serial: int) -> None:
        frames = self._frames
        if frames is not None and buffer.view is not None:
            frames.flip(buffer, serial)
        elif frames is None and buffer.fb:
            self._flip_imported(lit, buffer, serial)
        else:  # this frame goes another way than the last one
            self._darken("changing between zero copy and copy")
            self._look_soon()

    def _flip_imported(self, lit: Lit, buffer: DrmBuffer, serial: int) -> None:
        """One commit, which does not wait."""
        lit.flip.set(lit.slot, buffer.fb)
        try:
            lit.flip.commit("flip", FLIP, serial)
        except Busy:
            # The kernel is not done with the last one, although its event has come.
            self._sink.start_soon(self._commit_again, lit, serial)
        except DrmError as error:
            self._failed(error, serial)

    async def _commit_again(self, lit: Lit, serial: int) -> None:
        while self._lit is lit and self._serial == serial:
            await trio.sleep(BUSY_RETRY)
            if self._lit is not lit or self._serial != serial:
                return
            try:
                lit.flip.commit("flip", FLIP, serial)
            except Busy:
                continue
            except DrmError as error:
                self._failed(error, serial)
            return

    def _failed(self, error: DrmError, serial: int) -> None:
        """A frame cannot be shown: that is the screen's business, not the guest's."""
        if self._lit is None or (serial and serial != self._serial):
            return
        if self._current is not None and self._frames is None and not isinstance(error, (NotMaster, CardGone, Busy)):
            try:
                self._refuse_zero_copy(self._current, error)
            except SinkError:
                pass  # `require`: dark until it works
        self._darken(str(error))
        self._look_soon()

    def _look_soon(self) -> None:
        """Have the card looked after: something may be done, or is amiss."""
        if self._stage is not None:
            self._sink.look(self._stage.pipe.card)

    def _complete_by_timer(self) -> None:
        """The flip under way is over at the next refresh that there would be."""
        self._sink.start_soon(self._complete_later, self._serial)

    async def _complete_later(self, serial: int) -> None:
        now = trio.current_time()
        await trio.sleep(self._period - now % self._period)
        if self._serial == serial:
            self._complete()

    def _complete(self) -> None:
        """The flip under way, if any, is over."""
        token, self._token = self._token, None
        if token is not None:
            self.flipped(token)

    def on_event(self, serial: int) -> None:
        """The card says that a flip is on the screen."""
        if serial == self._serial:
            self.shown += 1
            self._complete()

    def check_late(self, now: float) -> None:
        """Complete a flip whose event does not come."""
        if self._token is not None and now - self._since > LATE:
            self.late += 1
            self._say("flip not shown in time", "")
            self._complete()

    # The rest

    async def edid(self) -> bytes | None:
        async with self._slow:
            if self._stage is None or self.connector is None or not self.connector.connected:
                return None
            return await trio.to_thread.run_sync(self._stage.pipe.card.read_edid, self.connector.id)

    async def allocate(self, pages: int) -> Allocation:
        async with self._slow:
            if self._stage is None:
                raise SinkError(Errno.ENODEV, f"{self.name}: the card is gone")
            try:
                return await trio.to_thread.run_sync(DumbAllocation, self._stage.pipe.card, pages)
            except DrmError as error:
                raise SinkError(from_host(error.number), f"{self.name}: {error}") from error

    async def release(self) -> None:
        self.flipped = _ignore
        if not await self._leave_last_frame():
            await self.disable()
        self._part = None
        if self._copier is not None:
            await self._copier.close()
        self._sink.give_back(self)

    async def _leave_last_frame(self) -> bool:
        """With `on-exit = "keep"`: what was shown last stays. False: there is nothing, or it cannot be kept."""
        if self._sink.settings.on_exit != "keep" or self._part is None or self._stage is None:
            return False
        async with self._slow:
            await self._copies_done()
            self._lit = None
            return await trio.to_thread.run_sync(self._stage.leave)

    def _say(self, event: str, reason: str) -> None:
        """A line in the log, unless it was there a moment ago."""
        now = trio.current_time()
        if now - self._said.get((event, reason), -SAY_AGAIN) >= SAY_AGAIN:
            self._said = {key: when for key, when in self._said.items() if now - when < SAY_AGAIN}
            self._said[event, reason] = now
            self._log.warning(event, reason=reason)


def _ignore(token: int) -> None:
    """A flip of a guest that has gone."""
