"""The task that keeps a connector's window on the X server, and copies the guest's frames into it. It always copies the newest frame, once
the server has read the previous one.

The window lives as long as the guest's device, which the toolstack creates and removes, and over the guest's reboots (sinks.window_queue).
It is black while the guest shows nothing. Window managers focus and raise a window that is mapped; therefore nothing that the guest does
maps it.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, Protocol

import structlog
import trio
import xcffib

from displbe.shortage import shortage
from displbe.sinks.base import CopyMemory, DeviceConnector, Geometry, Part, SinkBuffer
from displbe.sinks.redraw import RedrawWatch
from displbe.threads import run_in_thread
from displbe.xen.memory import Memory, Unmapped

from .desktop import Desktop
from .window import Window, WindowState
from .window_flips import WindowFlips

__all__ = ["Frame", "Painter", "Viewer", "WindowWish"]

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


class Viewer(Protocol):
    """The output of a connected guest, which is told what becomes of its frames."""

    def on_visibility(self) -> None:
        """Take note that the window has become visible or hidden, or that the server has come or gone."""

    def on_monitors(self) -> None:
        """Take note that the server has other monitors."""

    def on_read(self, serial: int | None) -> None:
        """Take note that the server has read the frame of the flip with this serial number, or has it already, or cannot show its format.

        Called once for each flip; with None for a frame that the guest drew without flipping.
        """


class WindowWish(enum.Enum):
    """Whether there is to be a window while there is a server."""

    OPEN = "open"
    """There is a window on each server that comes."""
    TAKEN_AWAY = "taken away"
    """The user has closed the window, or another X client has destroyed it. Only the operator opens it again."""


class Painter:
    """Keeps a connector's window on the current X server and draws the guest's newest frame into it.

    The window fills the monitor that `[x11.outputs]` names for the connector.

    It has nineteen attributes: the window, the guest's frame in it, the obstacle for the output's `reason`, and the task.
    """

    def __init__(self, desktop: Desktop, connector: DeviceConnector) -> None:
        self.wish = WindowWish.OPEN
        self.newest_serial = 0
        """The serial number of the newest flip, over all connections of the guest."""
        self.obstacle = ""
        """Why the frame cannot be copied: there is no memory, file or thread for it. It is tried again."""
        self._desktop = desktop
        self._connector = connector
        self._size = connector.width, connector.height
        """The size of a new window: that of the newest picture, at first the connector's."""
        self._seat = desktop.seats.window(connector.claimant.domid, connector.name)
        self._seat.on_change = self._on_seat_change
        self._viewer: Viewer | None = None
        """The output of the connected guest; None: the guest is not connected."""
        self._log = structlog.get_logger("displbe.x11").bind(window=self._title)
        self._window: Window | None = None
        self._frame: Frame | None = None
        """The newest frame; None: the guest has taken it back, and the server's copy stays on the screen."""
        self._part: Part | None = None
        """The part of the frames that is shown; None: the screen is off."""
        self._serial: int | None = None
        """The serial number of the newest flip, until `on_read` has been called for it."""
        self._steady = WindowFlips(connector.name, self._on_steady)
        self._watch = RedrawWatch(FASTEST_LOOK, self._since_steady)
        self._is_drawing = True
        """Whether the task uses the window."""
        self._wanted = trio.Event()
        self._wanted.set()  # there may be a server already
        self._copying = trio.Lock()
        """Held while a worker thread reads a frame."""
        self._scope = trio.CancelScope()

    @property
    def _title(self) -> str:
        claimant = self._connector.claimant
        return f"{claimant.name or f'guest {claimant.domid}'}: {self._connector.name}"

    def attach(self, viewer: Viewer) -> None:
        """Show the frames of this output: the guest has connected."""
        self._viewer = viewer
        self._seat.attach()

    def detach(self) -> None:
        """Stay black: the guest's connection has ended."""
        self._viewer = None
        self._seat.detach()

    def move(self, connector: DeviceConnector) -> None:
        """Keep the window for this connector, which the toolstack has created after the window's own one was gone: the guest has rebooted.
        The window stays where it is, or closed if its user has taken it away, and is black in the new connector's size.
        """
        self._connector = connector
        self._size = connector.width, connector.height
        self._seat.moved(connector.claimant.domid, connector.name)
        self._tell_window(partial(Window.resize, picture=self._size))

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
        """Show this part of the frame."""
        self._frame, self._part = frame, part
        self._size = part.width, part.height
        self.wake()

    def flip(self, frame: Frame, serial: int) -> None:
        """Show another frame."""
        self._frame, self._serial = frame, serial
        self.newest_serial = serial
        window, part = self._window, self._part
        if (
            self._is_drawing
            or window is None
            or part is None
            or self._wanted.is_set()
            or self.obstacle
            or window.server is not self._desktop.server
            or not self._steady.start(window, frame.memory, frame.geometry, part, serial, self._desktop.clock.now())
        ):
            self.wake()

    def _on_steady(self, serial: int) -> None:
        """The server has read the frame of this flip, or has it already."""
        if self._serial == serial:
            self._serial = None
        if self._viewer is not None:
            self._viewer.on_read(serial)

    def _since_steady(self) -> float:
        return self._desktop.clock.now() - self._steady.began

    def blank(self) -> None:
        """Make the window black."""
        self._frame = self._part = None
        self.wake()

    def on_server(self) -> None:
        """Take note that a server has been found, or that the connection to it is lost."""
        if self._desktop.server is None and self._window is not None:
            self._window.lose()
        self._changed()

    def _note_wish(self, window: Window) -> None:
        """Take note if the user has taken the window away."""
        if window.is_taken_away:
            self.wish = WindowWish.TAKEN_AWAY

    def reopen(self) -> None:
        """Open the window again, which its user has closed or iconified."""
        self.wish = WindowWish.OPEN
        self._tell_window(Window.show)
        self.wake()

    def follow_monitors(self) -> None:
        """Follow the server's monitors: they have changed."""
        self._tell_window(Window.follow_monitors)
        if self._viewer is not None:
            self._viewer.on_monitors()

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
        await self._steady.copied()

    def stop(self) -> None:
        """End `run`, now or as soon as it starts: the device is gone."""
        self._seat.close()
        self._scope.cancel()

    def _on_seat_change(self) -> None:
        self._tell_window(Window.on_seat_change)

    def _tell_window(self, what: Callable[[Window], None]) -> None:
        """Call a method of the window, if there is one."""
        if self._window is not None:
            try:
                what(self._window)
            except xcffib.XcffibException as error:  # Server.serve is about to report it
                self._log.debug("X server lost", reason=str(error))

    # The task

    async def run(self) -> None:
        """Draw until stopped, then close the window."""
        try:
            with self._scope:
                await self._draw()
        finally:
            self._is_drawing = True
            with trio.CancelScope(shield=True):
                await self._steady.close()
                if self._window is not None:
                    await self._window.close()

    async def _draw(self) -> None:
        while True:
            watching = self._frame is not None and self.visible
            self._is_drawing = False
            with trio.move_on_at(self._watch.next_look() if watching else float("inf")):
                await self._wanted.wait()
            wanted = self._wanted.is_set()
            if not wanted and (not self._watch.is_due() or self._is_looking()):
                continue
            self._wanted = trio.Event()
            self._is_drawing = True
            await self._steady.finished()
            changed = await self._update()
            self._watch.looked(redrawn=wanted or changed)

    def _is_looking(self) -> bool:
        """Let the thread look whether the guest has drawn without flipping. Return False if this task has to look."""
        window, frame, part = self._window, self._frame, self._part
        if window is None or frame is None or part is None or window.server is not self._desktop.server:
            return False
        if not self._steady.look(window, frame.memory, frame.geometry, part, self.wake):
            return False
        self._watch.looked(redrawn=False)
        return True

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
        if changed and not window.is_gone:
            await window.put()
        if self._serial == serial:
            self._serial = None
        if self._viewer is not None and (changed or serial is not None):
            self._viewer.on_read(serial)
        return changed

    def _meet(self, obstacle: str) -> None:
        """Take note of what keeps the frame from being copied; empty: nothing does."""
        if obstacle != self.obstacle:
            self.obstacle = obstacle
            if obstacle:
                self._log.warning("the frame cannot be copied: trying again", reason=obstacle)
            if self._viewer is not None:
                self._viewer.on_visibility()

    async def _current_window(self) -> Window | None:
        """Return the window on the current server; make it if there is none. None: there is no server, or the user has taken the window
        away.
        """
        window = self._window
        if window is not None and window.state is WindowState.DESTROYED:
            self._window = None
            await window.close()
        elif window is not None and window.server is not self._desktop.server:
            self._window = None
            await window.forget()
        server = self._desktop.server
        if self._window is None and server is not None and self.wish is WindowWish.OPEN:
            settings = self._desktop.settings
            monitor = settings.outputs.get(self._connector.name, "")
            self._window = Window(server, self._title, self._size, settings, monitor, self._seat, self._changed)
        return self._window

    def _changed(self) -> None:
        """The window has become visible or hidden, or the server has come or gone."""
        if self._window is not None:
            self._note_wish(self._window)
        if self._viewer is not None:
            self._viewer.on_visibility()
        self.wake()
