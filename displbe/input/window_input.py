"""Input from compositor windows: the keyboard, pointer and touch screen that have the focus on a guest's window (sinks/seat.py).

The compositor decides which window has the focus. The events of the window of a guest's connector go to that guest.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator
from functools import partial

from displbe.sinks.seat import (
    KeyboardEnter,
    KeyboardKey,
    KeyboardLeave,
    KeyboardLocks,
    PointerAxis,
    PointerButton,
    PointerEnter,
    PointerFrame,
    PointerLeave,
    PointerMotion,
    SeatEvent,
    Seats,
    TouchCancel,
    TouchDown,
    TouchFrame,
    TouchMotion,
    TouchOrientation,
    TouchShape,
    TouchUp,
)

from .bindings import Role
from .event_codes import KEY_CAPSLOCK, KEY_NUMLOCK
from .focus import Claim
from .guest_input import GuestInput, InputSource
from .wheel import WheelDetents

__all__ = ["window_input"]


@contextlib.contextmanager
def window_input(seats: Seats, claim: Claim, guest_input: GuestInput, synced: frozenset[int]) -> Iterator[None]:
    """While the block lasts, give a guest the events of its connectors' windows, in the roles that its bindings name.

    `synced`: the lock keys whose locks the guest takes over from the desktop.
    """
    bindings = claim.assignment.bindings
    connectors = dict.fromkeys(binding.id for binding in bindings if not binding.is_device)
    with contextlib.ExitStack() as stack:
        for connector in connectors:
            roles = {binding.role for binding in bindings if binding.id == connector}
            window = _WindowInput(partial(seats.settle, claim.domid, connector), connector, guest_input, roles, synced)
            stack.callback(window.leave)
            features = guest_input.features
            takes = {
                "pointer": Role.POINTER in roles and features.pointer,
                "keyboard": Role.KEYBOARD in roles and features.keyboard,
            }
            stack.enter_context(seats.listening(claim.domid, connector, window.handle, **takes))
        yield


class _WindowSource(InputSource):
    """The keyboard, pointer or touch screen of a window. `settle` is Seats.settle for this window."""

    def __init__(self, name: str, settle: Callable[[], Awaitable[bool]]) -> None:
        super().__init__(name, repeats=False)
        self._settle = settle

    async def settle(self) -> bool:
        return await self._settle()


class _WindowInput:
    """The events of one window. Its keyboard, pointer and touch screen are three sources, since each can leave without the others."""

    def __init__(
        self,
        settle: Callable[[], Awaitable[bool]],
        connector: str,
        guest_input: GuestInput,
        roles: set[Role],
        synced: frozenset[int],
    ) -> None:
        self._keyboard, self._pointer, self._touch = (
            _WindowSource(f"{connector} {role.name.lower()}", settle) for role in Role
        )
        self._guest_input = guest_input
        self._roles = roles
        self._synced = synced
        self._wheel = WheelDetents()
        # The pointer's unfinished frame:
        self._position: tuple[float, float] | None = None
        self._jump = True
        self._buttons: list[PointerButton] = []

    def handle(self, event: SeatEvent) -> None:
        """Handle one event of a seat."""
        match event:
            case KeyboardEnter() | KeyboardKey() | KeyboardLeave() | KeyboardLocks():
                if Role.KEYBOARD in self._roles:
                    self._handle_key(event)
            case PointerEnter() | PointerMotion() | PointerButton() | PointerAxis() | PointerFrame() | PointerLeave():
                if Role.POINTER in self._roles:
                    self._handle_pointer(event)
            case _:
                if Role.TOUCH in self._roles:
                    self._handle_touch(event)

    def leave(self) -> None:
        """Release everything that is held down in this window. Its events are not passed on any more."""
        for source in (self._keyboard, self._pointer, self._touch):
            self._guest_input.leave(source)
        self._guest_input.flush()

    def _handle_key(self, event: KeyboardEnter | KeyboardKey | KeyboardLeave | KeyboardLocks) -> None:
        match event:
            case KeyboardEnter():
                pass  # the keys that are down now were pressed for another window
            case KeyboardLocks(caps, num):
                wanted = {KEY_CAPSLOCK: caps, KEY_NUMLOCK: num}
                self._guest_input.sync_locks(
                    self._keyboard, {code: is_on for code, is_on in wanted.items() if code in self._synced}
                )
            case KeyboardKey(code, down):
                self._guest_input.key(self._keyboard, code, int(down))
                self._guest_input.flush()
            case KeyboardLeave():
                self._guest_input.leave(self._keyboard)
                self._guest_input.flush()

    def _handle_pointer(self, event: SeatEvent) -> None:
        match event:
            case PointerEnter(x, y, width, height):
                self._position, self._jump = (x / width, y / height), True
            case PointerMotion(x, y, width, height):
                self._position = x / width, y / height
            case PointerAxis(vertical):
                self._wheel.turn(vertical)
            case PointerButton():
                self._buttons.append(event)
            case PointerFrame():
                self._end_frame()
            case PointerLeave():
                self._guest_input.leave(self._pointer)
                self._guest_input.flush()
                self._position, self._buttons = None, []

    def _end_frame(self) -> None:
        """Pass on a frame: the position before the buttons, so that a button goes down at the new position."""
        detents = self._wheel.take()
        if self._position is not None:
            self._guest_input.point(self._pointer, *self._position, detents, jump=self._jump)
        elif detents:
            self._guest_input.move(0, 0, detents)
        for button in self._buttons:
            self._guest_input.key(self._pointer, button.code, int(button.down))
        self._position, self._jump, self._buttons = None, False, []
        self._guest_input.flush()

    def _handle_touch(self, event: SeatEvent) -> None:
        guest_input, source = self._guest_input, self._touch
        match event:
            case TouchDown(contact, x, y, width, height):
                guest_input.touch_down(source, contact, x / width, y / height)
            case TouchMotion(contact, x, y, width, height):
                guest_input.touch_move(source, contact, x / width, y / height)
            case TouchShape(contact, major, minor, width, height):
                size = (width * height) ** 0.5
                guest_input.touch_shape(source, contact, major / size, minor / size)
            case TouchOrientation(contact, degrees):
                guest_input.touch_orientation(source, contact, round(degrees))
            case TouchUp(contact):
                guest_input.touch_up(source, contact)
            case TouchFrame():
                guest_input.touch_frame(source)
                guest_input.flush()
            case TouchCancel():
                guest_input.leave(source)
                guest_input.flush()
