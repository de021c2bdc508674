"""Pictures of guests' pixels have the right colours in the right places, for every format that a guest may use."""

from __future__ import annotations

from pathlib import Path

import pytest
from depths import DEPTHS
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from displbe.ctl.client import Failure
from displbe.ctl.picture import write_png
from displbe.sinks.base import Geometry, Part
from displbe.sinks.picture import image
from displbe.wire.formats import FORMATS, fourcc

COLOUR = st.tuples(*[st.integers(0, 255)] * 3)


def packed(name: str, colour: tuple[int, int, int]) -> bytes:
    """Return the bytes of a pixel in a packed format."""
    value = 0
    for part, bits in zip(colour, DEPTHS[name], strict=True):
        value = value << bits | part >> (8 - bits)
    return value.to_bytes(FORMATS[fourcc(name)].bits // 8, "little")


def near(one: object, other: tuple[int, int, int], by: int) -> bool:
    assert isinstance(one, tuple)
    return all(abs(a - b) <= by for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", DEPTHS)
@given(colours=st.lists(COLOUR, min_size=1, max_size=7), before=st.integers(0, 5), padding=st.integers(0, 5))
def test_colours(name: str, colours: list[tuple[int, int, int]], before: int, padding: int) -> None:
    pixel_size = FORMATS[fourcc(name)].bits // 8
    row = bytes(before * pixel_size) + b"".join(packed(name, colour) for colour in colours) + bytes(padding)
    shape = Geometry(before + len(colours), 2, fourcc(name), len(row), 0)
    made = image(memoryview(row * 2), shape, Part(before, 0, len(colours), 2))
    for at, colour in enumerate(colours):
        for y in (0, 1):
            assert near(made.getpixel((at, y)), colour, 255 >> min(DEPTHS[name]))


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("yuv", "colour"), [((81, 90, 240), (255, 0, 0)), ((145, 54, 34), (0, 255, 0)), ((235, 128, 128), (255, 255, 255))]
)
def test_yuyv(width: int, yuv: tuple[int, int, int], colour: tuple[int, int, int]) -> None:
    luma, blue, red = yuv
    row = bytes((luma, blue, luma, red) * 2)[: 2 * width]
    made = image(memoryview(row * 2), Geometry(width, 2, fourcc("YUYV"), len(row), 0), Part(0, 0, width, 2))
    assert made.size == (width, 2)
    if width > 1:  # a single pixel has no Cr
        assert all(near(made.getpixel((x, 1)), colour, 3) for x in range(width - width % 2))


@pytest.mark.parametrize("code", FORMATS)
def test_every_format_is_written(code: int, tmp_path: Path) -> None:
    stride = 6 * FORMATS[code].bits // 8
    facts: dict[str, int | float | str] = {"width": 6, "height": 2, "fourcc": code, "stride": stride}
    path = tmp_path / "shot.png"
    write_png(str(path), facts, bytes(2 * stride))
    with Image.open(path) as written:
        assert written.size == (6, 2)
    with pytest.raises(Failure, match="pixel format"):
        write_png(str(path), facts | {"fourcc": 1}, b"")
