"""A guest's framebuffer on an output: a card's framebuffer over the guest's pages, or memory to copy frames from."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from displbe.sinks.base import Geometry, SinkBuffer
from displbe.wire.formats import FORMATS
from displbe.xen.memory import Memory
from displbe.xen.port import GuestBuffer

__all__ = ["DrmBuffer"]


class DrmBuffer(SinkBuffer):
    """A guest's buffer that is attached to one output.

    The card may go and come back: `fb`, `refused` and `reason` change then.
    """

    def __init__(
        self, guest: GuestBuffer, geometry: Geometry, fourcc: int, remove: Callable[[DrmBuffer], Awaitable[None]]
    ) -> None:
        self.guest = guest
        self.geometry = geometry
        self.fourcc = fourcc
        """The DRM format of the framebuffer that the plane gets."""
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
    def converted(self) -> bool:
        """Whether the plane gets another format than that of the guest's pixels. Copying then converts them."""
        return self.fourcc not in (self.geometry.fourcc, FORMATS[self.geometry.fourcc].opaque)

    @property
    def path(self) -> str:  # type: ignore[override]
        """How its frames can get to the screen."""
        if self.fb and not self.refused:
            return "be-alloc" if self.from_card else "zero copy"
        return "copy" if self.reason else ""

    async def aclose(self) -> None:
        self.closed = True
        await self._remove(self)
