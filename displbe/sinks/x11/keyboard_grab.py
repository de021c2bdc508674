"""A window's grab of the keyboard: while the window has the focus, its guest gets the keys of the window manager's shortcuts too.

The grab is the core protocol's GrabKeyboard. The server tells of it by focus events with a mode: `Grab` and `Ungrab`, and
`WhileGrabbed` where the focus moves meanwhile, by a click on another window. The user's way out is that click, or the keys of
displbe.sinks.way_out.
"""

from __future__ import annotations

import enum
from typing import Final

import structlog
import xcffib.xproto as x

from displbe.ops.log import SparseLog
from displbe.sinks.seat import WindowListeners
from displbe.sinks.way_out import WayOut

from .server import Event, Server
from .window_input import KEYCODE_OFFSET

__all__ = ["GrabState", "KeyboardGrab"]

_OWN: Final = (x.NotifyDetail.Ancestor, x.NotifyDetail.Nonlinear)
"""The focus is the window itself. The other values of `detail` are about the pointer, or windows inside it, of which it has none."""
_MOVED: Final = (x.NotifyMode.Normal, x.NotifyMode.WhileGrabbed)
"""The focus has moved."""


class GrabState(enum.Enum):
    """Whether a window has the keyboard to itself."""

    AWAY = "away"
    """The window does not have the focus."""
    FOCUSED = "focused"
    """The window has the focus, and its guest takes no keys, or another program has grabbed the keyboard."""
    ASKED = "asked"
    """The server has been asked for a grab."""
    GRABBED = "grabbed"
    """The guest gets all keys."""
    LEFT = "left"
    """The window has the focus, and the user has taken the shortcuts back."""


class KeyboardGrab:
    """The grab of one window, whose seat says whether its guest takes the keyboard. `wanted` is the setting `inhibit-shortcuts`.

    Methods raise xcffib.XcffibException when the connection is lost.
    """

    def __init__(self, server: Server, window: int, seat: WindowListeners, wanted: bool) -> None:
        self.state = GrabState.AWAY
        self._server = server
        self._window = window
        self._seat = seat
        self._wanted = wanted
        self._way_out = WayOut()
        self._say = SparseLog(structlog.get_logger("displbe.x11"))

    def handle(self, event: Event) -> None:
        """Handle an event of the window. Events other than focus, keys and buttons are ignored."""
        if not self._wanted:
            return
        match event:
            case x.FocusInEvent() if event.detail in _OWN:
                self._focus_in(event.mode)
            case x.FocusOutEvent() if event.detail in _OWN:
                self._focus_out(event.mode)
            case x.KeyPressEvent():
                self._press(event.detail - KEYCODE_OFFSET)
            case x.KeyReleaseEvent():
                self._release(event.detail - KEYCODE_OFFSET)
            case x.ButtonPressEvent():
                self._way_out.spoil()

    def update(self) -> None:
        """Follow the seat: the guest has begun to take the keyboard, or has ended it."""
        if self.state is GrabState.FOCUSED:
            self._ask()
        elif self.state in (GrabState.ASKED, GrabState.GRABBED) and not self._seat.takes_keyboard:
            self._end(GrabState.FOCUSED)

    def leave(self) -> None:
        """Take note that the window is not visible any more. The server ends its grab and moves the focus."""
        if self.state in (GrabState.ASKED, GrabState.GRABBED):
            self._end(GrabState.AWAY)
        self.state = GrabState.AWAY

    def _focus_in(self, mode: int) -> None:
        if mode == x.NotifyMode.Grab:  # the grab is this window's: that of another one sends it FocusOut only
            if self.state not in (GrabState.ASKED, GrabState.FOCUSED) or not self._seat.takes_keyboard:
                self._end(self.state)  # too late: the user or the guest has left since it was asked for
                return
            self.state = GrabState.GRABBED
            self._say("the guest gets the window manager's shortcuts", "left Ctrl+Alt gives them back", level="info")
        elif self.state in (GrabState.AWAY, GrabState.FOCUSED, GrabState.ASKED) or mode in _MOVED:
            self._way_out.reset()
            self.state = GrabState.FOCUSED
            self._ask()

    def _focus_out(self, mode: int) -> None:
        if mode in _MOVED:
            if self.state in (GrabState.ASKED, GrabState.GRABBED):
                self._end(GrabState.AWAY)
            self.state = GrabState.AWAY
        elif mode == x.NotifyMode.Ungrab and self.state is GrabState.GRABBED:
            self.state = GrabState.FOCUSED  # FocusIn follows, if the window has the focus still

    def _press(self, code: int) -> None:
        if self.state is GrabState.ASKED:  # after a successful grab, FocusIn comes before any key
            self.state = GrabState.FOCUSED
            self._say(
                "the window manager keeps its shortcuts",
                "another program has grabbed the keyboard: end it, and click into the window again",
            )
        self._way_out.key(code, True)

    def _release(self, code: int) -> None:
        if not self._way_out.key(code, False):
            return
        if self.state is GrabState.GRABBED:
            self._end(GrabState.LEFT)
            self._say(
                "the user has taken the window manager's shortcuts back", "left Ctrl+Alt gives them again", level="info"
            )
        elif self.state is GrabState.LEFT:
            self._ask()

    def _ask(self) -> None:
        """Ask for a grab. The answer is not awaited: focus events tell of a grab, and a key without them of its failure."""
        if self._seat.takes_keyboard:
            self.state = GrabState.ASKED
            asynchronous = x.GrabMode.Async
            cookie = self._server.core.GrabKeyboard(False, self._window, x.Time.CurrentTime, asynchronous, asynchronous)
            cookie.discard_reply()
            self._server.flush()

    def _end(self, state: GrabState) -> None:
        self.state = state
        self._server.core.UngrabKeyboard(x.Time.CurrentTime)
        self._server.flush()
