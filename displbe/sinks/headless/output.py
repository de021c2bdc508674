"""A headless output. It keeps the last frame, and writes it as PNG when it is switched off.

It behaves like a screen: a flip takes effect at the next refresh. A timer makes the refreshes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog
import trio

from displbe.shortage import shortage
from displbe.sinks.base import Allocation, Geometry, Output, Part, SinkBuffer, SinkError, memory_of
from displbe.sinks.flip import Flip, FlipClock
from displbe.sinks.picture import image
from displbe.threads import run_in_thread
from displbe.wire.errors import from_host
from displbe.xen.memory import PAGE_SIZE, Mapping, Memory
from displbe.xen.port import GuestBuffer

from .settings import HeadlessSettings

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["HeadlessOutput"]

LATE: Final = 3.0
"""Limit for a flip in seconds: longer than the longest refresh period."""
SMALL: Final = 65536
"""Bytes of a picture for which the guest is not charged: each of its connectors is charged with more (backend.quota.CHARGES)."""
_log = structlog.get_logger("displbe.headless")


class _Frame(SinkBuffer):
    path = "copy"
    reason = "there is no screen"

    def __init__(
        self, memory: Memory, geometry: Geometry, forget: Callable[[_Frame], Coroutine[None, None, None]]
    ) -> None:
        self.memory = memory
        self.geometry = geometry
        self._forget = forget

    async def aclose(self) -> None:
        with trio.CancelScope(shield=True):
            await self._forget(self)


def _image(frame: _Frame, part: Part) -> Image.Image:
    """Return a private copy of a part's pixels. Raises Unmapped."""
    with frame.memory.borrow() as view:
        return image(view, frame.geometry, part)


class _Memory(Allocation):
    """Plain memory in place of a card's memory. Its fd is a memfd, which only the simulated Xen accepts. Raises OSError."""

    def __init__(self, pages: int) -> None:
        self.fd = os.memfd_create("displbe", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self.fd, pages * PAGE_SIZE)
            self.memory: Mapping = Mapping(self.fd, [(0, pages * PAGE_SIZE)], writable=False)
        except OSError:
            os.close(self.fd)
            raise

    def close(self, wait: float = 0.0) -> bool:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
        return self.memory.close(wait)


class HeadlessOutput(Output):
    """An output in memory. `on_release` is called when it is free again."""

    def __init__(self, name: str, settings: HeadlessSettings, clock: FlipClock, on_release: Callable[[], None]) -> None:
        super().__init__(name)
        self._directory = settings.directory
        self._on_release = on_release
        self._shown: _Frame | None = None
        """The frame that a monitor would show; None: the output is off."""
        self._next: _Frame | None = None
        """The frame of the flip under way."""
        self._flip = Flip(clock, self._on_refresh, late=LATE)
        self._flip.period = 1 / settings.refresh
        self._part = Part(0, 0, 0, 0)
        self._last: Image.Image | None = None
        """A copy of the frame that was shown last."""
        self._uncharge: Callable[[], None] = lambda: None
        """Takes the charge for that copy back."""
        self._copying = trio.Lock()
        """Held while a worker thread reads a frame."""
        self.reason = "off"

    @property
    def flips(self) -> int:
        """The number of flips that were shown."""
        return self._flip.shown

    async def attach(self, buffer: GuestBuffer, geometry: Geometry) -> SinkBuffer:
        return _Frame(await memory_of(buffer), geometry, self._forget)

    async def enable(self, buffer: SinkBuffer, part: Part) -> None:
        assert isinstance(buffer, _Frame)
        self._check_claimed()
        self.refresh()  # a flip under way comes before this frame
        self._shown = buffer
        self._part = part
        self.path, self.reason = "copy", "there is no screen"
        await trio.lowlevel.checkpoint()

    async def disable(self) -> None:
        if self.is_released:
            await trio.lowlevel.checkpoint()
            return
        self.refresh()
        await self._take_off()
        if self._directory:
            try:
                await run_in_thread(self.write, Path(self._directory) / f"{self.name}.png")
            except OSError as error:
                _log.warning("the picture of the last frame was not written", output=self.name, reason=str(error))

    def flip(self, buffer: SinkBuffer, token: int) -> None:
        assert isinstance(buffer, _Frame)
        self._check_claimed()
        self._next = buffer
        self._flip.on_ready(self._flip.begin(token))

    def refresh(self) -> None:
        """Refresh now: show the frame of the flip under way, if there is one."""
        self._flip.end()

    def _on_refresh(self, token: int) -> None:
        """Show the frame of the flip that has ended, unless the guest has taken it back."""
        if self._next is not None:
            self._shown, self._next = self._next, None
        self.flipped(token)

    async def _forget(self, frame: _Frame) -> None:
        """Release a frame: end a flip to it, and copy it if it is on the screen. Nothing reads its memory afterwards."""
        if self._next is frame:
            self._next = None
            self._flip.end()
        await self._take_off(frame)

    async def _take_off(self, frame: _Frame | None = None) -> None:
        """Take the frame off the screen if it is this one; None: whichever it is. A worker thread copies it first: frames are large."""
        async with self._copying:
            shown = self._shown
            if shown is None or frame not in (None, shown):
                return
            self._uncharge()
            try:
                size = 4 * self._part.width * self._part.height
                if size > SMALL:
                    self._uncharge = self.copies.charge(size)
                self._last = await run_in_thread(_image, shown, self._part)
            except OSError as error:  # no thread or no memory
                self._last = None
                self._uncharge()
                _log.warning("the picture of the last frame was not kept", output=self.name, reason=shortage(error))
            if self._shown is shown:  # no flip has replaced it meanwhile
                self._shown, self.path, self.reason = None, "", "off"

    async def edid(self) -> bytes | None:
        await trio.lowlevel.checkpoint()
        return None

    async def allocate(self, pages: int) -> Allocation:
        await trio.lowlevel.checkpoint()
        try:
            return _Memory(pages)
        except OSError as error:
            raise SinkError(from_host(error.errno), f"cannot allocate memory: {error.strerror}") from error

    async def release(self) -> None:
        self._ignore_flips()
        try:
            await self.disable()
        finally:
            self.is_released = True
            self._uncharge()
            self._on_release()

    def picture(self) -> Image.Image | None:
        """Return a picture of the frame on the screen, else of the last frame; None if there has been no frame."""
        if self._shown is not None:
            self._last = _image(self._shown, self._part)
        return self._last

    def write(self, path: Path) -> None:
        """Write `picture` as PNG, if there is one. The file gets its name when it is complete."""
        picture = self.picture()
        if picture is not None:
            part = path.with_suffix(".part")
            picture.save(part, "PNG")
            os.replace(part, path)
