"""The framebuffers that a guest has attached to an output, and how each gets to the screen.

`FramebufferSet` chooses the cheapest way that the card, the buffer and the settings allow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from displbe.sinks.base import SinkError, memory_of
from displbe.sinks.convert import TARGETS, YUYV
from displbe.sinks.turn import Turn
from displbe.wire.errors import Errno
from displbe.wire.formats import FORMATS, fourcc_name
from displbe.xen.port import HypervisorError

from .buffer import DrmBuffer, ScanoutFormat
from .device import Mode
from .errors import CardGone, DrmError, NoResources
from .scanout import ScanoutPipe
from .worker import in_worker

__all__ = ["FramebufferSet"]

_WITH_ALPHA: Final = {entry.opaque: entry.code for entry in FORMATS.values() if entry.code != entry.opaque}
"""A format without alpha -> the same format with alpha."""
ZERO_COPY_OFF: Final = "zero-copy is off"


class FramebufferSet:
    """One output's framebuffers. `warn` logs an event and its reason.

    Its async methods are called under the output's lock.
    """

    def __init__(self, name: str, zero_copy: str, warn: Callable[[str, str], None]) -> None:
        self.buffers: set[DrmBuffer] = set()
        self.copy_reason = ZERO_COPY_OFF if zero_copy == "off" else ""
        """Why frames are copied; empty: none has to be copied."""
        self._name = name
        self._zero_copy = zero_copy
        self._warn = warn

    @property
    def copy_forbidden(self) -> bool:
        """Whether no frame may be copied (`zero-copy = "require"`)."""
        return self._zero_copy == "require"

    @property
    def must_copy(self) -> bool:
        """Whether all buffers are copied because one has to be. Changing between zero copy and copying costs more than a copy."""
        return any(buffer.refused for buffer in self.buffers)

    @property
    def fbs(self) -> set[int]:
        """The ids of the card's framebuffers over guests' pages."""
        return {buffer.fb for buffer in self.buffers} - {0}

    def scanout_format(self, scanout: ScanoutPipe | None, fourcc: int) -> ScanoutFormat:
        """Return the format of the plane's framebuffer for pixels of this format.

        Raises SinkError EINVAL if the plane cannot show them.

        It is the guest's format without alpha: there is nothing below a full screen to blend with. If the plane lacks
        that, it is the same format with alpha, if the plane ignores alpha there. Else frames are converted, which sets
        alpha: a guest that draws without alpha may leave 0 there, which a plane may take for transparent.
        """
        opaque = FORMATS[fourcc].opaque
        if scanout is None:
            return ScanoutFormat(opaque)
        plane, twin = scanout.pipe.plane, _WITH_ALPHA.get(opaque, opaque)
        # YUYV's pixels cannot be turned one by one, so a turned screen shows it converted to RGB.
        if opaque in plane.formats and not (opaque == YUYV and scanout.turn is not Turn.NONE):
            return ScanoutFormat(opaque)
        if twin in plane.formats and plane.ignores_alpha and opaque != YUYV:
            return ScanoutFormat(twin)
        reason = f"{self._name} cannot show {fourcc_name(fourcc)}"
        if twin in plane.formats and twin != opaque:
            reason += f" except as {fourcc_name(twin)}, which may be blended by alpha that the guest has not drawn"
        found = next((code for code in (twin, *TARGETS) if code in plane.formats and code in TARGETS), 0)
        if not found:
            known = ", ".join(sorted(map(fourcc_name, plane.formats)))
            raise SinkError(Errno.EINVAL, f"{reason}, nor any format that displbe converts to; it shows {known}")
        if self.copy_forbidden:
            raise SinkError(Errno.EINVAL, f'{reason}; zero-copy = "auto" lets displbe convert it')
        return ScanoutFormat(found, reason)

    async def prepare(self, scanout: ScanoutPipe, buffer: DrmBuffer, modes: Sequence[Mode]) -> None:
        """Import a buffer; if that is not possible or not wanted, map it for copying.

        Raises SinkError if neither can be done. Raises CardGone, which says nothing about the buffer.
        """
        if buffer.format.conversion:
            self.refuse(buffer, SinkError(Errno.EINVAL, buffer.format.conversion))
        elif self._zero_copy != "off":
            device = scanout.pipe.device
            try:
                dmabuf = await buffer.guest.dmabuf()
                buffer.from_card = any(allocation.fd == dmabuf for allocation in device.allocations)
                buffer.fb = await in_worker(scanout.import_buffer, buffer, dmabuf, modes)
                return
            except NoResources as error:  # it says nothing about the buffer
                raise SinkError(Errno.ENOMEM, str(error)) from error
            except (DrmError, HypervisorError) as error:
                if isinstance(error, CardGone) and device.gone():
                    raise
                self.refuse(buffer, error)
        else:
            buffer.reason = ZERO_COPY_OFF
        await self.map(buffer)

    async def prepare_all(self, scanout: ScanoutPipe, shown: DrmBuffer, modes: Sequence[Mode]) -> None:
        """Prepare the buffers that have not been prepared for this card.

        Raises SinkError if `shown` cannot be prepared. Raises CardGone.
        """
        for buffer in list(self.buffers):
            if not buffer.fb and not buffer.refused:
                try:
                    buffer.format = self.scanout_format(scanout, buffer.geometry.fourcc)
                    await self.prepare(scanout, buffer, modes)
                except SinkError:
                    if buffer is shown:
                        raise

    def check_copy_allowed(self, error: Exception) -> None:
        """Raise SinkError if copying is forbidden; `error` says why a buffer cannot be shown without a copy."""
        if self.copy_forbidden:
            raise SinkError(Errno.EINVAL, f'no zero copy: {error}; zero-copy = "auto" lets displbe copy') from error

    def refuse(self, buffer: DrmBuffer, error: Exception, *, lasting: bool = True) -> None:
        """Copy this buffer's frames from now on, or (not `lasting`) until the screen is switched on anew.

        Raises SinkError if copying is forbidden.
        """
        self.check_copy_allowed(error)
        self.copy_reason = str(error)
        if lasting:
            buffer.refused, buffer.reason = True, self.copy_reason
        self._warn("frames are copied", self.copy_reason)

    async def map(self, buffer: DrmBuffer) -> None:
        """Map a buffer's pages. Raises SinkError."""
        if buffer.memory is None:
            buffer.memory = await memory_of(buffer.guest)

    async def map_alike(self, shown: DrmBuffer) -> None:
        """Map this buffer and all others of its geometry, because the guest will flip to them. All of them are copied then.

        Raises SinkError.
        """
        await self.map(shown)
        for buffer in list(self.buffers):
            if buffer.geometry == shown.geometry:
                with suppress(SinkError):
                    await self.map(buffer)

    def forget_card(self) -> None:
        """Forget the framebuffers of a card that is gone, and what it refused."""
        for buffer in self.buffers:
            buffer.fb, buffer.refused, buffer.reason = 0, False, ""
