"""The modes of a monitor about which nothing is known.

The kernel adds them to a connector that has no EDID (drm_add_modes_noedid() with 1024x768: the modes of VESA DMT up to
this size and 61 Hz), unless the connector says that no monitor is connected. A screen that is lit all the same gets
them from here.
"""

from __future__ import annotations

from typing import Final

from . import uapi
from .device import Mode

__all__ = ["FALLBACK_MODES"]


def _mode(clock: int, across: tuple[int, ...], down: tuple[int, ...], refresh: int, *, positive: bool) -> Mode:
    """Return a mode: pixel clock in kHz; active, sync start, sync end and total, in pixels and rows; both sync polarities."""
    flags = (
        uapi.DRM_MODE_FLAG_PHSYNC | uapi.DRM_MODE_FLAG_PVSYNC
        if positive
        else uapi.DRM_MODE_FLAG_NHSYNC | uapi.DRM_MODE_FLAG_NVSYNC
    )
    raw = uapi.drm_mode_modeinfo(clock=clock, vrefresh=refresh, flags=flags, type=uapi.DRM_MODE_TYPE_DRIVER)
    raw.hdisplay, raw.hsync_start, raw.hsync_end, raw.htotal = across
    raw.vdisplay, raw.vsync_start, raw.vsync_end, raw.vtotal = down
    raw.name = f"{across[0]}x{down[0]}".encode()
    return Mode(across[0], down[0], refresh, preferred=False, raw=bytes(raw))


FALLBACK_MODES: Final = (
    _mode(65000, (1024, 1048, 1184, 1344), (768, 771, 777, 806), 60, positive=False),
    _mode(33750, (848, 864, 976, 1088), (480, 486, 494, 517), 60, positive=True),
    _mode(40000, (800, 840, 968, 1056), (600, 601, 605, 628), 60, positive=True),
    _mode(36000, (800, 824, 896, 1024), (600, 601, 603, 625), 56, positive=True),
    _mode(25175, (640, 656, 752, 800), (480, 490, 492, 525), 60, positive=False),
)
"""The largest first, because none is preferred."""
