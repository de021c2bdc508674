"""linux-dmabuf: the formats that the compositor imports as dma-bufs, and whether its GPU can read a guest's pages at all.

A compositor that renders in software imports a dma-buf of gntdev and crashes when it draws it, because only a device can read such a
dma-buf. Therefore displbe checks whether the compositor's main device is a GPU that does DMA.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from pathlib import Path
from struct import Struct
from typing import Final

from .conn import Connection, Proxy

__all__ = ["DmabufFormats", "gpu_that_does_dma"]

LINEAR: Final = 0
INVALID: Final = 0x00FFFFFFFFFFFFFF
"""drm_fourcc.h: DRM_FORMAT_MOD_LINEAR and DRM_FORMAT_MOD_INVALID. The latter leaves the layout to the driver, which treats imported buffers
as linear.
"""
_ENTRY: Final = Struct("=IxxxxQ")
_INDEX: Final = Struct("=H")


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


class DmabufFormats:
    """The formats that the compositor imports. `changed` is called when it has sent new feedback."""

    def __init__(self, conn: Connection, dmabuf: Proxy, changed: Callable[[], None]) -> None:
        self.no_gpu = "it does not name its main device"
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
        try:
            with mmap.mmap(fd, size, mmap.MAP_PRIVATE, mmap.PROT_READ) as table:
                self._table = table[: size - size % _ENTRY.size]
        finally:
            os.close(fd)

    def _on_main_device(self, device: bytes) -> None:
        self._main_device = bytes(device)

    def _on_tranche(self, indices: bytes) -> None:
        entries = list(_ENTRY.iter_unpack(self._table))
        self._announced |= {entries[index] for (index,) in _INDEX.iter_unpack(bytes(indices)) if index < len(entries)}

    def _on_done(self) -> None:
        self._formats, self._announced = self._announced, set()
        self.no_gpu = gpu_that_does_dma(int.from_bytes(self._main_device, "little"))
        self._changed()
