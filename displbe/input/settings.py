"""`[input]` of the configuration."""

from __future__ import annotations

from displbe.settings import Table

__all__ = ["InputSettings"]


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

    def __post_init__(self) -> None:
        if not 0.001 <= self.repeat_delay <= 10:
            raise ValueError("repeat-delay must be a number of seconds, 0.001 to 10")
        if self.repeat_rate != 0 and not 0.01 <= self.repeat_rate <= 100:
            raise ValueError("repeat-rate must be a number of repetitions per second, 0 (none) or 0.01 to 100")
