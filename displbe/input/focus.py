"""Which guest a device belongs to that several guests name.

The operator says so: in the configuration, or by `give`. No guest's doing moves it. Where nothing was said, the guest that came first
has the device; of those that were there before displbe, the one with the lowest number. Its place is kept for a while when it goes,
since it may be rebooting: what is typed then is for nobody. (A guest without a name, as in a driver domain, cannot be known again.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import msgspec
import structlog
import trio

from .feed import Feed
from .names import Binding
from .remembered import Remembered

__all__ = ["PLACE", "Claim", "Focus", "Terms"]

PLACE: Final = 60.0
"""Seconds that a guest's place is kept when it has gone."""

_log = structlog.get_logger("displbe.focus")


class Terms(msgspec.Struct, frozen=True):
    """What a guest names, and what of that it may have whatever `[input] devices` says."""

    bindings: tuple[Binding, ...]
    allowed: frozenset[str] = frozenset()
    """IDs of bindings that the configuration itself gives this guest."""


class Claim:
    """A guest's vkbd device, with the devices that it names."""

    def __init__(self, name: str, domid: int, number: int, terms: Terms) -> None:
        self.name = name
        """In xl; empty: it is not to be known."""
        self.domid = domid
        self.number = number
        self.terms = terms
        self.feed: Feed | None = None
        """Where its input goes while it is connected."""
        self.left: float | None = None
        """Since when its device is gone."""
        self.key = self.guest, number
        """What a claim has in common with the one that comes after it when its guest reboots, and keeps when its name is known later."""

    @property
    def guest(self) -> str:
        """Its name; where that is not to be known, its domain's number."""
        return self.name or str(self.domid)


class Focus:
    """The claims, in the order of their rights. `first` comes first; empty: nobody does."""

    def __init__(self, remembered: Remembered) -> None:
        self.first = remembered.first()
        self._remembered = remembered
        self.claims: list[Claim] = []
        self.listeners: list[Callable[[], None]] = []
        """Called when another guest may have become the holder of something."""

    def arrive(self, claim: Claim) -> None:
        """A device has come. It takes the place that it had, if it is kept still."""
        self._forget()
        for place, old in enumerate(self.claims):
            if old.left is not None and (old.guest, old.number) == (claim.guest, claim.number):
                claim.key = old.key
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
        if not claim.name:
            self.claims.remove(claim)
        self.changed()

    def configure(self, guest: str) -> None:
        """The configuration says so now, whatever was said before."""
        self._remembered.configured = guest
        self.give(guest)

    def give(self, guest: str) -> None:
        """The operator's word: this guest has what it names, whoever else names it. The next displbe remembers it."""
        self._remembered.keep(guest)
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
