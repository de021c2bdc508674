"""A guest's limit of the pages of copies, for the tests of sinks."""

from __future__ import annotations

from displbe.sinks.base import CopyMemory
from displbe.wire.errors import Errno, RequestError

__all__ = ["CopyAccount"]


class CopyAccount:
    """What backend.quota has for a guest's copies."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.copies = CopyMemory(self._take, self._give)
        """The account as an output has it."""

    def _take(self, pages: int) -> None:
        if self.used + pages > self.limit:
            raise RequestError(Errno.ENOSPC, f"limit of {self.limit} copy_pages reached")
        self.used += pages

    def _give(self, pages: int) -> None:
        self.used -= pages
