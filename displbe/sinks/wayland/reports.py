"""The compositor's reports on commits: shown or discarded."""

from __future__ import annotations

from collections.abc import Callable

from .conn import Proxy
from .link import Link

__all__ = ["FrameReports"]


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
        self._callbacks: set[Proxy] = set()
        """Frame callbacks that are not done. The compositor destroys them without an event when it destroys the surface."""

    @property
    def is_pending(self) -> bool:
        """Whether the compositor has not reported on the newest commit."""
        return self._newest is not None and not self._newest.reported

    def request(self, serial: int, *, hidden: bool) -> None:
        """Request a report of the next commit, for a frame of the flip with this serial number."""
        conn, newest = self._conn, self._newest
        if self._presentation is not None:
            commit = self._newest = _Commit(serial, conn.keep(self._presentation.feedback(self._surface)))
            conn.on(commit.sender, "presented", lambda *_: self._on_shown(commit))
            conn.on(commit.sender, "discarded", lambda: self._on_discarded(commit))
        elif hidden and newest is not None and newest.sender in self._callbacks:
            newest.serial = serial  # a hidden surface gets all its callbacks at once when it is seen: one is enough
        else:
            commit = self._newest = _Commit(serial, conn.keep(self._surface.frame()))
            self._callbacks.add(commit.sender)
            conn.on(commit.sender, "done", lambda _: self._on_shown(commit))

    def _on_shown(self, commit: _Commit) -> None:
        commit.reported = True
        self._callbacks.discard(commit.sender)
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
            self._conn.drop(self._callbacks.pop())
