"""What the output of one connector shows: SET_CONFIG and PG_FLIP, and the operator's blanking.

The guest's configuration and what the output does are two things: while the operator has blanked the screen, the guest goes on setting
modes and flipping as if it were on, and does not notice.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec
import trio

from displbe.backend.quota import TokenBucket
from displbe.ops.text import escape
from displbe.sinks.base import Geometry, Output, Part, SinkBuffer, SinkError
from displbe.sinks.flip import Flip, FlipClock
from displbe.wire.displif import SetConfig
from displbe.wire.errors import Errno, RequestError
from displbe.wire.formats import fourcc_name

from .buffers import Buffers, Framebuffer
from .events import FlipEvents

__all__ = ["Screen", "ScreenState"]

MODESET_BURST: Final = 8
"""Mode changes that a guest gets before `modesets-per-second` holds."""
MODESET_WAIT: Final = 2.0
"""Seconds that a guest's SET_CONFIG may be held back; its answer is due after 3 s."""
LATE: Final = 2.0
"""Seconds after which a flip ends though its output is still being switched on; Linux's frontend waits 3.1 s for the event."""


class ScreenState(enum.Enum):
    """What the output does."""

    OFF = "off"
    """The output is off, because the guest shows nothing."""
    ON = "on"
    """The output shows what the guest shows."""
    BLANKED = "blanked"
    """The operator has switched the output off, whatever the guest shows. Flips end when the next refresh would be."""
    UNBLANKING = "unblanking"
    """The operator has the output switched on again. A flip ends when the output is on."""


# Looked up once: on the path of every flip, and a member of an enum costs more than a call in Python 3.11.
_ON: Final = ScreenState.ON


