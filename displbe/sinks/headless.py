"""A sink without a screen: keeps each output's last frame and writes it as PNG. For CI, for demos, for boards without a display.

It shows as a screen does: a flip takes effect at the next refresh, by a timer.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

import structlog
import trio
from PIL import Image

from displbe.wire.errors import from_host
from displbe.xen.memory import PAGE_SIZE, Mapping
from displbe.xen.port import GuestBuffer

from .base import (
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
from .picture import image

__all__ = ["HeadlessOutput", "HeadlessSettings", "HeadlessSink"]

_log = structlog.get_logger("displbe.headless")


class HeadlessSettings(Protocol):
    """`[headless]` of the configuration."""

    @property
    def refresh(self) -> float:
        """Refreshes per second."""

    @property
    def directory(self) -> str:
        """Where the last frame of each output is written as NAME.png when it is switched off; empty: nowhere."""

    @property
    def outputs(self) -> list[str]:
        """The outputs there are; empty: as many as are asked for, under any name."""


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
        self._next: tuple[_Frame, int] | None = None
        self._part = Part(0, 0, 0, 0)
        self._last: Image.Image | None = None
        self._copying = trio.Lock()
        self.reason = "off"
        self.flips = 0

    async def attach(self, buffer: GuestBuffer, geometry: Geometry) -> SinkBuffer:
        return _Frame(self, await view_of(buffer), geometry)

    async def enable(self, buffer: SinkBuffer, part: Part) -> None:
        assert isinstance(buffer, _Frame)
        self.refresh()  # a flip under way comes before what is asked for now
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
        self._next = (buffer, token)
        self._sink.refresh_soon()

    def refresh(self) -> None:
        """The moment of a vertical blank: a waiting flip is shown."""
        if self._next is not None:
            (self._shown, token), self._next = self._next, None
            self.flips += 1
            self.flipped(token)

    async def forget(self, frame: _Frame) -> None:
        """A buffer goes: keep its picture if it is on the screen, complete a flip that waits for it. Nothing reads it afterwards."""
        if self._next is not None and self._next[0] is frame:
            _, token = self._next
            self._next = None
            self.flipped(token)
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
        self.flipped = lambda token: None
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
        self._wanted = trio.Event()

    def refresh_soon(self) -> None:
        """A flip waits for the next refresh."""
        self._wanted.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        if self.settings.directory:
            await trio.Path(self.settings.directory).mkdir(parents=True, exist_ok=True)
        task_status.started()
        period = 1 / self.settings.refresh
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            now = trio.current_time()
            await trio.sleep_until(now - now % period + period)
            for output in list(self.outputs.values()):
                output.refresh()

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
