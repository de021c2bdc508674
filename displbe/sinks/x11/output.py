"""One connector's picture in a window.

A task of its own brings frames to the window: the newest one, when the server has read the one before. A flip completes at the first
refresh after that; or by the timer alone where nothing can be seen, or the server is late, which is none of the guest's business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import structlog
import trio
import xcffib

from displbe.sinks.base import Allocation, Claimant, Geometry, Output, Part, SinkBuffer, SinkError, view_of
from displbe.wire.errors import Errno
from displbe.wire.formats import fourcc_name
from displbe.xen.port import GuestBuffer

from .server import LAYOUTS
from .window import Window

if TYPE_CHECKING:
    from .sink import X11Sink

__all__ = ["X11Output"]

LATE: Final = 0.5
"""Seconds after which a flip is completed although the server has not read the frame: the guest waits 3.1 s."""
FASTEST_LOOK: Final = 1 / 30
SLOWEST_LOOK: Final = 0.2
"""Seconds between two looks at what the guest draws without flipping: while it does, and when it has not for a while."""
AFTER_MISTAKE: Final = 1.0


class _Frame(SinkBuffer):
    path = "copy"
    reason = "an X server maps no guest's pages"

    def __init__(self, output: X11Output, view: memoryview, geometry: Geometry) -> None:
        self.view = view
        self.geometry = geometry
        self._output = output

    async def aclose(self) -> None:
        await self._output.forget(self)


class X11Output(Output):
    """A claimed output."""

    def __init__(self, sink: X11Sink, name: str, claimant: Claimant) -> None:
        super().__init__(name)
        self.reason = "off"
        self.shown = 0
        """Flips whose frames the server has read."""
        self.late = 0
        """Flips that were completed although it had not."""
        self._sink = sink
        self._claimant = claimant
        self._log = structlog.get_logger("displbe.x11").bind(connector=name, domid=claimant.domid, guest=claimant.name)
        self._window: Window | None = None
        self._frame: _Frame | None = None
        self._part: Part | None = None
        """None: off."""
        self._black = True
        self._reveal = False
        self._token: int | None = None
        self._since = 0.0
        self._serial = 0
        self._read = 0
        """The serial number of the newest flip that the server has read."""
        self._stalled = False
        self._wanted = trio.Event()
        # Held while a frame is copied: its pages stay that long.
        self._copying = trio.Lock()
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self._started = False

    @property
    def title(self) -> str:
        """The window's."""
        return f"{self._claimant.name or f'guest {self._claimant.domid}'}: {self.name}"

    # What the guest asks for

    async def attach(self, buffer: GuestBuffer, geometry: Geometry) -> SinkBuffer:
        server = self._sink.server
        if geometry.fourcc not in (LAYOUTS if server is None else server.formats):
            raise SinkError(Errno.EINVAL, f"an X server cannot show {fourcc_name(geometry.fourcc)}")
        return _Frame(self, await view_of(buffer), geometry)

    async def enable(self, buffer: SinkBuffer, part: Part) -> None:
        assert isinstance(buffer, _Frame)
        self._complete()
        self._frame, self._part = buffer, part
        self._reveal = True
        self.wake()
        await trio.lowlevel.checkpoint()

    async def disable(self) -> None:
        self._complete()
        self._frame = self._part = None
        self.wake()
        await trio.lowlevel.checkpoint()

    def flip(self, buffer: SinkBuffer, token: int) -> None:
        assert isinstance(buffer, _Frame)
        if self._part is None:
            raise SinkError(Errno.EINVAL, f"{self.name} is off")
        self._frame, self._token = buffer, token
        self._serial += 1
        self._since = trio.current_time()
        self.wake()
        self._sink.tick_soon()

    async def forget(self, frame: _Frame) -> None:
        """The guest takes a buffer back. The server has a copy of the last frame, which stays."""
        if self._frame is frame:
            self._frame = None
            self._complete()
        async with self._copying:
            pass

    async def edid(self) -> bytes | None:
        await trio.lowlevel.checkpoint()
        return None

    async def allocate(self, pages: int) -> Allocation:
        await trio.lowlevel.checkpoint()
        raise SinkError(Errno.EOPNOTSUPP, "a window has no memory to give")

    async def release(self) -> None:
        self.flipped = lambda token: None
        self._token = None
        self._scope.cancel()
        if self._started:
            await self._ended.wait()
        self._sink.outputs.pop(self.name, None)

    # Flips

    def tick(self) -> bool:
        """A refresh. Whether a flip still waits for one."""
        if self._token is None:
            return False
        window = self._window
        seen = window is not None and window.visible and window.server is self._sink.server and not self._stalled
        if self._read == self._serial:
            self.shown += 1
        elif seen:
            if trio.current_time() - self._since < LATE:
                return True
            self._stalled = True
            self.late += 1
            self._log.warning("the X server is late: flips complete without it")
        self._complete()
        return False

    def _complete(self) -> None:
        token, self._token = self._token, None
        if token is not None:
            self.flipped(token)

    # The window

    def wake(self) -> None:
        """There is something to do."""
        self._wanted.set()

    def lose(self) -> None:
        """The connection is lost."""
        if self._window is not None:
            self._window.lose()
        self.wake()

    async def run(self) -> None:
        """The task that brings frames to the window, until the output is given back."""
        self._started = True
        try:
            with self._scope:
                await self._bring()
        finally:
            if self._window is not None:
                self._window.close()
            self._ended.set()

    async def _bring(self) -> None:
        pause = FASTEST_LOOK
        while True:
            looks = self._frame is not None and self._window is not None and self._window.visible
            with trio.move_on_after(pause if looks else float("inf")):
                await self._wanted.wait()
            asked = self._wanted.is_set()
            self._wanted = trio.Event()
            try:
                changed = await self._update()
            except xcffib.XcffibException as error:  # the connection is lost, which the sink is about to see
                self._log.debug("X server lost", reason=str(error))
                changed = False
            except Exception:  # a mistake of ours ends neither the sink nor the guest
                self._log.exception("window failed")
                await trio.sleep(AFTER_MISTAKE)
                changed = True
            self.path, self.reason = self._how()
            pause = FASTEST_LOOK if asked or changed else min(SLOWEST_LOOK, pause * 1.25)

    def _how(self) -> tuple[str, str]:
        """The path and its reason."""
        if self._part is None:
            return "", "off"
        if self._sink.server is None:
            return "", "there is no X server"
        if self._window is None or not self._window.visible:
            return "", "the window is closed, or an icon"
        return _Frame.path, _Frame.reason

    async def _update(self) -> bool:
        """Make the window show what the guest shows. Whether that was something else than before."""
        window = self._have_window()
        if window is None:
            return False
        part = self._part
        if part is None:
            if not self._black:
                self._black = True
                window.blank()
            return False
        if self._reveal:
            self._reveal = False
            window.show()
        if not window.visible:
            return False
        async with self._copying:
            frame, serial = self._frame, self._serial
            if frame is None or self._part is not part:
                return False
            if not window.fit(frame.geometry.fourcc, part):
                self._read = serial
                return False
            changed = await trio.to_thread.run_sync(window.take, frame.view, frame.geometry, part)
        if changed and window.server is self._sink.server:
            self._black = False
            await window.put()
        self._read = serial
        self._stalled = False
        return changed

    def _have_window(self) -> Window | None:
        """The window on the server that is there now."""
        server = self._sink.server
        if self._window is not None and self._window.server is not server:
            self._window.forget()
            self._window = None
        if self._window is None and server is not None and self._part is not None:
            settings = self._sink.settings
            self._window = Window(
                server,
                self.title,
                (self._part.width, self._part.height),
                scale=settings.scale,
                fullscreen=settings.fullscreen,
                on_close=settings.on_close,
                tell=lambda event: self._sink.seats.tell(self._claimant.domid, self.name, event),
                changed=self.wake,
            )
            self._black = True
        return self._window