class Screen:
    """One connector's output and what it shows. `resolution` is the connector's, in pixels; `index` its number."""

    def __init__(
        self,
        output: Output,
        index: int,
        resolution: tuple[int, int],
        buffers: Buffers,
        events: FlipEvents,
        clock: FlipClock,
        modesets_per_second: float,
        *,
        blanked: bool,
    ) -> None:
        self.output = output
        self.resolution = resolution
        self.state = ScreenState.BLANKED if blanked else ScreenState.OFF
        self.throttled = 0.0
        """Seconds that mode changes had to wait because the guest asks for too many."""
        self._index = index
        self._buffers = buffers
        self._events = events
        self._config: SetConfig | None = None
        """The guest's configuration: the last one that was accepted; None: the guest shows nothing."""
        self._shape: Geometry | None = None
        """The shape of what the output shows; a flip to another one is a mode change. None: the next flip is one. The framebuffer itself
        may be gone: the output stays on, and accepts flips.
        """
        self._newest = 0
        """The cookie of the framebuffer that is shown, or will be when the flip under way has ended."""
        self._blanked_flip = Flip(clock, events.complete, late=LATE)
        """The flip of a guest whose screen is blanked."""
        self._modesets = TokenBucket(MODESET_BURST, modesets_per_second, trio.current_time)
        self._switching = trio.Lock()
        """Held while the output is switched on, over or off."""
        output.flipped = events.complete

    @property
    def is_blanked(self) -> bool:
        """Whether the output is off because the operator says so."""
        return self.state is ScreenState.BLANKED or self.state is ScreenState.UNBLANKING

    def shown(self) -> str:
        """Return size, format and place of what the guest shows, for the operator; empty: it shows nothing."""
        config, shape = self._config, self._shape
        if config is None or shape is None:
            return ""
        size = f"{shape.width}x{shape.height} {escape(fourcc_name(shape.fourcc))}"
        return f"{size} from {config.x},{config.y}" if config.x or config.y else size

    async def picture(self) -> tuple[Geometry, memoryview]:
        """Return a copy of what the guest shows, also of a blanked screen. Raises RequestError, HypervisorError."""
        if self._config is None:
            raise RequestError(Errno.EINVAL, "the connector is off")
        part = self._part(self._config_of(self._newest))
        return await self._buffers.picture(self._newest, part)

    # Flips

    def flip(self, cookie: int) -> bool:
        """PG_FLIP. Return False, having done nothing, for a flip that is a mode change: `reshape` serves it.

        Raises RequestError, SinkError.
        """
        framebuffer = self._framebuffer(cookie)
        if self.state is not _ON:
            self._flip_unseen(framebuffer)
        elif framebuffer.geometry != self._shape:
            return False
        else:
            sink_buffer = self._sink_buffer(framebuffer)
            self._events.begin()
            try:
                self.output.flip(sink_buffer, cookie)
            except SinkError:
                self._events.cancel()
                raise
        self._newest = cookie
        return True

    def _flip_unseen(self, framebuffer: Framebuffer) -> None:
        """A flip while the output shows nothing. Raises RequestError."""
        self._sink_buffer(framebuffer)
        if self._config is None:
            raise RequestError(Errno.EINVAL, "the connector is off")
        self._events.begin()
        self._blanked_flip.begin(framebuffer.cookie)
        if self.state is ScreenState.BLANKED:
            self._blanked_flip.end_at_refresh()

    async def reshape(self, cookie: int) -> None:
        """PG_FLIP to a framebuffer of another shape. Raises RequestError, SinkError.

        Linux sends nothing else when a framebuffer of another size or format is set in the same mode, as Xorg does when its screen grows
        by a second monitor. For the output that is a mode change, of which the guest expects an event.
        """
        config = self._config_of(cookie)
        self._events.begin()
        try:
            await self._enable(config)
        except BaseException:
            self._events.cancel()
            raise
        self._events.complete(cookie)

    # The guest's configuration

    async def configure(self, config: SetConfig) -> None:
        """SET_CONFIG: show a framebuffer, or nothing ("Pass all zeros to reset"). Raises RequestError, SinkError."""
        if config.fb_cookie:
            await self._enable(config)
        elif config != SetConfig(config.id, 0, 0, 0, 0, 0, 0):
            raise RequestError(Errno.EINVAL, "framebuffer cookie 0 in a configuration that is not all zeros")
        elif self._config is not None:
            await self._disable()

    async def _enable(self, config: SetConfig) -> None:
        """Show what a configuration says. Raises RequestError, SinkError; what was shown stays then."""
        self._part(config)
        await self._wait_for_turn()
        async with self._switching:
            await self._show(config)
            self._newest = config.fb_cookie
            if not self.is_blanked:
                self.state = ScreenState.ON

    async def _disable(self) -> None:
        self._config = self._shape = None
        await self._wait_for_turn()
        async with self._switching:
            self._config = self._shape = None  # `unblank` may have set them meanwhile
            if not self.is_blanked:
                self.state = ScreenState.OFF
            await self.output.disable()

    async def _show(self, config: SetConfig) -> None:
        """Accept a configuration, and have the output show it unless it is blanked. Raises RequestError, SinkError."""
        part = self._part(config)  # not before: connector 0 may have detached the framebuffer while we waited
        framebuffer = self._framebuffer(config.fb_cookie)
        if self.state is not ScreenState.BLANKED:
            await self.output.enable(self._sink_buffer(framebuffer), part)
        self._config, self._shape = config, framebuffer.geometry

    async def _wait_for_turn(self) -> None:
        """Wait for the next mode change that the guest's limit allows. Each takes the screen its time."""
        wait = min(self._modesets.take(), MODESET_WAIT)
        self.throttled += wait
        await trio.sleep(wait)

    # The operator

    async def blank(self) -> None:
        """Switch the output off, whatever the guest shows, until `unblank`. The guest does not notice."""
        async with self._switching:
            if not self.is_blanked:
                self.state = ScreenState.BLANKED
                await self.output.disable()

    async def unblank(self) -> None:
        """Show what the guest shows again. Raises SinkError; the screen stays blanked then."""
        async with self._switching:
            if self.state is not ScreenState.BLANKED:
                return
            self.state = ScreenState.UNBLANKING
            self._blanked_flip.renew()  # from now on the output ends it, not the timer
            try:
                shown = await self._show_newest(RequestError)
            except BaseException:
                self.state = ScreenState.BLANKED
                self._blanked_flip.end_at_refresh()
                raise
            try:
                while self._newest != shown:  # the guest has flipped meanwhile
                    shown = await self._show_newest(RequestError, SinkError)
            finally:
                self.state = ScreenState.OFF if self._config is None else ScreenState.ON
                self._blanked_flip.end()

    async def _show_newest(self, *tolerated: type[Exception]) -> int:
        """Have the output show the newest framebuffer; return its cookie. After a tolerated error the guest's next flip shows its own: the
        framebuffer may be gone.
        """
        newest = self._newest
        try:
            if self._config is not None:
                await self._show(self._config_of(newest))
        except tolerated:
            self._shape = None
        return newest

    # Framebuffers

    def _config_of(self, cookie: int) -> SetConfig:
        """Return the guest's configuration for another framebuffer. Raises RequestError."""
        assert self._config is not None
        shape = self._framebuffer(cookie).geometry
        return msgspec.structs.replace(self._config, fb_cookie=cookie, width=shape.width, height=shape.height)

    def _framebuffer(self, cookie: int) -> Framebuffer:
        framebuffer = self._buffers.framebuffers.get(cookie)
        if framebuffer is None:
            raise RequestError(Errno.ENOENT, "no such framebuffer")
        return framebuffer

    def _sink_buffer(self, framebuffer: Framebuffer) -> SinkBuffer:
        sink_buffer = framebuffer.sink_buffers[self._index]
        if sink_buffer is None:
            raise RequestError(Errno.EINVAL, "the output cannot show this framebuffer")
        return sink_buffer

    def _part(self, config: SetConfig) -> Part:
        """Return the part of its framebuffer that a configuration shows. Raises RequestError."""
        framebuffer = self._framebuffer(config.fb_cookie)
        self._sink_buffer(framebuffer)
        shape = framebuffer.geometry
        if not (config.x < shape.width and config.y < shape.height) or not (
            1 <= config.width <= shape.width and 1 <= config.height <= shape.height
        ):
            asked = f"{config.width}x{config.height} at {config.x},{config.y}"
            raise RequestError(Errno.EINVAL, f"{asked} of a framebuffer of {shape.width}x{shape.height}")
        # Linux sends the whole framebuffer's size, and where the screen lies in it: what the screen has room for is shown.
        width, height = self.resolution
        return Part(
            config.x,
            config.y,
            min(config.width, shape.width - config.x, width),
            min(config.height, shape.height - config.y, height),
        )
