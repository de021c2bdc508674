"""The place of a guest's picture on a screen whose modes may all have another size. Arithmetic only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from .device import Mode

__all__ = ["Placement", "placements", "ranked_modes"]


class Placement(msgspec.Struct, frozen=True):
    """A mode, how much of the picture is shown in it, and where. All sizes are in pixels."""

    mode: Mode
    shown: tuple[int, int]
    """Width and height of the part of the picture that is shown."""
    target: tuple[int, int, int, int]
    """x, y, width and height of the picture on the screen."""
    borders: bool = False
    """Whether the frame is copied into a black one of the mode's size. The plane then need neither scale nor leave a part
    of the screen free.
    """


def placements(modes: Sequence[Mode], width: int, height: int, scale: str) -> list[Placement]:
    """Return all ways to show a picture of this size, the best first; an empty list when there are no modes.

    `fit` and `stretch` prefer the monitor's preferred mode and a plane that scales. If the plane does not scale, and for
    `none`, the nearest larger mode is used, with black borders. A picture larger than every mode is cropped.
    """
    if not modes:
        return []
    exact = [mode for mode in modes if (mode.width, mode.height) == (width, height)]
    if exact:
        return [Placement(_best(exact), (width, height), (0, 0, width, height))]
    scaled = list(_scaled(_best(modes), width, height, scale))
    near = _nearest(modes, width, height)
    shown = min(width, near.width), min(height, near.height)
    centre = (near.width - shown[0]) // 2, (near.height - shown[1]) // 2, *shown
    return [*scaled, Placement(near, shown, centre), Placement(near, shown, centre, borders=True)]


def ranked_modes(modes: Sequence[Mode], width: int, height: int, scale: str) -> list[Mode]:
    """Return all modes, in the order in which they are tried for a picture of this size.

    The modes of `placements` come first. Then come the other refresh rates of the first mode's size: the slower ones,
    because a rate is refused where a link or the memory is too slow, then the faster ones. Then come the other sizes:
    those that hold the whole picture, the smallest first, then those that show most of it. In each size, progressive
    modes come before interlaced ones.
    """
    wanted = [placement.mode for placement in placements(modes, width, height, scale)]
    if not wanted:
        return []
    first = wanted[0]

    def rank(mode: Mode) -> tuple[object, ...]:
        speed = mode.refresh > first.refresh, abs(mode.refresh - first.refresh)
        if (mode.width, mode.height) == (first.width, first.height):
            return 0, 0, mode.interlaced, speed
        if mode.width >= width and mode.height >= height:
            return 1, mode.width * mode.height, mode.interlaced, not mode.preferred, speed
        return 2, -min(mode.width, width) * min(mode.height, height), mode.interlaced, not mode.preferred, speed

    return list(dict.fromkeys((*wanted, *sorted(modes, key=rank))))


def _best(modes: Sequence[Mode]) -> Mode:
    """Return the preferred mode; if there is none, the fastest of the largest, progressive before interlaced."""
    return max(modes, key=lambda mode: (mode.preferred, not mode.interlaced, mode.width * mode.height, mode.refresh))


def _scaled(mode: Mode, width: int, height: int, scale: str) -> Iterator[Placement]:
    if scale == "stretch":
        yield Placement(mode, (width, height), (0, 0, mode.width, mode.height))
    elif scale == "fit":
        across = min(mode.width, max(1, width * mode.height // height))
        down = min(mode.height, max(1, height * mode.width // width))
        yield Placement(mode, (width, height), ((mode.width - across) // 2, (mode.height - down) // 2, across, down))


def _nearest(modes: Sequence[Mode], width: int, height: int) -> Mode:
    """Return the smallest mode that holds the picture; if there is none, the one that shows most of it."""
    larger = [mode for mode in modes if mode.width >= width and mode.height >= height]
    if larger:
        return min(
            larger, key=lambda mode: (mode.width * mode.height, mode.interlaced, not mode.preferred, -mode.refresh)
        )

    def seen(mode: Mode) -> tuple[int, bool, bool, int]:
        area = min(mode.width, width) * min(mode.height, height)
        return area, not mode.interlaced, mode.preferred, mode.refresh

    return max(modes, key=seen)
