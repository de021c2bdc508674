"""Tests which modes a card can drive, after it has refused the one that was wanted. In worker threads, because tests may wait."""

from __future__ import annotations

import errno
from contextlib import suppress

from displbe.sinks.turn import Turn

from .atomic import TEST, Pipe, PlaneConfig, full_state
from .device import Mode
from .double_buffer import DumbBuffer
from .errors import DrmError
from .neutral import commit_with, neutral_values

__all__ = ["ModeSearch"]


class ModeSearch:
    """Tests modes with a black frame of each mode's size, so that a refusal is about the mode and not about a guest's frame.

    `fourcc` is the frame's format, which the planes must have. Modes have their sizes as they are seen on a panel that is
    mounted with this `turn`. One caller at a time.
    """

    def __init__(self, fourcc: int, turn: Turn = Turn.NONE) -> None:
        self._fourcc = fourcc
        self._turn = turn
        self._frame: DumbBuffer | None = None

    def passes(self, pipe: Pipe, mode: Mode) -> bool:
        """Return whether a pipe can drive a mode; False also if the card has no memory for a frame of its size.

        Raises DrmError that says nothing about the mode, such as NotMaster.
        """
        try:
            self.check(pipe, mode)
        except DrmError as error:
            if not error.refuses_frame and error.number != errno.ENOMEM:
                raise
            return False
        return True

    def check(self, pipe: Pipe, mode: Mode) -> None:
        """Test whether a pipe can drive a mode. Raises DrmError: it cannot, or the error says nothing about the mode."""
        whole = 0, 0, *self._turn.size(mode.width, mode.height)
        frame = self._frame_for(pipe, mode)
        blob = pipe.device.create_blob(mode.raw)
        try:
            changes = full_state(pipe, PlaneConfig(frame.fb, whole, mode, whole), blob)
            commit_with(pipe.device, changes, neutral_values(pipe), "test mode", TEST, pipe.name)
        finally:
            with suppress(DrmError):
                pipe.device.destroy_blob(blob)

    def _frame_for(self, pipe: Pipe, mode: Mode) -> DumbBuffer:
        """Return a black frame of the mode's size. Raises DrmError."""
        shape = *self._turn.size(mode.width, mode.height), self._fourcc
        if self._frame is None or self._frame.shape != shape:
            self.close()
            self._frame = DumbBuffer(pipe.device, *shape)
        return self._frame

    def close(self) -> None:
        """Free the frame."""
        frame, self._frame = self._frame, None
        if frame is not None:
            frame.close()
