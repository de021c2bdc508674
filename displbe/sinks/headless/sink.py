"""A sink without a screen. It keeps each output's last frame and writes it as PNG: for CI, demos, boards without a display.

It behaves as a screen does: a flip takes effect at the next refresh, which a timer gives.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import structlog
import trio
from PIL import Image

from displbe.sinks.base import (
    NOBODY,
    Allocation,
    Claimant,
    Geometry,
    Output,
    OutputUnavailable,
    Part,
    Sink,
    SinkBuffer,
    SinkError,
    view_of,
)
from displbe.sinks.flip import Flip, FlipClock
from displbe.sinks.picture import image
from displbe.wire.errors import from_host
from displbe.xen.memory import PAGE_SIZE, Mapping
from displbe.xen.port import GuestBuffer

from .settings import HeadlessSettings

__all__ = ["HeadlessOutput", "HeadlessSink"]

LATE: Final = 3.0
"""Seconds: longer than the longest refresh."""
_log = structlog.get_logger("displbe.headless")


class _Frame(SinkBuffer):
    path = "copy"
    reason = "there is no screen"

    def __init__(self, output: HeadlessOutput, view: memoryview, geometry: Geometry) -> None:
        self.view = view
        self.geometry = geometry
        self._output = output

    async def aclose(self) -> None:
        with trio.CancelScope(shield=True):
            await self._output.forget(self)


class _Memory(Allocation):
    """Plain memory: there is no card whose memory it could be. Its fd is a memfd, which only the simulated Xen takes. Raises OSError."""

    def __init__(self, pages: int) -> None:
        self.fd = os.memfd_create("displbe", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self.fd, pages * PAGE_SIZE)
            self._mapping = Mapping(self.fd, [(0, pages * PAGE_SIZE)], writable=False)
        except OSError:
            os.close(self.fd)
            raise

    def view(self) -> memoryview:
        return self._mapping.view

    def close(self) -> None:
        self._mapping.close()
        os.close(self.fd)


class HeadlessOutput(Output):
    """One output; `shown` is what a monitor would show."""

    def __init__(self, sink: HeadlessSink, name: str) -> None:
        super().__init__(name)
        self._sink = sink
        self._shown: _Frame | None = None
        self._next: _Frame | None = None
        """The frame of the flip under way."""
        self._flip = Flip(sink.clock, self._on_refresh, late=LATE)
        self._flip.period = 1 / sink.settings.refresh
        self._part = Part(0, 0, 0, 0)
        self._last: Image.Image | None = None
        self._copying = trio.Lock()
        self.reason = "off"

    @property
    def flips(self) -> int:
        """Flips that were shown."""
        return self._flip.shown

    async def attach(self, buffer: GuestBuffer, geometry: Geometry) -> SinkBuffer:
        return _Frame(self, await view_of(buffer), geometry)

    async def enable(self, buffer: SinkBuffer, part: Part) -> None:
        assert isinstance(buffer, _Frame)
        self.refresh()  # a flip under way comes before this frame
        self._shown = buffer
        self._part = part
        self.path, self.reason = "copy", "there is no screen"
        await trio.lowlevel.checkpoint()

    async def disable(self) -> None:
        self.refresh()
        await self._take_off()
        if self._sink.settings.directory:
            try:
                await trio.to_thread.run_sync(self.write, Path(self._sink.settings.directory) / f"{self.name}.png")
            except OSError as error:
                _log.warning("cannot write the picture", output=self.name, reason=str(error))

    def flip(self, buffer: SinkBuffer, token: int) -> None:
        assert isinstance(buffer, _Frame)
        self._next = buffer
        self._flip.on_ready(self._flip.begin(token))

    def refresh(self) -> None:
        """Refresh now: a flip under way is shown."""
        self._flip.end()

    def _on_refresh(self, token: int) -> None:
        """Show the frame of the flip that has ended, unless the guest has taken it back."""
        if self._next is not None:
            self._shown, self._next = self._next, None
        self.flipped(token)

    async def forget(self, frame: _Frame) -> None:
        """Keep the picture of a buffer that goes, if it is on the screen; end a flip to it. Nothing reads the buffer afterwards."""
        if self._next is frame:
            self._next = None
            self._flip.end()
        await self._take_off(frame)

    async def _take_off(self, frame: _Frame | None = None) -> None:
        """What is shown (if it is this) goes from the screen; its picture stays. Off the loop: frames are large."""
        async with self._copying:
            shown = self._shown
            if shown is None or frame not in (None, shown):
                return
            self._last = await trio.to_thread.run_sync(image, shown.view, shown.geometry, self._part)
            if self._shown is shown:  # nothing was flipped to meanwhile
                self._shown, self.path, self.reason = None, "", "off"

    async def edid(self) -> bytes | None:
        await trio.lowlevel.checkpoint()
        return None

    async def allocate(self, pages: int) -> Allocation:
        await trio.lowlevel.checkpoint()
        try:
            return _Memory(pages)
        except OSError as error:
            raise SinkError(from_host(error.errno), f"no memory: {error.strerror}") from error

    async def release(self) -> None:
        self._ignore_flips()
        try:
            await self.disable()
        finally:
            self._sink.give_back(self.name)

    def picture(self) -> Image.Image | None:
        """What is shown, or was shown last; None when nothing ever was."""
        if self._shown is not None:
            self._last = image(self._shown.view, self._shown.geometry, self._part)
        return self._last

    def write(self, path: Path) -> None:
        """Write `picture` as PNG, under its name only when it is whole."""
        picture = self.picture()
        if picture is not None:
            part = path.with_suffix(".part")
            picture.save(part, "PNG")
            os.replace(part, path)


class HeadlessSink(Sink):
    """Outputs in memory."""

    wants_dmabuf = False

    def __init__(self, settings: HeadlessSettings) -> None:
        self.settings = settings
        self.outputs: dict[str, HeadlessOutput] = {}
        self.clock = FlipClock()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        if self.settings.directory:
            await trio.Path(self.settings.directory).mkdir(parents=True, exist_ok=True)
        task_status.started()
        await self.clock.run()

    def claim(self, name: str, width: int, height: int, claimant: Claimant = NOBODY) -> Output:
        if self.settings.outputs and name not in self.settings.outputs:
            raise OutputUnavailable(f"no output {name}; there are: {', '.join(self.settings.outputs)}")
        if "/" in name or name.startswith("."):
            raise OutputUnavailable("no output of that name")
        if name in self.outputs:
            raise OutputUnavailable(f"output {name} is taken by another guest")
        output = self.outputs[name] = HeadlessOutput(self, name)
        return output

    def give_back(self, name: str) -> None:
        """An output is free again."""
        del self.outputs[name]

    def claimed(self, name: str) -> Output | None:
        return self.outputs.get(name)
