"""`[xen]` of the configuration."""

from __future__ import annotations

from displbe.settings import Table

__all__ = ["XenSettings"]


class XenSettings(Table, frozen=True):
    """`[xen]`"""

    store: str = ""
    """The path of xenstored's socket or of the xenbus device; empty: the one that exists."""
    maptrack: int = 262144
    """Pages of other domains that this domain can map (Xen's gnttab_max_maptrack_frames, 1024 by default, times 256)."""

    def __post_init__(self) -> None:
        if not 1 <= self.maptrack < 1 << 32:
            raise ValueError("maptrack must be a number of pages, from 1 to 4294967295")
