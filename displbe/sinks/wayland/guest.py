"""The objects that the outputs of one guest share."""

from __future__ import annotations

from displbe.sinks.base import Claimant
from displbe.sinks.flip import FlipClock
from displbe.sinks.seat import Seats
from displbe.sinks.tasks import Tasks

from .imports import BufferImports
from .link import Link
from .settings import WaylandSettings

__all__ = ["WaylandGuest"]


class WaylandGuest:
    """One guest, and the objects that its outputs share."""

    def __init__(
        self,
        claimant: Claimant,
        settings: WaylandSettings,
        imports: BufferImports,
        clock: FlipClock,
        seats: Seats,
        tasks: Tasks,
    ) -> None:
        self.claimant = claimant
        self.settings = settings
        self.imports = imports
        self.clock = clock
        self.seats = seats
        self.tasks = tasks
        self.link: Link | None = None
        """The connection, while surfaces may be made over it. It is set later than `imports.link`, when all buffers have been offered."""
