"""Pictures of screens: reads them from QEMU's PPM, compares them, and writes them as PNG for people."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from struct import pack

__all__ = ["Picture", "drawn"]


@dataclass(frozen=True)
class Picture:
    """Pixels of three bytes (red, green, blue), row by row from the top."""

    width: int
    height: int
    rgb: bytes = field(repr=False)

    @classmethod
    def from_ppm(cls, data: bytes) -> Picture:
        header = re.match(rb"P6\s+(\d+)\s+(\d+)\s+255\s", data)
        if header is None:
            raise ValueError("not a PPM of three bytes a pixel")
        width, height = int(header[1]), int(header[2])
        rgb = data[header.end() :]
        if len(rgb) != width * height * 3:
            raise ValueError(f"a PPM of {width}x{height} with {len(rgb)} bytes of pixels")
        return cls(width, height, rgb)

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height

    def pixel(self, x: int, y: int) -> tuple[int, int, int]:
        at = (y * self.width + x) * 3
        red, green, blue = self.rgb[at : at + 3]
        return red, green, blue

    def turned(self, degrees: int) -> Picture:
        """Return the picture turned counter-clockwise by a multiple of 90 degrees."""
        made = self
        for _ in range(degrees // 90):
            pixels = [made.rgb[at : at + 3] for at in range(0, len(made.rgb), 3)]
            columns = (b"".join(pixels[x :: made.width]) for x in reversed(range(made.width)))
            made = Picture(made.height, made.width, b"".join(columns))
        return made

    def colours(self) -> set[bytes]:
        """Return the colours that the picture contains."""
        return {self.rgb[at : at + 3] for at in range(0, len(self.rgb), 3)}

    def crop(self, x: int, y: int, width: int, height: int) -> Picture:
        """Return a part of the picture. Raises ValueError if the part does not lie inside."""
        if not (0 <= x <= x + width <= self.width and 0 <= y <= y + height <= self.height):
            raise ValueError(f"{width}x{height} at {x},{y} is not inside {self.width}x{self.height}")
        starts = ((row * self.width + x) * 3 for row in range(y, y + height))
        return Picture(width, height, b"".join(self.rgb[at : at + width * 3] for at in starts))

    def differs(self, other: Picture) -> int:
        """Return the number of pixels that differ; all of them if the sizes differ."""
        if self.size != other.size:
            return max(self.width * self.height, other.width * other.height)
        return sum(map(sum, self._unequal(other))) if self.rgb != other.rgb else 0

    def difference(self, other: Picture) -> Picture:
        """Return a picture that is white where the pixels differ, black elsewhere. Raises ValueError if the sizes differ."""
        if self.size != other.size:
            raise ValueError(f"{self.size} and {other.size} cannot be laid over each other")
        black, white = b"\0\0\0", b"\xff\xff\xff"
        rows = (b"".join(white if unequal else black for unequal in row) for row in self._unequal(other))
        return Picture(self.width, self.height, b"".join(rows))

    def _unequal(self, other: Picture) -> list[list[bool]]:
        stride = self.width * 3
        found = []
        for at in range(0, len(self.rgb), stride):
            mine, theirs = self.rgb[at : at + stride], other.rgb[at : at + stride]
            if mine == theirs:
                found.append([False] * self.width)
            else:
                found.append([mine[x : x + 3] != theirs[x : x + 3] for x in range(0, stride, 3)])
        return found

    def png(self) -> bytes:
        stride = self.width * 3
        rows = b"".join(b"\0" + self.rgb[at : at + stride] for at in range(0, len(self.rgb), stride))

        def chunk(kind: bytes, data: bytes) -> bytes:
            return pack(">I", len(data)) + kind + data + pack(">I", zlib.crc32(kind + data))

        header = pack(">IIBBBBB", self.width, self.height, 8, 2, 0, 0, 0)
        chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")
        return b"\x89PNG\r\n\x1a\n" + chunks

    def save(self, path: Path) -> Path:
        """Write the picture as PNG."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.png())
        return path


def drawn(width: int, height: int, steps: int) -> Picture:
    """Return the picture that domu/draw.c and domu/survive.c draw."""
    rgb = bytearray(
        b"".join(bytes((x * 3 & 255, y * 5 & 255, (x ^ y) & 255)) for y in range(height) for x in range(width))
    )
    for step in range(1, steps + 1):
        square = (0x00FF00 * step & 0xFFFFFF).to_bytes(3, "big") * 80
        for y in range(50 * step, 50 * step + 60):
            at = (y * width + 100 * step) * 3
            rgb[at : at + 240] = square
    return Picture(width, height, bytes(rgb))
