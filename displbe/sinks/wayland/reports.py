"""The compositor's reports on commits: shown or discarded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from .conn import Proxy
from .link import Link

__all__ = ["NO_FLIP", "FrameReports"]

NO_FLIP: Final = -1
"""The serial number of no flip."""
MOST_CALLBACKS: Final = 8
"""Frame callbacks that a surface has at most. A compositor that does not draw the surface keeps them all."""


class _Commit:
    """A commit of a frame. `sender` (presentation feedback or a frame callback) reports on it."""

    def __init__(self, serial: int, sender: Proxy) -> None:
        self.serial = serial
        """The serial number of its flip."""
        self.sender = sender
        self.reported = False


class FrameReports:
    """Reports for one wl_surface: by wp_presentation, or by frame callbacks where the compositor does not offer it.

    `shown` is called when a frame is on the screen, with the serial number of its flip, and with whether it is the frame of the newest
    commit. `discarded` is called with the serial number when the frame of the newest commit will never be shown.
    """

    def __init__(
        self, link: Link, surface: Proxy, shown: Callable[[int, bool], None], discarded: Callable[[int], None]
    ) -> None:
        self._conn = link.conn
        self._presentation = link.presentation
        self._surface = surface
        self._shown = shown
        self._discarded = discarded
        self._newest: _Commit | None = None
        self._callbacks: dict[Proxy, _Commit] = {}
        """Frame callbacks that are not done. The compositor destroys them without an event when it destroys the surface."""

    @property
    def is_pending(self) -> bool:
        """Whether the compositor has not reported on the newest commit."""
        return self._newest is not None and not self._newest.reported

    def request(self, serial: int, *, hidden: bool) -> None:
        """Request a report of the next commit, for a frame of the flip with this serial number."""
        conn = self._conn
        if self._presentation is not None:
            commit = self._newest = _Commit(serial, conn.keep(self._presentation.feedback(self._surface)))
            conn.on(commit.sender, "presented", lambda *_: self._on_shown(commit))
            conn.on(commit.sender, "discarded", lambda: self._on_discarded(commit))
        elif hidden or len(self._callbacks) >= MOST_CALLBACKS:
            self.request_visible(serial)
        else:
            self._request_callback(serial)

    def request_visible(self, serial: int) -> bool:
        """Request a report when the surface is visible, which the compositor does not discard. Return whether a commit must follow.

        A hidden surface gets all its frame callbacks at once when it is seen: one is enough.
        """
        pending = next(iter(self._callbacks.values()), None)
        if pending is None:
            self._request_callback(serial)
            return True
        pending.serial, pending.reported = serial, False
        self._newest = pending
        return False

    def _request_callback(self, serial: int) -> None:
        commit = self._newest = _Commit(serial, self._conn.keep(self._surface.frame()))
        self._callbacks[commit.sender] = commit
        self._conn.on(commit.sender, "done", lambda _: self._on_shown(commit))

    def forget(self) -> None:
        """Take note that the newest commit has no frame of the guest. The report on the one before still shows that the compositor
        keeps up, and whether the surface is visible.
        """
        if self._newest is not None:
            self._newest.serial = NO_FLIP

    def _on_shown(self, commit: _Commit) -> None:
        commit.reported = True
        self._callbacks.pop(commit.sender, None)
        self._conn.drop(commit.sender)
        self._shown(commit.serial, commit is self._newest)

    def _on_discarded(self, commit: _Commit) -> None:
        """wp_presentation_feedback.discarded: the frame is not visible, or a later commit has replaced it, which has its own report."""
        commit.reported = True
        self._conn.drop(commit.sender)
        if commit is self._newest:
            self._discarded(commit.serial)

    def close(self) -> None:
        """Drop the frame callbacks: the surface is destroyed. Presentation feedback still arrives, as `discarded`."""
        self._newest = None
        while self._callbacks:
            self._conn.drop(self._callbacks.popitem()[0])
