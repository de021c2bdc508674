"""XenStore messages: a stream in pieces of any size, and values that another domain wrote."""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from displbe.wire import xs

U32: Final = st.integers(0, 0xFFFFFFFF)
MESSAGES: Final = st.lists(st.tuples(U32, U32, U32, st.binary(max_size=80)), max_size=6)


def cut(stream: bytes, cuts: list[int]) -> list[bytes]:
    """Return the stream in pieces, some of them empty."""
    offsets = sorted(offset % (len(stream) + 1) for offset in cuts)
    return [stream[start:end] for start, end in zip([0, *offsets], [*offsets, len(stream)], strict=True)]


@given(MESSAGES, st.lists(st.integers(0, 1000), max_size=20))
def test_a_stream_in_pieces(messages: list[tuple[int, int, int, bytes]], cuts: list[int]) -> None:
    stream = b"".join(xs.encode(*message) for message in messages)
    decoder = xs.Decoder()
    packets = [packet for piece in cut(stream, cuts) for packet in decoder.feed(piece)]
    assert packets == messages
    assert b"".join(xs.encode(*packet) for packet in packets) == stream


def test_byte_by_byte() -> None:
    """A message is returned with its last byte, not before; the buffer keeps nothing of it."""
    stream = xs.encode(xs.Op.WATCH_EVENT, 0, 0, b"path\0token\0") + xs.encode(xs.Op.ERROR, 3, 0, b"ENOENT\0")
    decoder = xs.Decoder()
    came = [index for index in range(len(stream)) if decoder.feed(stream[index : index + 1])]
    assert came == [16 + 11 - 1, len(stream) - 1]
    assert decoder.feed(b"") == []


def test_an_unknown_operation() -> None:
    (packet,) = xs.Decoder().feed(xs.encode(0xFFFF, 1, 0, b"17\0name\0"))
    assert packet.op == 0xFFFF


def test_a_long_reply() -> None:
    """oxenstored sends a long listing in one message."""
    payload = b"name\0" * 20000
    header = xs.encode(xs.Op.DIRECTORY, 1, 0, b"")[:12] + len(payload).to_bytes(4, "little")
    (packet,) = xs.Decoder().feed(header + payload)
    assert xs.split(packet.payload) == [b"name"] * 20000


@pytest.mark.parametrize("size", [xs.MAX_REPLY + 1, 0xFFFFFFFF])
def test_a_reply_over_the_limit(size: int) -> None:
    """It is refused as soon as its header is there."""
    with pytest.raises(xs.ProtocolError, match=str(size)):
        xs.Decoder().feed(bytes(12) + size.to_bytes(4, "little"))


def test_the_limit_itself() -> None:
    decoder = xs.Decoder(limit=10)
    assert len(decoder.feed(xs.encode(1, 1, 0, bytes(10)))) == 1
    with pytest.raises(xs.ProtocolError):
        decoder.feed(xs.encode(1, 1, 0, bytes(11)))


def test_the_limit_of_what_is_sent() -> None:
    assert len(xs.encode(xs.Op.WRITE, 1, 0, bytes(4096))) == 16 + 4096
    with pytest.raises(ValueError, match="4097 bytes"):
        xs.encode(xs.Op.WRITE, 1, 0, bytes(4097))


@given(st.lists(st.binary(max_size=10).filter(lambda part: xs.NUL not in part)))
def test_split(parts: list[bytes]) -> None:
    assert xs.split(b"".join(part + xs.NUL for part in parts)) == parts


def test_split_leaves_out_an_unterminated_part() -> None:
    assert xs.split(b"") == []
    assert xs.split(b"a\0b") == [b"a"]


@given(st.lists(st.tuples(st.sampled_from("nrwb"), st.integers(0, 0xFFFF)), min_size=1, max_size=5))
def test_permissions(entries: list[tuple[str, int]]) -> None:
    assert xs.parse_perms(b"".join(b"%s%d\0" % (right.encode(), domid) for right, domid in entries)) == entries


@pytest.mark.parametrize(
    "payload",
    [b"", b"\0", b"n", b"n0", b"n\0", b"x0\0", b"N0\0", b"0\0", b"n-1\0", b"n+1\0", b"n 1\0", b"n65536\0", b"n0\0r\0"],
)
def test_invalid_permissions(payload: bytes) -> None:
    with pytest.raises(xs.ProtocolError):
        xs.parse_perms(payload)


@given(U32)
def test_numbers(number: int) -> None:
    assert xs.parse_number(b"%d" % number) == number


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"-1",
        b"+1",
        b" 1",
        b"1 ",
        b"1\n",
        b"1\0",
        b"1_0",
        b"0x10",
        b"1e3",
        b"1.0",
        b"abc",
        b"\xc2\xb2",  # a superscript two, which is a digit to str
        b"\xd9\xa1",  # an Arabic-Indic one, which int would take
        b"\xff\xfe",
        b"4294967296",  # 2**32
        b"9999999999",
        b"00000000001",  # eleven digits
        b"07",  # a second name of 7
        b"0000000007",
        b"00",
        b"1" * 4096,
    ],
)
def test_invalid_numbers(text: bytes) -> None:
    assert xs.parse_number(text) is None


@given(st.binary(max_size=12))
def test_any_value_is_a_number_in_range_or_none(text: bytes) -> None:
    number = xs.parse_number(text, 0xFFFF)
    if number is None:
        assert not (text.isdigit() and int(text) <= 0xFFFF and text == b"%d" % int(text))
    else:
        assert 0 <= number <= 0xFFFF
        assert text == b"%d" % number


def test_maximum() -> None:
    assert xs.parse_number(b"65535", 0xFFFF) == 0xFFFF
    assert xs.parse_number(b"65536", 0xFFFF) is None
