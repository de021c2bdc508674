"""Page directories: the chain of pages in which a guest lists the grant references of a buffer (displif.h).

A directory page holds the reference of the next directory page (0 ends the chain) and 1023 references of data pages.
How many references count comes from the buffer's size alone; the chain is not ended by a reference 0.
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


def pages_of(octets: int) -> int:
    """Pages that hold so many octets."""
    return -(-octets // PAGE_SIZE)


def directory_pages(count: int) -> int:
    """Directory pages that list `count` references."""
    return -(-count // REFS_PER_PAGE)


class DirectoryReader:
    """Follows a chain: map the page that `next_ref` names, `feed` a private copy of it, until `next_ref` is None."""

    def __init__(self, first_ref: int, count: int) -> None:
        """`count`: how many data pages the buffer has, at least 1."""
        self.refs: list[int] = []
        self.next_ref: int | None = first_ref
        self._count = count
        self._seen = {first_ref}

    def feed(self, page: bytes) -> None:
        """Take one directory page of 4096 octets.

        Raises RequestError EINVAL: the chain ends before it has named `count` pages, or comes back to a page it has
        been through. References beyond `count` are not looked at.
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
    """Fills a chain that the guest made, for a buffer of ours: map the page that `next_ref` names, `feed` a private copy of it,
    write what it gives, until `next_ref` is None.
    """

    def __init__(self, first_ref: int, refs: Sequence[int]) -> None:
        self.next_ref: int | None = first_ref
        self._rest = list(refs)
        self._seen = {first_ref}

    def feed(self, page: bytes) -> tuple[int, bytes]:
        """Take one directory page: (offset, octets) to write into it. Raises RequestError EINVAL as DirectoryReader does."""
        following = _PAGE.unpack(page)[0]
        part, self._rest = self._rest[:REFS_PER_PAGE], self._rest[REFS_PER_PAGE:]
        if not self._rest:
            self.next_ref = None
        elif following == 0:
            raise RequestError(Errno.EINVAL, f"page directory ends {len(self._rest)} pages too early")
        elif following in self._seen:
            raise RequestError(Errno.EINVAL, "page directory goes round in a circle")
        else:
            self._seen.add(following)
            self.next_ref = following
        return 4, b"".join(ref.to_bytes(4, "little") for ref in part)


def encode_directory(data_refs: Sequence[int], page_refs: Sequence[int]) -> list[bytes]:
    """The directory pages (the frontend's half): they list `data_refs` and lie in the pages granted as `page_refs`."""
    pages = []
    for index, following in enumerate((*page_refs[1:], 0)):
        part = list(data_refs[index * REFS_PER_PAGE : (index + 1) * REFS_PER_PAGE])
        pages.append(_PAGE.pack(following, *part, *[0] * (REFS_PER_PAGE - len(part))))
    return pages
