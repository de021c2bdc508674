"""Each conversion of formats and each turn of a frame, pixel by pixel, against a model that knows pixels and nothing else."""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from displbe.sinks.convert import TARGETS, convert, pixel_size, turn_frame
from displbe.sinks.turn import Turn
from displbe.wire.formats import FORMATS, fourcc, fourcc_name

LAYOUTS: Final = {
    # drm_fourcc.h: the parts of a pixel and their bits, from the highest bit down. x: not used.
    "XR24": "x8 r8 g8 b8",
    "XB24": "x8 b8 g8 r8",
    "RX24": "r8 g8 b8 x8",
    "BX24": "b8 g8 r8 x8",
    "AR24": "a8 r8 g8 b8",
    "AB24": "a8 b8 g8 r8",
    "RA24": "r8 g8 b8 a8",
    "BA24": "b8 g8 r8 a8",
    "RG24": "r8 g8 b8",
    "BG24": "b8 g8 r8",
    "XR30": "x2 r10 g10 b10",
    "XB30": "x2 b10 g10 r10",
    "RX30": "r10 g10 b10 x2",
    "BX30": "b10 g10 r10 x2",
    "AR30": "a2 r10 g10 b10",
    "AB30": "a2 b10 g10 r10",
    "RA30": "r10 g10 b10 a2",
    "BA30": "b10 g10 r10 a2",
    "RG16": "r5 g6 b5",
    "BG16": "b5 g6 r5",
    "XR15": "x1 r5 g5 b5",
    "XB15": "x1 b5 g5 r5",
    "RX15": "r5 g5 b5 x1",
    "BX15": "b5 g5 r5 x1",
    "AR15": "a1 r5 g5 b5",
    "AB15": "a1 b5 g5 r5",
    "RA15": "r5 g5 b5 a1",
    "BA15": "b5 g5 r5 a1",
    "XR12": "x4 r4 g4 b4",
    "XB12": "x4 b4 g4 r4",
    "RX12": "r4 g4 b4 x4",
    "BX12": "b4 g4 r4 x4",
    "AR12": "a4 r4 g4 b4",
    "AB12": "a4 b4 g4 r4",
    "RA12": "r4 g4 b4 a4",
    "BA12": "b4 g4 r4 a4",
}


def parts_of(name: str) -> list[tuple[str, int]]:
    return [(part[0], int(part[1:])) for part in LAYOUTS[name].split()]


def size_of(name: str) -> int:
    return 2 if name == "YUYV" else sum(bits for _, bits in parts_of(name)) // 8


def unpack(name: str, pixel: bytes) -> dict[str, tuple[int, int]]:
    """Return the value and the bits of each part of a pixel."""
    value, found = int.from_bytes(pixel, "little"), {}
    for part, bits in reversed(parts_of(name)):
        found[part] = value & (1 << bits) - 1, bits
        value >>= bits
    return found


def colours(name: str, row: bytes) -> list[tuple[float, float, float]]:
    """Return red, green and blue of each pixel of a row, 0 to 255."""
    if name == "YUYV":
        return [yuyv(row, x) for x in range(len(row) // 2)]
    size = size_of(name)
    pixels = [unpack(name, row[at : at + size]) for at in range(0, len(row), size)]
    return [tuple(255 * p[c][0] / ((1 << p[c][1]) - 1) for c in "rgb") for p in pixels]  # type: ignore[misc]


def yuyv(row: bytes, x: int) -> tuple[float, float, float]:
    """BT.601, limited range. A last pixel without a partner takes the Cr of the pair before it; 128 if there is none."""
    pair = x // 2 * 4
    cb = row[pair + 1]
    cr = row[pair + 3] if pair + 3 < len(row) else row[pair - 1] if pair else 128
    y, u, v = (row[2 * x] - 16) / 219, (cb - 128) / 224, (cr - 128) / 224
    rgb = y + 1.402 * v, y - 0.344136 * u - 0.714136 * v, y + 1.772 * u
    return tuple(min(max(255 * part, 0), 255) for part in rgb)  # type: ignore[return-value]


def test_the_formats() -> None:
    assert set(TARGETS) == {fourcc(name) for name in LAYOUTS}
    assert {fourcc_name(code) for code in FORMATS} <= {*LAYOUTS, "YUYV"}
    for name in LAYOUTS:
        assert pixel_size(fourcc(name)) == size_of(name)


@pytest.mark.parametrize("source", sorted(fourcc_name(code) for code in FORMATS))
@given(data=st.data())
def test_each_conversion(source: str, data: st.DataObject) -> None:
    """Each pixel has its colour, as exactly as the target allows; alpha and unused bits are set; nothing beside the picture is written."""
    target = data.draw(st.sampled_from(sorted(LAYOUTS)))
    width, height = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 4))
    row, made_row = width * size_of(source), width * size_of(target)
    of_stride, to_stride = row + data.draw(st.integers(0, 5)), made_row + data.draw(st.integers(0, 8))
    of = data.draw(st.binary(min_size=of_stride * height, max_size=of_stride * height))
    to = bytearray(b"\x5a" * (to_stride * height))
    convert(fourcc(source), memoryview(to), to_stride, memoryview(of), of_stride, row, height, fourcc(target))
    for y in range(height):
        exact = colours(source, of[y * of_stride : y * of_stride + row])
        line = bytes(to[y * to_stride : (y + 1) * to_stride])
        assert set(line[made_row:]) <= {0x5A}
        for x in range(width):
            pixel = unpack(target, line[x * size_of(target) : (x + 1) * size_of(target)])
            for colour, wanted in zip("rgb", exact[x], strict=True):
                value, bits = pixel[colour]
                # Cut off to fewer bits, a colour is darker by less than one step; before that, it is rounded to 8 bits.
                step = 255 / ((1 << bits) - 1)
                assert -1.1 - step < value * step - wanted < 1.1 + (step if bits < 8 else 0)
            assert all(value == (1 << bits) - 1 for part, (value, bits) in pixel.items() if part in "ax")


