"""linux-dmabuf: the formats that the compositor imports as dma-bufs, and whether its GPU can read a guest's pages at all.

A compositor that renders in software imports a dma-buf of gntdev and crashes when it draws it, because only a device can read such a
dma-buf. Therefore displbe checks whether the compositor's main device is a GPU that does DMA.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from struct import Struct
from typing import Final

import structlog

from .conn import Connection, Proxy

__all__ = ["DmabufFormats", "gpu_that_does_dma", "read_file"]

_log = structlog.get_logger("displbe.wayland")
NO_MAIN_DEVICE: Final = "it does not name its main device"
LINEAR: Final = 0
INVALID: Final = 0x00FFFFFFFFFFFFFF
"""drm_fourcc.h: DRM_FORMAT_MOD_LINEAR and DRM_FORMAT_MOD_INVALID. The latter leaves the layout to the driver, which treats imported buffers
as linear.
"""
_ENTRY: Final = Struct("=IxxxxQ")
_INDEX: Final = Struct("=H")
MAX_TABLE: Final = (1 << 16) * _ENTRY.size
"""Maximum bytes that are read of a format table: an index of 16 bits cannot name a later entry."""
DEV_T: Final = 8
"""Bytes of `main_device`, which is a dev_t."""


def gpu_that_does_dma(device: int, sysfs: Path = Path("/sys")) -> str:
    """Return why a DRM device (given by its dev_t) is not a GPU that does DMA; the empty string if it is one.

    Such a GPU is on a PCI bus, or described by the device tree, and has a render node. That excludes simulated cards (vkms, vgem),
    display controllers without a GPU, and virtio-gpu, which draws on its host and cannot pass our pages there.
    """
    place = sysfs / "dev/char" / f"{os.major(device)}:{os.minor(device)}" / "device"
    try:
        bus = (place / "subsystem").resolve(strict=True).name
    except OSError:
        return "its main device is unknown here"
    if not (bus == "pci" or (bus == "platform" and (place / "of_node").exists())):
        return f"its main device is on the {bus} bus and not a GPU that does DMA"
    if any(place.glob("virtio*")):
        return "its main device is virtual and not a GPU that does DMA"
    if not any((place / "drm").glob("renderD*")):
        return "its main device has no render node: it renders in software"
    return ""


def read_file(fd: int, size: int) -> bytes:
    """Return the first `size` bytes of a peer's file, or fewer: the file may be shorter, or become so. Raises OSError."""
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file")  # reading a pipe would wait for the peer
    return os.pread(fd, size, 0)


class DmabufFormats:
    """The formats that the compositor imports. `changed` is called when it has sent new feedback."""

    def __init__(self, conn: Connection, dmabuf: Proxy, changed: Callable[[], None]) -> None:
        self.no_gpu = NO_MAIN_DEVICE
        """Why the compositor gets no dma-bufs with the setting `auto`; empty: it gets them."""
        self._changed = changed
        self._formats: set[tuple[int, int]] = set()
        self._announced: set[tuple[int, int]] = set()
        """The formats of the feedback that is being received. They take effect with its `done` event."""
        self._table = b""
        self._main_device = b""
        if conn.version(dmabuf) >= 4:
            self._feedback = conn.keep(dmabuf.get_default_feedback())
            conn.on(self._feedback, "format_table", self._on_table)
            conn.on(self._feedback, "main_device", self._on_main_device)
            conn.on(self._feedback, "tranche_formats", self._on_tranche)
            conn.on(self._feedback, "done", self._on_done)
        else:
            conn.on(dmabuf, "format", lambda code: self._formats.add((code, INVALID)))
            conn.on(dmabuf, "modifier", lambda code, high, low: self._formats.add((code, high << 32 | low)))

    def takes(self, code: int) -> bool:
        """Return whether the compositor imports linear buffers of this DRM format."""
        return (code, LINEAR) in self._formats or (code, INVALID) in self._formats

    def modifier(self, code: int) -> int:
        """Return the modifier for the import of a linear buffer of this DRM format."""
        return LINEAR if (code, LINEAR) in self._formats else INVALID

    def _on_table(self, fd: int, size: int) -> None:
        # The table is copied and not mapped: a compositor that truncates the file while it is read would end displbe by SIGBUS.
        self._table = b""
        try:
            table = read_file(fd, min(size, MAX_TABLE))
            self._table = table[: len(table) - len(table) % _ENTRY.size]
        except OSError as error:
            _log.warning("the compositor's dma-buf formats cannot be read: it gets no dma-bufs", reason=error.strerror)
        finally:
            os.close(fd)

    def _on_main_device(self, device: bytes) -> None:
        self._main_device = bytes(device)

    def _on_tranche(self, array: bytes) -> None:
        indices = bytes(array)
        entries = list(_ENTRY.iter_unpack(self._table))
        whole = indices[: len(indices) - len(indices) % _INDEX.size]
        self._announced |= {entries[index] for (index,) in _INDEX.iter_unpack(whole) if index < len(entries)}

    def _on_done(self) -> None:
        self._formats, self._announced = self._announced, set()
        named = len(self._main_device) == DEV_T
        self.no_gpu = gpu_that_does_dma(int.from_bytes(self._main_device, "little")) if named else NO_MAIN_DEVICE
        self._changed()
