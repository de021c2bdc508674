"""The task that copies an output's frames into its window. It always copies the newest frame, once the server has read the previous one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import structlog
import trio
import xcffib

from displbe.shortage import shortage
from displbe.sinks.base import CopyMemory, Geometry, Part, SinkBuffer
from displbe.sinks.redraw import RedrawWatch
from displbe.sinks.seat import WindowListeners
from displbe.threads import run_in_thread
from displbe.xen.memory import Memory, Unmapped

from .desktop import Desktop
from .window import Window, WindowState

__all__ = ["Frame", "Painter"]

FASTEST_LOOK: Final = 30.0
"""Maximum number of times per second that the frame is compared with its copy, while the guest draws without flipping."""
AFTER_ERROR: Final = 1.0
"""Seconds before the next attempt after an unexpected error."""


class Frame(SinkBuffer):
    """A guest's framebuffer. `forget` returns when nothing reads its memory any more."""

    path = "copy"
    reason = "X servers cannot map guest pages"

    def __init__(
        self,
        memory: Memory,
        geometry: Geometry,
        forget: Callable[[Frame], Awaitable[None]],
        copies: CopyMemory = CopyMemory(),  # noqa: B008
    ) -> None:
        self.memory = memory
        self.geometry = geometry
        self.copies = copies
        """What is charged for the memory of copies."""
        self._forget = forget

    async def aclose(self) -> None:
        await self._forget(self)


