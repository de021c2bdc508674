"""One connector of a card, which shows one guest's framebuffers full screen.

Zero copy: the guest's dma-buf is imported and scanned out as it is. Copy: each flip copies the guest's frame, in a
thread, into the one of two dumb buffers that is not on the screen. Both make one commit per flip, which does not wait,
and the card's event ends the flip.

A screen goes *dark* when the monitor, the card or DRM mastership is lost, or a commit fails. The guest does not notice:
the clock ends its flips at the mode's rate. The card lights the screen again, with the guest's current frame, as soon
as that is possible.

A screen also goes dark when the guest removes the framebuffer on it. A frame of displbe's *covers* the screen then, in
the same mode, and the guest's next flip shows its frame again without a mode change. Each mode change that a guest
causes is charged to it (`Output.charge`). While it owes one, its screen stays dark.
"""

from __future__ import annotations

import enum
import math
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, Final

import msgspec
import structlog
import trio

from displbe.ops.log import SparseLog
from displbe.pump.native import Pump
from displbe.sinks.base import Allocation, Geometry, Output, Part, SinkBuffer, SinkError, SteadyFlips, SteadyScreen
from displbe.sinks.copy_thread import CopyThread
from displbe.sinks.flip import Flip, FlipClock, FlipState
from displbe.sinks.redraw import STILL
from displbe.sinks.tasks import Tasks
from displbe.sinks.turn import Turn
from displbe.threads import run_in_thread_or_here
from displbe.wire.errors import Errno, from_host
from displbe.xen.port import GuestBuffer

from .atomic import LATE, Pipe
from .binding import Binding
from .buffer import DrmBuffer
from .copied_scanout import CopiedScanout
from .device import CardConnector, Connection, Mode
from .direct_scanout import DirectScanout
from .double_buffer import DumbAllocation
from .errors import Busy, CardGone, DrmError, NoResources, NotMaster, name_connector
from .fallback_modes import FALLBACK_MODES
from .framebuffers import FramebufferSet
from .mode_search import ModeSearch
from .placement import Placement, placements, ranked_modes
from .scanout import ActiveMode, ScanoutPipe, sideways_edid, upright
from .settings import DrmSettings
from .worker import in_worker, start_copy_thread

__all__ = ["SERIALS", "CardLink", "DrmOutput", "ScreenState"]

SERIALS: Final = 1 << 40
"""Serial numbers for one output. An output counts from its key times this number. A flip's serial number is the user
data of its event, so that the event identifies the output.
"""
OFF: Final = "off"
SWITCHING_ON: Final = "switching on"
CARD_GONE: Final = "the card is gone"
OPENING: Final = "the card is being opened"
REMOVED: Final = "the guest has removed what it showed"
HELD_BACK: Final = (
    "the guest causes more mode changes than modesets-per-second in [limits] allows: dark until its next one"
)
CANNOT_TELL: Final = (
    "the connector cannot tell whether a monitor is connected, and has no modes:"
    ' connected = "always" in [drm.screens] lights it'
)
RETRY: Final = 5.0
"""Seconds after which a picture that the card has refused in every mode is tried again, if no monitor changes before."""
MOST_TRIES: Final = 64
"""Maximum number of modes that are tried for one picture."""
SEARCH_TIME: Final = 1.5
"""Maximum seconds for trying further modes and CRTCs. The guest waits for the answer to its SET_CONFIG; Linux's frontend waits 3 s."""
BETTER: Final = 15.0
"""Seconds between two tests whether a better mode, which the card has refused, is possible now."""
PAUSED: Final = 1.0
"""Seconds without a flip after which the pump gives a screen back that needs no watch: then the card's looks look at it again."""
OPENED: Final = 2.0
"""Maximum seconds for which a request waits for a card that is being opened. Linux's frontend waits 3 s for the answer."""
FLIP_POLL: Final = 0.001
"""Seconds between two looks whether a flip has ended."""


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
    other_pipes: Callable[[], Iterable[Pipe]]
    """Return the pipes to this connector through CRTCs and planes that no output uses."""


class _Wanted(msgspec.Struct):
    """The frame that the guest wants to show."""

    part: Part
    buffer: DrmBuffer | None
    """None: the guest has removed the framebuffer that was shown, and has not flipped since."""


