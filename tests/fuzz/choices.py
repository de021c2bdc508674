"""Octets as decisions."""

from __future__ import annotations

__all__ = ["Choices"]


class Choices:
    """Decisions out of octets; when they are used up, all are 0."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def over(self) -> bool:
        """Whether all octets are used up."""
        return self._at >= len(self._data)

    def number(self, octets: int) -> int:
        """That many octets."""
        part = self._data[self._at : self._at + octets]
        self._at += octets
        return int.from_bytes(part, "little")

    def below(self, limit: int) -> int:
        """One of so many."""
        return self.number(1 if limit <= 256 else 4) % limit
