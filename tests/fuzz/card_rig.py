"""A machine of the rig whose screens are the model of a card, and whose steady flips the pump serves."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from scenario.cards import board_of_any_size, card_machine, shining
from unit.drm_model import Board

from displbe.pump.native import Pump, open_pump
from displbe.sinks.base import Sink
from displbe.sinks.drm import sink as sink_module
from displbe.sinks.drm.settings import DrmSettings

from .rig import Machine

__all__ = ["CardMachine"]


class CardMachine(Machine):
    """Domains 0 and 1, a card, and the pump. Its screens do not refresh by themselves, and flips are not late before they do;
    nor does the pump give a screen back because its guest pauses. Still frames are not looked at: what has been drawn into them is
    shown by a commit that waits for the screen, and on this model such a commit refreshes it.
    """

    def __init__(self, board: Board) -> None:
        super().__init__()
        self.board = board
        self.host.commit = board.commit
        pump, reason = open_pump(self.host.system_calls())
        assert pump is not None, reason
        self.pump: Pump = pump
        self.sink.pump = pump
        self.host.use_pump(pump)
        self._refreshing = contextlib.ExitStack()

    def _make_sink(self, refresh: float) -> Sink:
        return sink_module.DrmSink(DrmSettings(refresh=0))

    @classmethod
    @contextlib.asynccontextmanager
    async def made(cls, connectors: int, *, dmabufs: bool) -> AsyncIterator[CardMachine]:
        """Make such a machine, and run it. Without `dmabufs`, frames are copied."""
        board = board_of_any_size(connectors)
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            for name in ("LATE", "PAUSED"):
                patch.setattr(f"displbe.sinks.drm.output.{name}", 30.0)
            async with card_machine(Path(folder), patch, board, refresh=0, dmabufs=dmabufs):
                machine = cls(board)
                async with machine.pump.running():
                    try:
                        async with machine.running():
                            yield machine
                    finally:
                        machine._refreshing.close()
                        machine.close()  # while the pump is there
        board.cards.clear()

    def refresh(self) -> None:
        """Let the screens refresh by themselves from now on."""
        self._refreshing.enter_context(shining(self.board, 1000.0))

    def vblank(self) -> None:
        self.board.vblank()
