"""The screens that the operator has switched off. They stay off when their guests reconnect or reboot."""

from __future__ import annotations

from typing import TypeAlias

__all__ = ["BlankedScreens", "ScreenId"]

ScreenId: TypeAlias = tuple[str | int, int, int]
"""The guest's name (its domid if the name is not known), the number of its device, and the number of the connector."""


class BlankedScreens:
    """The set of screens that the operator has switched off."""

    def __init__(self) -> None:
        self._screens: set[ScreenId] = set()

    def __contains__(self, screen: ScreenId) -> bool:
        return screen in self._screens

    def add(self, screen: ScreenId) -> None:
        """Add a screen that the operator has switched off."""
        self._screens.add(screen)

    def discard(self, screen: ScreenId) -> None:
        """Remove a screen that the operator has switched on again."""
        self._screens.discard(screen)

    def forget_domain(self, domid: int) -> None:
        """Remove the screens of a guest without a known name. It is gone, and another guest may get its domid."""
        self._screens -= {screen for screen in self._screens if screen[0] == domid}
