"""Page directories: a chain is followed as far as the buffer needs it, and not a page further."""

from __future__ import annotations

from random import Random
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from displbe.wire.errors import Errno, RequestError
from displbe.wire.pgdir import REFS_PER_PAGE, DirectoryReader, directory_pages, encode_directory, pages_of
from displbe.wire.ring import PAGE_SIZE

COUNTS: Final = st.one_of(
    st.integers(1, 4 * REFS_PER_PAGE),
    st.sampled_from([n * REFS_PER_PAGE + d for n in (1, 2, 3) for d in (-1, 0, 1)]),
)
"""How many data pages; the ends of directory pages often."""


def page(following: int, *refs: int) -> bytes:
    """One directory page, the rest of it zero."""
    return b"".join(ref.to_bytes(4, "little") for ref in (following, *refs)).ljust(PAGE_SIZE, b"\0")


def follow(pages: dict[int, bytes], first: int, count: int) -> tuple[list[int], list[int]]:
    """The data references, and the directory pages that were mapped for them."""
    reader = DirectoryReader(first, count)
    mapped = []
    while reader.next_ref is not None:
        mapped.append(reader.next_ref)
        reader.feed(pages[reader.next_ref])
    return reader.refs, mapped


@settings(deadline=None)
@given(COUNTS, st.randoms(use_true_random=False))
def test_what_the_frontend_lists_is_read(count: int, random: Random) -> None:
    refs = list(range(0x10000, 0x10000 + count))
    page_refs = list(range(7, 7 + directory_pages(count)))
    random.shuffle(page_refs)
    pages = dict(zip(page_refs, encode_directory(refs, page_refs), strict=True))
    assert all(len(content) == PAGE_SIZE for content in pages.values())
    assert follow(pages, page_refs[0], count) == (refs, page_refs)


@settings(deadline=None)
@given(COUNTS)
def test_a_longer_chain_is_not_followed(count: int) -> None:
    needed = directory_pages(count)
    refs = list(range(1, 1 + (needed + 2) * REFS_PER_PAGE))
    page_refs = list(range(100, 100 + needed + 2))
    pages = dict(zip(page_refs, encode_directory(refs, page_refs), strict=True))
    assert follow(pages, 100, count) == (refs[:count], page_refs[:needed])


def test_a_circle_behind_the_end_does_not_matter() -> None:
    assert follow({5: page(5, 11, 12)}, 5, 2) == ([11, 12], [5])


@pytest.mark.parametrize("circle", [{5: 5}, {5: 6, 6: 5}, {5: 6, 6: 7, 7: 6}])
def test_a_circle(circle: dict[int, int]) -> None:
    with pytest.raises(RequestError, match="circle") as caught:
        follow({ref: page(following) for ref, following in circle.items()}, 5, 100 * REFS_PER_PAGE)
    assert caught.value.code is Errno.EINVAL


@settings(deadline=None)
@given(st.integers(1, 3), st.integers(1, 3 * REFS_PER_PAGE))
def test_a_chain_that_ends_early(length: int, missing: int) -> None:
    page_refs = list(range(100, 100 + length))
    refs = [1] * (length * REFS_PER_PAGE)
    pages = dict(zip(page_refs, encode_directory(refs, page_refs), strict=True))
    with pytest.raises(RequestError, match="ends after") as caught:
        follow(pages, 100, length * REFS_PER_PAGE + missing)
    assert caught.value.code is Errno.EINVAL


def test_reference_0_does_not_end_the_list() -> None:
    """Where a reference leads is Xen's to say, when it is mapped."""
    assert follow({5: page(0, 0, 0, 9)}, 5, 4) == ([0, 0, 9, 0], [5])


@pytest.mark.parametrize("size", [0, PAGE_SIZE - 4, PAGE_SIZE + 4])
def test_a_page_of_another_size_is_our_own_mistake(size: int) -> None:
    with pytest.raises(Exception, match="requires a buffer of 4096 bytes"):
        DirectoryReader(5, 1).feed(bytes(size))


@given(st.integers(0, 0xFFFFFFFF))
def test_pages_of(size: int) -> None:
    pages = pages_of(size)
    assert pages * PAGE_SIZE >= size > (pages - 1) * PAGE_SIZE


@pytest.mark.parametrize(
    ("size", "pages", "directories"),
    [(1, 1, 1), (4096, 1, 1), (4097, 2, 1), (1920 * 1080 * 4, 2025, 2), (0xFFFFFFFF, 1 << 20, 1026)],
)
def test_known_sizes(size: int, pages: int, directories: int) -> None:
    assert pages_of(size) == pages
    assert directory_pages(pages) == directories
