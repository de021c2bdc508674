"""One connector of a card, showing one guest's framebuffers full screen.

Zero copy: the guest's dma-buf is imported and scanned out as it lies. Copy: each flip copies the guest's frame, off the loop, into that
one of two dumb buffers which is not on the screen. Either way one commit per flip, which does not wait, and the card's event ends it.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec
import structlog
import trio

from displbe.sinks.base import Allocation, Geometry, Output, Part, SinkBuffer, SinkError
from displbe.wire.errors import Errno, from_host
from displbe.wire.formats import FORMATS, fourcc_name
from displbe.xen.memory import copy_rows
from displbe.xen.port import GuestBuffer, HypervisorError

from . import uapi
from .copier import Copier
from .device import Atomic, Card, Connector, DrmError, Dumb, DumbAllocation, Mode, Plane

if TYPE_CHECKING:
    from .sink import DrmSink

__all__ = ["DrmOutput"]

FLIP: Final = uapi.DRM_MODE_ATOMIC_NONBLOCK | uapi.DRM_MODE_PAGE_FLIP_EVENT
MODESET: Final = uapi.DRM_MODE_ATOMIC_ALLOW_MODESET
TEST: Final = uapi.DRM_MODE_ATOMIC_TEST_ONLY | uapi.DRM_MODE_ATOMIC_ALLOW_MODESET
LATE: Final = 0.5
"""Seconds after which a flip whose event does not come is completed all the same: the guest waits 3.1 s."""
BUSY_RETRY: Final = 0.001


class _Buffer(SinkBuffer):
    """A guest's framebuffer on this output."""

    def __init__(self, output: DrmOutput, geometry: Geometry, fourcc: int) -> None:
        self.geometry = geometry
        self.fourcc = fourcc
        self._output = output
        self.closed = False


class _Imported(_Buffer):
    """Scanned out as it lies."""

    path = "zero copy"

    def __init__(self, output: DrmOutput, geometry: Geometry, fourcc: int, fb: int) -> None:
        super().__init__(output, geometry, fourcc)
        self.fb = fb

    async def aclose(self) -> None:
        self.closed = True
        await self._output.remove(self)


class _Copied(_Buffer):
    """Copied for each flip."""

    path = "copy"

    def __init__(self, output: DrmOutput, geometry: Geometry, fourcc: int, view: memoryview) -> None:
        super().__init__(output, geometry, fourcc)
        self.view = view
        self.shape = (geometry.width, geometry.height, fourcc)

    async def aclose(self) -> None:
        self.closed = True
        await self._output.stop_reading()


class _Ring(msgspec.Struct):
    """Two dumb buffers of one shape; `front` is the one that was committed last."""

    shape: tuple[int, int, int]
    buffers: list[Dumb]
    front: int = 0

    def back(self) -> Dumb:
        return self.buffers[1 - self.front]

    def close(self) -> None:
        for dumb in self.buffers:
            dumb.close()


