"""The screen of one connector: SET_CONFIG and PG_FLIP, and blanking by the operator.

The guest's configuration and the state of the output are separate. While the operator has blanked the screen, the guest goes on setting
modes and flipping as if the screen were on, and does not notice.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final

import msgspec
import trio

from displbe.backend.quota import TokenBucket
from displbe.ops.text import escape
from displbe.sinks.base import Geometry, Output, Part, SinkBuffer, SinkError, SteadyScreen
from displbe.sinks.flip import Flip, FlipClock
from displbe.wire.displif import SetConfig
from displbe.wire.errors import Errno, RequestError
from displbe.wire.formats import fourcc_name
from displbe.xen.memory import PrivateMemory

from .buffers import Buffers, Framebuffer
from .events import FlipEvents

__all__ = ["Screen", "ScreenState", "modeset_limit"]

MODESET_BURST: Final = 8
"""Mode changes that a connector gets before `modesets-per-second` applies."""
MODESET_WAIT: Final = 2.0
"""Seconds that a guest's SET_CONFIG may be delayed; its response is due after 3 s."""
LATE: Final = 2.0
"""Seconds after which a flip ends even if its output is still being switched on; Linux's frontend waits 3.1 s for the event."""


def modeset_limit(per_second: float) -> TokenBucket:
    """Return the limit of a connector's mode changes. It outlasts connections: a guest that connects again has no more of them."""
    return TokenBucket(MODESET_BURST, per_second, trio.current_time)


class ScreenState(enum.Enum):
    """The state of the output."""

    OFF = "off"
    """The output is off, because the guest shows nothing."""
    ON = "on"
    """The output shows what the guest shows."""
    BLANKED = "blanked"
    """The operator has switched the output off. Flips end when the next refresh would be."""
    UNBLANKING = "unblanking"
    """The output is being switched on again by the operator's command. A flip ends when the output is on."""
    CLOSED = "closed"
    """The connection has ended. The output is not used any more: another guest may have claimed it."""


# Looked up once, for the path of every flip: access to an enum's member costs more than a call in Python 3.11.
_ON: Final = ScreenState.ON


