"""A guest's framebuffer on an output: a framebuffer of the card's over the guest's own pages, or memory to copy frames from."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from displbe.sinks.base import Geometry, SinkBuffer
from displbe.wire.formats import FORMATS
from displbe.xen.port import GuestBuffer

__all__ = ["DrmBuffer"]


class DrmBuffer(SinkBuffer):
    """What the output holds of it changes: a card may go and come back."""

    def __init__(
        self, guest: GuestBuffer, geometry: Geometry, fourcc: int, remove: Callable[[DrmBuffer], Awaitable[None]]
    ) -> None:
        self.guest = guest
        self.geometry = geometry
        self.fourcc = fourcc
        """The format the plane is told."""
        self.fb = 0
        """The card's framebuffer over the guest's pages; 0: there is none."""
        self.view: memoryview | None = None
        """The guest's pages; None: not mapped."""
        self.ours = False
        """The pages are memory of the card's (be-alloc)."""
        self.refused = False
        """The card does not show it without a copy."""
        self.reason = ""
        """Why its frames are copied; empty: they need not be, or no card has been asked."""
        self.closed = False
        self._remove = remove

    @property
    def converted(self) -> bool:
        """The plane is told another format than its pixels have: copies are converted."""
        return self.fourcc not in (self.geometry.fourcc, FORMATS[self.geometry.fourcc].opaque)

    @property
    def path(self) -> str:  # type: ignore[override]
        """How its frames get to the screen."""
        if self.fb and not self.refused:
            return "be-alloc" if self.ours else "zero copy"
        return "copy" if self.reason else ""

    async def aclose(self) -> None:
        self.closed = True
        await self._remove(self)
