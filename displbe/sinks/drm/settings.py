"""`[drm]` of the configuration."""

from __future__ import annotations

from typing import Literal

from displbe.settings import Table

__all__ = ["DrmSettings"]


class DrmSettings(Table, frozen=True):
    """`[drm]`"""

    device: str = "auto"
    """A card's device or name (`/dev/dri/card0`, `card0`); `auto`: every card that can be used."""
    zero_copy: Literal["auto", "require", "off"] = "auto"
    scale: Literal["fit", "stretch", "none"] = "fit"
    refresh: float = 30.0
    """Looks per second for what a guest draws without flipping; 0: none."""
    on_exit: Literal["restore", "keep", "blank"] = "restore"
    seat: Literal["auto", "off"] = "auto"
    """Whether cards are opened through libseat where a session manager runs."""

    def __post_init__(self) -> None:
        if self.refresh != 0 and not 0.01 <= self.refresh <= 120:  # a thread cannot wait for any number of seconds
            raise ValueError("refresh is a number of looks per second, 0 (never) or 0.01 to 120")