class DrmOutput(Output):
    """A connector with the CRTC and the plane that were chosen for it."""

    def __init__(self, sink: DrmSink, card: Card, connector: Connector, crtc: int, plane: Plane, key: int) -> None:
        super().__init__(connector.name)
        self.card = card
        self.connector = connector
        self.crtc = crtc
        self.plane = plane
        self.key = key
        self.path = ""
        self._sink = sink
        self._log: Any = structlog.get_logger("displbe.drm").bind(card=card.name, connector=connector.name)
        self._said: set[str] = set()
        self._on: Mode | None = None
        self._blob = 0
        self._flip: Atomic | None = None
        self._flip_slot = 0
        self._ring: _Ring | None = None
        self._token: int | None = None
        self._since = 0.0
        self._copier: Copier | None = None
        self._switching = trio.Lock()
        self.late = 0

    async def attach(self, buffer: GuestBuffer, geometry: Geometry) -> SinkBuffer:
        fourcc = self._scanout_format(geometry)
        if self._sink.settings.zero_copy != "off":
            try:
                return await self._import(buffer, geometry, fourcc)
            except (DrmError, HypervisorError) as error:
                if self._sink.settings.zero_copy == "require":
                    raise SinkError(Errno.EINVAL, f"no zero copy: {error}") from error
                if str(error) not in self._said:
                    self._said.add(str(error))
                    self._log.warning("frames are copied", reason=str(error))
        try:
            return _Copied(self, geometry, fourcc, await buffer.view())
        except HypervisorError as error:
            raise SinkError(Errno.EINVAL, str(error)) from error

    def _scanout_format(self, geometry: Geometry) -> int:
        """The format for the plane: the guest's, or its twin without alpha; there is nothing below a full screen to blend with."""
        for code in (geometry.fourcc, FORMATS[geometry.fourcc].opaque):
            if code in self.plane.formats:
                return code
        raise SinkError(Errno.EINVAL, f"{self.name} cannot show {fourcc_name(geometry.fourcc)}")

    async def _import(self, buffer: GuestBuffer, geometry: Geometry, fourcc: int) -> SinkBuffer:
        if not self.card.imports:
            raise DrmError("import dma-buf", errno.EOPNOTSUPP)
        dmabuf = await buffer.dmabuf()
        fb = await trio.to_thread.run_sync(self._import_and_test, dmabuf, geometry, fourcc)
        return _Imported(self, geometry, fourcc, fb)

    def _import_and_test(self, dmabuf: int, geometry: Geometry, fourcc: int) -> int:
        shape = geometry.width, geometry.height
        fb = self.card.import_framebuffer(dmabuf, *shape, fourcc, geometry.stride, geometry.offset)
        mode = self._mode_for(*shape)
        if mode is None:
            return fb
        blob = self.card.create_blob(mode.raw)
        try:
            self._full(fb, blob, mode, Part(0, 0, *shape)).commit("test zero copy", TEST)
        except DrmError as error:
            if error.number != errno.EACCES:  # not master just now: that says nothing of the buffer
                self.card.remove_framebuffer(fb)
                raise
        finally:
            self.card.destroy_blob(blob)
        return fb

    def _mode_for(self, width: int, height: int) -> Mode | None:
        """The connector's mode of this size: the preferred one, else the fastest."""
        fitting = [mode for mode in self.connector.modes if (mode.width, mode.height) == (width, height)]
        return max(fitting, key=lambda mode: (mode.preferred, mode.refresh), default=None)

    def _full(self, fb: int, blob: int, mode: Mode, part: Part) -> Atomic:
        """Everything there is to say of this output."""
        return Atomic(
            self.card,
            {
                ("connector", self.connector.id): {"CRTC_ID": self.crtc},
                ("crtc", self.crtc): {"ACTIVE": 1, "MODE_ID": blob},
                ("plane", self.plane.id): {
                    "FB_ID": fb,
                    "CRTC_ID": self.crtc,
                    "SRC_X": part.x << 16,
                    "SRC_Y": part.y << 16,
                    "SRC_W": part.width << 16,
                    "SRC_H": part.height << 16,
                    "CRTC_X": 0,
                    "CRTC_Y": 0,
                    "CRTC_W": mode.width,
                    "CRTC_H": mode.height,
                },
            },
        )

    def _off(self) -> Atomic:
        return Atomic(
            self.card,
            {
                ("connector", self.connector.id): {"CRTC_ID": 0},
                ("crtc", self.crtc): {"ACTIVE": 0, "MODE_ID": 0},
                ("plane", self.plane.id): {"FB_ID": 0, "CRTC_ID": 0},
            },
        )

    async def enable(self, buffer: SinkBuffer, part: Part) -> None:
        assert isinstance(buffer, _Buffer)
        mode = self._mode_for(part.width, part.height)
        if mode is None:
            raise SinkError(Errno.EINVAL, f"{self.name} has no mode {part.width}x{part.height}")
        async with self._switching:
            if buffer.closed:
                raise SinkError(Errno.ENOENT, "the framebuffer is gone")
            await self._copies_done()
            try:
                await trio.to_thread.run_sync(self._enable, buffer, part, mode)
            except DrmError as error:
                raise SinkError(from_host(error.number), f"{self.name}: {error}") from error
        self.path = buffer.path
        self._log.info("output on", mode=f"{mode.width}x{mode.height}@{mode.refresh}", path=buffer.path)

    def _enable(self, buffer: _Buffer, part: Part, mode: Mode) -> None:
        """In a worker thread: copy the first frame if it is to be copied, and commit, which waits for the hardware."""
        old_ring, ring = self._ring, None
        if isinstance(buffer, _Imported):
            fb = buffer.fb
        else:
            assert isinstance(buffer, _Copied)
            ring = self._ring_for(buffer)
            dumb = ring.back()
            _copy(buffer, dumb)
            fb = dumb.fb
        blob = self.card.create_blob(mode.raw)
        try:
            self._full(fb, blob, mode, part).commit("set mode", MODESET)
        except DrmError:
            self.card.destroy_blob(blob)
            if ring is not None and ring is not old_ring:
                ring.close()
            raise
        if self._blob:
            self.card.destroy_blob(self._blob)
        self._blob, self._on = blob, mode
        if ring is not None:
            ring.front = 1 - ring.front
        if old_ring is not None and old_ring is not ring:
            old_ring.close()
        self._ring = ring
        self._flip = Atomic(self.card, {("plane", self.plane.id): {"FB_ID": fb, "CRTC_ID": self.crtc}})
        self._flip_slot = self._flip.slot("plane", self.plane.id, "FB_ID")

    def _ring_for(self, buffer: _Copied) -> _Ring:
        shape = buffer.shape
        if self._ring is not None and self._ring.shape == shape:
            return self._ring
        bits = FORMATS[buffer.fourcc].bits
        first = Dumb(self.card, shape[0], shape[1], bits, buffer.fourcc)
        try:
            return _Ring(shape, [first, Dumb(self.card, shape[0], shape[1], bits, buffer.fourcc)])
        except DrmError:
            first.close()
            raise

    async def disable(self) -> None:
        self._on = self._flip = None
        async with self._switching:
            await self._copies_done()
            await trio.to_thread.run_sync(self._disable)
        self._complete()

    def _disable(self) -> None:
        try:
            self._off().commit("switch off", MODESET)
        except DrmError as error:
            self._log.warning("cannot switch off", reason=str(error))
        if self._ring is not None:
            self._ring.close()
            self._ring = None
        if self._blob:
            self.card.destroy_blob(self._blob)
            self._blob = 0

    async def _copies_done(self) -> None:
        if self._copier is not None:
            await self._copier.idle()

    async def stop_reading(self) -> None:
        """Nothing reads a guest's closed buffer any more: neither a mode change nor a flip under way."""
        async with self._switching:
            await self._copies_done()

    def flip(self, buffer: SinkBuffer, token: int) -> None:
        assert isinstance(buffer, _Buffer)
        flip = self._flip
        if flip is None:
            raise SinkError(Errno.EINVAL, f"{self.name} is off")
        self._token = token
        self._since = trio.current_time()
        if isinstance(buffer, _Imported):
            self._flip_imported(flip, buffer.fb)
        else:
            assert isinstance(buffer, _Copied)
            self._flip_copied(flip, buffer)

    def _flip_imported(self, flip: Atomic, fb: int) -> None:
        """One commit, which does not wait. Raises SinkError."""
        flip.set(self._flip_slot, fb)
        try:
            flip.commit("flip", FLIP, self.key)
        except DrmError as error:
            if error.number != errno.EBUSY:
                self._token = None
                raise SinkError(from_host(error.number), f"{self.name}: {error}") from error
            # The kernel is not done with the last one, although its event has come.
            self._sink.start_soon(self._commit_again, flip, self._since)

    async def _commit_again(self, flip: Atomic, since: float) -> None:
        while self._flip is flip and self._token is not None and self._since == since:
            await trio.sleep(BUSY_RETRY)
            try:
                flip.commit("flip", FLIP, self.key)
            except DrmError as error:
                if error.number == errno.EBUSY:
                    continue
                self._failed(str(error))
            return

    def _flip_copied(self, flip: Atomic, buffer: _Copied) -> None:
        """The copy and its commit, in the copier's thread."""
        if self._copier is None:
            self._copier = Copier(self.name)
        copier = self._copier

        def work() -> None:
            try:
                self._copy_and_commit(flip, buffer)
            except DrmError as error:
                copier.tell(partial(self._failed, str(error)))

        copier.do(work)

    def _copy_and_commit(self, flip: Atomic, buffer: _Copied) -> None:
        """In the copier's thread, between two mode changes. Raises DrmError."""
        self._ring = ring = self._ring_for(buffer)
        dumb = ring.back()
        _copy(buffer, dumb)
        flip.set(self._flip_slot, dumb.fb)
        until = time.monotonic() + LATE
        while True:
            try:
                flip.commit("flip", FLIP, self.key)
                break
            except DrmError as error:
                if error.number != errno.EBUSY or time.monotonic() > until:
                    raise
            time.sleep(BUSY_RETRY)
        ring.front = 1 - ring.front

    def _failed(self, reason: str) -> None:
        """A flip that was accepted cannot be shown: it is over all the same."""
        self._log.warning("flip failed", reason=reason)
        self._complete()

    def _complete(self) -> None:
        """The flip under way, if any, is over."""
        token, self._token = self._token, None
        if token is not None:
            self.flipped(token)

    def on_event(self) -> None:
        """The card says that the flip is on the screen."""
        self._complete()

    def check_late(self, now: float) -> None:
        """Complete a flip whose event does not come."""
        if self._token is not None and now - self._since > LATE:
            self.late += 1
            self._log.warning("flip not shown in time")
            self._complete()

    async def remove(self, buffer: _Imported) -> None:
        """The guest takes a buffer back: RmFB switches off what shows it, and waits for that."""
        await trio.to_thread.run_sync(_quietly, self.card.remove_framebuffer, buffer.fb)

    async def edid(self) -> bytes | None:
        return await trio.to_thread.run_sync(self.card.read_edid, self.connector.id)

    async def allocate(self, pages: int) -> Allocation:
        try:
            return await trio.to_thread.run_sync(DumbAllocation, self.card, pages)
        except DrmError as error:
            raise SinkError(from_host(error.number), f"{self.name}: {error}") from error

    async def release(self) -> None:
        self.flipped = _ignore
        await self.disable()
        if self._copier is not None:
            await self._copier.close()
        self._sink.give_back(self)


def _ignore(token: int) -> None:
    """A flip of a guest that has gone."""


def _quietly(work: Callable[[int], None], argument: int) -> None:
    """What cannot be removed is gone already, with its card."""
    try:
        work(argument)
    except DrmError as error:
        if error.number not in (errno.ENOENT, errno.ENODEV, errno.EACCES):
            raise


def _copy(buffer: _Copied, dumb: Dumb) -> None:
    """A guest's frame into a dumb buffer."""
    shape = buffer.geometry
    row = shape.width * FORMATS[buffer.fourcc].bits // 8
    copy_rows(dumb.memory.view, dumb.pitch, buffer.view[shape.offset :], shape.stride, row, shape.height)
