"""Bytes as decisions."""

from __future__ import annotations

__all__ = ["Choices"]


class Choices:
    """Decisions out of bytes; when they are used up, all are 0."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def over(self) -> bool:
        """Whether all bytes are used up."""
        return self._at >= len(self._data)

    def number(self, size: int) -> int:
        """A number of so many bytes."""
        part = self._data[self._at : self._at + size]
        self._at += size
        return int.from_bytes(part, "little")

    def below(self, limit: int) -> int:
        """Return a number from 0 to below `limit`."""
        return self.number(1 if limit <= 256 else 4) % limit
