"""Dumb buffers: memory of a card that any card has, to copy frames into or to hand out as a dma-buf."""

from __future__ import annotations

import errno
import os
from contextlib import suppress

from displbe.sinks.base import Allocation

from . import uapi
from .device import Card
from .errors import DrmError, drm_error

__all__ = ["Dumb", "DumbAllocation", "Ring"]


class Dumb:
    """A dumb buffer with a framebuffer on it, mapped for writing; black. Raises DrmError."""

    def __init__(self, card: Card, width: int, height: int, bits: int, fourcc: int) -> None:
        self._card = card
        ask = uapi.drm_mode_create_dumb(height=height, width=width, bpp=bits)
        card.ioctl("create dumb buffer", uapi.DRM_IOCTL_MODE_CREATE_DUMB, ask)
        self.pitch = int(ask.pitch)
        try:
            self.fb = card.add_framebuffer(ask.handle, width, height, fourcc, self.pitch, 0)
            try:
                self.memory = card.map_dumb(ask.handle, ask.size, writable=True)
            except DrmError:
                card.remove_framebuffer(self.fb)
                raise
        finally:
            card.close_handle(ask.handle)  # framebuffer and mapping keep it

    def close(self) -> None:
        """Take it off the screen if it is there, and free it."""
        self.memory.close()
        with suppress(DrmError):  # it is gone already, with its card
            self._card.remove_framebuffer(self.fb)

    def leave(self) -> None:
        """Free it when it leaves the screen, also if that is after our end. Raises DrmError on kernels before 6.8."""
        self._card.leave_framebuffer(self.fb)
        self.memory.close()


class Ring:
    """Two dumb buffers of one shape (width, height, bits, fourcc); `front` is the one that was committed last."""

    def __init__(self, card: Card, shape: tuple[int, int, int, int]) -> None:
        self.shape = shape
        first = Dumb(card, *shape)
        try:
            self.front, self.back = first, Dumb(card, *shape)
        except DrmError:
            first.close()
            raise

    def turn(self) -> None:
        """The back has been committed."""
        self.front, self.back = self.back, self.front

    def close(self) -> None:
        """Free both."""
        self.front.close()
        self.back.close()


class DumbAllocation(Allocation):
    """Pages of a card's dumb memory as a dma-buf. Raises DrmError.

    A dumb buffer of one page per row: its size is then exactly that of its pages, whatever alignment the driver keeps for
    pictures. Framebuffers lay their own pitch over it.
    """

    def __init__(self, card: Card, pages: int) -> None:
        ask = uapi.drm_mode_create_dumb(height=pages, width=1024, bpp=32)
        card.ioctl("create dumb buffer", uapi.DRM_IOCTL_MODE_CREATE_DUMB, ask)
        try:
            if (ask.pitch, ask.size) != (4096, 4096 * pages):
                raise drm_error("create dumb buffer of whole pages", errno.EOPNOTSUPP)
            prime = uapi.drm_prime_handle(handle=ask.handle, flags=os.O_CLOEXEC | os.O_RDWR)
            card.ioctl("export dumb buffer", uapi.DRM_IOCTL_PRIME_HANDLE_TO_FD, prime)
            self.fd = int(prime.fd)
            try:
                self._memory = card.map_dumb(ask.handle, ask.size, writable=False)
            except DrmError:
                os.close(self.fd)
                raise
        finally:
            card.close_handle(ask.handle)  # the dma-buf keeps it

    def view(self) -> memoryview:
        return self._memory.view

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        self._memory.close()
        os.close(fd)
