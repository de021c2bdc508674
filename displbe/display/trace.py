"""The last requests of a control ring and what was answered, for who wants to know what a guest did: `displbectl trace`.

On the path of every request: two stores into a record that is there already. A record keeps the request's 64 octets as they were read;
who prints them decodes them (protocol/control.md has the layout).
"""

from __future__ import annotations

import time
from struct import Struct
from typing import Final

from displbe.wire.displif import MESSAGE_SIZE

from .times import clock

__all__ = ["RECORD", "Trace"]

KEPT: Final = 4096
"""Requests. A power of two."""
RECORD: Final = Struct(f"<ddii{MESSAGE_SIZE}s")
"""When it was read, when it was answered (0: never), both in seconds of CLOCK_MONOTONIC; status; octets of EDID; the request."""
_ANSWER: Final = Struct("<dii")
_MASK: Final = KEPT - 1
_SIZE: Final = RECORD.size
_pack_request = RECORD.pack_into
_pack_answer = _ANSWER.pack_into


class Trace:
    """The last 4,096 requests of one connection of one connector. A ring's requests are answered one after the other."""

    def __init__(self) -> None:
        self.count = 0
        self._records = bytearray(KEPT * _SIZE)
        self._at = 0

    def request(self, slot: bytes) -> None:
        """A request has been read."""
        self._at = at = (self.count & _MASK) * _SIZE
        self.count += 1
        _pack_request(self._records, at, clock(), 0.0, 0, 0, slot)

    def answer(self, status: int, edid_sz: int) -> None:
        """The request read last is answered."""
        _pack_answer(self._records, self._at + 8, clock(), status, edid_sz)

    def octets(self, last: int = KEPT) -> bytes:
        """The last records, the oldest first."""
        end = (self.count & _MASK or min(self.count, KEPT)) * _SIZE
        whole = self._records[end:] + self._records[:end] if self.count > KEPT else self._records[:end]
        return bytes(whole[-last * _SIZE :])

    @staticmethod
    def epoch() -> float:
        """What to add to a record's times to have seconds since 1970."""
        return time.time() - clock()