@pytest.mark.parametrize("target", sorted(LAYOUTS))
@pytest.mark.parametrize("source", ["XR24", "RG24", "RG16", "XR15", "XR12"])
def test_black_and_white(source: str, target: str) -> None:
    """Black stays black and white stays white, also where the source's unused bits are 0."""
    size = size_of(source)
    white = sum(((1 << bits) - 1) << at for at, bits in places(source))
    of = bytes(size) + white.to_bytes(size, "little")
    to = bytearray(2 * size_of(target))
    convert(fourcc(source), memoryview(to), len(to), memoryview(of), len(of), len(of), 1, fourcc(target))
    for pixel, full in ((to[: len(to) // 2], False), (to[len(to) // 2 :], True)):
        parts = unpack(target, bytes(pixel))
        assert {parts[c][0] == ((1 << parts[c][1]) - 1 if full else 0) for c in "rgb"} == {True}


def places(name: str) -> list[tuple[int, int]]:
    """Return the lowest bit and the bits of each colour."""
    at, found = 0, []
    for part, bits in reversed(parts_of(name)):
        if part in "rgb":
            found.append((at, bits))
        at += bits
    return found


@given(
    width=st.integers(1, 9),
    height=st.integers(1, 9),
    size=st.integers(2, 4),
    turn=st.sampled_from(list(Turn)),
    gap=st.integers(0, 5),
    data=st.data(),
)
def test_turning(width: int, height: int, size: int, turn: Turn, gap: int, data: st.DataObject) -> None:
    """Each pixel is where the turn puts a rectangle of its size, and where a touch on it is taken for a touch on the upright pixel."""
    of = data.draw(st.binary(min_size=size * width * height, max_size=size * width * height))
    across, down = turn.size(width, height)
    stride = across * size + gap
    to = bytearray(b"\x5a" * (stride * down))
    turn_frame(memoryview(to), stride, memoryview(of), width, height, size, turn)
    for y in range(height):
        for x in range(width):
            left, top, *one = turn.on_panel((x, y, 1, 1), width, height)
            assert one == [1, 1]
            at = top * stride + left * size
            assert to[at : at + size] == of[(y * width + x) * size : (y * width + x + 1) * size]
            u, v = turn.upright((left + 0.5) / across, (top + 0.5) / down)
            assert (int(u * width), int(v * height)) == (x, y)
    assert all(set(to[n * stride + across * size : (n + 1) * stride]) <= {0x5A} for n in range(down))


def test_the_direction_of_a_turn() -> None:
    """Degrees are counter-clockwise: 90 degrees put the upper right pixel into the upper left corner of the panel."""
    of, to = memoryview(bytes((1, 0, 2, 0, 3, 0, 4, 0))), bytearray(8)
    for turn, expected in ((Turn(90), (2, 4, 1, 3)), (Turn(180), (4, 3, 2, 1)), (Turn(270), (3, 1, 4, 2))):
        turn_frame(memoryview(to), 4, of, 2, 2, 2, turn)
        assert tuple(to[::2]) == expected


@given(turn=st.sampled_from(list(Turn)), dx=st.integers(-99, 99), dy=st.integers(-99, 99))
def test_a_motion_turns_as_positions_do(turn: Turn, dx: int, dy: int) -> None:
    x, y = turn.upright(0.5, 0.5)
    u, v = turn.upright(0.5 + dx / 1000, 0.5 + dy / 1000)
    motion = turn.upright_motion(dx, dy)
    assert (round((u - x) * 1000), round((v - y) * 1000)) == motion
