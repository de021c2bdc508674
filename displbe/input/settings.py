"""`[input]` of the configuration."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from displbe.settings import Table
from displbe.sinks.turn import Turn

from .event_codes import KEY_CAPSLOCK, KEY_NUMLOCK
from .shortcuts import Action, Shortcut, parse_keys

__all__ = ["DEGREES", "InputSettings"]

DEGREES: Final = {str(turn.value): turn for turn in Turn}
"""The turns that `rotate` can name."""


class InputSettings(Table, frozen=True):
    """The table `[input]`."""

    devices: list[str] = []
    """Patterns of the devices that guests may use: of paths, or of names after `name=`. Devices in a `[guest.NAME]` table are always
    allowed."""
    grab: bool = True
    """Whether a device that a guest uses is grabbed (EVIOCGRAB), so that the host's programs get no events from it."""
    focus: str = ""
    """The guest that gets a device that several guests name. Empty: the guest that arrived first."""
    repeat_delay: float = 0.5
    """Seconds until a key that is held down repeats, if its device does not repeat keys itself."""
    repeat_rate: float = 25.0
    """Repetitions per second; 0: no repetition."""
    rotate: dict[str, str] = {}
    """Patterns of devices, as in `devices` -> the output with whose panel they are mounted, or degrees, counter-clockwise."""

    next_guest: str = ""
    """The keys that, held together, give the focus to the next guest that names the device. Empty: there is no such combination."""
    release: str = ""
    """The keys that, held together, give the input devices back to the host, and then to the guests again. Empty: there is no such
    combination."""
    sync_locks: list[Literal["caps", "num"]] = msgspec.field(default_factory=lambda: ["caps", "num"])
    """The locks that a guest in a window takes over from the desktop with the first key that is typed into the window."""

    def locks(self) -> frozenset[int]:
        """Return the keys of `sync_locks`."""
        return frozenset({"caps": KEY_CAPSLOCK, "num": KEY_NUMLOCK}[lock] for lock in self.sync_locks)

    def shortcuts(self) -> tuple[Shortcut, ...]:
        """Return the key combinations. Raises ValueError."""
        wanted = (("next-guest", self.next_guest, Action.NEXT_GUEST), ("release", self.release, Action.RELEASE))
        found = []
        for key, text, action in wanted:
            try:
                keys = parse_keys(text)
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from error
            if keys:
                found.append(Shortcut(keys, action))
        if len(found) == 2 and (found[0].keys <= found[1].keys or found[1].keys <= found[0].keys):
            raise ValueError("next-guest and release must differ, and none may be a part of the other")
        return tuple(found)

    def __post_init__(self) -> None:
        self.shortcuts()
        if not 0.001 <= self.repeat_delay <= 10:
            raise ValueError("repeat-delay must be a number of seconds, 0.001 to 10")
        if self.repeat_rate != 0 and not 0.01 <= self.repeat_rate <= 100:
            raise ValueError("repeat-rate must be a number of repetitions per second, 0 (none) or 0.01 to 100")
        for device, turn in self.rotate.items():
            if not turn or (turn.isdecimal() and turn not in DEGREES):
                raise ValueError(f"rotate.{device} must be 0, 90, 180 or 270 (degrees), or the name of an output")
