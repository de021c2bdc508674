"""The trace of a ring, against a plain list; and how it reads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from displbe.display import trace
from displbe.display.trace import KEPT, RECORD, Trace, trace_lines
from displbe.wire.displif import DbufCreate, FbAttach, GetEdid, PageFlip, UnknownRequest, encode_request
from displbe.wire.formats import fourcc

Answer = tuple[int, int] | None


@given(
    st.lists(
        st.tuples(
            st.binary(min_size=64, max_size=64), st.none() | st.tuples(st.integers(-200, 0), st.integers(0, 32768))
        )
    ),
    st.integers(1, 20),
)
def test_the_last_requests_and_their_answers(requests: list[tuple[bytes, Answer]], last: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "KEPT", 8)
        patch.setattr(trace, "_MASK", 7)
        kept = Trace()
        for slot, answer in requests:
            kept.request(slot)
            if answer is not None:
                kept.answer(*answer)
        records = list(RECORD.iter_unpack(kept.records(last)))
        size = len(kept.memory)
    assert size == 8 * RECORD.size
    assert kept.count == len(requests)
    assert [record[4] for record in records] == [slot for slot, _ in requests[-8:][-last:]]
    for (read, answered, status, edid_sz, _), (_, answer) in zip(records, requests[-8:][-last:], strict=True):
        assert bool(answered) == (answer is not None)
        assert answer is None or answered >= read
        assert (status, edid_sz) == (answer or (0, 0))


def test_it_never_grows() -> None:
    kept = Trace()
    for number in range(KEPT + 5):
        kept.request(number.to_bytes(64, "little"))
        kept.answer(0, 0)
    assert len(kept.memory) == KEPT * RECORD.size
    slots = [int.from_bytes(record[4], "little") for record in RECORD.iter_unpack(kept.records())]
    assert slots == list(range(5, KEPT + 5))


def lines(*asked: tuple[bytes, Answer]) -> list[str]:
    """What is printed, without the time of day."""
    records = b"".join(
        RECORD.pack(1000.0, 1000.000025 if answer else 0.0, *(answer or (0, 0)), slot) for slot, answer in asked
    )
    return [line.split(" ", 1)[1] for line in trace_lines(records, 0.0)]


def test_how_it_reads() -> None:
    assert lines(
        (encode_request(PageFlip(7, 0xFFFF888000001080)), (0, 0)),
        (encode_request(DbufCreate(1, 16, 64, 48, 32, 12288, 0, 15, 0)), (-28, 0)),
        (encode_request(FbAttach(2, 16, 17, 64, 48, fourcc("XR24"))), (-71, 0)),
        (encode_request(GetEdid(3, 128, 9)), (0, 128)),
        (encode_request(UnknownRequest(4, 0x7F)), (-95, 0)),
        (encode_request(PageFlip(8, 1)), None),
    ) == [
        "PG_FLIP id=7 fb_cookie=0xffff888000001080 -> ok after 25 us",
        "DBUF_CREATE id=1 dbuf_cookie=0x10 width=64 height=48 bpp=32 buffer_sz=12288 flags=0 gref_directory=15 data_ofs=0"
        " -> ENOSPC after 25 us",
        "FB_ATTACH id=2 dbuf_cookie=0x10 fb_cookie=0x11 width=64 height=48 pixel_format=XR24 -> -71 after 25 us",
        "GET_EDID id=3 buffer_sz=128 gref_directory=9 -> ok, 128 bytes after 25 us",
        "operation 0x7f -> EOPNOTSUPP after 25 us",
        "PG_FLIP id=8 fb_cookie=0x1 -> not answered",
    ]


@given(st.lists(st.binary(min_size=64, max_size=64)))
def test_no_request_can_drive_a_terminal(slots: list[bytes]) -> None:
    for line in lines(*((slot, (-(slot[0]), slot[1])) for slot in slots)):
        assert line.isascii()
        assert line.isprintable()
