"""The flips of a guest that flips steadily. Each is copied by a thread of its own and sent from there on without waking the painter's task.

A flip is steady while the window is visible, its resources fit the frame, and neither the task nor an earlier flip uses them. The task
draws everything else.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from functools import partial
from typing import Final

import structlog
import trio
import xcffib

from displbe.sinks.base import Geometry, Part
from displbe.sinks.copy_thread import CopyThread
from displbe.threads import NoThread
from displbe.xen.memory import Memory, Unmapped

from .window import Window

__all__ = ["WindowFlipState", "WindowFlips"]


class WindowFlipState(enum.Enum):
    """What is under way."""

    IDLE = "idle"
    """Nothing. The task may use the window."""
    COPYING = "copying"
    """The thread copies a frame into the memory that is shared with the server."""
    READING = "reading"
    """The server has been told to read the frame."""


_IDLE: Final = WindowFlipState.IDLE


class WindowFlips:
    """The steady flips of one window. `read` is called with the flip's serial number when the server has read its frame, or has it already.

    `name` names the thread.
    """

    def __init__(self, name: str, read: Callable[[int], None]) -> None:
        self.state = WindowFlipState.IDLE
        self.began = -math.inf
        """When the newest one began, in seconds of trio's clock."""
        self._name = name
        self._read = read
        self._thread: CopyThread | None = None
        self._window: Window | None = None
        self._log = structlog.get_logger("displbe.x11")

    def start(self, window: Window, memory: Memory, geometry: Geometry, part: Part, serial: int, now: float) -> bool:
        """Begin to show a frame. Return False if this flip is not steady: the task has to show it."""
        if self.state is not _IDLE or not window.suits(geometry, part):
            return False
        try:
            self._thread = self._thread or CopyThread(self._name)
        except NoThread:
            return False
        self.state, self._window, self.began = WindowFlipState.COPYING, window, now
        self._thread.do(partial(self._copy, self._thread, window, memory, geometry, part, serial))
        return True

    def _copy(
        self, thread: CopyThread, window: Window, memory: Memory, geometry: Geometry, part: Part, serial: int
    ) -> None:
        """Copy a frame. Runs in the thread."""
        changed: bool | None = None
        try:
            changed = window.copy(memory, geometry, part)
        except Unmapped:  # the guest has taken the frame back, which ends the flip
            pass
        finally:
            thread.tell(partial(self._on_copied, window, serial, changed))

    def _on_copied(self, window: Window, serial: int, changed: bool | None) -> None:
        if changed and not window.is_gone:
            self.state = WindowFlipState.READING
            try:
                window.put_then(partial(self._on_read, serial))
            except xcffib.XcffibException as error:  # Server.serve is about to report it
                self._log.debug("X server lost", reason=str(error))
                self.state = _IDLE
            return
        self.state = _IDLE
        if changed is not None:
            self._read(serial)

    def _on_read(self, serial: int) -> None:
        self.state = _IDLE
        self._read(serial)

    def look(self, window: Window, memory: Memory, geometry: Geometry, part: Part, redrawn: Callable[[], None]) -> bool:
        """Look whether the guest has drawn into the frame that is shown; `redrawn` is called if it has.

        A frame that has not changed does not wake the loop. Return False if the task has to look.
        """
        if self.state is not _IDLE or not window.suits(geometry, part):
            return False
        try:
            thread = self._thread = self._thread or CopyThread(self._name)
        except NoThread:
            return False
        thread.do(partial(self._look, thread, window, memory, geometry, part, redrawn))
        return True

    @staticmethod
    def _look(
        thread: CopyThread,
        window: Window,
        memory: Memory,
        geometry: Geometry,
        part: Part,
        redrawn: Callable[[], None],
    ) -> None:
        """Look at a frame. Runs in the thread."""
        try:
            if not window.has(memory, geometry, part):
                thread.tell(redrawn)
        except Unmapped:  # the guest has taken the frame back
            pass

    async def copied(self) -> None:
        """Return when the thread reads no frame."""
        if self._thread is None or self._thread.resting:
            await trio.lowlevel.checkpoint()
        else:
            await self._thread.idle()

    async def finished(self) -> None:
        """Return when nothing is under way. No flip may begin meanwhile."""
        await self.copied()
        await self._heard()
        if self.state is not _IDLE and self._window is not None:
            await self._window.is_read()

    async def _heard(self) -> None:
        """Return when the loop has heard of the copy that the thread has made."""
        while self.state is WindowFlipState.COPYING:
            await trio.lowlevel.checkpoint()

    async def close(self) -> None:
        """End the thread. Its last frame may be with the server still."""
        if self._thread is not None:
            await self._thread.close()
            await self._heard()
