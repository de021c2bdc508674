"""One connector: its control ring served, its output switched and flipped.

`kicked` is called, not woken, when the guest has notified. It serves fast requests there and then, within a budget; a slow one (it
maps, imports, sets a mode, waits) goes to the connector's own task, and the ring rests until it is answered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, cast

import msgspec
import trio

from displbe.backend.quota import Quota, TokenBucket
from displbe.backend.storms import storm_pause
from displbe.ops import status
from displbe.ops.text import escape
from displbe.sinks.base import Geometry, Output, Part, SinkBuffer, SinkError
from displbe.wire.displif import (
    DbufCreate,
    DbufDestroy,
    FbAttach,
    FbDetach,
    GetEdid,
    PageFlip,
    Request,
    SetConfig,
    decode_request,
    encode_response,
)
from displbe.wire.errors import Errno, FrontendBroken, RequestError
from displbe.wire.formats import fourcc_name
from displbe.wire.ring import BackControlRing, BackEventPage
from displbe.xen.port import EventChannel

from .buffers import Buffers, Framebuffer
from .flips import Flips
from .times import clock
from .trace import Trace

__all__ = ["Connector", "Screen"]

Screen = tuple[str | int, int, int]
"""A guest's name (its domain's number where that is not known), the number of its device, that of the connector."""

MODESET_WAIT: Final = 2.0
"""Seconds that a guest's SET_CONFIG may be held back; its answer is due after 3 s."""
SLOW_COST: Final = 8
"""Requests that a slow one counts for."""
THROTTLED: Final = 0.01
"""Seconds that a ring rests at least whose guest asks for too much: a wake-up for each request would help nobody."""
DARK_PERIOD: Final = 1 / 60
"""Seconds that a flip takes while the operator has switched the screen off."""
STUCK_RETRY: Final = 0.02
"""Seconds between looks at an event page that had no room: its frontend never says that it has read."""

GENERIC: Final = (DbufCreate, DbufDestroy, FbAttach, FbDetach)
"""displif.h: requests on buffers and framebuffers are sent over the ring of connector 0."""


def _ignore(token: int) -> None:
    """A flip of a connection that is over."""


