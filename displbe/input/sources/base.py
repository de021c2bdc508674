"""What a source of input says, and to whom. evdev devices and compositors' seats are sources.

Sources call, they do not await. All of one moment is said first, then `flush`. What is said of a key or a finger that this guest did
not see go down is not told to it: it was meant for another one.
"""

from __future__ import annotations

from typing import Protocol

__all__ = ["Receiver", "Source"]


class Source:
    """Something that has keys, a pointer or fingers. Two sources never share a state."""

    def __init__(self, name: str, *, repeats: bool) -> None:
        self.name = name
        self.repeats = repeats
        """Whether it says by itself that a key is held."""


class Receiver(Protocol):
    """A guest's input, for the sources. Fractions are from 0 to 1 of the width or height."""

    def key(self, source: Source, code: int, value: int) -> None:
        """A key or button, by Linux's number: 1 down, 0 up, 2 still down."""

    def move(self, dx: int, dy: int, wheel: int) -> None:
        """The pointer moves by so many pixels, the wheel by so many detents, positive up."""

    def point(self, source: Source, x: float, y: float, wheel: int, *, jump: bool) -> None:
        """The pointer is here: fractions. `jump`: it did not come there from where it was (a pen that comes down again)."""

    def touch_down(self, source: Source, finger: int, x: float, y: float) -> None:
        """A finger comes down."""

    def touch_move(self, source: Source, finger: int, x: float, y: float) -> None:
        """It moves."""

    def touch_shape(self, source: Source, finger: int, major: float, minor: float) -> None:
        """Its ellipse: the diameters as fractions of the square root of width times height."""

    def touch_orientation(self, source: Source, finger: int, degrees: int) -> None:
        """The angle of the ellipse's longer axis, clockwise from the Y axis."""

    def touch_up(self, source: Source, finger: int) -> None:
        """It goes up."""

    def touch_frame(self, source: Source) -> None:
        """What was said of fingers since the last frame belongs together."""

    def leave(self, source: Source) -> None:
        """Nothing comes from there any more: what it holds down counts as let go."""

    def flush(self) -> None:
        """Let the guest see what was said."""
