"""Which devices a guest's keyboard, pointer and touch screen are: the `unique-id` of its vkb line, or its own settings.

`K:ID;P:ID;T:ID`, any of them, also several of one kind: keyboard, pointer, touch screen. An ID names

* a device node: `/dev/input/event0`, `/dev/input/by-path/…`, `by-id/…`, `by-path/…`;
* a device by what it calls itself: `name=Logitech USB Keyboard`;
* else one of the guest's own connectors, whose window on the compositor gets input: `HDMI-A-1`, `1000`.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

__all__ = ["Binding", "Role", "parse_unique_id"]

MAX_TEXT: Final = 1024
MAX_BINDINGS: Final = 16


class Role(enum.Enum):
    """What a device is to the guest."""

    KEYBOARD = "K"
    POINTER = "P"
    TOUCH = "T"


_ROLES: Final = {role.value: role for role in Role}


class Binding(msgspec.Struct, frozen=True):
    """One part of a unique-id."""

    role: Role
    id: str

    @property
    def is_device(self) -> bool:
        """Whether this names a device of ours; else it is a connector."""
        return self.id.startswith(("/", "by-id/", "by-path/", "name="))


def parse_unique_id(text: str) -> tuple[Binding, ...]:
    """The parts of a unique-id. Raises ValueError with what is wrong, in words."""
    if len(text) > MAX_TEXT or not text.isprintable():
        raise ValueError(f"it is no list of devices: {text[:64]!r}")
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