class Screen:
    """One connector's output and what it shows. `resolution` is the connector's width and height in pixels; `index` is its number.

    `modesets` limits the guest's mode changes.
    """

    def __init__(
        self,
        output: Output,
        index: int,
        resolution: tuple[int, int],
        buffers: Buffers,
        events: FlipEvents,
        clock: FlipClock,
        modesets: TokenBucket,
        *,
        blanked: bool,
    ) -> None:
        self.output = output
        self.resolution = resolution
        self.state = ScreenState.BLANKED if blanked else ScreenState.OFF
        self.throttled = 0.0
        """Seconds that mode changes had to wait because the guest exceeds its limit."""
        self._index = index
        self._buffers = buffers
        self._events = events
        self._config: SetConfig | None = None
        """The guest's last accepted configuration; None: the guest shows nothing."""
        self._shape: Geometry | None = None
        """The shape of the framebuffer that the output shows. A flip to another shape is a mode change. None: the next flip is a mode
        change. The framebuffer itself may be gone; the output stays on and accepts flips.
        """
        self.newest = 0
        """The cookie of the framebuffer that is shown, or that the flip under way will show."""
        self._blanked_flip = Flip(clock, events.complete, late=LATE)
        """The flip of a guest whose screen is blanked."""
        self._modesets = modesets
        self._switching = trio.Lock()
        """Held while the output is switched on, reconfigured or switched off."""
        self.peek: Callable[[], None] = lambda: None
        """Called before `newest` is used while the pump may serve the flips."""
        output.flipped = events.complete
        output.charge = self._charge

    @property
    def is_blanked(self) -> bool:
        """Whether the operator has switched the output off, or it is being switched on again."""
        return self.state is ScreenState.BLANKED or self.state is ScreenState.UNBLANKING

    def shown(self) -> str:
        """Return the size, format and position of what the guest shows, for the status; empty when it shows nothing."""
        config, shape = self._config, self._shape
        if config is None or shape is None:
            return ""
        size = f"{shape.width}x{shape.height} {escape(fourcc_name(shape.fourcc))}"
        return f"{size} from {config.x},{config.y}" if config.x or config.y else size

    async def picture(self) -> tuple[Geometry, PrivateMemory]:
        """Return a copy of what the guest shows, also of a blanked screen. The caller closes it. Raises RequestError, HypervisorError."""
        self.peek()
        if self._config is None:
            raise RequestError(Errno.EINVAL, "the connector is off")
        part = self._part(self._config_of(self.newest))
        return await self._buffers.picture(self.newest, part)

    # The pump

    def steady(self) -> SteadyScreen | None:
        """Return what the pump needs to serve the flips, which are handed over then; None: it cannot serve them now."""
        if self.state is not _ON or self._shape is None or self._switching.locked():
            return None
        buffers = {
            cookie: buffer
            for cookie, framebuffer in self._buffers.framebuffers.items()
            if framebuffer.geometry == self._shape and (buffer := framebuffer.sink_buffers[self._index]) is not None
        }
        return self.output.steady(buffers, is_pending=self._events.is_pending)

    def flipped_to(self, cookie: int) -> SinkBuffer | None:
        """Take note that the pump has flipped to this framebuffer. Return its buffer of the output; None: it is gone."""
        framebuffer = self._buffers.framebuffers.get(cookie)
        if framebuffer is None:
            return None
        self.newest = cookie
        return framebuffer.sink_buffers[self._index]

    # Flips

    def flip(self, cookie: int) -> bool:
        """PG_FLIP. For a flip that is a mode change, do nothing and return False; the caller then uses `reshape`.

        Raises RequestError, SinkError.
        """
        framebuffer = self._buffers.framebuffers.get(cookie) or self._framebuffer(cookie)
        if self.state is not _ON:
            self._flip_unseen(framebuffer)
        elif framebuffer.geometry is not self._shape and framebuffer.geometry != self._shape:
            return False
        else:
            sink_buffer = framebuffer.sink_buffers[self._index] or self._sink_buffer(framebuffer)
            self._events.begin()
            try:
                self.output.flip(sink_buffer, cookie)
            except SinkError:
                self._events.cancel()
                raise
        self.newest = cookie
        return True

    def _flip_unseen(self, framebuffer: Framebuffer) -> None:
        """Serve a flip while the output is off or not switched on yet. Raises RequestError."""
        self._sink_buffer(framebuffer)
        if self._config is None:
            raise RequestError(Errno.EINVAL, "the connector is off")
        self._events.begin()
        self._blanked_flip.begin(framebuffer.cookie)
        if self.state is ScreenState.BLANKED:
            self._blanked_flip.end_at_refresh()

    async def reshape(self, cookie: int) -> None:
        """PG_FLIP to a framebuffer of another shape. Raises RequestError, SinkError.

        Linux sends only a PG_FLIP when a framebuffer of another size or format is set in the same mode. Xorg does so when a second monitor
        enlarges its screen. For the output this is a mode change; the guest expects an event for it.
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
        """Apply a configuration. Raises RequestError, SinkError; the output then keeps what it shows."""
        self._part(config)
        await self._wait_for_turn()
        async with self._switching:
            await self._show(config)
            self.newest = config.fb_cookie
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
        """Accept a configuration, and show it on the output unless the screen is blanked. Raises RequestError, SinkError."""
        part = self._part(
            config
        )  # checked again: the framebuffer may have been detached, over connector 0, during the wait
        framebuffer = self._framebuffer(config.fb_cookie)
        if self.state is not ScreenState.BLANKED:
            await self.output.enable(self._sink_buffer(framebuffer), part)
        self._config, self._shape = config, framebuffer.geometry

    async def _wait_for_turn(self) -> None:
        """Wait until the guest's limit allows a mode change."""
        await trio.sleep(self._charge())

    def _charge(self) -> float:
        """Charge the guest for a mode change. Return the seconds that the change has to wait."""
        wait = min(self._modesets.take(), MODESET_WAIT)
        self.throttled += wait
        return wait

    # The operator

    async def blank(self) -> None:
        """Switch the output off until `unblank`. The guest does not notice. Do nothing after `close`."""
        async with self._switching:
            self.output.interrupt()
            if self.state is not ScreenState.CLOSED and not self.is_blanked:
                self.state = ScreenState.BLANKED
                await self.output.disable()

    async def unblank(self) -> None:
        """Show the guest's framebuffer on the output again. Raises SinkError; the screen stays blanked then. Do nothing after `close`."""
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
                while self.newest != shown:  # the guest has flipped meanwhile
                    shown = await self._show_newest(RequestError, SinkError)
            finally:
                self.state = ScreenState.OFF if self._config is None else ScreenState.ON
                self._blanked_flip.end()

    async def close(self) -> None:
        """Stop using the output: it is about to be released. Waits for a command of the operator that uses it."""
        async with self._switching:
            self.output.interrupt()
            if self.state is ScreenState.ON:  # the output is switched off: the guest's next mode change waits for that
                self._modesets.take()
            self.state = ScreenState.CLOSED

    async def _show_newest(self, *tolerated: type[Exception]) -> int:
        """Show the newest framebuffer on the output, and return its cookie. After a tolerated error (the framebuffer may be gone), the
        guest's next flip is a mode change and shows its framebuffer.
        """
        newest = self.newest
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
        # Linux sends the size of the whole framebuffer, and the screen's position in it. The part that fits on the screen is shown.
        width, height = self.resolution
        return Part(
            config.x,
            config.y,
            min(config.width, shape.width - config.x, width),
            min(config.height, shape.height - config.y, height),
        )
