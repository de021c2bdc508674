"""The input focus: which guest gets the events of a device that several guests name.

The operator decides, in the configuration or with `displbectl focus`; a guest cannot. If the operator has not decided, the guest that
arrived first has the device; of guests that run already when displbe starts, the one with the lowest domid. When a guest goes, its place
is reserved for a while, since the guest may be rebooting; its input is discarded meanwhile. (A guest whose name is not known, as in a
driver domain, cannot be recognized when it returns, so its place is not reserved.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import msgspec
import structlog
import trio

from .bindings import Binding
from .focus_file import FocusFile
from .guest_input import GuestInput

__all__ = ["RESERVATION", "Assignment", "Claim", "InputFocus"]

RESERVATION: Final = 60.0
"""Seconds that the place of a guest that has gone is reserved."""

_log = structlog.get_logger("displbe.focus")


class Assignment(msgspec.Struct, frozen=True):
    """The devices that are assigned to a guest, by its `[guest.NAME]` table or by its vkb line."""

    bindings: tuple[Binding, ...]
    always_allowed: frozenset[str] = frozenset()
    """IDs of bindings from the guest's table in the configuration. `[input] devices` need not allow these."""


class Claim:
    """A guest's vkbd device and its claim to the devices that are assigned to it."""

    def __init__(self, name: str, domid: int, number: int, assignment: Assignment) -> None:
        self.name = name
        """The guest's name in xl; empty when it is not known."""
        self.domid = domid
        self.number = number
        self.assignment = assignment
        self.guest_input: GuestInput | None = None
        """Takes the guest's events while the device is connected."""
        self.gone_since: float | None = None
        """The time when the device went, in seconds of trio's clock; None: the device exists."""
        self.key = self.guest, number
        """Identifies the claim. After a reboot, the same guest's claim has the same key. The key does not change with the name."""

    @property
    def guest(self) -> str:
        """The guest's name, or its domid if the name is not known."""
        return self.name or str(self.domid)


class InputFocus:
    """The claims of all guests, in order of arrival. Those of the `preferred` guest come first; empty: no guest is preferred."""

    def __init__(self, file: FocusFile) -> None:
        self.preferred = file.load()
        self.is_with_host = False
        """Whether the host has the input devices, because the operator has pressed the key combination `[input] release`."""
        self._file = file
        self.claims: list[Claim] = []
        self.listeners: list[Callable[[], None]] = []
        """Called whenever a device may belong to another claim than before."""

    def arrive(self, claim: Claim) -> None:
        """Add the claim of a new device, in the place that is reserved for it or at the end."""
        self.expire()
        for place, old in enumerate(self.claims):
            if old.gone_since is not None and (old.guest, old.number) == (claim.guest, claim.number):
                claim.key = old.key
                self.claims[place] = claim
                break
        else:
            self.claims.append(claim)
        self.changed()

    def expire(self) -> None:
        """Remove expired reservations. The preferred guest's reservation never expires."""
        now = trio.current_time()
        self.claims = [
            claim
            for claim in self.claims
            if claim.gone_since is None or claim.guest == self.preferred or now - claim.gone_since < RESERVATION
        ]

    def seconds_to_expiry(self) -> float:
        """Return the seconds until the next reservation expires; infinity if none will."""
        now = trio.current_time()
        gone = (
            claim.gone_since for claim in self.claims if claim.gone_since is not None and claim.guest != self.preferred
        )
        return min((max(0.0, RESERVATION - (now - since)) for since in gone), default=math.inf)

    def leave(self, claim: Claim) -> None:
        """Turn the claim of a device that has gone into a reservation."""
        claim.guest_input = None
        claim.gone_since = trio.current_time()
        if not claim.name:
            self.claims.remove(claim)
        self.changed()

    def configure(self, guest: str) -> None:
        """Prefer the guest that a changed configuration names. It overrides the operator's earlier choice."""
        self._file.configured = guest
        self.give(guest)

    def give(self, guest: str) -> None:
        """Prefer this guest from now on: it has every device that it names. The choice is kept for the next daemon."""
        self._file.save(guest)
        if guest != self.preferred or self.is_with_host:
            _log.info("focus", guest=guest)
        self.preferred = guest
        self.is_with_host = False
        self.changed()

    def give_next(self, names: Callable[[Claim], bool]) -> None:
        """Prefer the next of the connected guests that name a device, in order of arrival. `names` tells whether a claim names it.

        While the host has its devices, this does nothing: the combination may mean something else there.
        """
        if self.is_with_host:
            return
        present = (claim.guest for claim in self.claims if claim.guest_input is not None and names(claim))
        guests = list(dict.fromkeys(present))
        holder = self.holder(names)
        now = guests.index(holder.guest) if holder is not None else -1
        if not guests or (len(guests) == 1 and now == 0):
            _log.info("the focus stays: no other connected guest names the device", guest=guests[0] if guests else None)
            return
        self.give(guests[(now + 1) % len(guests)])

    def give_to_host(self, with_host: bool) -> None:
        """Leave the input devices to the host, or take them back for the guests."""
        if with_host == self.is_with_host:
            return
        self.is_with_host = with_host
        if with_host:
            _log.info(
                "the host has its input devices: guests get nothing from them until the combination is pressed again"
            )
        else:
            _log.info("the guests have the input devices again", guest=self.preferred or None)
        self.changed()

    def changed(self) -> None:
        """Call the listeners."""
        for listener in self.listeners:
            listener()

    def holder(self, names: Callable[[Claim], bool]) -> Claim | None:
        """Return the claim that gets the events of a device. `names` tells whether a claim names the device.

        None: no guest gets them, because no claim names the device, the first of these claims is not connected, or the host has them.
        """
        if self.is_with_host:
            return None
        self.expire()
        ordered = sorted(self.claims, key=lambda claim: claim.guest != self.preferred)
        found = next((claim for claim in ordered if names(claim)), None)
        return found if found is not None and found.guest_input is not None else None
