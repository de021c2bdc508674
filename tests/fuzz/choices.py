"""Decisions made from a fuzzer's bytes."""

from __future__ import annotations

__all__ = ["Choices"]


class Choices:
    """Makes decisions from bytes; when they are used up, every decision is 0."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def over(self) -> bool:
        """Whether all bytes are used up."""
        return self._at >= len(self._data)

    def number(self, octets: int) -> int:
        """Return this many bytes."""
        part = self._data[self._at : self._at + octets]
        self._at += octets
        return int.from_bytes(part, "little")

    def below(self, limit: int) -> int:
        """Return a number from 0 to below `limit`."""
        return self.number(1 if limit <= 256 else 4) % limit
