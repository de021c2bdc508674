"""Which guest a device belongs to that several guests name.

The operator says so: in the configuration, or by `give`. No guest's doing moves it. Where nothing was said, the guest that came first
has the device. Its place is kept for a while when it goes, since it may be rebooting: what is typed then is for nobody.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import structlog
import trio

from .feed import Feed
from .names import Binding

__all__ = ["PLACE", "Claim", "Focus"]

PLACE: Final = 60.0
"""Seconds that a guest's place is kept when it has gone."""

_log = structlog.get_logger("displbe.focus")


class Claim:
    """A guest's vkbd device, with the devices that it names."""

    def __init__(
        self, guest: str, domid: int, number: int, bindings: tuple[Binding, ...], allowed: frozenset[str]
    ) -> None:
        self.guest = guest
        """Its name in xl; where that is not to be known, its domain's number."""
        self.domid = domid
        self.number = number
        self.bindings = bindings
        self.allowed = allowed
        """IDs of bindings that the configuration itself gives this guest."""
        self.feed: Feed | None = None
        """Where its input goes while it is connected."""
        self.left: float | None = None
        """Since when its device is gone."""

    @property
    def key(self) -> tuple[str, int]:
        """What a claim has in common with the one that comes after it when its guest reboots."""
        return self.guest, self.number


class Focus:
    """The claims, in the order of their rights. `first` comes first; empty: nobody does."""

    def __init__(self, first: str = "") -> None:
        self.first = first
        self.claims: list[Claim] = []
        self.listeners: list[Callable[[], None]] = []
        """Called when another guest may have become the holder of something."""

    def arrive(self, claim: Claim) -> None:
        """A device has come. It takes the place that it had, if it is kept still."""
        self._forget()
        for place, old in enumerate(self.claims):
            if old.left is not None and old.key == claim.key:
                self.claims[place] = claim
                break
        else:
            self.claims.append(claim)
        self.changed()

    def _forget(self) -> None:
        """Give up the places that have been kept long enough. That of the guest that comes first is kept for ever."""
        now = trio.current_time()
        self.claims = [
            claim
            for claim in self.claims
            if claim.left is None or claim.guest == self.first or now - claim.left < PLACE
        ]

    def patience(self) -> float:
        """Seconds until a place is given up."""
        now = trio.current_time()
        left = (claim.left for claim in self.claims if claim.left is not None and claim.guest != self.first)
        return min((max(0.0, PLACE - (now - since)) for since in left), default=math.inf)

    def leave(self, claim: Claim) -> None:
        """A device has gone."""
        claim.feed = None
        claim.left = trio.current_time()
        self.changed()

    def give(self, guest: str) -> None:
        """The operator's word: this guest has what it names, whoever else names it."""
        if guest != self.first:
            _log.info("focus", guest=guest)
        self.first = guest
        self.changed()

    def changed(self) -> None:
        """Claims have changed."""
        for listener in self.listeners:
            listener()

    def holder(self, names: Callable[[Claim], bool]) -> Claim | None:
        """The claim that a device belongs to, of those that name it; None: to nobody now."""
        self._forget()
        ordered = sorted(self.claims, key=lambda claim: claim.guest != self.first)
        found = next((claim for claim in ordered if names(claim)), None)
        return found if found is not None and found.feed is not None else None
