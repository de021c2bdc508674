"""The grab of the keyboard against a model of the X server's focus and grabs. No server is needed."""

from __future__ import annotations

from typing import Any, cast

from hypothesis import example, given
from hypothesis import strategies as st
from sinks.x11.test_x11_window_input import FOCUS_EVENTS, device_event
from xcffib import MemoryUnpacker
from xcffib import xproto as x

from displbe.sinks.seat import Seats, WindowListeners
from displbe.sinks.x11.keyboard_grab import GrabState, KeyboardGrab
from displbe.sinks.x11.server import Server

OURS, OTHER = 7, 8
FOCUS_IN, FOCUS_OUT = 9, 10
CTRL, ALT, TAB = 37, 64, 23


class Model:
    """A server with our window and another program, in the place of `Server` and of its `core`."""

    def __init__(self) -> None:
        self.focus = OTHER
        self.grabbed = 0
        """The window for which the keyboard is grabbed; 0: none."""
        self.viewable = True
        self.queue: list[Any] = []
        """Events that our client has not read."""
        self.requests: list[int] = []
        """Windows to grab the keyboard for, as our client has asked; 0: to end its grab. The server has not read them."""

    @property
    def core(self) -> Model:
        return self

    def flush(self) -> None:
        """Server.flush."""

    def discard_reply(self) -> None:
        """The cookie of GrabKeyboard."""

    def GrabKeyboard(self, owner_events: bool, window: int, *_: int) -> Model:
        assert window == OURS
        self.requests.append(window)
        return self

    def UngrabKeyboard(self, time: int) -> None:
        self.requests.append(0)

    def process(self) -> None:
        """Process the client's requests."""
        requests, self.requests = self.requests, []
        for window in requests:
            if window and self.grabbed in (0, OURS) and self.viewable:
                self.grab(OURS)
            elif not window and self.grabbed == OURS:
                self.grab(0)

    def grab(self, window: int) -> None:
        """Grab the keyboard for a window, or end the grab."""
        before = self.grabbed or self.focus
        self.grabbed = window
        mode = x.NotifyMode.Grab if window else x.NotifyMode.Ungrab
        self.tell(FOCUS_OUT, before, mode)
        self.tell(FOCUS_IN, window or self.focus, mode)

    def set_focus(self, window: int) -> None:
        if window != self.focus:
            mode = x.NotifyMode.WhileGrabbed if self.grabbed else x.NotifyMode.Normal
            before, self.focus = self.focus, window
            self.tell(FOCUS_OUT, before, mode)
            self.tell(FOCUS_IN, window, mode)

    def tell(self, number: int, window: int, mode: int) -> None:
        if window == OURS:
            detail = x.NotifyDetail.Nonlinear
            body = bytes([number, detail, 0, 0, OURS, 0, 0, 0, mode, *bytes(23)])
            self.queue.append(FOCUS_EVENTS[number](MemoryUnpacker(body)))

    def key(self, code: int, down: bool) -> None:
        if (self.grabbed or self.focus) == OURS:
            self.queue.append(device_event(2 if down else 3, code, (0, 0)))


ACTIONS = st.one_of(
    st.tuples(st.just("focus"), st.sampled_from([OURS, OTHER])),
    st.tuples(st.just("other grabs"), st.booleans()),
    st.tuples(st.sampled_from(["press", "release"]), st.sampled_from([CTRL, ALT, TAB])),
    st.tuples(st.just("guest"), st.booleans()),
    st.tuples(st.sampled_from(["chord", "read", "process"]), st.none()),
)


@example(actions=[("focus", OURS), ("press", CTRL), ("read", None), ("read", None), ("guest", False)])
@given(actions=st.lists(ACTIONS, max_size=40))
def test_any_order(actions: list[tuple[str, Any]]) -> None:
    """Requests and events may cross. In the end, our window has a grab if and only if its state says so and its guest wants it; and the
    user's way out ends it.
    """
    model, seats = Model(), Seats()
    seat: WindowListeners = seats.window(1, "connector")
    seat.attach()
    grab = KeyboardGrab(cast("Server", model), OURS, seat, wanted=True)
    seat.on_change = grab.update
    listening = seats.listening(1, "connector", lambda event: None)
    listening.__enter__()
    listens = True

    def settle() -> None:
        while model.requests or model.queue:
            model.process()
            queue, model.queue = model.queue, []
            for event in queue:
                grab.handle(event)

    def chord() -> None:
        for down in (True, False):
            for code in (CTRL, ALT):
                model.key(code, down)

    for action, value in actions:
        match action:
            case "focus":
                model.set_focus(value)
            case "other grabs" if model.grabbed != OURS and bool(model.grabbed) != value:
                model.grab(OTHER if value else 0)
            case "press" | "release":
                model.key(value, action == "press")
            case "chord":
                chord()
            case "guest" if value != listens:
                listens = value
                if value:
                    listening = seats.listening(1, "connector", lambda event: None)
                    listening.__enter__()
                else:
                    listening.__exit__(None, None, None)
            case "read":
                for event in model.queue[:1]:
                    del model.queue[:1]
                    grab.handle(event)
            case "process":
                model.process()
    settle()
    assert (grab.state is GrabState.GRABBED) == (model.grabbed == OURS)
    if model.focus != OURS:
        assert grab.state is GrabState.AWAY
    if not listens:
        assert model.grabbed != OURS
    # The user lets go of everything, and no other program has the keyboard: the window gets what its state says.
    if model.grabbed == OTHER:
        model.grab(0)
    for code in (CTRL, ALT, TAB):
        model.key(code, False)
    settle()
    if model.focus == OURS and listens:
        assert grab.state in (GrabState.GRABBED, GrabState.LEFT)
        before = grab.state
        chord()
        settle()
        assert grab.state is (GrabState.LEFT if before is GrabState.GRABBED else GrabState.GRABBED)
        assert (grab.state is GrabState.GRABBED) == (model.grabbed == OURS)
    model.set_focus(OTHER)
    settle()
    assert grab.state is GrabState.AWAY
    assert model.grabbed == 0
    if listens:
        listening.__exit__(None, None, None)


@given(actions=st.lists(ACTIONS, max_size=10))
def test_not_wanted(actions: list[tuple[str, Any]]) -> None:
    """Without the option, nothing is grabbed."""
    model, seats = Model(), Seats()
    grab = KeyboardGrab(cast("Server", model), OURS, seats.window(1, "connector"), wanted=False)
    with seats.listening(1, "connector", lambda event: None):
        for action, value in actions:
            if action == "focus":
                model.set_focus(value)
            elif action in ("press", "release"):
                model.key(value, action == "press")
            for event in model.queue:
                grab.handle(event)
            model.queue.clear()
            assert not model.requests
            assert grab.state is GrabState.AWAY
