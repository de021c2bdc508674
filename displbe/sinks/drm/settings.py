"""`[drm]` of the configuration."""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from displbe.settings import Table
from displbe.sinks.turn import Turn

from .names import canonical

__all__ = ["DrmSettings", "ScreenSettings"]

_TURNS: Final = {"Upside Down": Turn.HALF, "Left Side Up": Turn.LEFT, "Right Side Up": Turn.RIGHT}
"""As drm_client_rotation() in the kernel turns its console."""


class ScreenSettings(Table, frozen=True):
    """The keys of `[drm.screens]`, which apply to all screens, and of `[drm.screens.NAME]`, which apply to one."""

    connected: Literal["auto", "always"] = "auto"
    """`always`: light the screen even if its connector says that no monitor is connected."""
    rotate: Literal["auto", "0", "90", "180", "270"] = "auto"
    """Degrees by which pictures are turned counter-clockwise on the panel; `auto`: as the kernel knows the panel to be mounted."""

    def turn(self, orientation: str) -> Turn:
        """Return how pictures lie on a panel with this `panel orientation` (drm_connector.c); empty: unknown."""
        return _TURNS.get(orientation, Turn.NONE) if self.rotate == "auto" else Turn(int(self.rotate))


class DrmSettings(Table, frozen=True):
    """`[drm]`"""

    device: str = "auto"
    """A card's device or name (`/dev/dri/card0`, `card0`, `pci-0000:00:02.0`); `auto`: every card that can be used."""
    zero_copy: Literal["auto", "require", "off"] = "auto"
    scale: Literal["fit", "stretch", "none"] = "fit"
    refresh: float = 30.0
    """Looks per second for what a guest draws without flipping; 0: none."""
    on_exit: Literal["restore", "keep", "blank"] = "restore"
    seat: Literal["auto", "off"] = "auto"
    """Whether cards are opened through libseat where a session manager runs."""
    screens: dict[str, Any] = msgspec.field(default_factory=lambda: {"connected": "auto", "rotate": "auto"})
    """`[drm.screens]`: the keys of ScreenSettings for all screens, and a table of such keys for each screen that is named."""

    def __post_init__(self) -> None:
        if self.refresh != 0 and not 0.01 <= self.refresh <= 120:  # a thread cannot wait for any number of seconds
            raise ValueError("refresh is a number of looks per second, 0 (never) or 0.01 to 120")
        for name, value in self.screens.items():
            table = value if isinstance(value, dict) else {name: value}
            if table is value and name in ScreenSettings.__struct_encode_fields__:
                raise ValueError(f"screens.{name} is a key, and no screen has this name")
            try:
                msgspec.convert(table, ScreenSettings)
            except msgspec.ValidationError as error:
                place = f"screens.{name}" if table is value else "screens"
                raise ValueError(f"{place}: {error}") from error

    def screen(self, *names: str) -> ScreenSettings:
        """Return a screen's settings: the general ones, and those of the first of its names that has a table."""
        general = {key: value for key, value in self.screens.items() if not isinstance(value, dict)}
        tables = {canonical(key): value for key, value in self.screens.items() if isinstance(value, dict)}
        own: dict[str, Any] = next((tables[name] for name in map(canonical, names) if name in tables), {})
        return msgspec.convert({**general, **own}, ScreenSettings)
