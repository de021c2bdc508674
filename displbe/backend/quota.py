"""What one guest may hold of us and how fast it may ask, all its devices together.

The kernel sets no limit per guest: gntdev maps what it is asked to, out of one table (maptrack) for all guests of this domain,
so that one guest could take all of it (XSA-300).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import msgspec
import structlog
import trio

from displbe.wire.errors import Errno, RequestError

__all__ = ["REQUEST_BURST", "Limits", "Quota", "Quotas", "TokenBucket", "Total"]

MAPTRACK_SHARE: Final = 0.75
"""What guests' buffers may take of this domain's maptrack; the rest is for rings, other backends, other devices."""
SCREEN: Final = 2 * 2025
"""Pages that each guest which has a device is sure of while others take theirs: two buffers of 1920x1080."""
THREADS: Final = 2
"""Threads that map and unmap one guest's buffers."""

REQUEST_BURST: Final = 0.25
"""Seconds' worth of requests that a guest may send at once."""

_log = structlog.get_logger("displbe.quota")

RATES: Final = ("modesets_per_second", "reconnects_per_second", "requests_per_second", "requests_per_turn")


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """`[limits]` of the configuration: for each guest."""

    pages: int = 49152
    """Mapped pages of buffers: 192 MiB, six 3840x2160 buffers. Of a domain's maptrack, with 262144 entries by default, all guests get three
    quarters: enough for two where each page may be mapped twice (zero copy on DRM and Wayland), for four where frames are copied."""
    buffers: int = 64
    framebuffers: int = 128
    connectors: int = 8
    alloc_pages: int = 16384
    """Pages of ours that a guest may hold by be-alloc: 64 MiB."""
    modesets_per_second: float = 2.0
    """Of each connector, after a burst of eight; a mode change takes the screen tens of milliseconds."""
    reconnects_per_second: float = 1.0
    """Of each device, after a burst of five: a connection costs us maps and binds, and a guest nothing."""
    requests_per_second: float = 2000.0
    """After a quarter of a second's worth at once: eight screens at 240 flips a second. One that maps or sets a mode counts for eight."""
    requests_per_turn: int = 8
    """Requests of one ring that are served before the other rings have their turn."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if getattr(self, name) < 0 or (name in RATES and not getattr(self, name)):
                raise ValueError(f"{name.replace('_', '-')} must be positive")


class Total:
    """What all guests hold together of this domain's maptrack (entries, so many for each mapped page)."""

    def __init__(self, maptrack: int, mappings: int) -> None:
        self.limit = int(maptrack // mappings * MAPTRACK_SHARE)
        """Pages."""
        self.pages = 0
        self.quotas: set[Quota] = set()
        """Of the guests that there are."""

    def room(self, quota: Quota) -> int:
        """Pages that are left to a guest: what others have not taken yet of their screens is theirs."""
        kept = sum(max(0, SCREEN - other.used["pages"]) for other in self.quotas if other is not quota)
        return self.limit - self.pages - kept


class Quota:
    """What a guest holds now, of each kind of `Limits`."""

    def __init__(self, limits: Limits, total: Total) -> None:
        self.limits = limits
        self.used = dict.fromkeys(("pages", "buffers", "framebuffers", "connectors", "alloc_pages"), 0)
        rate = limits.requests_per_second
        self.requests = TokenBucket(rate * REQUEST_BURST, rate, trio.current_time)
        self.threads = trio.CapacityLimiter(THREADS)
        self._total = total

    def take(self, kind: str, amount: int = 1) -> None:
        """Charge the guest. Raises RequestError ENOSPC, and charges nothing then."""
        limit = getattr(self.limits, kind)
        if self.used[kind] + amount > limit:
            raise RequestError(
                Errno.ENOSPC, f"limit of {limit} {kind} reached: {self.used[kind]} held, {amount} more asked for"
            )
        if kind == "pages":
            if amount > self._total.room(self):
                raise RequestError(
                    Errno.ENOSPC, f"all guests together reach the limit of {self._total.limit} mapped pages"
                )
            self._total.pages += amount
        self.used[kind] += amount

    def give(self, kind: str, amount: int = 1) -> None:
        """The guest has given back."""
        self.used[kind] -= amount
        if kind == "pages":
            self._total.pages -= amount


class Quotas:
    """The quota of each guest that has a device, of whatever kind."""

    def __init__(self, limits: Limits, total: Total) -> None:
        self.guests: dict[int, Quota] = {}
        self._devices: dict[int, int] = {}
        self.limits = limits
        self.total = total

    def enter(self, domid: int) -> Quota:
        """One more device of a guest. When the guests' limits together no longer fit, the operator is told before it hurts."""
        self._devices[domid] = self._devices.get(domid, 0) + 1
        if domid not in self.guests:
            self.guests[domid] = quota = Quota(self.limits, self.total)
            self.total.quotas.add(quota)
            promised = sum(quota.limits.pages for quota in self.guests.values())
            if promised > self.total.limit:
                _log.warning(
                    "guests may together ask for more pages than can be mapped",
                    guests=len(self.guests),
                    pages_per_guest=self.limits.pages,
                    mappable=self.total.limit,
                )
        return self.guests[domid]

    def leave(self, domid: int) -> None:
        """One less."""
        self._devices[domid] -= 1
        if not self._devices[domid]:
            del self._devices[domid]
            self.total.quotas.remove(self.guests.pop(domid))


class TokenBucket:
    """So many at once, then so many per second. `clock` gives seconds."""

    def __init__(self, burst: float, rate: float, clock: Callable[[], float]) -> None:
        self._burst = burst
        self._rate = rate
        self._clock = clock
        self._tokens = burst
        self._then = -math.inf

    def take(self, amount: float = 1) -> float:
        """Take so many: 0, or the seconds to wait first."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._then) * self._rate) - amount
        self._then = now
        return max(0.0, -self._tokens / self._rate)