class Connector:
    """Connector `index` of a device. `broken` is told what ends the device; `blanked`: the operator has switched its screen off."""

    def __init__(
        self,
        index: int,
        output: Output,
        buffers: Buffers,
        edid: Callable[[GetEdid], Awaitable[int]],
        resolution: tuple[int, int],
        quota: Quota,
        log: Any,
        broken: Callable[[FrontendBroken], None],
        screen: Screen,
        *,
        blanked: bool,
    ) -> None:
        self.output = output
        self.index = index
        self.screen = screen
        self._buffers = buffers
        self._log = log
        self._broken = broken
        self._config: SetConfig | None = None
        """The last one that was obeyed; None: the connector is off."""
        self._shape: Geometry | None = None
        """Of what is shown. The framebuffer itself may be gone already: the connector stays on, and may be flipped."""
        self._resting = True
        self.at_work = False
        self._edid = edid
        self._resolution = resolution
        self._budget = quota.limits.requests_per_turn
        self._requests = quota.requests
        self._modesets = TokenBucket(8, quota.limits.modesets_per_second, trio.current_time)
        self._spurious = 0
        self._postponed = False
        """Not looked at for `_pause` seconds, notified or not."""
        self._pause = 0.0
        self._rearm_wanted = trio.Event()
        self._seen_waiting: int | None = None
        self.rescued = 0
        self._slow_in, self._slow_out = trio.open_memory_channel[Request](1)
        self._stuck = trio.Event()
        self.trace = Trace()
        self._refusals: Counter[tuple[str, str]] = Counter()
        self._spurious_ever = 0
        self._throttled = 0.0
        self._late_events = 0
        self._error = ""
        self._error_at = 0.0
        self._latest = 0
        """The cookie of the framebuffer that is shown, or will be as soon as the flip under way is done."""
        self._blanked = blanked
        self._dark_flip = 0
        """The cookie of the flip that was accepted while the screen was dark, until its event; 0: there is none."""
        self._dark = trio.Event()
        self._switching = trio.Lock()

    def start(
        self, ring: BackControlRing, channel: EventChannel, events: BackEventPage, event_channel: EventChannel
    ) -> None:
        """Serve what is in the ring from now on."""
        self._ring = ring
        self._channel = channel
        self._flips = Flips(events, event_channel, self._late, self._broken)
        self.output.flipped = self._flips.complete
        self._resting = False
        self.at_work = True

    def stop(self) -> None:
        """Touch the shared pages no more: they are about to go."""
        self._resting = True
        self.at_work = False
        self.output.flipped = _ignore

    def forget(self) -> None:
        """It has ended, and is not looked at any more: its memory goes now, and not when the collector comes to it."""
        self.trace.close()
        self._flips.times.close()

    def _late(self) -> None:
        """The event page has no room."""
        self._late_events += 1
        self._stuck.set()

    def kicked(self) -> bool:
        """The guest has notified: serve. True when the budget is spent and requests may be left."""
        return self._serve(notified=True)

    def resume(self) -> bool:
        """Serve what is there, notified or not. True as `kicked`."""
        return self._serve(notified=False)

    def rescue(self) -> None:
        """A request that still waits since the last look, while nothing keeps us from it: its notification was lost."""
        if self._resting or self._postponed:
            self._seen_waiting = None
            return
        waiting = self._ring.next_waiting()
        if waiting is not None and waiting == self._seen_waiting:
            self.rescued += 1
            self._log.error("a request waited without a notification", rescued=self.rescued)
            self._postpone(0)
        self._seen_waiting = waiting

    def _serve(self, *, notified: bool) -> bool:
        if self._resting or self._postponed:
            return False
        ring = self._ring
        try:
            for turn in range(self._budget):
                slot = ring.take()
                if slot is None:
                    if ring.final_check():
                        continue
                    # After the work: a storm of notifications costs one turn at a time.
                    if notified and turn == 0:
                        self._for_nothing()
                    else:
                        self._channel.rearm()
                    return False
                self._spurious = 0
                self.trace.request(slot)
                request = decode_request(slot)
                if type(request) is PageFlip and not self._reshapes(request):
                    wait = self._requests.take()
                    self._respond(request, self._flip(request))
                elif type(request) in _SLOW:
                    wait = self._requests.take(SLOW_COST)
                    self._resting = True
                    self._slow_in.send_nowait(request)
                else:
                    wait = self._requests.take()
                    self._respond(request, -self._refuse(request, RequestError(Errno.EOPNOTSUPP, "no such operation")))
                if wait:
                    self._throttled += max(wait, THROTTLED)
                    self._postpone(max(wait, THROTTLED))
                if self._resting or wait:
                    return False
        except FrontendBroken as broken:
            self._resting = True
            self._broken(broken)
            return False
        except Exception as error:  # a mistake of ours ends this device, never the task that serves all of them
            self._log.exception("request failed")
            self._resting = True
            self._broken(FrontendBroken(f"internal error: {type(error).__name__}"))
            return False
        return True

    def _for_nothing(self) -> None:
        """A notification without a request."""
        self._spurious += 1
        self._spurious_ever += 1
        if pause := storm_pause(self._spurious):
            self._postpone(pause)
        else:
            self._channel.rearm()

    def _postpone(self, seconds: float) -> None:
        """Look at the ring later, and not before. The port stays masked."""
        self._postponed = True
        self._pause = seconds
        self._rearm_wanted.set()

    async def _rearm_late(self) -> None:
        while True:
            await self._rearm_wanted.wait()
            self._rearm_wanted = trio.Event()
            await trio.sleep(self._pause)
            self._postponed = False
            while self.resume():
                await trio.lowlevel.checkpoint()

    def _respond(self, request: Request, status: int, edid_sz: int = 0) -> None:
        self.trace.answer(status, edid_sz)
        if self._ring.respond(encode_response(request.id, request.operation, status, edid_sz)):
            self._channel.notify()

    def _refuse(self, request: Request, error: RequestError | SinkError) -> Errno:
        self._refusals[type(request).__name__, error.code.name] += 1
        self._error = f"{type(request).__name__}: {error} ({error.code.name})"
        self._error_at = clock()
        self._log.warning(
            "request refused",
            request=type(request).__name__,
            operation=request.operation,
            error=error.code.name,
            reason=str(error),
        )
        return error.code

    def _flip(self, request: PageFlip) -> int:
        """PG_FLIP to a framebuffer of the same shape: 0, or the negative error number."""
        try:
            sink_buffer = self._sink_buffer(self._framebuffer(request.fb_cookie))
            if self._config is None:
                raise RequestError(Errno.EINVAL, "the connector is off")
            self._flips.begin()
            if self._blanked:
                self._dark_flip = request.fb_cookie
                self._dark.set()
            else:
                self._flip_output(sink_buffer, request.fb_cookie)
        except (RequestError, SinkError) as error:
            return -self._refuse(request, error)
        self._latest = request.fb_cookie
        return 0

    def _flip_output(self, sink_buffer: SinkBuffer, cookie: int) -> None:
        try:
            self.output.flip(sink_buffer, cookie)
        except SinkError:
            self._flips.pending = False
            raise

    def _reshapes(self, request: PageFlip) -> bool:
        """Whether this flip changes the shape of what is shown."""
        framebuffer = self._buffers.framebuffers.get(request.fb_cookie)
        return (
            framebuffer is not None
            and self._config is not None
            and framebuffer.geometry != self._shape
            and not self._blanked
        )

    async def _reshape(self, request: PageFlip) -> None:
        """PG_FLIP to a framebuffer of another shape. Raises RequestError, SinkError.

        Linux sends nothing else when a framebuffer of another size or format is set in the same mode, as Xorg does when its
        screen grows by a second monitor: for us that is a mode change, of which the guest expects an event.
        """
        config = self._config_of(request.fb_cookie)
        self._flips.begin()
        try:
            await self._enable(config)
        except BaseException:
            self._flips.pending = False
            raise
        self._flips.complete(request.fb_cookie)

    def _config_of(self, cookie: int) -> SetConfig:
        """The configuration there is, for another framebuffer. Raises RequestError."""
        assert self._config is not None
        shape = self._framebuffer(cookie).geometry
        return msgspec.structs.replace(self._config, fb_cookie=cookie, width=shape.width, height=shape.height)

    def _framebuffer(self, cookie: int) -> Framebuffer:
        framebuffer = self._buffers.framebuffers.get(cookie)
        if framebuffer is None:
            raise RequestError(Errno.ENOENT, "no such framebuffer")
        return framebuffer

    def _sink_buffer(self, framebuffer: Framebuffer) -> SinkBuffer:
        sink_buffer = framebuffer.on[self.index]
        if sink_buffer is None:
            raise RequestError(Errno.EINVAL, "the output cannot show this framebuffer")
        return sink_buffer

    def _trouble(self) -> str:
        """What the operator is to know of its requests."""
        if self.index == 0 and self._buffers.overdue:
            return "DbufDestroy: not answered while the compositor or the card still uses the buffer"
        return self._error

    def _framebuffers(self) -> tuple[status.Framebuffers, ...]:
        attached = (framebuffer.on[self.index] for framebuffer in self._buffers.framebuffers.values())
        ways = Counter((each.path, escape(each.reason)) for each in attached if each is not None)
        return tuple(status.Framebuffers(*way, count) for way, count in sorted(ways.items()))

    def status(self) -> status.ConnectorStatus:
        """What the operator is told."""
        return status.ConnectorStatus(
            index=self.index,
            output=escape(self.output.name),
            resolution="{}x{}".format(*self._resolution),
            shown=self._shown(),
            path=self.output.path,
            reason=escape(self.output.reason),
            framebuffers=self._framebuffers(),
            blanked=self._blanked,
            flips=self._flips.times.status(pending=self._flips.pending),
            requests=self.trace.count,
            refused=self._refusals.total(),
            refusals=tuple(status.Refusal(*kind, count) for kind, count in self._refusals.items()),
            error=escape(self._trouble()),
            error_age=clock() - self._error_at if self._error else None,
            rescued=self.rescued,
            spurious=self._spurious_ever,
            throttled=self._throttled,
            late_events=self._late_events,
        )

    async def picture(self) -> tuple[Geometry, memoryview]:
        """A copy of what the guest shows, whether or not its screen is on. Raises RequestError, HypervisorError."""
        if self._config is None:
            raise RequestError(Errno.EINVAL, "the connector is off")
        part = self._part(self._config_of(self._latest))
        return await self._buffers.picture(self._latest, part)

    def _shown(self) -> str:
        config, shape = self._config, self._shape
        if config is None or shape is None:
            return ""
        size = f"{shape.width}x{shape.height} {escape(fourcc_name(shape.fourcc))}"
        return f"{size} from {config.x},{config.y}" if config.x or config.y else size

    async def run(self) -> None:
        """Serve slow requests, and write events that waited for room, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._deliver_late)
            nursery.start_soon(self._rearm_late)
            nursery.start_soon(self._complete_dark)
            async for request in self._slow_out:
                self._respond(request, *await self._slow(request))
                self._resting = False
                while self.resume():
                    await trio.lowlevel.checkpoint()

    async def _slow(self, request: Request) -> tuple[int, int]:
        """Serve a slow request: its status, and the size of the EDID that was asked for."""
        try:
            if self.index and isinstance(request, GENERIC):
                raise RequestError(Errno.EINVAL, "this request belongs on the ring of connector 0")
            return 0, await _SLOW[type(request)](self, request) or 0
        except (RequestError, SinkError) as error:
            return -self._refuse(request, error), 0

    async def _deliver_late(self) -> None:
        while True:
            await self._stuck.wait()
            self._stuck = trio.Event()
            while not self._flips.deliver():
                await trio.sleep(STUCK_RETRY)

    async def _create(self, request: DbufCreate) -> None:
        await self._buffers.create(request)

    async def _destroy(self, request: DbufDestroy) -> None:
        await self._buffers.destroy(request)

    async def _attach(self, request: FbAttach) -> None:
        await self._buffers.attach(request)

    async def _detach(self, request: FbDetach) -> None:
        await self._buffers.detach(request)

    async def _set_config(self, request: SetConfig) -> None:
        """SET_CONFIG: show a framebuffer, or nothing ("Pass all zeros to reset"). Raises RequestError, SinkError."""
        if request.fb_cookie:
            await self._enable(request)
        elif request != SetConfig(request.id, 0, 0, 0, 0, 0, 0):
            raise RequestError(Errno.EINVAL, "framebuffer cookie 0 in a configuration that is not all zeros")
        elif self._config is not None:
            self._config = self._shape = None
            await self._wait_for_turn()
            async with self._switching:
                self._config = self._shape = None  # `unblank` may have been at work
                await self.output.disable()

    async def _enable(self, config: SetConfig) -> None:
        """Show what a SET_CONFIG says. Raises RequestError, SinkError: what was shown stays."""
        self._part(config)
        await self._wait_for_turn()
        async with self._switching:
            await self._show(config, dark=self._blanked)

    async def _show(self, config: SetConfig, *, dark: bool) -> None:
        part = self._part(config)  # connector 0 may have detached it meanwhile
        framebuffer = self._framebuffer(config.fb_cookie)
        if not dark:
            await self.output.enable(self._sink_buffer(framebuffer), part)
        self._config, self._shape = config, framebuffer.geometry
        self._latest = config.fb_cookie

    async def blank(self) -> None:
        """Switch the screen off, whatever the guest shows, until `unblank`. The guest does not notice."""
        async with self._switching:
            if not self._blanked:
                self._blanked = True
                await self.output.disable()

    async def unblank(self) -> None:
        """Show again what the guest shows. Raises SinkError."""
        async with self._switching:
            if not self._blanked:
                return
            if self._config is not None:
                with self._next_flip_shows(RequestError):
                    await self._show(self._config_of(self._latest), dark=False)
            self._blanked = False  # not before: flips are for the output only when it is on
            if self._dark_flip not in (0, self._latest):  # it came meanwhile; no other comes before its event
                with self._next_flip_shows(RequestError, SinkError):
                    await self._show(self._config_of(self._dark_flip), dark=False)

    @contextmanager
    def _next_flip_shows(self, *errors: type[Exception]) -> Iterator[None]:
        """What cannot be shown now (its framebuffer is gone): the next flip switches the screen on."""
        try:
            yield
        except errors:
            self._shape = None

    async def _complete_dark(self) -> None:
        """Flips of a guest whose screen the operator has switched off are over at the next refresh that there would be."""
        while True:
            await self._dark.wait()
            self._dark = trio.Event()
            await trio.sleep(DARK_PERIOD)
            async with self._switching:  # the screen that is being switched on shows it first
                cookie, self._dark_flip = self._dark_flip, 0
                self._flips.complete(cookie)

    async def _wait_for_turn(self) -> None:
        """Switching on, over or off: each takes the screen its time."""
        wait = min(self._modesets.take(), MODESET_WAIT)
        self._throttled += wait
        await trio.sleep(wait)

    def _part(self, config: SetConfig) -> Part:
        """The part of its framebuffer that a SET_CONFIG shows. Raises RequestError."""
        framebuffer = self._framebuffer(config.fb_cookie)
        self._sink_buffer(framebuffer)
        shape = framebuffer.geometry
        if not (config.x < shape.width and config.y < shape.height) or not (
            1 <= config.width <= shape.width and 1 <= config.height <= shape.height
        ):
            asked = f"{config.width}x{config.height} at {config.x},{config.y}"
            raise RequestError(Errno.EINVAL, f"{asked} of a framebuffer of {shape.width}x{shape.height}")
        # Linux sends the whole framebuffer's size, and where the screen lies in it: what the screen has room for is shown.
        width, height = self._resolution
        return Part(
            config.x,
            config.y,
            min(config.width, shape.width - config.x, width),
            min(config.height, shape.height - config.y, height),
        )

    async def _get_edid(self, request: GetEdid) -> int:
        return await self._edid(request)


_SLOW: Final = cast(
    "dict[type[Any], Callable[[Connector, Any], Awaitable[int | None]]]",
    {
        DbufCreate: Connector._create,
        DbufDestroy: Connector._destroy,
        FbAttach: Connector._attach,
        FbDetach: Connector._detach,
        PageFlip: Connector._reshape,
        SetConfig: Connector._set_config,
        GetEdid: Connector._get_edid,
    },
)
