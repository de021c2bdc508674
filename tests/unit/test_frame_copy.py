"""Frames are copied row by row, whatever lies between and around them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from displbe.sinks.base import Geometry, Part
from displbe.sinks.convert import CONVERTED
from displbe.sinks.frame_copy import copy_frame, frame_checksum, frame_rows, same_frame
from displbe.wire.formats import FORMATS, fourcc

sides = st.integers(1, 9)


@st.composite
def frames(draw: st.DrawFn, formats: list[int]) -> tuple[Geometry, Part, bytearray]:
    """A framebuffer in a buffer that is larger than it, a part of it, and the buffer's content."""
    code = draw(st.sampled_from(formats))
    width, height = draw(sides), draw(sides)
    size = FORMATS[code].bits // 8
    stride, offset = width * size + draw(st.integers(0, 5)), draw(st.integers(0, 7))
    content = bytearray(draw(st.binary(min_size=offset + stride * height, max_size=offset + stride * height)))
    x, y = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    part = Part(x, y, draw(st.integers(1, width - x)), draw(st.integers(1, height - y)))
    return Geometry(width, height, code, stride, offset), part, content


def pixels(shape: Geometry, part: Part, content: bytes) -> list[bytes]:
    """The part's rows, pixel by pixel."""
    size = FORMATS[shape.fourcc].bits // 8
    return [
        b"".join(
            content[at : at + size]
            for x in range(part.x, part.x + part.width)
            for at in [shape.offset + y * shape.stride + x * size]
        )
        for y in range(part.y, part.y + part.height)
    ]


@given(frame=frames(sorted(FORMATS)), gap=st.integers(0, 5))
def test_a_copy_has_the_rows_of_the_part(frame: tuple[Geometry, Part, bytearray], gap: int) -> None:
    shape, part, content = frame
    rows = frame_rows(shape, part)
    stride = rows.row + gap
    target = bytearray(b"\x55" * (stride * rows.rows))
    before = bytes(content)
    copy_frame(rows, memoryview(content), memoryview(target), stride)
    found = [bytes(target[n * stride : n * stride + rows.row]) for n in range(rows.rows)]
    assert found == pixels(shape, part, before)
    if stride != shape.stride:  # else gaps are copied along
        gaps = {bytes(target[n * stride + rows.row : (n + 1) * stride]) for n in range(rows.rows)}
        assert gaps == {b"\x55" * gap}
    assert content == before
    assert same_frame(rows, memoryview(content), memoryview(target), stride)
    target[rows.row - 1] ^= 1
    assert not same_frame(rows, memoryview(content), memoryview(target), stride)


@given(frame=frames(sorted(CONVERTED)))
def test_a_packed_copy_converts_as_the_frame_does(frame: tuple[Geometry, Part, bytearray]) -> None:
    shape, part, content = frame
    rows = frame_rows(shape, part)
    packed, direct, twice = bytearray(rows.size), bytearray(4 * part.width * part.height), bytearray()
    twice.extend(direct)
    copy_frame(rows, memoryview(content), memoryview(packed), rows.row)
    copy_frame(rows, memoryview(content), memoryview(direct), 4 * part.width, converted=True)
    copy_frame(rows.packed(), memoryview(packed), memoryview(twice), 4 * part.width, converted=True)
    assert direct == twice
    assert set(direct[3::4]) == {0xFF}


def test_the_rows_of_a_part() -> None:
    rows = frame_rows(Geometry(640, 480, fourcc("RG16"), 1300, 64), Part(10, 2, 100, 50))
    assert (rows.start, rows.stride, rows.row, rows.rows, rows.size) == (64 + 2600 + 20, 1300, 200, 50, 10000)


@given(frame=frames(sorted(FORMATS)), data=st.data())
def test_a_checksum_sees_each_pixel(frame: tuple[Geometry, Part, bytearray], data: st.DataObject) -> None:
    shape, part, content = frame
    rows = frame_rows(shape, part)
    before = frame_checksum(rows, memoryview(content))
    at = rows.start + data.draw(st.integers(0, rows.rows - 1)) * rows.stride + data.draw(st.integers(0, rows.row - 1))
    content[at] ^= 0x80
    assert frame_checksum(rows, memoryview(content)) != before
