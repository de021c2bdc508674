"""Copies guests' frames. Whatever reads the pixels of a guest's framebuffer reads them here: sinks that copy, pictures, redraw watches."""

from __future__ import annotations

import zlib

import msgspec

from displbe.xen.memory import copy_rows, same_rows

from .base import Geometry, Part
from .convert import XR24, convert, pixel_size

__all__ = ["FrameRows", "copy_frame", "frame_checksum", "frame_rows", "same_frame"]


class FrameRows(msgspec.Struct, frozen=True):
    """The rows of a part of a framebuffer, as they lie in a buffer. Offsets and sizes are in bytes."""

    fourcc: int
    start: int
    """The offset of the first pixel."""
    stride: int
    row: int
    """The size of a row."""
    rows: int

    @property
    def size(self) -> int:
        """The size of a packed copy."""
        return self.row * self.rows

    def packed(self) -> FrameRows:
        """Return the same rows as they lie in a packed copy: without an offset, and without gaps between rows."""
        return FrameRows(self.fourcc, 0, self.row, self.row, self.rows)


def frame_rows(shape: Geometry, part: Part) -> FrameRows:
    """Return the rows of a part of a framebuffer; the part lies inside."""
    pixel = pixel_size(shape.fourcc)
    start = shape.offset + part.y * shape.stride + part.x * pixel
    return FrameRows(shape.fourcc, start, shape.stride, part.width * pixel, part.height)


def copy_frame(
    of: FrameRows, view: memoryview, to: memoryview, to_stride: int, *, converted: bool = False, into: int = XR24
) -> None:
    """Copy rows of the buffer `view` into `to`, whose rows lie `to_stride` bytes apart; `converted`: to format `into`. Runs in any thread.

    The caller has borrowed both memories. The guest may draw at the same time: then the copy has parts of both frames.
    """
    with view[of.start :] as frame:  # released also when this raises: the traceback must not keep the memory mapped
        if converted:
            convert(of.fourcc, to, to_stride, frame, of.stride, of.row, of.rows, into)
        else:
            copy_rows(to, to_stride, frame, of.stride, of.row, of.rows)


def frame_checksum(of: FrameRows, view: memoryview) -> int:
    """Return a checksum of rows of the buffer `view`, with what lies between them. Runs in any thread, like `copy_frame`."""
    with view[of.start : of.start + of.stride * (of.rows - 1) + of.row] as frame:
        return zlib.crc32(frame)


def same_frame(of: FrameRows, view: memoryview, to: memoryview, to_stride: int) -> bool:
    """Return whether `to` has the same pixels already; arguments as for `copy_frame`."""
    with view[of.start :] as frame:
        return same_rows(to, to_stride, frame, of.stride, of.row, of.rows)
