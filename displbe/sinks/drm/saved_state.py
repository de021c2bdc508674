"""The state in which a card was found, to be restored at the end (`on-exit = "restore"`)."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import Final

from .atomic import MODESET, OFF, TEST, Changes
from .device import DrmDevice
from .errors import CardGone, DrmError, NotMaster
from .neutral import NEUTRAL, Extra, commit_with

__all__ = ["SavedState"]

_SAVED: Final = {
    "connector": ("CRTC_ID",),
    "crtc": ("ACTIVE", "MODE_ID"),
    "plane": ("FB_ID", "CRTC_ID", "SRC_X", "SRC_Y", "SRC_W", "SRC_H", "CRTC_X", "CRTC_Y", "CRTC_W", "CRTC_H"),
}
"""The properties that say what is shown where."""
_BLOBS: Final = {"MODE_ID", "DEGAMMA_LUT", "CTM", "GAMMA_LUT", "HDR_OUTPUT_METADATA"}
"""Properties whose values are blobs. The kernel frees a blob when the program that made it ends, so its bytes are saved."""


class SavedState:
    """The properties of a card's connectors, CRTCs and planes when this was made. Raises DrmError."""

    def __init__(self, device: DrmDevice) -> None:
        self._device = device
        self._state: Changes = {}
        self._pictures: Changes = {}
        """The other properties that change the picture, which displbe makes neutral."""
        self._blobs: dict[tuple[tuple[str, int], str], bytes] = {}
        for identity in device.connector_ids:
            self._save("connector", identity)
        for identity in device.crtcs:
            self._save("crtc", identity)
        for plane in device.planes:
            self._save("plane", plane.id)

    def _save(self, kind: str, identity: int) -> None:
        values = self._device.values(kind, identity)
        object_ = kind, identity
        self._state[object_] = {name: values[name] for name in _SAVED[kind] if name in values}
        self._pictures[object_] = {
            name: values[name]
            for name in NEUTRAL[kind]
            if name in values and self._device.describe(kind, identity, name).settable
        }
        for name in _BLOBS & values.keys():
            if values[name]:
                self._blobs[object_, name] = self._device.read_blob(values[name])

    def restore(self) -> None:
        """Restore the state of all CRTCs, except those whose framebuffers have gone with the program that made them.

        Raises DrmError.
        """
        made = {place: self._device.create_blob(data) for place, data in self._blobs.items()}
        try:
            for (object_, name), blob in made.items():
                saved = self._state if name in self._state[object_] else self._pictures
                saved[object_][name] = blob
            self._commit_restorable()
        finally:
            for blob in made.values():  # what is shown keeps its own reference
                self._device.destroy_blob(blob)

    def _commit_restorable(self) -> None:
        try:
            self._commit(self._device.crtcs, MODESET)
        except (NotMaster, CardGone):
            raise
        except DrmError:
            restorable = [crtc for crtc in self._device.crtcs if self._is_restorable(crtc)]
            if not restorable:
                raise
            self._commit(restorable, MODESET)

    def _is_restorable(self, crtc: int) -> bool:
        with suppress(DrmError):
            self._commit([crtc], TEST)
            return True
        return False

    def _commit(self, crtcs: Collection[int], flags: int) -> None:
        """Restore these CRTCs and what belongs to them, and switch all others off. Raises DrmError.

        Connectors come and go with docks: those that are gone are left out, and those that have come are switched off.
        Properties that displbe made neutral are restored if the card accepts their old values.
        """
        there = self._device.connector_ids
        changes: Changes = {
            ("connector", identity): OFF["connector"]
            for identity in there
            if ("connector", identity) not in self._state
        }
        for (kind, identity), state in self._state.items():
            if kind == "connector" and identity not in there:
                continue
            crtc = identity if kind == "crtc" else state.get("CRTC_ID", 0)
            changes[kind, identity] = state if crtc in crtcs else OFF[kind]
        commit_with(self._device, changes, list(self._changed()), "restore what was shown before", flags)

    def _changed(self) -> Iterator[Extra]:
        """Yield the saved values of properties that have another value now. An object that has gone has none."""
        for (kind, identity), saved in self._pictures.items():
            with suppress(DrmError):
                now = self._device.values(kind, identity)
                for name, value in saved.items():
                    if now.get(name, value) != value:
                        yield Extra((kind, identity), name, value)
