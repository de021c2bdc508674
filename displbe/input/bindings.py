"""The devices that a guest's keyboard, pointer and touch screen are bound to: the `unique-id` of its vkb line, or its own settings.

The syntax is `K:ID;P:ID;T:ID` for keyboard, pointer and touch screen. Each part is optional and may be repeated. An ID is

* a device node: `/dev/input/event0`, `/dev/input/by-path/…`, `by-id/…`, `by-path/…`;
* the name that a device reports (EVIOCGNAME): `name=Logitech USB Keyboard`;
* otherwise, one of the guest's own connectors, whose window on the compositor gets input: `HDMI-A-1`, `1000`.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

__all__ = ["Binding", "Role", "parse_unique_id"]

MAX_TEXT: Final = 1024
MAX_BINDINGS: Final = 16


class Role(enum.Enum):
    """The kind of guest device that gets a host device's events."""

    KEYBOARD = "K"
    """Keys."""
    POINTER = "P"
    """Motions or positions, buttons, the wheel."""
    TOUCH = "T"
    """Contacts of a touch screen."""


_ROLES: Final = {role.value: role for role in Role}


class Binding(msgspec.Struct, frozen=True):
    """One part of a unique-id."""

    role: Role
    id: str

    @property
    def is_device(self) -> bool:
        """Whether the ID names a device of this machine. Otherwise it names a connector."""
        return self.id.startswith(("/", "by-id/", "by-path/", "name="))


def parse_unique_id(text: str) -> tuple[Binding, ...]:
    """Return the parts of a unique-id. Raises ValueError with a message for the operator."""
    if len(text) > MAX_TEXT or not text.isprintable():
        raise ValueError(f"it is not a list of devices: {text[:64]!r}")
    found = []
    for part in filter(None, (part.strip() for part in text.split(";"))):
        letter, _, name = part.partition(":")
        role = _ROLES.get(letter.strip().upper())
        if role is None or not name.strip():
            raise ValueError(f"{part[:64]!r} is none of K:ID, P:ID and T:ID")
        found.append(Binding(role, name.strip()))
    if not found:
        raise ValueError("it names no device")
    if len(found) > MAX_BINDINGS:
        raise ValueError(f"it names more than {MAX_BINDINGS} devices")
    return tuple(dict.fromkeys(found))