class _LitScreen(msgspec.Struct):
    """The mode of a lit screen, and the scanout that puts frames onto it."""

    mode: ActiveMode
    scanout: DirectScanout | CopiedScanout
    note: str = ""
    """Why the mode is not the one that was wanted; empty: it is."""
    test_at: float = 0.0
    """When to test whether the wanted mode is possible, in seconds of trio's clock."""

    @property
    def may_improve(self) -> bool:
        """Whether it is time to test that."""
        return bool(self.note) and trio.current_time() >= self.test_at


class _Dark(msgspec.Struct):
    """When and how a screen that is not lit is lit again."""

    missing: str = CARD_GONE
    """Why the output is on no connector, while it is on none."""
    opened: trio.Event | None = None
    """Set when the card that is being opened for this output is open, or cannot be; None: no card is being opened."""
    covered: _LitScreen | None = None
    """Set while displbe's own frame covers the screen: the mode that the screen still has."""
    not_before: float = 0.0
    """When the screen may be lit again, in seconds of trio's clock, unless a monitor or the guest's configuration changes."""


class DrmOutput(Output):
    """A claimed connector. It outlives its card: `attach_card` and `detach_card` say when there is one.

    `clock`, `tasks` and `pump` are the sink's. `released` is called when the guest gives the output back.

    It has eighteen attributes of its own, because it also keeps what outlives the card; the others are the contract's
    (`name`, `path`, `reason`, `flipped`, `charge`, `copies`).
    """

    def __init__(
        self,
        binding: Binding,
        key: int,
        settings: DrmSettings,
        clock: FlipClock,
        tasks: Tasks,
        released: Callable[[], None],
        pump: Pump | None = None,
    ) -> None:
        name = binding.name
        super().__init__(name)
        self.key = key
        self.binding = binding
        """Which connectors the name stands for."""
        self.state = ScreenState.OFF
        self.reason = OFF
        self._settings = settings
        self._tasks = tasks
        self._released = released
        self._pump = pump
        self._is_pumped = False
        """Whether the pump serves the flips."""
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
        self._dark = _Dark()
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
        self.binding.attached(link.scanout.pipe.device, link.connector)
        self._dark.not_before = 0.0
        self._stop_waiting_for_card()

    def wait_for_card(self) -> None:
        """Take note that the card is being opened. What the guest asks for meanwhile waits for that."""
        self._dark.opened = trio.Event()
        self._lose_connector(OPENING)

    def wait_for_connector(self, reason: str) -> None:
        """Take note of the reason why the output is on no connector."""
        if self._link is None:
            self._lose_connector(reason)
            self._stop_waiting_for_card()

    def _stop_waiting_for_card(self) -> None:
        if self._dark.opened is not None:
            self._dark.opened.set()
            self._dark.opened = None

    async def _card_opened(self) -> None:
        """Wait while the card is being opened, for OPENED at most: the guest asks for memory and the EDID as soon as it is connected."""
        if self._dark.opened is not None:
            with trio.move_on_after(OPENED):
                await self._dark.opened.wait()

    def _lose_connector(self, reason: str) -> None:
        """Go dark if the guest shows something: the output is on no connector now, for this reason, or will soon be on none."""
        self._dark.missing = reason
        if self._wanted is not None:
            self._darken(reason)

    async def leave_connector(self, reason: str) -> None:
        """Switch the screen off and release everything of the connector: the output belongs on another, or on none now."""
        async with self._card_lock:
            self._lose_connector(reason)
            await self._quiet()
            link = self._link
            if link is None:
                return
            try:
                await self._switch_off(link)
            finally:
                self._link = None
                framebuffers = self._framebuffers.fbs
                self._framebuffers.forget_card()
            for framebuffer in framebuffers:
                await run_in_thread_or_here(link.scanout.remove, framebuffer)

    async def detach_card(self, reason: str) -> None:
        """Release everything of the card: it is gone, or about to be closed."""
        async with self._card_lock:
            self._lose_connector(reason)
            await self._quiet()
            link, self._link = self._link, None
            if link is not None:
                await run_in_thread_or_here(link.scanout.close)
            self._framebuffers.forget_card()

    # Framebuffers

    async def attach(self, buffer: GuestBuffer, geometry: Geometry) -> SinkBuffer:
        await self._card_opened()
        async with self._card_lock:
            link = self._link
            format = self._framebuffers.scanout_format(link.scanout if link else None, geometry.fourcc)
            made = DrmBuffer(buffer, geometry, format, self._remove)
            if link is not None:
                with suppress(CardGone):  # the buffer is prepared when the card is back
                    await self._framebuffers.prepare(link.scanout, made, self._modes(link))
            self._framebuffers.buffers.add(made)
            self._log.debug("framebuffer attached", path=made.path)
            return made

    async def _remove(self, buffer: DrmBuffer) -> None:
        """Remove a framebuffer that the guest takes back. When this returns, nothing scans it out or reads it."""
        async with self._card_lock:
            await self._quiet()
            wanted, link = self._wanted, self._link
            shown = wanted is not None and wanted.buffer is buffer
            if buffer.fb and link is not None:
                await self._take_off_screen(link, buffer)
                await run_in_thread_or_here(link.scanout.remove, buffer.fb)
            self._framebuffers.buffers.discard(buffer)
            buffer.fb, buffer.memory = 0, None
            if wanted is not None and wanted.buffer is buffer:
                wanted.buffer = None
                self._flip.end()
            elif shown and link is not None:  # the guest has flipped meanwhile
                link.look_soon()
            self._watch()

    async def _take_off_screen(self, link: CardLink, buffer: DrmBuffer) -> None:
        """Put another frame in the place of this one, if it is on the screen, because it is about to be removed.

        With `on-exit = "keep"`, the other frame is a copy of it, otherwise it is black. If that is not possible, the screen
        is switched off. The kernel would do so too, but it would lock all of the card's screens for that.
        """
        scanout = link.scanout
        with trio.move_on_after(LATE):  # the frame before the flip under way leaves the screen when the flip ends
            while self._flip.state is FlipState.WAITING and self.state is ScreenState.LIT:
                await trio.sleep(FLIP_POLL)
        try:
            if not await run_in_thread_or_here(scanout.shows, {buffer.fb}):
                return
            lit, wanted = self._lit, self._wanted
            if wanted is not None:
                self._set_dark(REMOVED)
                self._charge()
            if lit is not None and wanted is not None and await self._cover(scanout, buffer, wanted.part, lit):
                return
            if wanted is not None:  # switching off and on are two mode changes
                self._charge()
            await run_in_thread_or_here(scanout.switch_off)
        except DrmError as error:
            self._log.debug("cannot take a frame off the screen", reason=str(error))

    async def _cover(self, scanout: ScanoutPipe, buffer: DrmBuffer, part: Part, lit: _LitScreen) -> bool:
        """Cover the screen, in the mode that it has. Return False if that is not possible."""
        keep = self._settings.on_exit == "keep"
        try:
            if keep:
                await self._framebuffers.map(buffer)
            await in_worker(partial(scanout.cover, buffer, part, lit.mode, copy=keep))
        except (DrmError, SinkError) as error:
            self._warn("cannot cover the screen: it is switched off", str(error))
            return False
        self._dark.covered = lit
        return True

    def _uncover(self, buffer: DrmBuffer) -> _LitScreen | None:
        """Enter LIT in the mode that the screen still has. The caller shows this buffer then.

        Return None if the screen is not covered, or the guest has to wait.
        """
        covered = self._dark.covered
        if covered is None or trio.current_time() < self._dark.not_before:
            return None
        return self._enter_lit(covered.mode, buffer, covered.note)

    def _charge(self, reason: str = HELD_BACK) -> None:
        """Charge the guest for a mode change. If it owes too many, the screen stays dark for a while, for this reason."""
        wait = self.charge()
        if wait > 0:
            self._darken(reason)
            self._dark.not_before = trio.current_time() + wait
            self._tasks.start_soon(self._look_at, self._dark.not_before)

    async def _look_at(self, when: float) -> None:
        """Have the card look at this time."""
        await trio.sleep_until(when)
        if self._link is not None:
            self._link.look_soon()

    # Switching on and off

    async def enable(self, buffer: SinkBuffer, part: Part) -> None:
        assert isinstance(buffer, DrmBuffer)
        await self._card_opened()
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
        link = self._link
        if link is None:
            return self._dark.missing
        if not self.can_be_lit(link.connector):
            unknown = link.connector.connection is Connection.UNKNOWN
            return CANNOT_TELL if unknown else "no monitor is connected"
        return link.why_not_master()

    def names_on(self, card: str, connector: str) -> tuple[str, str, str]:
        """Return the names by which settings can mean the output on this connector of a card; the output's own comes first."""
        return self.name, f"{card}/{connector}", connector

    @property
    def _is_always_lit(self) -> bool:
        """Whether the settings say that the screen is lit without a monitor, too."""
        link = self._link
        if link is None:
            return False
        names = self.names_on(link.scanout.pipe.device.name, link.connector.name)
        return self._settings.screen(*names).connected == "always"

    def can_be_lit(self, connector: CardConnector) -> bool:
        """Whether the screen is lit as far as its connector is concerned, which may have been probed anew."""
        return connector.can_be_lit or self._is_always_lit

    def _modes(self, link: CardLink) -> Sequence[Mode]:
        """Return the modes that a picture may be shown in, with their sizes as they are seen."""
        modes = (link.connector.modes or FALLBACK_MODES) if self.can_be_lit(link.connector) else ()
        return upright(modes, link.scanout.turn)

    @property
    def is_settled(self) -> bool:
        """Whether the screen shows what the guest wants, in the mode that is wanted for it."""
        return self._wanted is None or (self._lit is not None and not self._lit.note)

    def is_pumped_well(self, connector: CardConnector) -> bool:
        """Whether the pump has shown flips in the last second, and a look has nothing to find out."""
        link, lit = self._link, self._lit
        if not self._is_pumped or link is None or lit is None or lit.may_improve:
            return False
        return connector is link.connector and not self._obstacle()

    async def reconcile(self, connector: CardConnector) -> None:
        """Make the screen show the guest's frame, if it does not; `connector` is the connector as last probed.

        A failure makes the screen dark; the next call tries again.
        """
        if self.is_pumped_well(connector):
            return
        async with self._card_lock:
            link, wanted = self._link, self._wanted
            if link is None:
                return
            before = link.connector
            if not connector.modes and self._is_always_lit:
                # The line that detects the cable may be loose: the monitor's modes stay known.
                connector = msgspec.structs.replace(connector, modes=before.modes)
            link.connector = connector
            self.binding.attached(link.scanout.pipe.device, connector)
            # Each probe reports a failed link again. The mode is set once for each probe.
            changed = connector.modes != before.modes or (connector is not before and connector.link_failed)
            if wanted is None:
                return
            obstacle = self._obstacle()
            if wanted.buffer is None:
                await self._check_cover(link, is_wrong=bool(obstacle) or changed)
                return
            if obstacle:
                await self._lose_screen(link, obstacle)
                return
            if changed:
                self._dark.not_before = 0.0
            elif self._lit is None and trio.current_time() < self._dark.not_before:
                return
            try:
                if not changed and self._lit is None and (lit := self._uncover(wanted.buffer)) is not None:
                    self._show(lit, wanted.buffer, self._flip.renew())
                    self._watch()
                elif (lit := self._lit) is None or changed or not await self._is_still_shown(link, lit):
                    self._set_dark(SWITCHING_ON)
                    await self._switch_on(link, wanted.buffer, wanted.part)
                elif await self._is_better_possible(link, lit, wanted.buffer, wanted.part):
                    self._set_dark(SWITCHING_ON)  # flips meanwhile would show buffers that the new mode frees
                    await self._switch_on(link, wanted.buffer, wanted.part)
                    self._stop_testing()
            except (DrmError, SinkError) as error:
                if _refusal(error) is not None:
                    self._dark.not_before = trio.current_time() + RETRY
                self._darken(str(error))

    async def _check_cover(self, link: CardLink, *, is_wrong: bool) -> None:
        """Give up the mode of a covered screen if it may be wrong. The guest's next frame is then shown by a mode change.

        It may be wrong after another monitor or another program has had the screen.
        """
        if self._dark.covered is None:
            return
        if is_wrong:
            self._dark.covered = None
            if not self.can_be_lit(link.connector):
                await self._switch_off(link)
            return
        with suppress(DrmError):  # the next look asks again
            if not await in_worker(link.scanout.is_covered):
                self._dark.covered = None

    def _stop_testing(self) -> None:
        """If the wanted mode was refused again, do not test it until the screen is lit anew: the test was wrong."""
        if self._lit is not None and self._lit.note:
            self._lit.test_at = math.inf

    async def _is_better_possible(self, link: CardLink, lit: _LitScreen, buffer: DrmBuffer, part: Part) -> bool:
        """Return whether the screen is in a lesser mode than was wanted, and the card accepts the wanted one now.

        Another screen that shared the bandwidth may have been switched off. The screen does not notice the test.
        """
        if not lit.may_improve:
            return False
        lit.test_at = trio.current_time() + BETTER
        wanted = placements(self._modes(link), part.width, part.height, self._settings.scale)[0].mode
        async with _mode_search(link.scanout, buffer) as search:
            try:
                possible = await in_worker(search.passes, link.scanout.pipe, wanted)
            except DrmError:  # it says nothing about the mode
                return False
            return possible and self._lit is lit  # a flip may have failed meanwhile

    async def _lose_screen(self, link: CardLink, obstacle: str) -> None:
        """Go dark and switch the screen off: the monitor is unplugged, or another program has become DRM master."""
        was_lit = self.state is ScreenState.LIT or self._dark.covered is not None
        self._darken(obstacle)
        if was_lit:
            await self._quiet()
            await self._switch_off(link)

    async def _switch_off(self, link: CardLink) -> None:
        """Switch the screen off, if displbe still may."""
        try:
            await run_in_thread_or_here(link.scanout.switch_off)
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
        return await in_worker(link.scanout.shows, ours)

    async def _switch_on(self, link: CardLink, buffer: DrmBuffer, part: Part) -> None:
        """Switch the screen on with this frame. Raises DrmError, SinkError; the screen then stays as it was, or dark."""
        await self._quiet()
        modes = self._modes(link)
        await self._framebuffers.prepare_all(link.scanout, buffer, modes)
        where = placements(modes, part.width, part.height, self._settings.scale)
        try:
            if len({placement.mode for placement in where}) > 1:
                # Otherwise a refused mode would look like a plane that cannot scale.
                await self._check_mode(link, buffer, where[0].mode)
            await self._show_in(link.scanout, buffer, part, where)
        except (DrmError, SinkError) as error:
            refusal = _refusal(error)
            if refusal is None or not await self._try_others(link, buffer, part, where, refusal):
                raise

    async def _check_mode(self, link: CardLink, buffer: DrmBuffer, mode: Mode) -> None:
        """Raise DrmError if the card refuses this mode with a frame of its size."""
        async with _mode_search(link.scanout, buffer) as search:
            try:
                await in_worker(search.check, link.scanout.pipe, mode)
            except DrmError as error:
                if error.refuses_frame:
                    raise
                # It says nothing about the mode. For example, there is no memory for such a frame, but none is needed to scale the guest's.

    def _others(self, link: CardLink, part: Part, best: Placement) -> Iterator[tuple[Mode, Sequence[Placement]]]:
        """Yield the modes to try, and the ways to show the picture in each.

        A picture that is best scaled is first tried so in the other modes of the same size, then in all ways in all modes.
        """
        scale = self._settings.scale
        ranked = ranked_modes(self._modes(link), part.width, part.height, scale)[:MOST_TRIES]
        ways = {mode: placements([mode], part.width, part.height, scale) for mode in ranked}
        if best.target[2:] != best.shown:
            for mode in ranked:
                if (mode.width, mode.height) == (best.mode.width, best.mode.height):
                    yield mode, ways[mode][:1]
        yield from ways.items()

    async def _try_others(
        self, link: CardLink, buffer: DrmBuffer, part: Part, where: Sequence[Placement], refusal: DrmError
    ) -> bool:
        """Try the other CRTCs and modes after the card has refused the best ones. Return whether the frame is shown.

        The card may refuse a mode because the link or the memory is too slow for it (ENOSPC), also where other screens
        share them, or because this CRTC cannot drive it (EINVAL). Raises DrmError, SinkError.
        """
        scanout, first, wanted = link.scanout, link.scanout.pipe, where[0].mode
        formats = {each.format.fourcc for each in self._framebuffers.buffers}
        until = trio.current_time() + SEARCH_TIME
        async with _mode_search(scanout, buffer) as search:
            for mode, ways in self._others(link, part, where[0]):
                others = [pipe for pipe in link.other_pipes() if pipe.plane.can_replace(first.plane, formats)]
                for pipe in others if mode == wanted else [first, *others]:
                    if trio.current_time() > until:
                        return False
                    if not await in_worker(search.passes, pipe, mode):
                        continue
                    if pipe != first and pipe not in link.other_pipes():  # another output has taken it meanwhile
                        continue
                    scanout.pipe = pipe
                    note = f"{wanted} was refused ({refusal}): {mode} is used" if mode != wanted else ""
                    try:
                        await self._show_in(scanout, buffer, part, ways, note)
                    except (DrmError, SinkError) as error:
                        if first in link.other_pipes():
                            scanout.pipe = first
                        if _refusal(error) is None:
                            raise
                        continue
                    self._warn("the card refused the mode", note or f"{wanted} ({refusal}): another CRTC is used")
                    return True
        return False

    async def _show_in(
        self, scanout: ScanoutPipe, buffer: DrmBuffer, part: Part, where: Sequence[Placement], note: str = ""
    ) -> None:
        """Switch the screen on in one of these ways. `note` says why none is the best. Raises DrmError, SinkError."""
        framebuffers = self._framebuffers
        refusal: DrmError | None = None
        if buffer.fb and not framebuffers.must_copy:
            try:
                mode = await in_worker(partial(scanout.switch_on, buffer, part, where, copy=False))
            except (NotMaster, CardGone, Busy, NoResources):
                raise
            except DrmError as error:
                if framebuffers.copy_forbidden and not error.refuses_frame:
                    raise
                framebuffers.check_copy_allowed(error)
                refusal = error
            else:
                self._set_lit(mode, buffer, note)
                return
        await framebuffers.map_alike(buffer)
        self._copy_thread = self._copy_thread or start_copy_thread(self.name, self._pump)
        mode = await in_worker(partial(scanout.switch_on, buffer, part, where, copy=True))
        if refusal is not None:  # the copy is shown, so the refusal was about this buffer and not about the screen
            framebuffers.refuse(buffer, refusal, lasting=refusal.refuses_frame)
        self._set_lit(mode, buffer, note)

    def _set_lit(self, mode: ActiveMode, shown: DrmBuffer, note: str) -> None:
        """Enter LIT: the screen shows this frame now."""
        lit = self._enter_lit(mode, shown, note)
        used, target = mode.placement.mode, mode.placement.target
        self._flip.period = 1 / max(1, used.refresh)
        self._log.info(
            "output on",
            mode=str(used),
            target=target,
            rotate=self.turn.value or None,
            path=self.path,
            reason=self.reason or None,
        )
        current = self._wanted.buffer if self._wanted is not None else None
        if current is not None and current is not shown:  # the guest has flipped meanwhile
            self._show(lit, current, self._flip.renew())
        self._watch()

    def _enter_lit(self, mode: ActiveMode, shown: DrmBuffer, note: str) -> _LitScreen:
        """Enter LIT in a mode that the screen has."""
        self._stop_scanout()
        self.state = ScreenState.LIT
        if mode.copy is not None:
            assert self._copy_thread is not None
            scanout = CopiedScanout(self._copy_thread, mode.flip, mode.slot, mode.copy, self._on_failed)
            lit = _LitScreen(mode, scanout, note)
            self.path = "copy"
            self.reason = "; ".join(filter(None, (note, self._framebuffers.copy_reason)))
        else:
            direct = DirectScanout(mode.flip, mode.slot, self._tasks.start_soon, self._since_flip, self._on_failed)
            lit = _LitScreen(mode, direct, note)
            self.path, self.reason = "be-alloc" if shown.from_card else "zero copy", note
        lit.test_at = trio.current_time() + BETTER
        self._lit = lit
        self._dark.not_before = 0.0
        return lit

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
        self.interrupt()
        lit, self._lit = self._lit, None
        self._dark.covered = None
        self.path = ""
        if lit is None:
            return
        scanout = lit.scanout
        scanout.stop()
        if isinstance(scanout, CopiedScanout) and scanout.copied:
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
                    await run_in_thread_or_here(self._link.scanout.switch_off)
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
        """Return when no copy is under way, the frame on the screen is not watched, and the pump does not serve the flips."""
        self.interrupt()
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
        was_lit = self._lit is not None
        lit = self._lit if was_lit else self._uncover(buffer)
        if lit is not None:
            self._show(lit, buffer, serial)
            if removed or not was_lit:  # until now there was no frame to watch
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
        self._charge()
        if self._link is not None:
            self._link.look_soon()

    def _on_failed(self, error: DrmError, serial: int) -> None:
        """Go dark, because a frame could not be shown, until the card lights the screen again. The guest is not told."""
        self.interrupt()
        lit, wanted = self._lit, self._wanted
        if lit is None or wanted is None or (serial and serial != self._flip.serial):
            return
        frame = wanted.buffer
        if frame is not None and isinstance(lit.scanout, DirectScanout) and error.refuses_frame:
            with suppress(SinkError):  # copying is forbidden: the screen stays dark until zero copy works
                self._framebuffers.refuse(frame, error)
        self._darken(str(error))
        if not isinstance(error, NotMaster | CardGone):
            self._charge(str(error))  # perhaps the guest's frame is at fault, perhaps the card
        if self._link is not None:
            self._link.look_soon()

    def on_shown(self, serial: int) -> None:
        """End the flip with this serial number: the card's event says that its frame is on the screen."""
        self.interrupt()
        self._flip.on_shown(serial)

    # The pump

    def steady(self, buffers: Mapping[int, SinkBuffer], *, is_pending: bool) -> SteadyScreen | None:
        lit, wanted, flip = self._lit, self._wanted, self._flip
        if lit is None or wanted is None or wanted.buffer is None:
            return None
        if flip.state is not (FlipState.WAITING if is_pending else FlipState.NONE):
            return None
        still = STILL if lit.mode.must_be_told else PAUSED
        if self._since_flip() > still:
            return None
        if self._card_lock.locked():  # something changes
            return None
        usable = {
            cookie: buffer
            for cookie, buffer in buffers.items()
            if isinstance(buffer, DrmBuffer) and not buffer.closed and lit.scanout.can_show(buffer)
        }
        steady = lit.scanout.steady(usable)
        if steady is not None:
            steady.serial, steady.token, steady.late, steady.still = flip.serial, flip.token, flip.limit, still
        return steady

    def hand_over(self) -> None:
        self._is_pumped = True
        self._flip.hand_over()
        if self._lit is not None and isinstance(self._lit.scanout, DirectScanout):
            self._lit.scanout.unwatch()

    def take_back(self, flips: SteadyFlips) -> None:
        self._is_pumped = False
        self._flip.take_back(flips.serial, flips.shown, flips.token, flips.age)
        lit, wanted = self._lit, self._wanted
        if wanted is not None and wanted.buffer is not None and isinstance(flips.newest, DrmBuffer):
            wanted.buffer = flips.newest
        if lit is None:
            return
        if isinstance(lit.scanout, CopiedScanout):
            lit.scanout.take_back()
        else:
            self._watch()

    def _since_flip(self) -> float:
        return trio.current_time() - self._flip.began

    def _on_late(self) -> None:
        self._warn("the card did not report a flip in time: it ends for the guest")

    def _on_flip_ended(self, token: int) -> None:
        self.flipped(token)

    # EDID, memory, release

    async def edid(self) -> bytes | None:
        """Return the monitor's EDID; if the panel is mounted sideways, one of its size as it is seen."""
        await self._card_opened()
        async with self._card_lock:
            link = self._link
            if link is None or link.connector.connection is Connection.DISCONNECTED:
                return None
            try:
                edid = await in_worker(link.scanout.pipe.device.read_edid, link.connector.id)
            except NoResources as error:
                raise SinkError(Errno.ENOMEM, str(error)) from error
            if edid is None or not link.scanout.turn.swaps_sides:
                return edid
            return sideways_edid(edid, self._modes(link))

    async def allocate(self, pages: int) -> Allocation:
        await self._card_opened()
        async with self._card_lock:
            pipe = self.pipe
            if pipe is None:
                raise SinkError(Errno.ENODEV, f"{self.name}: {self._dark.missing}")
            try:
                with name_connector(pipe.name):
                    made = await in_worker(DumbAllocation, pipe.device, pages)
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
            return await run_in_thread_or_here(link.scanout.leave)


@asynccontextmanager
async def _mode_search(scanout: ScanoutPipe, buffer: DrmBuffer) -> AsyncIterator[ModeSearch]:
    """Return a search for modes that could show this buffer. Its frame is freed at the end."""
    search = ModeSearch(buffer.format.fourcc, scanout.turn)
    try:
        yield search
    finally:
        await run_in_thread_or_here(search.close)


def _refusal(error: DrmError | SinkError) -> DrmError | None:
    """Return the card's refusal of a picture or a mode that an error is about; None: it is about something else."""
    cause = error.__cause__ if isinstance(error, SinkError) else error
    return cause if isinstance(cause, DrmError) and cause.refuses_frame else None
