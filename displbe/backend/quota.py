"""What one guest may hold of us, all its devices together.

The kernel sets no limit per guest: gntdev maps what it is asked to, out of one table (maptrack) for all guests of this domain,
so that one guest could take all of it (XSA-300).
"""

from __future__ import annotations

import msgspec

from displbe.wire.errors import Errno, RequestError

__all__ = ["Limits", "Quota"]


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """`[limits]` of the configuration: for each guest."""

    pages: int = 65536
    """Mapped pages of buffers: 256 MiB, thirty 1920x1080 buffers. A domain's maptrack holds 262144 by default, for all guests."""
    buffers: int = 64
    framebuffers: int = 128
    connectors: int = 8


class Quota:
    """What a guest holds now, of each kind of `Limits`."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.used = dict.fromkeys(limits.__struct_fields__, 0)

    def take(self, kind: str, amount: int = 1) -> None:
        """Charge the guest. Raises RequestError ENOSPC, and charges nothing then."""
        limit = getattr(self.limits, kind)
        if self.used[kind] + amount > limit:
            raise RequestError(
                Errno.ENOSPC, f"limit of {limit} {kind} reached: {self.used[kind]} held, {amount} more asked for"
            )
        self.used[kind] += amount

    def give(self, kind: str, amount: int = 1) -> None:
        """The guest has given back."""
        self.used[kind] -= amount
