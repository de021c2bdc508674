"""Decides which connectors of the guests' devices have a window. Of two that exclude each other, the one that came first has it.

A guest cannot change this order, because the toolstack creates and removes the devices.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from .base import DeviceConnector, OutputUnavailable

__all__ = ["WindowQueue", "same_name"]

_log = structlog.get_logger("displbe.windows")


def same_name(name: str, other: str) -> str:
    """Return why two connectors of these names cannot both have a window; empty: they can."""
    return f"connector {name} is taken by another guest" if name == other else ""


class WindowQueue:
    """The connectors of all devices. `opened` is called when a connector gets its window, `closed` when it loses it.

    `excludes` returns why two connectors of these names cannot both have a window, or the empty string.
    """

    def __init__(
        self,
        opened: Callable[[DeviceConnector], None],
        closed: Callable[[DeviceConnector], None],
        excludes: Callable[[str, str], str] = same_name,
    ) -> None:
        self._connectors: list[DeviceConnector] = []
        """In the order in which they came."""
        self._open: set[DeviceConnector] = set()
        self._opened = opened
        self._closed = closed
        self._excludes = excludes

    def add(self, connector: DeviceConnector) -> None:
        """Add a connector, and give it a window if that is possible."""
        self._connectors.append(connector)
        self._open_possible()
        if connector not in self._open:
            _log.warning(
                "no window for a connector: it gets one when the other connector is gone",
                connector=connector.name,
                domid=connector.claimant.domid,
                reason=self._obstacle(connector),
            )

    def remove(self, connector: DeviceConnector) -> None:
        """Remove a connector, and give its window's place to the next one."""
        if connector not in self._connectors:
            return
        self._connectors.remove(connector)
        if connector in self._open:
            self._open.discard(connector)
            self._closed(connector)
            self._open_possible()

    def _open_possible(self) -> None:
        for connector in self._connectors:
            if connector not in self._open and not self._obstacle(connector):
                self._open.add(connector)
                self._opened(connector)

    def _obstacle(self, connector: DeviceConnector) -> str:
        """Return why a connector without a window cannot have one; empty: it can."""
        reasons = (self._excludes(connector.name, other.name) for other in self._open)
        return next(filter(None, reasons), "")

    def find(self, name: str, domid: int) -> DeviceConnector:
        """Return the guest's connector of this name. Raises OutputUnavailable if it has no window."""
        named = [each for each in self._connectors if each.name == name]
        mine = [each for each in named if each.claimant.domid == domid]
        for connector in mine:
            if connector in self._open:
                return connector
        if mine or named:
            raise OutputUnavailable(self._obstacle((mine or named)[0]) or same_name(name, name))
        raise OutputUnavailable(f"no device of this guest has a connector {name} in XenStore")

    def check_open(self, connector: DeviceConnector) -> None:
        """Raise OutputUnavailable if a connector has no window."""
        if connector not in self._open:
            raise OutputUnavailable(self._obstacle(connector) or f"no device has a connector {connector.name}")
