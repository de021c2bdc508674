"""An output's framebuffers, and the way from each of them to the screen: the cheapest that card, buffer and configuration allow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import trio

from displbe.sinks.base import SinkError, view_of
from displbe.sinks.convert import CONVERTED
from displbe.wire.errors import Errno
from displbe.wire.formats import FORMATS, fourcc, fourcc_name
from displbe.xen.port import HypervisorError

from .atomic import Pipe
from .buffer import DrmBuffer
from .device import Mode
from .errors import CardGone, DrmError
from .stage import Stage

__all__ = ["Attached"]

XR24: Final = fourcc("XR24")
OFF: Final = "zero-copy is off"


class Attached:
    """What a guest has attached to one output. `say` logs an event and its reason. The output's lock is held by whoever waits here."""

    def __init__(self, name: str, zero_copy: str, say: Callable[[str, str], None]) -> None:
        self.buffers: set[DrmBuffer] = set()
        self.refusal = OFF if zero_copy == "off" else ""
        """Why frames are copied, where they are."""
        self._name = name
        self._zero_copy = zero_copy
        self._say = say

    @property
    def required(self) -> bool:
        """No frame may be copied."""
        return self._zero_copy == "require"

    @property
    def copied(self) -> bool:
        """One frame that must be copied, and all are: to change from the one to the other costs more than a copy."""
        return any(buffer.refused for buffer in self.buffers)

    @property
    def framebuffers(self) -> set[int]:
        """The card's framebuffers over guests' pages."""
        return {buffer.fb for buffer in self.buffers} - {0}

    def scanout_format(self, pipe: Pipe | None, fourcc: int) -> int:
        """The format for the plane: the guest's, or its twin without alpha; there is nothing below a full screen to blend with. Where the
        plane has neither, the one that copies can be converted to.

        Raises SinkError.
        """
        opaque = FORMATS[fourcc].opaque
        if pipe is None:
            return opaque
        for code in (fourcc, opaque):
            if code in pipe.plane.formats:
                return code
        if fourcc in CONVERTED and XR24 in pipe.plane.formats and not self.required:
            return XR24
        raise self._no_format(fourcc)

    def _no_format(self, fourcc: int) -> SinkError:
        return SinkError(Errno.EINVAL, f"{self._name} cannot show {fourcc_name(fourcc)}")

    async def prepare(self, stage: Stage, buffer: DrmBuffer, modes: Sequence[Mode]) -> None:
        """The cheapest way that the card and the buffer share. Raises SinkError, and CardGone, which says nothing of the buffer."""
        if buffer.converted:
            self.refuse(buffer, self._no_format(buffer.geometry.fourcc))
        elif self._zero_copy != "off":
            try:
                dmabuf = await buffer.guest.dmabuf()
                buffer.ours = any(allocation.fd == dmabuf for allocation in stage.pipe.card.allocations)
                buffer.fb = await trio.to_thread.run_sync(stage.import_buffer, buffer, dmabuf, modes)
                return
            except (DrmError, HypervisorError) as error:
                if isinstance(error, CardGone) and stage.pipe.card.gone():
                    raise
                self.refuse(buffer, error)
        else:
            buffer.reason = OFF
        await self.map(buffer)

    async def prepare_all(self, stage: Stage, shown: DrmBuffer, modes: Sequence[Mode]) -> None:
        """Those that the card has not been asked about. Raises SinkError when it is what is to be shown, CardGone."""
        for buffer in list(self.buffers):
            if not buffer.fb and not buffer.refused:
                try:
                    buffer.fourcc = self.scanout_format(stage.pipe, buffer.geometry.fourcc)
                    await self.prepare(stage, buffer, modes)
                except SinkError:
                    if buffer is shown:
                        raise

    def insist(self, error: Exception) -> None:
        """A buffer cannot be shown without a copy. Raises SinkError where that is not wanted."""
        if self.required:
            raise SinkError(Errno.EINVAL, f"no zero copy: {error}") from error

    def refuse(self, buffer: DrmBuffer, error: Exception, *, lasting: bool = True) -> None:
        """Frames of this buffer are copied: from now on, or (not `lasting`) until the screen is switched on anew. Raises as `insist`."""
        self.insist(error)
        self.refusal = str(error)
        if lasting:
            buffer.refused, buffer.reason = True, self.refusal
        self._say("frames are copied", self.refusal)

    async def map(self, buffer: DrmBuffer) -> None:
        """Have its pages as memory. Raises SinkError."""
        if buffer.view is None:
            buffer.view = await view_of(buffer.guest)

    async def map_alike(self, shown: DrmBuffer) -> None:
        """This frame, and those that the guest will flip to, go the same way. Raises SinkError."""
        await self.map(shown)
        for buffer in list(self.buffers):
            if buffer.geometry == shown.geometry:
                with suppress(SinkError):
                    await self.map(buffer)

    def card_gone(self) -> None:
        """Nothing of the card's is left."""
        for buffer in self.buffers:
            buffer.fb, buffer.refused, buffer.reason = 0, False, ""