class Painter:
    """Keeps an output's window on the current X server and draws the guest's newest frame into it.

    The window fills the monitor of the name `monitor`, if it is not empty. Input events go to `seat`. `on_visibility` is called when the
    window becomes visible and when it no longer is. `on_read` is called once for each flip, with its serial number, when the server has
    read its frame, or has it already, or cannot show its format; and with None when the server has read a frame that the guest drew
    without flipping.

    It has seventeen attributes: the window's name, monitor and seat are kept until there is a server, and the obstacle for the output's
    `reason`.
    """

    def __init__(
        self,
        desktop: Desktop,
        title: str,
        monitor: str,
        *,
        seat: WindowListeners,
        on_visibility: Callable[[], None],
        on_read: Callable[[int | None], None],
    ) -> None:
        self._desktop = desktop
        self._title = title
        self.obstacle = ""
        """Why the frame cannot be copied: there is no memory, file or thread for it. It is tried again."""
        self._monitor = monitor
        self._seat = seat
        self._on_visibility = on_visibility
        self._on_read = on_read
        seat.on_change = self._on_seat_change
        self._log = structlog.get_logger("displbe.x11").bind(window=title)
        self._window: Window | None = None
        self._frame: Frame | None = None
        """The newest frame; None: the guest has taken it back, and the server's copy stays on the screen."""
        self._part: Part | None = None
        """The part of the frames that is shown; None: the screen is off."""
        self._serial: int | None = None
        """The serial number of the newest flip, until `on_read` has been called for it."""
        self._watch = RedrawWatch(FASTEST_LOOK)
        self._wanted = trio.Event()
        self._copying = trio.Lock()
        """Held while a worker thread reads a frame."""
        self._scope = trio.CancelScope()
        self._stopped = trio.Event()
        self._stopped.set()

    @property
    def visible(self) -> bool:
        """Whether the window is on the screen and frames can be copied into it."""
        return self._window is not None and self._window.state is WindowState.VISIBLE and not self.obstacle

    @property
    def is_unread(self) -> bool:
        """Whether the server has not read the frame that it was last told to read."""
        return self._window is not None and self._window.is_unread

    @property
    def complaint(self) -> str:
        """Why the window is not where the configuration wants it; empty: it is, or there is no window."""
        return self._window.complaint if self._window is not None else ""

    # Called by the output, without waiting

    def show(self, frame: Frame, part: Part) -> None:
        """Show this part of the frame; map the window if its user has closed it."""
        self._frame, self._part = frame, part
        if self._window is not None:
            try:
                self._window.show()
            except xcffib.XcffibException as error:  # Server.serve is about to report it
                self._log.debug("X server lost", reason=str(error))
        self.wake()

    def flip(self, frame: Frame, serial: int) -> None:
        """Show another frame."""
        self._frame, self._serial = frame, serial
        self.wake()

    def blank(self) -> None:
        """Make the window black."""
        self._frame = self._part = None
        self.wake()

    def lose(self) -> None:
        """Take note that the connection to the server is lost."""
        if self._window is not None:
            self._window.lose()
        self.wake()

    def follow_monitors(self) -> None:
        """Follow the server's monitors: they have changed."""
        if self._window is not None:
            try:
                self._window.follow_monitors()
            except xcffib.XcffibException as error:  # Server.serve is about to report it
                self._log.debug("X server lost", reason=str(error))

    def wake(self) -> None:
        """Wake the task: there may be something to draw."""
        self._wanted.set()

    def forget(self, frame: Frame) -> bool:
        """Do not draw this frame any more. Return whether it was the newest one. A copy may still be under way: see `copied`."""
        newest = self._frame is frame
        if newest:
            self._frame = None
        return newest

    async def copied(self) -> None:
        """Return when no worker thread reads a frame."""
        async with self._copying:
            pass

    async def stop(self) -> None:
        """End `run`, now or as soon as it starts."""
        self._seat.close()
        self._scope.cancel()
        await self._stopped.wait()

    def _on_seat_change(self) -> None:
        if self._window is not None and self._window.state is not WindowState.LOST:
            try:
                self._window.follow_seat()
            except xcffib.XcffibException as error:  # Server.serve is about to report it
                self._log.debug("X server lost", reason=str(error))

    # The task

    async def run(self) -> None:
        """Draw until stopped, then close the window."""
        self._stopped = trio.Event()
        try:
            with self._scope:
                await self._draw()
        finally:
            if self._window is not None:
                with trio.CancelScope(shield=True):
                    await self._window.close()
            self._stopped.set()

    async def _draw(self) -> None:
        while True:
            watching = self._frame is not None and self.visible
            with trio.move_on_after(self._watch.pause if watching else float("inf")):
                await self._wanted.wait()
            wanted = self._wanted.is_set()
            self._wanted = trio.Event()
            changed = await self._update()
            self._watch.looked(redrawn=wanted or changed)

    async def _update(self) -> bool:
        """Bring the window up to date. Return whether its content has changed."""
        try:
            window = await self._current_window()
            if window is None:
                return False
            if self._part is None:
                await window.blank()
                return False
            return window.state is WindowState.VISIBLE and await self._put(window, self._part)
        except xcffib.XcffibException as error:  # Server.serve is about to report it
            self._log.debug("X server lost", reason=str(error))
            return False
        except OSError as error:
            self._meet(shortage(error))
            await trio.sleep(AFTER_ERROR)
            self.wake()
            return False
        except Exception:  # a bug here must end neither the sink nor the guest
            self._log.exception("cannot draw into the window")
            await trio.sleep(AFTER_ERROR)
            return True

    async def _put(self, window: Window, part: Part) -> bool:
        """Draw the newest frame. Return whether it differs from the one in the window."""
        async with self._copying:
            frame, serial = self._frame, self._serial
            if frame is None or self._part is not part:
                return False
            try:
                prepared = await window.prepare(frame.geometry.fourcc, part, frame.copies)
                changed = prepared and await run_in_thread(window.copy, frame.memory, frame.geometry, part)
            except Unmapped:  # the guest has taken the frame back
                return False
        self._meet("")
        if changed and window.state is not WindowState.LOST:
            await window.put()
        if self._serial == serial:
            self._serial = None
        if changed or serial is not None:
            self._on_read(serial)
        return changed

    def _meet(self, obstacle: str) -> None:
        """Take note of what keeps the frame from being copied; empty: nothing does."""
        if obstacle != self.obstacle:
            self.obstacle = obstacle
            if obstacle:
                self._log.warning("the frame cannot be copied: trying again", reason=obstacle)
            self._on_visibility()

    async def _current_window(self) -> Window | None:
        """Return the window on the current server; make it if the screen is on and there is none. None: there is no window."""
        if self._window is not None and self._window.server is not self._desktop.server:
            window, self._window = self._window, None
            await window.forget()
        server = self._desktop.server
        if self._window is None and server is not None and self._part is not None:
            size = self._part.width, self._part.height
            settings = self._desktop.settings
            self._window = Window(server, self._title, size, settings, self._monitor, self._seat, self._changed)
        return self._window

    def _changed(self) -> None:
        """The window has become visible, or hidden."""
        self._on_visibility()
        self.wake()
