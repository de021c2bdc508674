"""The connector that an output's name stands for, as cards, docks and monitors come and go.

A name is one of

* the kernel's name of a connector, `HDMI-A-1`. While this connector has no monitor, the output follows what it was
  last on: the connector of a dock that has come back under another name, or the monitor on another connector;
* `path:` and the connector's PATH property, `path:mst:69-1-8`: a connector of a DisplayPort hub;
* `edid:` and the monitor's maker, product and serial number, `edid:DEL-A0B1-3XK9T`, or without the serial number.

`CARD/` may come before the first two; CARD is the card's name or its place in the machine
(`pci-0000:00:02.0/HDMI-A-1`). xl ends a name at a colon, so `_` stands for each character that is no letter, digit, dot
or hyphen.
"""

from __future__ import annotations

import enum
import re
from typing import Final

import msgspec

from .device import CardConnector, DrmDevice
from .names import canonical

__all__ = ["Binding", "Match", "card_names", "connector_names", "describe"]

_EDID: Final = "edid_"
_PATH: Final = "path_"
_SERIAL: Final = re.compile(r"edid:[^-]+-[^-]+-.+")
"""A monitor's name that has a serial number, so that no other monitor has the same name."""


class Match(enum.IntEnum):
    """How well a connector matches an output's name; the higher value is the better match."""

    NONE = 0
    """The connector is another."""
    FOLLOWS = 1
    """The connector has another name, but it is what the output was last on: the same place on a dock, or monitor."""
    NAMED = 2
    """The connector has the name."""


class _LastOn(msgspec.Struct, frozen=True):
    """What an output was last on."""

    sysfs_path: str
    """The card's."""
    path_name: str
    edid_name: str
    """Of the monitor; empty: it has no serial number."""


class Binding:
    """An output's name, and what the output was last on, also for an earlier guest."""

    def __init__(self, name: str) -> None:
        self.name = name
        text = canonical(name)
        card, separator, rest = name.partition("/")
        if separator and not text.startswith((_EDID, _PATH)):
            self.card, self.connector = canonical(card), canonical(rest)
        else:
            self.card, self.connector = "", text
        self._last_on: _LastOn | None = None

    @property
    def is_by_kernel_name(self) -> bool:
        """Whether the name is a connector's name, and not that of a monitor or of a place on a dock."""
        return not self.connector.startswith((_EDID, _PATH))

    @property
    def names_a_place(self) -> bool:
        """Whether the name says where in the machine the card is, so that the card may come later."""
        return self.card.startswith(("pci-", "platform-", "usb-"))

    @property
    def was_on(self) -> bool:
        """Whether the output has been on a connector."""
        return self._last_on is not None

    def attached(self, device: DrmDevice, connector: CardConnector) -> None:
        """Take note of what the output is on now. A monitor that is unplugged stays known."""
        edid = connector.edid_name if _SERIAL.match(connector.edid_name) else ""
        before = self._last_on.edid_name if self._last_on is not None else ""
        self._last_on = _LastOn(device.sysfs_path, connector.path_name, edid or before)

    def match(self, device: DrmDevice, connector: CardConnector) -> Match:
        """Return how well a card's connector matches."""
        if self.card and self.card not in card_names(device):
            return Match.NONE
        if self.connector in connector_names(connector):
            return Match.NAMED
        last = self._last_on
        if last is None or not self.is_by_kernel_name:
            return Match.NONE
        same_place = (last.sysfs_path, last.path_name) == (device.sysfs_path, connector.path_name or None)
        same_monitor = last.edid_name and last.edid_name == connector.edid_name
        return Match.FOLLOWS if same_place or same_monitor else Match.NONE


def card_names(device: DrmDevice) -> set[str]:
    """Return the names of a card, in the form of `canonical`."""
    return {canonical(device.name), canonical(device.bus_path)} - {""}


def connector_names(connector: CardConnector) -> set[str]:
    """Return the names of a connector and of its monitor, in the form of `canonical`."""
    names = [connector.name, connector.path_name, connector.edid_name]
    if connector.edid_name:
        names.append("-".join(connector.edid_name.split("-")[:2]))  # without the serial number
    return set(map(canonical, filter(None, names)))


def describe(connector: CardConnector) -> str:
    """Return the name of a connector for the operator, with those of its monitor and of its place on a dock."""
    more = ", ".join(filter(None, (connector.path_name, connector.edid_name)))
    return f"{connector.name} ({more})" if more else connector.name
