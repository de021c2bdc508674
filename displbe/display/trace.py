"""The last requests of a request ring and their responses, which `displbectl trace` shows.

Each request costs two stores into a preallocated record. A record keeps the 64 bytes of the request as they were read; they are decoded
when they are printed. protocol/control.md has the layout.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from struct import Struct
from typing import Final

import msgspec

from displbe.wire.displif import MESSAGE_SIZE, Operation, UnknownRequest, decode_request
from displbe.wire.errors import Errno
from displbe.wire.formats import fourcc_name

from .times import clock

__all__ = ["RECORD", "Trace", "trace_lines"]

KEPT: Final = 4096
"""The number of requests that are kept. A power of two."""
RECORD: Final = Struct(f"<ddii{MESSAGE_SIZE}s")
"""The time when the request was read, the time when it was answered (0: not answered), both in seconds of CLOCK_MONOTONIC; the status;
the bytes of the EDID; the request."""
_ANSWER: Final = Struct("<dii")
_MASK: Final = KEPT - 1
_SIZE: Final = RECORD.size
_pack_request = RECORD.pack_into
_pack_answer = _ANSWER.pack_into


class Trace:
    """The last 4,096 requests of one connector over one connection. A ring's requests are answered one after the other."""

    def __init__(self) -> None:
        self.count = 0
        self.memory = bytearray(KEPT * _SIZE)
        """The records; the pump writes them, too."""
        self._at = 0

    def request(self, slot: bytes) -> None:
        """Record a request that has been read."""
        self._at = at = (self.count & _MASK) * _SIZE
        self.count += 1
        _pack_request(self.memory, at, clock(), 0.0, 0, 0, slot)

    def answer(self, status: int, edid_sz: int) -> None:
        """Record the response to the request that was read last."""
        _pack_answer(self.memory, self._at + 8, clock(), status, edid_sz)

    def close(self) -> None:
        """Free the memory. No more requests come."""
        self.count = 0
        self.memory = bytearray()

    def records(self, last: int = KEPT) -> bytes:
        """Return the last records, the oldest first (`RECORD`)."""
        end = (self.count & _MASK or min(self.count, KEPT)) * _SIZE
        whole = self.memory[end:] + self.memory[:end] if self.count > KEPT else self.memory[:end]
        return bytes(whole[-last * _SIZE :])

    @staticmethod
    def epoch() -> float:
        """Return the difference between a record's times and seconds since 1970."""
        return time.time() - clock()


def trace_lines(records: bytes, epoch: float) -> Iterator[str]:
    """Yield a line for each request; `epoch` is what `Trace.epoch` has returned."""
    for read, answered, status, edid_sz, slot in RECORD.iter_unpack(records):
        request = decode_request(slot)
        when = datetime.fromtimestamp(read + epoch).strftime("%H:%M:%S.%f")
        if isinstance(request, UnknownRequest):
            text = f"operation {request.operation:#x}"
        else:
            fields = msgspec.structs.asdict(request)
            text = " ".join([Operation(request.operation).name, *(f"{k}={_value(k, v)}" for k, v in fields.items())])
        answer = f"{_answer(status, edid_sz)} after {(answered - read) * 1e6:.0f} us" if answered else "not answered"
        yield f"{when} {text} -> {answer}"


def _value(key: str, value: int) -> str:
    if key == "pixel_format":
        return fourcc_name(value)
    return f"{value:#x}" if key.endswith("cookie") else str(value)


def _answer(status: int, edid_sz: int) -> str:
    if status == 0:
        return f"ok, {edid_sz} bytes" if edid_sz else "ok"
    try:
        return Errno(-status).name
    except ValueError:
        return str(status)
