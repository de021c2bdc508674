"""Page directories: the chain of pages in which a guest lists the grant references of a buffer (displif.h).

A directory page holds the reference of the next directory page (0 in the last one) and 1023 references of data pages. The number of
data pages follows from the buffer's size alone. A data page's reference 0 does not end the list.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Final

from .errors import Errno, RequestError
from .ring import PAGE_SIZE

__all__ = ["REFS_PER_PAGE", "DirectoryReader", "DirectoryWriter", "directory_pages", "encode_directory", "pages_of"]

REFS_PER_PAGE: Final = (PAGE_SIZE - 4) // 4
"""XENDISPL_NUM_GREFS_PER_PAGE: 1023."""

_PAGE: Final = Struct(f"<I{REFS_PER_PAGE}I")


def pages_of(size: int) -> int:
    """Return the number of pages that hold `size` bytes."""
    return -(-size // PAGE_SIZE)


def directory_pages(count: int) -> int:
    """Return the number of directory pages that list `count` references."""
    return -(-count // REFS_PER_PAGE)


class DirectoryReader:
    """Reads a chain. Until `next_ref` is None, map the page that it names and `feed` a private copy of the page."""

    def __init__(self, first_ref: int, count: int) -> None:
        """Begin at the directory page `first_ref`, for a buffer of `count` data pages, at least 1."""
        self.refs: list[int] = []
        self.next_ref: int | None = first_ref
        self._count = count
        self._seen = {first_ref}

    def feed(self, page: bytes) -> None:
        """Read one directory page of 4096 bytes. References beyond `count` are ignored.

        Raises RequestError with EINVAL when the chain ends before it has listed `count` pages, or comes back to an earlier page.
        """
        following, *refs = _PAGE.unpack(page)
        self.refs += refs[: self._count - len(self.refs)]
        if len(self.refs) == self._count:
            self.next_ref = None
        elif following == 0:
            raise RequestError(Errno.EINVAL, f"page directory ends after {len(self.refs)} of {self._count} pages")
        elif following in self._seen:
            raise RequestError(Errno.EINVAL, "page directory goes round in a circle")
        else:
            self._seen.add(following)
            self.next_ref = following


class DirectoryWriter:
    """Writes the references of a buffer that the backend has allocated into a chain of the guest's directory pages.

    Until `next_ref` is None, map the page that it names, `feed` a private copy of the page, and write the result into the page.
    """

    def __init__(self, first_ref: int, refs: Sequence[int]) -> None:
        self.next_ref: int | None = first_ref
        self._rest = list(refs)
        self._seen = {first_ref}

    def feed(self, page: bytes) -> tuple[int, bytes]:
        """Read one directory page. Return the bytes to write into it, after their offset. Raises RequestError as DirectoryReader does."""
        following = _PAGE.unpack(page)[0]
        part, self._rest = self._rest[:REFS_PER_PAGE], self._rest[REFS_PER_PAGE:]
        if not self._rest:
            self.next_ref = None
        elif following == 0:
            raise RequestError(Errno.EINVAL, f"page directory ends {len(self._rest)} references too early")
        elif following in self._seen:
            raise RequestError(Errno.EINVAL, "page directory goes round in a circle")
        else:
            self._seen.add(following)
            self.next_ref = following
        return 4, b"".join(ref.to_bytes(4, "little") for ref in part)


def encode_directory(data_refs: Sequence[int], page_refs: Sequence[int]) -> list[bytes]:
    """Return directory pages that list `data_refs`, for the pages granted as `page_refs` (the frontend's half)."""
    pages = []
    for index, following in enumerate((*page_refs[1:], 0)):
        part = list(data_refs[index * REFS_PER_PAGE : (index + 1) * REFS_PER_PAGE])
        pages.append(_PAGE.pack(following, *part, *[0] * (REFS_PER_PAGE - len(part))))
    return pages
