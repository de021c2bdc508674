"""Back-pressure: a compositor that does not report on frames gets no more frames than it processes."""

from __future__ import annotations

import enum
from collections.abc import Callable

from .conn import Connection

__all__ = ["GateState", "SyncGate"]


class GateState(enum.Enum):
    """Whether the compositor still has to answer a wl_display.sync, and whether a frame waits for the answer."""

    OPEN = "open"
    """No answer is outstanding."""
    SYNCING = "syncing"
    """The compositor has been asked to answer when it has processed all requests."""
    HOLDING = "holding"
    """The newest frame is kept back until the compositor answers."""


class SyncGate:
    """Keeps a surface's frames back until the compositor has answered a wl_display.sync. One sync is outstanding at a time.

    `opened` is called when the compositor has answered and a frame was kept back.
    """

    def __init__(self, opened: Callable[[], object]) -> None:
        self.state = GateState.OPEN
        self._opened = opened

    def passes(self, conn: Connection, *, reported: bool) -> bool:
        """Return whether to commit a frame now. If not, `opened` follows. `reported`: the compositor reports on this surface's frames."""
        if not reported and (self.state is not GateState.OPEN or not conn.keeps_up):
            self.sync(conn)
            self.state = GateState.HOLDING
            return False
        if self.state is GateState.HOLDING:
            self.state = GateState.SYNCING
        return True

    def sync(self, conn: Connection) -> None:
        """Ask the compositor to answer when it has processed all requests, unless an answer is outstanding."""
        if self.state is GateState.OPEN:
            self.state = GateState.SYNCING
            conn.call_after_sync(self._on_answer)

    def _on_answer(self) -> None:
        held = self.state is GateState.HOLDING
        self.state = GateState.OPEN
        if held:
            self._opened()

    def forget_frame(self) -> None:
        """Forget the frame that is kept back, if there is one."""
        if self.state is GateState.HOLDING:
            self.state = GateState.SYNCING

    def reset(self) -> None:
        """Expect no answer any more: the connection is gone."""
        self.state = GateState.OPEN
