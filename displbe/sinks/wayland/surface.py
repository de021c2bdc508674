"""The wl_surface of one connector: its state, its commits, and which buffers the compositor holds for it."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final

from displbe.sinks.base import Geometry, Part
from displbe.sinks.flip import Flip

from .black_frame import BlackFrame
from .buffers import WaylandBuffer
from .conn import Proxy
from .copies import CopyFrame
from .extensions import SurfaceExtensions, SurfaceOptions
from .frame_requests import FrameRequests
from .link import Link
from .reports import NO_FLIP, FrameReports
from .role import Role, RoleOptions, choose_role
from .sync_gate import SyncGate

__all__ = ["Prospect", "SurfaceState", "WaylandSurface"]


class SurfaceState(enum.Enum):
    """The state of a surface at the compositor."""

    CLOSED = "closed"
    """There is no wl_surface: there is no compositor, it has no shell for the surface, or the device is gone."""
    DISMISSED = "dismissed"
    """The user has closed the window. Only the operator opens it again; nothing that the guest does."""
    CONFIGURING = "configuring"
    """The compositor has not configured the surface yet. Until then, xdg-shell allows no buffer."""
    BLACK = "black"
    """The surface is configured and shows displbe's own black frame: the guest shows nothing, or is not connected."""
    UNSEEN = "unseen"
    """The compositor has not reported on the newest commit yet."""
    SHOWN = "shown"
    """The compositor has reported on the newest commit: its frame is on the screen, or is discarded (see `is_presented`)."""
    HIDDEN = "hidden"
    """The compositor did not report on a flip in time: the surface is not visible, or the compositor does not respond. The clock ends
    flips until it reports that a frame is on the screen.
    """
    SUSPENDED = "suspended"
    """The compositor says that the surface is not visible (xdg_toplevel.state). The clock ends flips until it says otherwise."""


class Prospect(enum.Enum):
    """What can be expected of the compositor when the surface is given a frame."""

    REPORTS = "reports"
    """A report: the surface is visible, and the compositor has reported on all frames."""
    BUSY = "busy"
    """A report, but the compositor has not reported on the newest commit yet."""
    UNSEEN = "unseen"
    """No report: the surface is not visible."""


# Constants, because Python 3.11 spends half a microsecond on each `SurfaceState.NAME`.
_INVISIBLE: Final = (SurfaceState.HIDDEN, SurfaceState.SUSPENDED)
_WAITING: Final = (SurfaceState.UNSEEN, SurfaceState.HIDDEN)
_CONFIGURING: Final = SurfaceState.CONFIGURING
_UNREPORTED: Final = SurfaceState.UNSEEN
_SHOWN: Final = SurfaceState.SHOWN
_REPORTS: Final = Prospect.REPORTS
_BUSY: Final = Prospect.BUSY
_UNSEEN: Final = Prospect.UNSEEN


