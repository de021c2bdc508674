"""The interfaces of a driver (vdispl, vkbd) that the handshake uses.

A driver opens one service for each device that is found. The service lives as long as the device, over all its connections.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol, TypeVar

import msgspec
import trio

from displbe.ops import status
from displbe.wire.xenbus import Table

from .guests import Guests
from .nodes import DeviceNodes
from .quota import Quota

__all__ = ["Driver", "Parts", "Service"]


class Parts(msgspec.Struct, frozen=True):
    """The status of a connected device: of the connectors of a vdispl, or of the input of a vkbd."""

    connectors: tuple[status.ConnectorStatus, ...] = ()
    input: status.InputStatus | None = None


class Service(Protocol):
    """The service of one device."""

    async def arrive(self) -> None:
        """Prepare for a device that has been found. Called before any device that was found with it is served.

        Raises StoreLost; it is then called again.
        """

    async def prepare(self) -> Mapping[str, str]:
        """Return nodes of the backend's directory, by their names. They are written together with our state 2 (InitWait)."""

    async def is_current(self) -> bool:
        """Return whether the rings that are served are still those that the frontend has published."""

    async def serve(self, background: trio.Nursery, *, task_status: trio.TaskStatus[None]) -> None:
        """Map the rings, bind the ports, call `started`, serve until cancelled, release everything.

        `background` is for tasks that may outlive the device. Raises DeviceRefused or HypervisorError before `started`; FrontendBroken
        at any time, to shut the device off.
        """

    async def status(self) -> Parts:
        """Return the status of the connection. Other tasks run between the parts, because each part takes some time."""

    def depart(self) -> None:
        """Take note that the device is gone, or that displbe ends. Called once, after everything else."""

    def close(self) -> None:
        """Drop the state that is kept between connections: the device is gone, or its task failed and is about to be restarted."""


S_co = TypeVar("S_co", bound=Service, covariant=True)


class Driver(Protocol[S_co]):
    """The devices of one kind."""

    @property
    def backend_kind(self) -> str:
        """The name of the kind in our own directory: `backend/KIND`."""

    @property
    def frontend_kind(self) -> str:
        """The name of the kind in the guests' directories: `device/KIND`."""

    @property
    def transitions(self) -> Table:
        """The table of the backend's states for frontends of this kind (wire.xenbus)."""

    @property
    def guests(self) -> Guests:
        """The `[guest.NAME]` tables of the configuration."""

    @property
    def published(self) -> Collection[str]:
        """The names of the nodes, at any depth, in which a frontend publishes its rings; `is_current` reads them."""

    def open(self, nodes: DeviceNodes, quota: Quota) -> S_co:
        """Return the service of a device that was found."""
