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
from displbe.xen.port import GuestBuffer

from .atomic import Pipe
from .attached import Attached
from .buffer import DrmBuffer
from .device import Connector, Mode
from .direct import Direct
from .dumb import DumbAllocation
from .errors import Busy, CardGone, DrmError, NotMaster, about
from .flip import Flip
from .frames import Frames
from .scaling import placements
from .stage import Lit, Stage

if TYPE_CHECKING:
    from .sink import DrmSink

__all__ = ["DrmOutput"]

SAY_AGAIN: Final = 10.0
"""Seconds before the same thing is logged again: it may be the guest that makes it happen."""


class DrmOutput(Output):
    """A claimed connector."""

    def __init__(self, sink: DrmSink, name: str, key: int) -> None:
        super().__init__(name)
        self.key = key
        self.connector: Connector | None = None
        """As it was when it was last probed; None: never seen."""
        self.reason = "off"
        self._sink = sink
        self._log: Any = structlog.get_logger("displbe.drm").bind(connector=name)
        self._said: dict[tuple[str, str], float] = {}
        self._stage: Stage | None = None
        self._lit: Lit | None = None
        self._frames: Frames | Direct | None = None
        """How frames get to the screen; set while it is lit."""
        self._attached = Attached(name, sink.settings.zero_copy, self._say)
        self._current: DrmBuffer | None = None
        self._part: Part | None = None
        self._flip = Flip(key, self._flip_over, sink.start_soon)
        self._copier: Copier | None = None
        # Held by whatever uses the card and takes its time; the card is not closed meanwhile.
        self._slow = trio.Lock()

    @property
    def pipe(self) -> Pipe | None:
        """The card, connector, CRTC and plane; None while there is no such card."""
        return self._stage.pipe if self._stage is not None else None

    @property
    def dark(self) -> str:
        """Why nothing of the guest's is on the screen; empty: it is."""
        return "" if self.path else self.reason

    @property
    def _modes(self) -> tuple[Mode, ...]:
        return self.connector.modes if self.connector is not None else ()

    def moor(self, pipe: Pipe, connector: Connector) -> None:
        """This is the card's connector."""
        self._stage = Stage(pipe)
        self.connector = connector

    async def unmoor(self, why: str) -> None:
        """The card has gone: hold nothing of it."""
        async with self._slow:
            self._darken(why)
            await self._quiet()
            stage, self._stage = self._stage, None
            if stage is not None:
                await trio.to_thread.run_sync(stage.close)
            self._attached.card_gone()

    # Buffers

    async def attach(self, buffer: GuestBuffer, geometry: Geometry) -> SinkBuffer:
        async with self._slow:
            fourcc = self._attached.scanout_format(self.pipe, geometry.fourcc)
            made = DrmBuffer(buffer, geometry, fourcc, self._remove)
            if self._stage is not None:
                with suppress(CardGone):  # it is asked when it is back
                    await self._attached.prepare(self._stage, made, self._modes)
            self._attached.buffers.add(made)
            self._log.debug("framebuffer attached", path=made.path)
            return made

    async def _remove(self, buffer: DrmBuffer) -> None:
        """The guest takes a buffer back: nothing scans it out or reads it when this returns."""
        async with self._slow:
            await self._quiet()
            shown = self._current is buffer
            if buffer.fb and self._stage is not None:
                if shown and self._lit is not None and isinstance(self._frames, Direct):
                    await self._last_frame_goes(self._stage, self._lit, buffer)
                await trio.to_thread.run_sync(self._stage.remove, buffer.fb)
            self._attached.buffers.discard(buffer)
            buffer.fb, buffer.view = 0, None
            if shown:
                self._current = None
                self._flip.complete()
            self._watch()

    async def _last_frame_goes(self, stage: Stage, lit: Lit, buffer: DrmBuffer) -> None:
        """The frame on the screen is about to be removed: with `on-exit = "keep"` a copy takes its place."""
        self._unlit("the guest has removed what it showed")
        if self._sink.settings.on_exit == "keep" and self._part is not None:
            try:
                await self._attached.map(buffer)
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
            except (DrmError, SinkError) as error:
                if isinstance(error, DrmError) and not error.of_the_picture:
                    self._darken(str(error))
                    self._look_soon()
                    return
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
        return self._sink.why_not_master(self._stage.pipe.card)

    async def settle(self, connector: Connector) -> None:
        """Make the screen show what the guest shows, if it does not. What cannot be done now is tried again by the next call."""
        async with self._slow:
            before, self.connector = self.connector, connector
            # Probed anew, and the link has failed since: once, for what the kernel says of the next one.
            changed = connector is not before and connector.link_failed
            changed = changed or (before is not None and connector.modes != before.modes)
            if self._part is None or self._current is None or self._stage is None:
                return
            why = self._why_dark()
            if why:
                await self._lose_screen(self._stage, why)
                return
            try:
                if self._lit is None or changed or not await self._still_shown(self._stage):
                    self._unlit("switching")
                    await self._light()
            except (DrmError, SinkError) as error:
                self._darken(str(error))

    async def _lose_screen(self, stage: Stage, why: str) -> None:
        """The monitor is unplugged, or another program draws now."""
        lit = self._lit
        self._darken(why)
        if lit is not None:
            await self._quiet()
            try:
                await trio.to_thread.run_sync(stage.switch_off)
            except DrmError as error:
                self._log.debug("not switched off", reason=str(error))

    async def _still_shown(self, stage: Stage) -> bool:
        """Whether nobody has put a picture of theirs on our screen, between taking the right to it and giving it back."""
        ring = self._frames.ring if isinstance(self._frames, Frames) else None
        ours = {ring.front.fb, ring.back.fb} if ring is not None else self._attached.framebuffers
        return await trio.to_thread.run_sync(stage.shows, ours)

    async def _light(self) -> None:
        """Switch on and show the current frame. Raises DrmError, SinkError: the screen stays as it was, or dark."""
        stage, buffer, part, connector = self._stage, self._current, self._part, self.connector
        assert stage is not None
        assert buffer is not None
        assert part is not None
        assert connector is not None
        await self._quiet()
        where = placements(connector.modes, part.width, part.height, self._sink.settings.scale)
        await self._attached.prepare_all(stage, buffer, connector.modes)
        refusal: DrmError | None = None
        if buffer.fb and not self._attached.copied:
            try:
                lit = await trio.to_thread.run_sync(partial(stage.light, buffer, part, where, copy=False))
            except (NotMaster, CardGone, Busy):
                raise
            except DrmError as error:
                if self._attached.required and not error.of_the_picture:
                    raise
                self._attached.insist(error)
                refusal = error
            else:
                self._lit_now(lit, buffer)
                return
        await self._attached.map_alike(buffer)
        lit = await trio.to_thread.run_sync(partial(stage.light, buffer, part, where, copy=True))
        if refusal is not None:  # only now it is known that it was this buffer's fault, not the screen's
            self._attached.refuse(buffer, refusal, lasting=refusal.of_the_picture)
        self._lit_now(lit, buffer)

    def _lit_now(self, lit: Lit, shown: DrmBuffer) -> None:
        self._unlit("switching")
        self._lit = lit
        if lit.ring is not None and lit.cut is not None:
            self._copier = self._copier or Copier(self.name)
            self._frames = Frames(self._copier, lit.flip, lit.slot, lit.ring, lit.cut, self._failed)
            self.path, self.reason = "copy", self._attached.refusal
        else:
            self._frames = Direct(lit.flip, lit.slot, self._sink.start_soon, self._failed)
            self.path, self.reason = "be-alloc" if shown.ours else "zero copy", ""
        used, target = lit.placement.mode, lit.placement.target
        self._flip.period = 1 / max(1, used.refresh)
        mode = f"{used.width}x{used.height}@{used.refresh}"
        self._log.info("output on", mode=mode, target=target, path=self.path, reason=self.reason or None)
        if self._current is not None and self._current is not shown:  # the guest has flipped meanwhile
            self._flip_lit(self._current, self._flip.again())
        self._watch()

    def _watch(self) -> None:
        """Also show what the guest draws without flipping, where the hardware does not do so by itself."""
        rate = self._sink.settings.refresh
        if rate <= 0 or self._lit is None or self._current is None:
            return
        if isinstance(self._frames, Frames):
            self._frames.watch(self._current, rate)
        elif isinstance(self._frames, Direct) and self._lit.must_be_told:
            self._frames.watch(rate)

    def _unlit(self, why: str) -> None:
        """What the screen shows is not the guest's from now on."""
        frames, self._lit, self._frames = self._frames, None, None
        self.path, self.reason = "", why
        if isinstance(frames, Direct):
            frames.stop()
        elif frames is not None and frames.copied:
            mean = 1000 * frames.copy_seconds / frames.copied
            self._log.debug("copied", frames=frames.copied, refreshed=frames.refreshed, milliseconds=round(mean, 3))

    def _darken(self, why: str) -> None:
        """The screen does not show the guest's frames from now on; its flips are completed by a timer."""
        before = self.dark
        self._unlit(why)
        if why != before:
            self._say("output dark", why)
        self._flip.complete_by_timer()

    async def disable(self) -> None:
        async with self._slow:
            self._current = self._part = None
            await self._quiet()
            self._unlit("off")
            if self._stage is not None:
                try:
                    await trio.to_thread.run_sync(self._stage.switch_off)
                except DrmError as error:
                    self._say("not switched off", str(error))
        self._flip.complete()
        self._log.debug("output off", flips=self._flip.count, shown=self._flip.shown, late=self._flip.late)

    async def _quiet(self) -> None:
        """No copy is under way, and nobody watches the frame on the screen."""
        if isinstance(self._frames, Direct):
            self._frames.unwatch()
        if self._copier is not None:
            await self._copier.idle()

    # Flips

    def _flip_over(self, token: int) -> None:
        self.flipped(token)

    def flip(self, buffer: SinkBuffer, token: int) -> None:
        assert isinstance(buffer, DrmBuffer)
        if self._part is None:
            raise SinkError(Errno.EINVAL, f"{self.name} is off")
        serial = self._flip.begin(token)
        gone, self._current = self._current is None, buffer
        if self._lit is not None:
            self._flip_lit(buffer, serial)
            if gone:  # nothing was watched meanwhile
                self._watch()
            return
        self._flip.complete_by_timer()
        if gone:  # there is something to show again
            self._look_soon()

    def _flip_lit(self, buffer: DrmBuffer, serial: int) -> None:
        frames = self._frames
        if frames is not None and frames.shows(buffer):
            frames.flip(buffer, serial)
        else:  # this frame goes another way than the last one
            self._darken("changing between zero copy and copy")
            self._look_soon()

    def _failed(self, error: DrmError, serial: int) -> None:
        """A frame cannot be shown: that is the screen's business, not the guest's."""
        if self._lit is None or (serial and serial != self._flip.serial):
            return
        if self._current is not None and isinstance(self._frames, Direct) and error.of_the_picture:
            with suppress(SinkError):  # `require`: dark until it works
                self._attached.refuse(self._current, error)
        self._darken(str(error))
        self._look_soon()

    def _look_soon(self) -> None:
        """Have the card looked after: something may be done, or is amiss."""
        if self._stage is not None:
            self._sink.look(self._stage.pipe.card)

    def on_event(self, serial: int) -> None:
        """The card says that a flip is on the screen."""
        self._flip.on_event(serial)

    def check_late(self, now: float) -> None:
        """Complete a flip whose event does not come."""
        if self._flip.check_late(now):
            self._say("flip not shown in time", "")

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
            card = self._stage.pipe.card
            try:
                with about(self._stage.pipe.name):
                    made = await trio.to_thread.run_sync(DumbAllocation, card, pages)
            except DrmError as error:
                raise SinkError(from_host(error.number), str(error)) from error
            card.allocations.add(made)
            return made

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
            await self._quiet()
            self._unlit("off")
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
