"""`[input]` of the configuration."""

from __future__ import annotations

from typing import Final

from displbe.settings import Table
from displbe.sinks.turn import Turn

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

    def __post_init__(self) -> None:
        if not 0.001 <= self.repeat_delay <= 10:
            raise ValueError("repeat-delay must be a number of seconds, 0.001 to 10")
        if self.repeat_rate != 0 and not 0.01 <= self.repeat_rate <= 100:
            raise ValueError("repeat-rate must be a number of repetitions per second, 0 (none) or 0.01 to 100")
        for device, turn in self.rotate.items():
            if not turn or (turn.isdecimal() and turn not in DEGREES):
                raise ValueError(f"rotate.{device} must be 0, 90, 180 or 270 (degrees), or the name of an output")
