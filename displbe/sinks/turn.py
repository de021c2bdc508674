"""Turned screens: a panel that is mounted sideways or upside down, and the input devices that are mounted with it.

A guest draws its picture upright. A `Turn` says how the picture lies on the panel. Degrees are counter-clockwise, as in the kernel's
rotation property (drivers/gpu/drm/drm_blend.c: "rotate-<degrees>: … rotated counter clockwise").
"""

from __future__ import annotations

import enum

__all__ = ["Turn"]


class Turn(enum.Enum):
    """How a picture is turned to look upright on a panel; the value is in degrees, counter-clockwise."""

    NONE = 0
    """The panel is mounted upright."""
    LEFT = 90
    """The left side of the panel is up (`Left Side Up`)."""
    HALF = 180
    """The panel is mounted upside down (`Upside Down`)."""
    RIGHT = 270
    """The right side of the panel is up (`Right Side Up`)."""

    @property
    def swaps_sides(self) -> bool:
        """Whether the upright width is the panel's height."""
        return self in (Turn.LEFT, Turn.RIGHT)

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Return the upright size of a panel of this size, or the size on the panel of a picture of this size."""
        return (height, width) if self.swaps_sides else (width, height)

    def on_panel(self, target: tuple[int, int, int, int], width: int, height: int) -> tuple[int, int, int, int]:
        """Return where a rectangle (x, y, width, height) of the upright screen lies on the panel.

        `width` and `height` are those of the upright screen.
        """
        x, y, across, down = target
        match self:
            case Turn.NONE:
                return target
            case Turn.LEFT:
                return y, width - x - across, down, across
            case Turn.HALF:
                return width - x - across, height - y - down, across, down
            case Turn.RIGHT:
                return height - y - down, x, down, across

    def upright(self, x: float, y: float) -> tuple[float, float]:
        """Return the position on the upright screen of a position on the panel. Both are fractions of width and height, 0 to 1."""
        match self:
            case Turn.NONE:
                return x, y
            case Turn.LEFT:
                return 1 - y, x
            case Turn.HALF:
                return 1 - x, 1 - y
            case Turn.RIGHT:
                return y, 1 - x

    def upright_motion(self, dx: int, dy: int) -> tuple[int, int]:
        """Return the motion on the upright screen of a motion on the panel."""
        match self:
            case Turn.NONE:
                return dx, dy
            case Turn.LEFT:
                return -dy, dx
            case Turn.HALF:
                return -dx, -dy
            case Turn.RIGHT:
                return dy, -dx
