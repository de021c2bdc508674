"""A guest's framebuffer on an output: a card's framebuffer over the guest's pages, or memory to copy frames from."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from displbe.sinks.base import Geometry, SinkBuffer
from displbe.xen.memory import Memory
from displbe.xen.port import GuestBuffer

__all__ = ["DrmBuffer", "ScanoutFormat"]


class ScanoutFormat(msgspec.Struct, frozen=True):
    """The format of the framebuffers that a plane gets for frames of a guest's format."""

    fourcc: int
    """A DRM format."""
    conversion: str = ""
    """Why frames have to be converted, as they are copied; empty: the guest's pixels are shown as they are."""


class DrmBuffer(SinkBuffer):
    """A guest's buffer that is attached to one output.

    The card may go and come back: `fb`, `refused` and `reason` change then.
    """

    def __init__(
        self,
        guest: GuestBuffer,
        geometry: Geometry,
        format: ScanoutFormat,
        remove: Callable[[DrmBuffer], Awaitable[None]],
    ) -> None:
        self.guest = guest
        self.geometry = geometry
        self.format = format
        self.fb = 0
        """The id of the card's framebuffer over the guest's pages; 0: there is none."""
        self.memory: Memory | None = None
        """The guest's pages; None: they are not mapped."""
        self.from_card = False
        """Whether the pages are the card's own memory (be-alloc)."""
        self.refused = False
        """Whether the card has refused to show this buffer without a copy."""
        self.reason = ""
        """Why its frames are copied; empty: they need no copy, or no card has been asked yet."""
        self.closed = False
        self._remove = remove

    @property
    def path(self) -> str:  # type: ignore[override]
        """How its frames can get to the screen."""
        if self.fb and not self.refused:
            return "be-alloc" if self.from_card else "zero copy"
        return "copy" if self.reason else ""

    async def aclose(self) -> None:
        self.closed = True
        await self._remove(self)
