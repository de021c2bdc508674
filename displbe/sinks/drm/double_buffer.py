"""Dumb buffers: memory that every card can allocate.

In copy mode, frames are copied into them. With be-alloc, guests get them as dma-bufs.
"""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack, suppress
from typing import Final

from displbe.sinks.base import Allocation, CopyMemory
from displbe.sinks.convert import YUYV, pixel_size
from displbe.xen.memory import Mapping, PrivateMemory

from . import uapi
from .device import DrmDevice
from .errors import DrmError, drm_error

__all__ = ["DoubleBuffer", "DumbAllocation", "DumbBuffer"]

BLACK_YUYV: Final = b"\x10\x80"
"""A black pixel of YUYV, in the limited range."""


class DumbBuffer:
    """A dumb buffer with a framebuffer on it, mapped for writing. It is black at first.

    Raises DrmError; OSError if the guest, whom `copies` charges, has too many.
    """

    def __init__(
        self,
        device: DrmDevice,
        width: int,
        height: int,
        fourcc: int,
        copies: CopyMemory = CopyMemory(),  # noqa: B008
    ) -> None:
        self._device = device
        self.shape = width, height, fourcc
        self._uncharge = copies.charge(width * height * pixel_size(fourcc))
        try:
            self._make(width, height, fourcc)
        except BaseException:
            self._uncharge()
            raise

    def _make(self, width: int, height: int, fourcc: int) -> None:
        device = self._device
        argument = uapi.drm_mode_create_dumb(height=height, width=width, bpp=8 * pixel_size(fourcc))
        device.ioctl("create dumb buffer", uapi.DRM_IOCTL_MODE_CREATE_DUMB, argument)
        self.pitch = int(argument.pitch)
        try:
            self.fb = device.add_framebuffer(argument.handle, width, height, fourcc, self.pitch, 0)
            try:
                self.memory = device.map_dumb(argument.handle, argument.size, writable=True)
                if fourcc == YUYV:  # the kernel has filled it with zeros, which are black in the other formats
                    with self.memory.borrow() as view:
                        view[:] = BLACK_YUYV * (len(view) // len(BLACK_YUYV))
            except DrmError:
                device.remove_framebuffer(self.fb)
                raise
        finally:
            device.close_handle(argument.handle)  # the framebuffer and the mapping keep the memory

    def close(self) -> None:
        """Take the buffer off the screen if it is there, and free it."""
        self.memory.close()
        with suppress(DrmError):  # the card is gone, and the framebuffer with it
            self._device.remove_framebuffer(self.fb)
        self._uncharge()

    def leave(self) -> None:
        """Leave the buffer on the screen. The kernel frees it when it leaves the screen, even after displbe has ended.

        Raises DrmError on kernels before 6.8.
        """
        self._device.leave_framebuffer(self.fb)
        self.memory.close()
        self._uncharge()


class DoubleBuffer:
    """Two dumb buffers of one shape (width, height, fourcc). The guest, whom `copies` charges, may have too many: OSError.

    `front` was committed last, `back` is free to be drawn into. Private frames of copied_scanout are charged with them: the
    last that was seen, and one in which frames are turned.
    """

    def __init__(
        self, device: DrmDevice, shape: tuple[int, int, int], copies: CopyMemory, private_frames: int = 1
    ) -> None:
        self.shape = shape
        self._private: list[PrivateMemory] = []
        width, height, fourcc = shape
        with ExitStack() as undo:
            self._uncharge = copies.charge(private_frames * width * height * pixel_size(fourcc))
            undo.callback(self._uncharge)
            first = DumbBuffer(device, *shape, copies)
            undo.callback(first.close)
            self.front, self.back = first, DumbBuffer(device, *shape, copies)
            undo.pop_all()

    def private(self, size: int) -> PrivateMemory:
        """Return memory of displbe's own, which is freed with the buffers. Raises OSError."""
        made = PrivateMemory(size)
        self._private.append(made)
        return made

    def swap(self) -> None:
        """Exchange front and back: the back buffer has been committed."""
        self.front, self.back = self.back, self.front

    def close(self) -> None:
        """Free both."""
        self.front.close()
        self.back.close()
        self._free_private()

    def leave(self) -> None:
        """Leave the front buffer on the screen (DumbBuffer.leave), and free the other one. Raises DrmError; both are kept then."""
        self.front.leave()
        self.back.close()
        self._free_private()

    def _free_private(self) -> None:
        while self._private:
            self._private.pop().close()
        self._uncharge()


class DumbAllocation(Allocation):
    """Pages of a card's dumb memory as a dma-buf. Raises DrmError.

    The dumb buffer has one page per row, so that its size is exactly that of its pages, whatever alignment the driver
    wants for pictures. A framebuffer over it has a pitch of its own.
    """

    def __init__(self, device: DrmDevice, pages: int) -> None:
        argument = uapi.drm_mode_create_dumb(height=pages, width=1024, bpp=32)
        device.ioctl("create dumb buffer", uapi.DRM_IOCTL_MODE_CREATE_DUMB, argument)
        try:
            if (argument.pitch, argument.size) != (4096, 4096 * pages):
                raise drm_error("create dumb buffer of whole pages", errno.EOPNOTSUPP)
            prime = uapi.drm_prime_handle(handle=argument.handle, flags=os.O_CLOEXEC | os.O_RDWR)
            device.ioctl("export dumb buffer", uapi.DRM_IOCTL_PRIME_HANDLE_TO_FD, prime)
            self.fd = int(prime.fd)
            try:
                self.memory: Mapping = device.map_dumb(argument.handle, argument.size, writable=False)
            except DrmError:
                os.close(self.fd)
                raise
        finally:
            device.close_handle(argument.handle)  # the dma-buf keeps the memory

    def close(self, wait: float = 0.0) -> bool:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
        return self.memory.close(wait)
