"""The screens that the operator has switched off. They stay off over the connections and reboots of their guests."""

from __future__ import annotations

from typing import TypeAlias

__all__ = ["BlankedScreens", "ScreenId"]

ScreenId: TypeAlias = tuple[str | int, int, int]
"""The guest's name (its domain's number where that is not known), the number of its device, that of the connector."""


class BlankedScreens:
    """The set of screens that the operator has switched off."""

    def __init__(self) -> None:
        self._screens: set[ScreenId] = set()

    def __contains__(self, screen: ScreenId) -> bool:
        return screen in self._screens

    def add(self, screen: ScreenId) -> None:
        """The operator has switched it off."""
        self._screens.add(screen)

    def discard(self, screen: ScreenId) -> None:
        """The operator has switched it on again."""
        self._screens.discard(screen)

    def forget_domain(self, domid: int) -> None:
        """A guest without a known name is gone: its domain's number may be another guest's one day."""
        self._screens -= {screen for screen in self._screens if screen[0] == domid}
