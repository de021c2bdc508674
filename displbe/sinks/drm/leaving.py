"""What a card showed when it was opened, and putting that back at the end."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from typing import Final

from .atomic import MODESET, NEUTRAL, TEST, Atomic, Changes
from .device import Card
from .errors import CardGone, DrmError, NotMaster

__all__ = ["Found"]

_NOTED: Final = {
    "connector": ("CRTC_ID",),
    "crtc": ("ACTIVE", "MODE_ID", *NEUTRAL["crtc"]),
    "plane": (
        *("FB_ID", "CRTC_ID", "SRC_X", "SRC_Y", "SRC_W", "SRC_H", "CRTC_X", "CRTC_Y", "CRTC_W", "CRTC_H"),
        *NEUTRAL["plane"],
    ),
}
_BLOBS: Final = ("MODE_ID", *NEUTRAL["crtc"])
"""They go with the program that made them, so their octets are noted."""
_OFF: Final = {
    "connector": {"CRTC_ID": 0},
    "crtc": {"ACTIVE": 0, "MODE_ID": 0},
    "plane": {"FB_ID": 0, "CRTC_ID": 0},
}


class Found:
    """A card's connectors, CRTCs and planes as they are now. Raises DrmError."""

    def __init__(self, card: Card) -> None:
        self._card = card
        self._state: Changes = {}
        self._blobs: dict[tuple[int, str], bytes] = {}
        for identity in card.connector_ids:
            self._note("connector", identity)
        for identity in card.crtcs:
            self._note("crtc", identity)
        for plane in card.planes:
            self._note("plane", plane.id)

    def _note(self, kind: str, identity: int) -> None:
        values = self._card.values(kind, identity)
        state = self._state[kind, identity] = {name: values[name] for name in _NOTED[kind] if name in values}
        if kind == "crtc":
            for name in _BLOBS:
                if state.get(name):
                    self._blobs[identity, name] = self._card.read_blob(state[name])

    def restore(self) -> None:
        """Put it back; where a CRTC's picture is gone with its program, that of the others. Raises DrmError."""
        for (identity, name), octets in self._blobs.items():
            self._state["crtc", identity][name] = self._card.create_blob(octets)
        try:
            self._commit(self._card.crtcs, MODESET)
        except (NotMaster, CardGone):
            raise
        except DrmError:
            there = [crtc for crtc in self._card.crtcs if self._can_be_put_back(crtc)]
            if not there:
                raise
            self._commit(there, MODESET)

    def _can_be_put_back(self, crtc: int) -> bool:
        with suppress(DrmError):
            self._commit([crtc], TEST)
            return True
        return False

    def _commit(self, crtcs: Collection[int], flags: int) -> None:
        """What was on these CRTCs, and nothing anywhere else. Raises DrmError."""
        changes: Changes = {}
        for (kind, identity), state in self._state.items():
            crtc = identity if kind == "crtc" else state.get("CRTC_ID", 0)
            changes[kind, identity] = state if crtc in crtcs else _OFF[kind]
        Atomic(self._card, changes).commit("restore what was shown before", flags)
