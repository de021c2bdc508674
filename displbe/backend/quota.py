"""Limits for each guest, for all its devices together: how much it may hold, and how fast it may send requests.

The kernel has no limit for each guest. gntdev maps whatever it is asked to map, with entries of one table (maptrack) that all guests of
this domain share, so that one guest could take all of it (XSA-300). Guests also share the daemon's files, threads and memory. Each of
these is a `Pool`: what guests hold is charged to it, a part is kept for each guest that has a device, and a part for the daemon itself.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Final

import msgspec
import structlog
import trio

from displbe.pump.native import Bucket, Pump
from displbe.resources import ProcessLimits
from displbe.threads import DEFAULT_THREADS
from displbe.wire.errors import Errno, RequestError
from displbe.wire.ring import PAGE_SIZE

__all__ = ["CHARGES", "REQUEST_BURST", "Limits", "Pool", "Quota", "Quotas", "TokenBucket", "Total"]

MAPTRACK_SHARE: Final = 0.75
"""The share of this domain's maptrack that guests' buffers may take. The rest is for rings, other backends and other devices."""
SCREEN: Final = 2 * 2025
"""Pages that are reserved for each guest that has a device: two buffers of 1920x1080."""
THREADS: Final = 2
"""Threads that map and unmap one guest's buffers."""
FRAMES: Final = 3
"""Copies of a frame that an output keeps: one on the screen, one on its way there, one to copy into or to compare with."""

OWN_FILES: Final = 256
"""Files that are kept for the daemon itself: Xen, cards, input devices, and the clients of its sockets."""
OWN_THREADS: Final = DEFAULT_THREADS + 24
"""Threads that are kept for the daemon itself: the loop, the log, traces, input devices, and work that is not one guest's."""
OWN_MEMORY: Final = 256 << 20
"""Bytes of memory that are kept for the daemon itself: Python and its modules, and one operator's screenshot."""
OWN_PART: Final = 0.5
"""The largest part of a limit that is kept for the daemon itself, where limits are low."""

CHARGES: Final[dict[str, dict[str, int]]] = {
    "pages": {"pages": 1},
    "buffers": {"files": 2},  # the file of gntdev, the dma-buf
    "framebuffers": {},
    "connectors": {
        "files": 4,
        "threads": 1,
        "memory": 128,
    },  # a compositor's connection, files on their way to it; copying; traces
    "alloc_pages": {"memory": 1},
    "copy_pages": {"memory": 1},
}
"""What each kind that `Limits` limits takes from the pools."""

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
    copy_pages: int = 81920
    """Pages of the copies of its frames, where a compositor, an X server or a card cannot use the guest's own. The default is 320 MiB:
    three copies for each of eight screens of 1920x1080 or of two of 3840x2160, and for one that changes its mode.
    """
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
                raise ValueError(f"{_key(name)} must be a number from {least} to {most:.0f}")


