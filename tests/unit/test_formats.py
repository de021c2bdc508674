"""The guessed stride of buffers, and error numbers for failed system calls."""

from __future__ import annotations

import errno

from hypothesis import given
from hypothesis import strategies as st

from displbe.wire.errors import Errno, from_host
from displbe.wire.formats import likely_stride, stride

SIDE = st.integers(1, 16384)
BITS = st.sampled_from([8, 16, 24, 32])


def words(width: int, bits: int) -> int:
    """A row of whole 32-bit words, as frontends of displ_be's time have it."""
    return 4 * -(-width * bits // 32)


@given(SIDE, SIDE, BITS)
def test_linux_strides(width: int, height: int, bits: int) -> None:
    packed = stride(width, bits)
    assert packed * 8 - width * bits in range(8)
    assert likely_stride(width, height, bits, packed * height) == packed


@given(SIDE, SIDE, BITS)
def test_strides_of_whole_words(width: int, height: int, bits: int) -> None:
    """A buffer of just that size has them, unless Linux's rows need as many pages."""
    size = words(width, bits) * height
    assert likely_stride(width, height, bits, size) == words(width, bits)
    pages = -(-size // 4096) * 4096
    same = -(-stride(width, bits) * height // 4096) * 4096 == pages
    wanted = {stride(width, bits)} if same else {words(width, bits)}
    # Pages that are just Linux's size, too, are Linux's.
    assert likely_stride(width, height, bits, pages) in (wanted | ({words(width, bits)} if pages == size else set()))


@given(SIDE, SIDE, BITS, st.integers(0, 1 << 32))
def test_rows_fit_wherever_packed_ones_do(width: int, height: int, bits: int, size: int) -> None:
    if stride(width, bits) * height <= size:
        assert likely_stride(width, height, bits, size) * height <= size


@given(st.one_of(st.sampled_from(sorted(errno.errorcode)), st.integers(0, 1 << 31), st.none()))
def test_numbers_of_the_host(number: int | None) -> None:
    """Xen's table has few of them; what is not in it is EIO."""
    answer = from_host(number)
    assert answer == (number if number in list(Errno) else Errno.EIO)
