"""The codecs of displif: decoding reverses encoding, and reserved bytes change nothing."""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from displbe.wire import displif
from displbe.wire.displif import MESSAGE_SIZE, Operation

U16: Final = st.integers(0, 0xFFFF)
U32: Final = st.integers(0, 0xFFFFFFFF)
S32: Final = st.integers(-0x80000000, 0x7FFFFFFF)
U64: Final = st.integers(0, 0xFFFFFFFFFFFFFFFF)
SLOT: Final = st.binary(min_size=MESSAGE_SIZE, max_size=MESSAGE_SIZE)

KNOWN: Final[st.SearchStrategy[displif.Known]] = st.one_of(
    st.builds(displif.DbufCreate, U16, U64, U32, U32, U32, U32, U32, U32, U32),
    st.builds(displif.DbufDestroy, U16, U64),
    st.builds(displif.FbAttach, U16, U64, U64, U32, U32, U32),
    st.builds(displif.FbDetach, U16, U64),
    st.builds(displif.SetConfig, U16, U64, U32, U32, U32, U32, U32),
    st.builds(displif.PageFlip, U16, U64),
    st.builds(displif.GetEdid, U16, U32, U32),
)
UNKNOWN: Final = st.builds(displif.UnknownRequest, U16, st.integers(0, 0xFF).filter(lambda n: n not in list(Operation)))
USED: Final = {
    Operation.DBUF_CREATE: 44,
    Operation.DBUF_DESTROY: 16,
    Operation.FB_ATTACH: 36,
    Operation.FB_DETACH: 16,
    Operation.SET_CONFIG: 36,
    Operation.PG_FLIP: 16,
    Operation.GET_EDID: 16,
}
"""Bytes up to the end of the last field; 3 to 7 are reserved in all."""


@given(KNOWN | UNKNOWN)
def test_a_request_comes_back(request: displif.Request) -> None:
    slot = displif.encode_request(request)
    assert len(slot) == MESSAGE_SIZE
    decoded = displif.decode_request(slot)
    assert decoded == request
    assert type(decoded) is type(request)


@given(KNOWN, SLOT)
def test_reserved_bytes_are_ignored(request: displif.Known, rubbish: bytes) -> None:
    slot = displif.encode_request(request)
    used = USED[Operation(request.operation)]
    assert slot[3:8] == bytes(5)
    assert slot[used:] == bytes(MESSAGE_SIZE - used)
    assert displif.decode_request(slot[:3] + rubbish[3:8] + slot[8:used] + rubbish[used:]) == request


@given(SLOT)
def test_any_64_bytes_are_a_request(slot: bytes) -> None:
    request = displif.decode_request(slot)
    assert request.operation == slot[2]
    assert request.id == int.from_bytes(slot[:2], "little")
    assert isinstance(request, displif.UnknownRequest) == (slot[2] not in list(Operation))


@pytest.mark.parametrize("operation", [0x00, 0x01, 0x0F, 0x17, 0x80, 0xFF])
def test_unknown_operations(operation: int) -> None:
    slot = b"\xa1\xa2" + bytes([operation]) + b"\xff" * 61
    assert displif.decode_request(slot) == displif.UnknownRequest(0xA2A1, operation)


@pytest.mark.parametrize("size", [63, 65])
def test_another_size_is_our_own_mistake(size: int) -> None:
    with pytest.raises(Exception, match="requires a buffer of 64 bytes"):
        displif.decode_request(b"\x10" * size)


@given(U16, st.integers(0, 0xFF), S32, U32)
def test_a_response_comes_back(number: int, operation: int, status: int, edid_sz: int) -> None:
    slot = displif.encode_response(number, operation, status, edid_sz)
    assert len(slot) == MESSAGE_SIZE
    assert displif.decode_response(slot) == displif.Response(number, operation, status, edid_sz)


def test_a_response_leaves_nothing_of_the_request() -> None:
    assert displif.encode_response(7, Operation.FB_ATTACH, 0) == b"\x07\x00\x12" + bytes(61)


@given(st.integers(0, 1 << 40), U64)
def test_an_event_comes_back_with_its_number_modulo_2_to_16(number: int, cookie: int) -> None:
    slot = displif.encode_event(number, cookie)
    assert len(slot) == MESSAGE_SIZE
    assert displif.decode_event(slot) == displif.PageFlipEvent(number % 0x10000, cookie)


def test_an_event_of_another_type() -> None:
    slot = bytearray(displif.encode_event(1, 2))
    slot[2] = 1
    with pytest.raises(ValueError, match="unknown type 1"):
        displif.decode_event(bytes(slot))
