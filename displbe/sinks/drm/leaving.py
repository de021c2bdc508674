"""What a card showed when it was opened, and putting that back at the end."""

from __future__ import annotations

from typing import Final

from .atomic import MODESET, Atomic, Changes
from .device import Card

__all__ = ["Found"]

_PLANE: Final = ("FB_ID", "CRTC_ID", *("SRC_X", "SRC_Y", "SRC_W", "SRC_H"), *("CRTC_X", "CRTC_Y", "CRTC_W", "CRTC_H"))


class Found:
    """A card's connectors, CRTCs and primary planes as they are now. Raises DrmError."""

    def __init__(self, card: Card) -> None:
        self._card = card
        self._state: Changes = {}
        self._modes: dict[int, bytes] = {}
        for identity in card.connector_ids:
            self._note("connector", identity, ("CRTC_ID",))
        for identity in card.crtcs:
            values = self._note("crtc", identity, ("ACTIVE", "MODE_ID"))
            self._modes[identity] = card.read_blob(values.get("MODE_ID", 0))
        for plane in card.planes:
            if plane.primary:
                self._note("plane", plane.id, _PLANE)

    def _note(self, kind: str, identity: int, names: tuple[str, ...]) -> dict[str, int]:
        values = self._card.values(kind, identity)
        self._state[kind, identity] = {name: values[name] for name in names if name in values}
        return values

    def restore(self) -> None:
        """Put it back. Raises DrmError, e.g. when the program is gone whose picture it was."""
        blobs = {identity: self._card.create_blob(mode) if mode else 0 for identity, mode in self._modes.items()}
        for identity, blob in blobs.items():
            self._state["crtc", identity]["MODE_ID"] = blob
        Atomic(self._card, self._state).commit("restore what was shown before", MODESET)