class WaylandSurface:
    """The surface of one connector. It stays open, and black, while the guest shows nothing.

    It ends `flip` when the flip's frame is on the screen and the compositor has released the previous buffer, which the guest draws into
    next. `gate` keeps frames back while the compositor does not keep up. `configured` is called when the compositor has configured the
    surface, `closing` when the user closes the window, `changed` when the guest's frames become visible or are not visible any more.

    It has twenty-one attributes: the surface, what belongs to it on this connection, and what the flip under way waits for.
    """

    def __init__(
        self,
        flip: Flip,
        gate: SyncGate,
        size: tuple[int, int],
        configured: Callable[[], None],
        closing: Callable[[], None],
        changed: Callable[[], None],
    ) -> None:
        self.state = SurfaceState.CLOSED
        self.proxy: Proxy = None
        """The wl_surface, while there is one."""
        self.role: Role | None = None
        self.size = size
        """The surface's size, in its own coordinates."""
        self.natural = size
        """The width and height of its picture in pixels. The black frame has the size of the last picture."""
        self.attached: WaylandBuffer | CopyFrame | None = None
        """The guest's frame, if the newest commit is one. None: the surface is black, or there is none."""
        self.shown = 0
        """The number of frames that the compositor has shown."""
        self.gate = gate
        self._link: Link | None = None
        self.extensions: SurfaceExtensions | None = None
        """The objects of optional protocols, while there is a wl_surface."""
        self._placed_for: tuple[Part, Geometry | None] | None = None
        """The part and the framebuffer (None: a copy of the part) for which size and viewport are computed; None: compute them again."""
        self._requests: FrameRequests | None = None
        self._reports: FrameReports | None = None
        self._black: BlackFrame | None = None
        self._flip = flip
        self._on_screen = NO_FLIP
        """The serial number of the newest flip whose frame was on the screen; NO_FLIP: no frame of the guest is on the screen."""
        self._unreleased: WaylandBuffer | None = None
        """The buffer attached previously, while the compositor holds it and the flip waits for its release."""
        self._on_configured = configured
        self._on_closing = closing
        self._on_changed = changed

    @property
    def is_open(self) -> bool:
        """Whether there is a wl_surface."""
        return self._link is not None

    @property
    def is_ready(self) -> bool:
        """Whether the surface may be given a frame."""
        return self._link is not None and self.state is not SurfaceState.CONFIGURING

    @property
    def is_visible(self) -> bool:
        """Whether the compositor can be expected to report on frames."""
        return self.state not in _INVISIBLE

    @property
    def is_presented(self) -> bool:
        """Whether a frame of the guest is on the screen: the compositor has reported one, and the surface has been visible since."""
        return self._on_screen != NO_FLIP and self.state not in _INVISIBLE

    def prospect(self) -> Prospect | None:
        """Return what can be expected of the compositor if the surface is given a frame now; None: it may not be given one."""
        state, reports = self.state, self._reports
        if reports is None or state is _CONFIGURING:
            return None
        if state in _INVISIBLE:
            return _UNSEEN
        newest = reports.newest
        return _REPORTS if newest is None or newest.reported else _BUSY

    @property
    def is_unreported(self) -> bool:
        """Whether the compositor has not reported on the newest commit."""
        return self._reports is not None and self._reports.is_pending

    # Opening and closing

    def open(self, link: Link, options: RoleOptions, more: SurfaceOptions, wl_output: Proxy | None) -> None:
        """Make a wl_surface, full screen on this output; None: the compositor chooses the place. Raises NoRole."""
        role = choose_role(link, options.ivi_id)
        conn = link.conn
        surface = self.proxy = conn.keep(link.compositor.create_surface())
        extensions = self.extensions = SurfaceExtensions(link, surface, more, self._on_scale)
        self._link = link
        self._requests = FrameRequests(surface)
        self._reports = FrameReports(link, surface, self._on_shown, self._on_discarded)
        self._black = BlackFrame(link, scalable=extensions.scalable)
        self.role = role(link, surface, options, extensions.scalable, self._on_role_configured, self._on_closing)
        self.gate.forget_frame()
        self.role.begin(wl_output)
        if role.configured_first:
            self.state = SurfaceState.CONFIGURING
        else:
            self.blacken()
        conn.flush()

    def move(self, wl_output: Proxy | None) -> None:
        """Fill this output of the compositor from now on. None: the output is gone."""
        if self.role is not None:
            self.role.move(wl_output)

    def resize(self, size: tuple[int, int]) -> None:
        """Be black in this size (width and height in pixels): the window has another connector, whose guest is not connected yet."""
        self.natural = size
        self.blacken()

    def close(self, state: SurfaceState | None = None) -> None:
        """Destroy the wl_surface, if there is one: the compositor takes its frame off the screen.

        `state` is the new state: CLOSED or DISMISSED. None: DISMISSED stays, any other state becomes CLOSED.
        """
        link = self._link
        if link is not None and self.role is not None and self._reports is not None and self.extensions is not None:
            self.role.destroy()
            self.extensions.close()
            link.conn.destroy(self.proxy)
            self._reports.close()
            self._close_black()
            link.conn.flush()
        self._forget(state)

    def _close_black(self) -> None:
        black, self._black = self._black, None
        if black is not None:
            black.close()

    def lost(self) -> None:
        """Forget the wl_surface: the connection is gone."""
        self._close_black()
        self._forget(None)
        self.gate.reset()

    def _forget(self, state: SurfaceState | None) -> None:
        if state is not None or self.state is not SurfaceState.DISMISSED:
            self.state = state or SurfaceState.CLOSED
        self.proxy = self.role = self._link = self.extensions = self._requests = self._reports = None
        self.attached = self._unreleased = self._placed_for = None
        self._on_screen = NO_FLIP

    def _on_role_configured(self) -> None:
        self._placed_for = None
        role = self.role
        if role is not None and role.suspended:
            self.state = SurfaceState.SUSPENDED
        elif self.state in (SurfaceState.CONFIGURING, SurfaceState.SUSPENDED):
            self.state = self._visible_state()
        self._on_configured()

    def _on_scale(self, scale: int) -> None:
        """Follow the monitor's scale. The surface may be on another monitor, or its user has set another scale."""
        if self.role is not None and self.role.preferred_scale != scale:
            self.role.preferred_scale = scale
            self._placed_for = None
            if self.state is not SurfaceState.CONFIGURING:
                self._on_configured()

    def _visible_state(self) -> SurfaceState:
        """Return the state of a surface that has just become visible."""
        if self.attached is None:
            return SurfaceState.BLACK
        return SurfaceState.UNSEEN if self.is_unreported else SurfaceState.SHOWN

    # Frames

    def needs_frame(self) -> bool:
        """Return whether a surface that has been configured needs a new commit of the guest's frame, or of the black one.

        A commit makes the compositor discard the report on the previous commit. If that report has not come yet, a report on the frame
        must be requested again.
        """
        if self.role is None or (self.attached is not None and self.is_unreported):
            return True
        return self._black_is_due() or self.size != self.role.size_for(*self.natural)

    def _black_is_due(self) -> bool:
        """Return whether the surface has no frame at all."""
        return self.attached is None and self._black is not None and not self._black.is_attached

    def acknowledge(self) -> None:
        """Commit without a new frame, so that the acknowledged configuration takes effect."""
        if self.proxy is not None:
            self.proxy.commit()

    def begin_flip(self) -> None:
        """Begin a flip. It waits only for the release of a buffer that its own commit replaces."""
        self._unreleased = None

    def blacken(self) -> None:
        """Commit displbe's black frame. The compositor then has no more use for the guest's buffer. Do nothing while that is not allowed.

        This sends nothing that makes a shell map, raise or focus the window.
        """
        link, role, extensions, black = self._link, self.role, self.extensions, self._black
        requests, reports = self._requests, self._reports
        if link is None or role is None or extensions is None or black is None or not self.is_ready:
            return
        assert requests is not None
        assert reports is not None
        self.size = role.size_for(*self.natural)
        frame = black.frame(*self.natural)
        extensions.place(None, frame.size, self.size)
        self._placed_for = None
        requests.commit(frame.wl)
        black.on_committed()
        link.conn.flush()
        reports.forget()
        self.attached = self._unreleased = None
        self._on_screen = NO_FLIP
        if self.is_visible:
            self.state = SurfaceState.BLACK

    def commit(self, frame: WaylandBuffer | CopyFrame, part: Part, serial: int) -> None:
        """Commit a frame of the flip with this serial number; it shows this part of the guest's framebuffer."""
        link, requests, reports = self._link, self._requests, self._reports
        assert link is not None
        assert requests is not None
        assert reports is not None
        placed_for = part, frame.geometry if isinstance(frame, WaylandBuffer) else None
        if placed_for != self._placed_for:
            self._place(frame, part)
            self._placed_for = placed_for
        is_visible = self.state not in _INVISIBLE
        reports.request(serial, hidden=not is_visible)
        requests.commit(frame.wl)
        link.conn.flush()
        black = self._black
        if black is not None:
            black.is_attached = False
        before, self.attached = self.attached, frame
        if isinstance(before, WaylandBuffer) and before is not frame and before.held:
            self._unreleased = before
        frame.held = True
        if is_visible:
            self.state = _UNREPORTED

    def _place(self, frame: WaylandBuffer | CopyFrame, part: Part) -> None:
        """Choose the surface's size for this part of the guest's framebuffer, and fit the frame into it."""
        assert self.role is not None
        assert self.extensions is not None
        natural = self.natural = (part.width, part.height)
        self.size = self.role.size_for(*natural)
        cropped = isinstance(frame, WaylandBuffer) and not frame.shows_all(part)
        self.extensions.place(part if cropped else None, natural, self.size)

    def _on_shown(self, serial: int, newest: bool) -> None:
        """Take note that a frame of the flip with this serial number is on the screen. `newest`: it is that of the newest commit."""
        self.shown += 1
        attached, state = self.attached, self.state
        if attached is None:  # the surface has been made black since; but it is visible
            if state is SurfaceState.HIDDEN:
                self.state = SurfaceState.BLACK
            return
        was_presented = self._on_screen != NO_FLIP and state not in _INVISIBLE
        if state in _WAITING:
            self.state = _SHOWN if newest else _UNREPORTED
        if newest and isinstance(attached, WaylandBuffer) and (attached.is_dmabuf or not attached.drawn):
            attached.on_drawn()
        if serial != NO_FLIP:  # otherwise it is a frame from before the surface was black
            self._on_screen = serial
        if not was_presented and self.is_presented:
            self._on_changed()
        if self._unreleased is None:
            self._flip.on_shown(serial)

    def _on_discarded(self, serial: int) -> None:
        """End the flip with this serial number at the next refresh: the frame of the newest commit will not be shown.

        A hidden surface then has no report to wait for. A frame callback, which is never discarded, reports when it becomes visible.
        """
        if self.attached is None:
            return
        was_presented = self.is_presented
        self._on_screen = NO_FLIP
        match self.state:
            case SurfaceState.UNSEEN:
                self.state = SurfaceState.SHOWN
            case SurfaceState.HIDDEN if self._reports is not None and self._link is not None:
                if self._reports.request_visible(serial):
                    self.proxy.commit()
                    self._link.conn.flush()
        if was_presented:
            self._on_changed()
        if serial == self._flip.serial:
            self._flip.end_at_refresh()

    def on_released(self, buffer: WaylandBuffer) -> None:
        """Take note that the compositor has released a buffer, or that the guest takes it back."""
        if self._unreleased is buffer:
            self._unreleased = None
            self._flip.on_shown(self._on_screen)

    def on_late(self) -> None:
        """Enter HIDDEN if the surface was visible: the compositor has not reported on a flip in time."""
        if self.state in (SurfaceState.BLACK, SurfaceState.UNSEEN, SurfaceState.SHOWN):
            self.state = SurfaceState.HIDDEN
            self._on_changed()
        if self._link is not None:
            self.gate.sync(self._link.conn)
