"""`[input]` of the configuration."""

from __future__ import annotations

from displbe.settings import Table

__all__ = ["InputSettings"]


class InputSettings(Table, frozen=True):
    """`[input]`"""

    devices: list[str] = []
    """Patterns of the devices that guests may name in XenStore."""
    grab: bool = True
    """Whether a device that a guest uses is grabbed, so that the host's programs do not read it."""
    focus: str = ""
    """The guest that gets a device which several guests name; empty: the guest that came first."""
    repeat_delay: float = 0.5
    """Seconds until a key that is held down repeats."""
    repeat_rate: float = 25.0
    """Repetitions per second; 0: none."""

    def __post_init__(self) -> None:
        if not 0 < self.repeat_delay <= 10:
            raise ValueError("repeat-delay is a number of seconds, up to 10")
        if not 0 <= self.repeat_rate <= 100:
            raise ValueError("repeat-rate is a number of repetitions per second, 0 (none) to 100")
