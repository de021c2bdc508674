"""The compositor's reports on commits: shown or discarded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from .conn import Proxy
from .frame_requests import Report, ReportKind
from .link import Link

__all__ = ["NO_FLIP", "FrameReports"]

NO_FLIP: Final = -1
"""The serial number of no flip."""
MOST_CALLBACKS: Final = 8
"""Frame callbacks that a surface has at most. A compositor that does not draw the surface keeps them all."""


class FrameReports:
    """Reports for one wl_surface: by wp_presentation, or by frame callbacks where the compositor does not offer it.

    `shown` is called when a frame is on the screen, with the serial number of its flip, and with whether it is the frame of the newest
    commit. `discarded` is called with the serial number when the frame of the newest commit will never be shown.
    """

    def __init__(
        self, link: Link, surface: Proxy, shown: Callable[[int, bool], None], discarded: Callable[[int], None]
    ) -> None:
        conn = self._conn = link.conn
        self._shown = shown
        self._discarded = discarded
        self.newest: Report | None = None
        """The report on the newest commit."""
        self._feedback = (
            ReportKind.feedback(conn, link.presentation, surface, self._on_shown, self._on_discarded)
            if link.presentation is not None
            else None
        )
        self._frame = ReportKind.frame(conn, surface, self._on_done)
        self._callbacks: dict[Report, None] = {}
        """Frame callbacks that are not done. The compositor destroys them without an event when it destroys the surface."""

    @property
    def is_pending(self) -> bool:
        """Whether the compositor has not reported on the newest commit."""
        return self.newest is not None and not self.newest.reported

    def request(self, serial: int, *, hidden: bool) -> None:
        """Request a report of the next commit, for a frame of the flip with this serial number."""
        if self._feedback is not None:
            self.newest = self._feedback.request(serial)
        elif hidden or len(self._callbacks) >= MOST_CALLBACKS:
            self.request_visible(serial)
        else:
            self._request_callback(serial)

    def request_visible(self, serial: int) -> bool:
        """Request a report when the surface is visible, which the compositor does not discard. Return whether a commit must follow.

        A hidden surface gets all its frame callbacks at once when it is seen: one is enough.
        """
        pending = next(iter(self._callbacks), None)
        if pending is None:
            self._request_callback(serial)
            return True
        pending.serial, pending.reported = serial, False
        self.newest = pending
        return False

    def _request_callback(self, serial: int) -> None:
        self.newest = self._frame.request(serial)
        self._callbacks[self.newest] = None

    def forget(self) -> None:
        """Take note that the newest commit has no frame of the guest. The report on the one before still shows that the compositor
        keeps up, and whether the surface is visible.
        """
        if self.newest is not None:
            self.newest.serial = NO_FLIP

    def _on_done(self, report: Report) -> None:
        """wl_callback.done: the frame is on the screen."""
        self._callbacks.pop(report, None)
        self._on_shown(report)

    def _on_shown(self, report: Report) -> None:
        """The frame is on the screen (wp_presentation_feedback.presented)."""
        report.reported = True
        serial, is_newest = report.serial, report is self.newest
        try:
            report.end()
            self._shown(serial, is_newest)
        except BaseException as error:
            self._conn.fail(error)

    def _on_discarded(self, report: Report) -> None:
        """wp_presentation_feedback.discarded: the frame is not visible, or a later commit has replaced it, which has its own report."""
        report.reported = True
        serial, is_newest = report.serial, report is self.newest
        try:
            report.end()
            if is_newest:
                self._discarded(serial)
        except BaseException as error:
            self._conn.fail(error)

    def close(self) -> None:
        """Drop the frame callbacks: the surface is destroyed. Presentation feedback still arrives, as `discarded`."""
        self.newest = None
        while self._callbacks:
            self._callbacks.popitem()[0].end()
        self._frame.close()
        if self._feedback is not None:
            self._feedback.close()
