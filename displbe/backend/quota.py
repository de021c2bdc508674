"""Limits for each guest, for all its devices together: how much it may hold, and how fast it may send requests.

The kernel has no limit for each guest. gntdev maps whatever it is asked to map, with entries of one table (maptrack) that all guests of
this domain share, so that one guest could take all of it (XSA-300).
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
"""The share of this domain's maptrack that guests' buffers may take. The rest is for rings, other backends and other devices."""
SCREEN: Final = 2 * 2025
"""Pages that are reserved for each guest that has a device: two buffers of 1920x1080."""
THREADS: Final = 2
"""Threads that map and unmap one guest's buffers."""

REQUEST_BURST: Final = 0.25
"""Seconds of its request rate that a guest may send at once."""

_log = structlog.get_logger("displbe.quota")

MAX_COUNT: Final = (1 << 32) - 1
"""The largest number that a limit of a count may have."""
MIN_RATE: Final = 0.001
MAX_RATE: Final = 1e9
"""The bounds of a rate per second. nan and inf would switch the limit off."""


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """`[limits]` of the configuration. They apply to each guest."""

    pages: int = 49152
    """Mapped pages of buffers. The default is 192 MiB, six buffers of 3840x2160. All guests together get three quarters of the domain's
    maptrack, which has 262144 entries by default. That is enough for two such guests where each page may be mapped twice (zero copy on
    DRM and Wayland), and for four where frames are copied.
    """
    buffers: int = 64
    framebuffers: int = 128
    connectors: int = 8
    alloc_pages: int = 16384
    """Pages that the backend allocates for a guest (be-alloc): 64 MiB."""
    modesets_per_second: float = 2.0
    """Mode changes of each connector, after a burst of eight. Each takes tens of milliseconds."""
    reconnects_per_second: float = 1.0
    """Connections of each device, after a burst of five. A connection costs the backend mappings and ports, but costs the guest nothing."""
    requests_per_second: float = 2000.0
    """Requests, after a burst of a quarter of this number. The default is enough for eight screens at 240 flips a second. A request that
    maps pages or sets a mode counts as eight.
    """
    requests_per_turn: int = 8
    """Requests of one ring that are served before other rings get their turn."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if name.endswith("_per_second"):
                least, most = MIN_RATE, MAX_RATE
            else:
                least, most = int(name == "requests_per_turn"), MAX_COUNT
            if not least <= getattr(self, name) <= most:  # nan is in no range
                raise ValueError(f"{name.replace('_', '-')} must be a number from {least} to {most:.0f}")


class Total:
    """The pages that all guests together have mapped. Each takes `mappings` of the `maptrack` entries of this domain's maptrack."""

    def __init__(self, maptrack: int, mappings: int) -> None:
        self.limit = int(maptrack // mappings * MAPTRACK_SHARE)
        """Pages."""
        self.pages = 0
        self.quotas: set[Quota] = set()
        """The quotas of all guests that have a device."""

    def room(self, quota: Quota) -> int:
        """Return the number of pages that a guest may still map. The `SCREEN` pages that other guests have not mapped yet stay reserved."""
        reserved = sum(max(0, SCREEN - other.used["pages"]) for other in self.quotas if other is not quota)
        return self.limit - self.pages - reserved


class Quota:
    """The amounts that one guest holds of each kind that `Limits` limits, and its request rate."""

    def __init__(self, limits: Limits, total: Total) -> None:
        self.limits = limits
        self.used = dict.fromkeys(("pages", "buffers", "framebuffers", "connectors", "alloc_pages"), 0)
        rate = limits.requests_per_second
        self.requests = TokenBucket(rate * REQUEST_BURST, rate, trio.current_time)
        self.threads = trio.CapacityLimiter(THREADS)
        self._total = total

    def take(self, kind: str, amount: int = 1) -> None:
        """Charge the guest with `amount` of a kind. Raises RequestError ENOSPC; nothing is charged then."""
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
        """Take back a charge of `take`."""
        self.used[kind] -= amount
        if kind == "pages":
            self._total.pages -= amount


class Quotas:
    """The quotas of the guests that have a device of any kind."""

    def __init__(self, limits: Limits, total: Total) -> None:
        self.guests: dict[int, Quota] = {}
        self._devices: dict[int, int] = {}
        self.limits = limits
        self.total = total

    def enter(self, domid: int) -> Quota:
        """Count one more device of a guest, and return the guest's quota.

        Log a warning when the limits of all guests together exceed the number of pages that can be mapped.
        """
        self._devices[domid] = self._devices.get(domid, 0) + 1
        if domid not in self.guests:
            self.guests[domid] = quota = Quota(self.limits, self.total)
            self.total.quotas.add(quota)
            promised = sum(quota.limits.pages for quota in self.guests.values())
            if promised > self.total.limit:
                _log.warning(
                    "the limits of all guests together exceed the pages that can be mapped; requests may be refused",
                    guests=len(self.guests),
                    pages_per_guest=self.limits.pages,
                    mappable=self.total.limit,
                )
        return self.guests[domid]

    def leave(self, domid: int) -> None:
        """Count one device of a guest less. Its last device drops the guest's quota."""
        self._devices[domid] -= 1
        if not self._devices[domid]:
            del self._devices[domid]
            self.total.quotas.remove(self.guests.pop(domid))


class TokenBucket:
    """A token bucket: allows `burst` at once, then `rate` per second. `clock` returns seconds."""

    def __init__(self, burst: float, rate: float, clock: Callable[[], float]) -> None:
        self._burst = burst
        self._rate = rate
        self._clock = clock
        self._tokens = burst
        self._then = -math.inf

    def take(self, amount: float = 1) -> float:
        """Take `amount` tokens, even if there are too few. Return the seconds that the caller has to wait; 0: there were enough."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._then) * self._rate) - amount
        self._then = now
        return max(0.0, -self._tokens / self._rate)
