"""A trace of requests and answers, as text."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import msgspec

from displbe.display.trace import RECORD
from displbe.wire.displif import Operation, UnknownRequest, decode_request
from displbe.wire.errors import Errno
from displbe.wire.formats import fourcc_name

__all__ = ["trace_lines"]


def trace_lines(octets: bytes, epoch: float) -> Iterator[str]:
    """A line for each request; `epoch` makes its times seconds since 1970."""
    for read, answered, status, edid_sz, slot in RECORD.iter_unpack(octets):
        request = decode_request(slot)
        when = datetime.fromtimestamp(read + epoch).strftime("%H:%M:%S.%f")
        if isinstance(request, UnknownRequest):
            said = f"operation {request.operation:#x}"
        else:
            fields = msgspec.structs.asdict(request)
            said = " ".join([Operation(request.operation).name, *(f"{k}={_value(k, v)}" for k, v in fields.items())])
        answer = f"{_answer(status, edid_sz)} after {(answered - read) * 1e6:.0f} us" if answered else "not answered"
        yield f"{when} {said} -> {answer}"


def _value(key: str, value: int) -> str:
    if key == "pixel_format":
        return fourcc_name(value)
    return f"{value:#x}" if key.endswith("cookie") else str(value)


def _answer(status: int, edid_sz: int) -> str:
    if status == 0:
        return f"ok, {edid_sz} octets" if edid_sz else "ok"
    try:
        return Errno(-status).name
    except ValueError:
        return str(status)
