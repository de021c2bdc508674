"""linux-dmabuf: which formats the compositor takes as dma-bufs, and whether what it draws with can read a guest's pages at all.

A compositor that renders in software says yes to a dma-buf of gntdev's and crashes when it draws it: nobody but a device can read
one. So the question is whether its main device is a GPU that does DMA.
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
"""drm_fourcc.h: DRM_FORMAT_MOD_LINEAR, and the modifier that stands for "as the driver likes": for buffers from elsewhere, linear."""
_ENTRY: Final = Struct("=IxxxxQ")
_INDEX: Final = Struct("=H")


def gpu_that_does_dma(device: int, sysfs: Path = Path("/sys")) -> str:
    """Why a DRM device (its dev_t) is none, in words; empty: it is one.

    On a PCI bus, or described by the device tree, and with a render node: neither a simulated card (vkms, vgem), nor a display
    controller without a GPU, nor virtio-gpu, which hands drawing to its host and cannot hand it our pages.
    """
    place = sysfs / "dev/char" / f"{os.major(device)}:{os.minor(device)}" / "device"
    try:
        bus = (place / "subsystem").resolve(strict=True).name
    except OSError:
        return "its main device is unknown here"
    if not (bus == "pci" or (bus == "platform" and (place / "of_node").exists())):
        return f"its main device is on the {bus} bus, and no GPU that does DMA"
    if any(place.glob("virtio*")):
        return "its main device is virtual, and no GPU that does DMA"
    if not any((place / "drm").glob("renderD*")):
        return "its main device has no render node: it draws in software"
    return ""


class DmabufFormats:
    """What the compositor says of dma-bufs: `changed` is called when it has said something new."""

    def __init__(self, conn: Connection, dmabuf: Proxy, changed: Callable[[], None]) -> None:
        self.no_gpu = "it does not tell its main device"
        """Why `auto` does not give it dma-bufs; empty: it does."""
        self._conn = conn
        self._changed = changed
        self._formats: set[tuple[int, int]] = set()
        self._told: set[tuple[int, int]] = set()
        self._table = b""
        self._main = b""
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
        """Whether it takes linear buffers of this DRM format."""
        return (code, LINEAR) in self._formats or (code, INVALID) in self._formats

    def modifier(self, code: int) -> int:
        """The modifier to give with such a buffer."""
        return LINEAR if (code, LINEAR) in self._formats else INVALID

    def _on_table(self, fd: int, size: int) -> None:
        try:
            with mmap.mmap(fd, size, mmap.MAP_PRIVATE, mmap.PROT_READ) as table:
                self._table = table[: size - size % _ENTRY.size]
        finally:
            os.close(fd)

    def _on_main_device(self, device: bytes) -> None:
        self._main = bytes(device)

    def _on_tranche(self, indices: bytes) -> None:
        entries = list(_ENTRY.iter_unpack(self._table))
        self._told |= {entries[index] for (index,) in _INDEX.iter_unpack(bytes(indices)) if index < len(entries)}

    def _on_done(self) -> None:
        self._formats, self._told = self._told, set()
        self.no_gpu = gpu_that_does_dma(int.from_bytes(self._main, "little"))
        self._changed()