class Pool:
    """A resource that all guests share. `limit` is for all of them together; `reserve` is kept for each guest until the guest uses it,
    but no more than an equal part for each guest that has a device: those of `present`, a set that all pools share.

    `refusal` says that the limit is reached, and the way out; {limit} in it is replaced.
    """

    def __init__(self, limit: int, reserve: int, refusal: str, present: set[Quota]) -> None:
        self.limit = limit
        self.used = 0
        self._reserve = reserve
        self._refusal = refusal
        self._held: dict[Quota, int] = {}
        """The amount that each guest holds, also of guests that have no device any more: a buffer may be in use for longer."""
        self._present = present

    def room(self, quota: Quota) -> int:
        """Return the amount that a guest may still take. What is reserved for other guests is not counted."""
        reserve = min(self._reserve, self.limit // max(1, len(self._present)))
        others = (self._held.get(other, 0) for other in self._present if other is not quota)
        return self.limit - self.used - sum(max(0, reserve - held) for held in others)

    def check(self, quota: Quota, amount: int) -> None:
        """Raise RequestError ENOSPC if there is no room for this amount."""
        if amount > self.room(quota):
            raise RequestError(Errno.ENOSPC, self._refusal.format(limit=self.limit))

    def add(self, quota: Quota, amount: int) -> None:
        """Add to what a guest holds; a negative amount takes back."""
        held = self._held.pop(quota, 0) + amount
        if held:
            self._held[quota] = held
        self.used += amount


class Total:
    """What all guests together may hold. Each page takes `mappings` of the `maptrack` entries of this domain's maptrack. `process` has the
    limits of the daemon.
    """

    def __init__(self, maptrack: int, mappings: int, process: ProcessLimits = ProcessLimits()) -> None:  # noqa: B008
        self._present: set[Quota] = set()
        """The guests that have a device."""
        memory = min(_without_own(process.memory, OWN_MEMORY), process.half) // PAGE_SIZE
        self.pools = {
            "pages": Pool(
                int(maptrack // mappings * MAPTRACK_SHARE),
                SCREEN,
                "all guests together reach the limit of {limit} mapped pages",
                self._present,
            ),
            "files": Pool(
                _without_own(process.files, OWN_FILES),
                CHARGES["connectors"]["files"] + 4 * CHARGES["buffers"]["files"],
                "all guests together reach the limit of {limit} files: raise LimitNOFILE= in displbe.service, or lower buffers in [limits]",
                self._present,
            ),
            "threads": Pool(
                _without_own(process.threads, OWN_THREADS),
                THREADS + 1,
                "all guests together reach the limit of {limit} threads: raise TasksMax= in displbe.service",
                self._present,
            ),
            "memory": Pool(
                memory,
                FRAMES * SCREEN // 2,
                "the copies of all guests' frames reach the limit of {limit} pages: raise MemoryMax= in displbe.service, give this"
                " machine more memory, or lower copy-pages in [limits]",
                self._present,
            ),
        }
        self.process = process
        self.lock = threading.Lock()
        """Held while amounts change: worker threads charge copies."""

    @property
    def limit(self) -> int:
        """The number of pages that all guests together may map."""
        return self.pools["pages"].limit

    @property
    def pages(self) -> int:
        """The number of pages that all guests together have mapped."""
        return self.pools["pages"].used

    def enter(self, quota: Quota) -> None:
        """Reserve room for a guest that has a device now."""
        with self.lock:
            self._present.add(quota)
            self.pools["threads"].add(quota, THREADS)

    def leave(self, quota: Quota) -> None:
        """Reserve nothing for a guest that has no device any more. What it still holds counts until it is given back."""
        with self.lock:
            self._present.discard(quota)
            self.pools["threads"].add(quota, -THREADS)


def _key(kind: str) -> str:
    """Return the key of a kind in `[limits]`."""
    return kind.replace("_", "-")


def _without_own(limit: int, own: int) -> int:
    """Return the part of a limit of the daemon that is for guests."""
    return limit - min(own, int(limit * OWN_PART))


class Quota:
    """The amounts that one guest holds of each kind that `Limits` limits, and its request rate."""

    def __init__(self, limits: Limits, total: Total, pump: Pump | None = None) -> None:
        self.limits = limits
        self.used = dict.fromkeys(CHARGES, 0)
        rate = limits.requests_per_second
        self.requests: TokenBucket | Bucket
        """The request rate. With a pump, the pump takes from it, too."""
        if pump is None:
            self.requests = TokenBucket(rate * REQUEST_BURST, rate, _now())
        else:
            self.requests = Bucket(pump, rate * REQUEST_BURST, rate)
        self.threads = trio.CapacityLimiter(THREADS)
        self._total = total

    def take(self, kind: str, amount: int = 1) -> None:
        """Charge the guest with `amount` of a kind. Raises RequestError ENOSPC; nothing is charged then."""
        limit = getattr(self.limits, kind)
        pools, charges = self._total.pools, CHARGES[kind]
        with self._total.lock:
            if self.used[kind] + amount > limit:
                raise RequestError(
                    Errno.ENOSPC,
                    f"limit of {limit} {kind} reached: {self.used[kind]} held, {amount} more asked for; {_key(kind)} in [limits]",
                )
            for name, each in charges.items():
                pools[name].check(self, amount * each)
            self._add(kind, amount)

    def give(self, kind: str, amount: int = 1) -> None:
        """Take back a charge of `take`."""
        with self._total.lock:
            self._add(kind, -amount)

    def _add(self, kind: str, amount: int) -> None:
        self.used[kind] += amount
        for name, each in CHARGES[kind].items():
            self._total.pools[name].add(self, amount * each)


def _now() -> Callable[[], float]:
    """Return a function that returns the time of trio's clock, in two calls less than trio.current_time where that is possible."""
    try:
        return trio.lowlevel.current_clock().current_time
    except RuntimeError:  # not in a loop
        return trio.current_time


class Quotas:
    """The quotas of the guests that have a device of any kind."""

    def __init__(self, limits: Limits, total: Total, pump: Pump | None = None) -> None:
        self.guests: dict[int, Quota] = {}
        self._devices: dict[int, int] = {}
        self.limits = limits
        self.total = total
        self.pump = pump
        """What serves steady flips, and takes from the guests' request rates; None: nothing else does."""

    def enter(self, domid: int) -> Quota:
        """Count one more device of a guest, and return the guest's quota.

        Log a warning when the limits of all guests together exceed the number of pages that can be mapped.
        """
        self._devices[domid] = self._devices.get(domid, 0) + 1
        if domid not in self.guests:
            self.guests[domid] = quota = Quota(self.limits, self.total, self.pump)
            self.total.enter(quota)
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
            self.total.leave(self.guests.pop(domid))


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
        tokens = self._tokens + (now - self._then) * self._rate
        self._tokens = tokens = (tokens if tokens < self._burst else self._burst) - amount
        self._then = now
        return 0.0 if tokens >= 0 else -tokens / self._rate
