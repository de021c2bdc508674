"""The shared pages of a connector, the control ring and the event page, with both halves of each.

Control ring (xen/include/public/io/ring.h, one page): four free-running u32 indices, then 32 slots of 64 bytes, shared by requests and
responses. Event page (displif.h): two free-running u32 indices, then 63 slots; the slot is the index modulo 63.

`Back*` is the backend's half, `Front*` the frontend's, for simulated guests and tests. Nothing here waits or notifies: methods return
whether the other side needs a notification. Memory barriers are those of the page that is handed in.

The guest can write everything in these pages at any time. Therefore the backend's indices are private and only ever written to the page, a
slot is copied once, and an index of the guest that is impossible under the protocol raises `FrontendBroken`.
"""

from __future__ import annotations

from typing import Final, Protocol

from .displif import MESSAGE_SIZE
from .errors import FrontendBroken

__all__ = [
    "EVENT_SLOTS",
    "PAGE_SIZE",
    "REQUEST_SLOTS",
    "BackControlRing",
    "BackEventPage",
    "FrontControlRing",
    "FrontEventPage",
    "SharedPage",
]

PAGE_SIZE: Final = 4096
REQUEST_SLOTS: Final = 32
"""__RING_SIZE: (4096 - 64) / 64 = 63 slots, rounded down to a power of two."""
EVENT_SLOTS: Final = 63
"""XENDISPL_IN_RING_LEN: (4096 - 64) / 64."""

_U32: Final = 0xFFFFFFFF
_SLOT_MASK: Final = REQUEST_SLOTS - 1
_HEADER: Final = 64
# struct sring
_REQ_PROD: Final = 0
_REQ_EVENT: Final = 4
_RSP_PROD: Final = 8
_RSP_EVENT: Final = 12
# struct xendispl_event_page
_IN_CONS: Final = 0
_IN_PROD: Final = 4


class SharedPage(Protocol):
    """A page of 4096 bytes that another domain can write, with the accesses that a ring needs. Offsets are in bytes."""

    @property
    def words(self) -> memoryview | None:
        """The page as u32, where plain accesses of this machine have acquire and release semantics; they cost a third of a call.

        None: they have not. `load` and `store` are right on all machines.
        """

    def load(self, offset: int) -> int:
        """Read a u32 with acquire semantics: no later access of this side happens before it."""

    def store(self, offset: int, value: int) -> None:
        """Write a u32 with release semantics: all earlier accesses of this side happen before it."""

    def fence(self) -> None:
        """Issue a full barrier: no access of this side crosses it."""

    def copy(self, offset: int, size: int) -> bytes:
        """Return a private copy of `size` bytes."""

    def write(self, offset: int, data: bytes) -> None:
        """Write bytes, in no particular order."""


class BackControlRing:
    """The backend's half: takes requests and pushes responses.

    Raises FrontendBroken when the page has responses already: an earlier backend has used it, and the requests that it answered would be
    answered again.
    """

    def __init__(self, page: SharedPage) -> None:
        self._words = page.words
        self._load = page.load
        self._store = page.store
        self._fence = page.fence
        self._copy = page.copy
        self._write = page.write
        self._req_cons = 0
        self._rsp_prod = 0
        if page.load(_RSP_PROD) != 0:
            raise FrontendBroken("the control ring has been used before")

    @property
    def indices(self) -> tuple[int, int]:
        """The private indices: the next request to take, and the next response to push."""
        return self._req_cons, self._rsp_prod

    @indices.setter
    def indices(self, indices: tuple[int, int]) -> None:
        self._req_cons, self._rsp_prod = indices

    def take(self) -> bytes | None:
        """Return a private copy of the next request, or None. Raises FrontendBroken when the frontend's index is impossible."""
        cons, words = self._req_cons, self._words
        waiting = ((self._load(_REQ_PROD) if words is None else words[0]) - cons) & _U32
        if waiting == 0:
            return None
        # RING_REQUEST_PROD_OVERFLOW: the requests that wait and those taken but not answered do not fit into the ring.
        # A producer index that went backwards looks the same: its distance is almost 2**32.
        if waiting + ((cons - self._rsp_prod) & _U32) > REQUEST_SLOTS:
            raise FrontendBroken(f"impossible request index: {waiting} requests waiting in a ring of {REQUEST_SLOTS}")
        self._req_cons = (cons + 1) & _U32
        return self._copy(_HEADER + (cons & _SLOT_MASK) * MESSAGE_SIZE, MESSAGE_SIZE)

    def next_waiting(self) -> int | None:
        """Return the index of the next request if it waits to be taken, else None. A caller finds a request that waits for long with it."""
        return None if self._load(_REQ_PROD) == self._req_cons else self._req_cons

    def final_check(self) -> bool:
        """Ask for a notification of the next request. Return whether a request has come meanwhile (RING_FINAL_CHECK_FOR_REQUESTS)."""
        cons, words = self._req_cons, self._words
        if words is None:
            self._store(_REQ_EVENT, (cons + 1) & _U32)
            self._fence()
            return self._load(_REQ_PROD) != cons
        words[1] = (cons + 1) & _U32
        self._fence()
        return words[0] != cons

    def respond(self, response: bytes) -> bool:
        """Push a response into the oldest taken slot. Return whether the frontend wants a notification.

        RING_PUSH_RESPONSES_AND_CHECK_NOTIFY: `(RING_IDX)(new - rsp_event) < (RING_IDX)(new - old)`.
        """
        old = self._rsp_prod
        new = self._rsp_prod = (old + 1) & _U32
        self._write(_HEADER + (old & _SLOT_MASK) * MESSAGE_SIZE, response)
        words = self._words
        if words is None:
            self._store(_RSP_PROD, new)
            self._fence()
            return self._load(_RSP_EVENT) == new  # new - old is 1 here
        words[2] = new
        self._fence()
        return words[3] == new


class FrontControlRing:
    """The frontend's half: pushes requests and takes responses."""

    def __init__(self, page: SharedPage) -> None:
        self._page = page
        self._req_prod = 0
        self._rsp_cons = 0
        page.write(0, bytes(PAGE_SIZE))
        page.store(_REQ_EVENT, 1)  # SHARED_RING_INIT
        page.store(_RSP_EVENT, 1)

    def put(self, request: bytes) -> bool:
        """Push a request. Return whether the backend wants a notification. Raises BufferError when 32 are unanswered."""
        old, new = self._req_prod, (self._req_prod + 1) & _U32
        if (new - self._rsp_cons) & _U32 > REQUEST_SLOTS:
            raise BufferError("control ring full")
        self._page.write(_HEADER + (old & _SLOT_MASK) * MESSAGE_SIZE, request)
        self._req_prod = new
        self._page.store(_REQ_PROD, new)
        self._page.fence()
        return (new - self._page.load(_REQ_EVENT)) & _U32 < (new - old) & _U32

    def take(self) -> bytes | None:
        """Return the next response, or None."""
        cons = self._rsp_cons
        if self._page.load(_RSP_PROD) == cons:
            return None
        self._rsp_cons = (cons + 1) & _U32
        return self._page.copy(_HEADER + (cons & _SLOT_MASK) * MESSAGE_SIZE, MESSAGE_SIZE)

    def final_check(self) -> bool:
        """Ask for a notification of the next response. Return whether a response has come meanwhile."""
        self._page.store(_RSP_EVENT, (self._rsp_cons + 1) & _U32)
        self._page.fence()
        return self._page.load(_RSP_PROD) != self._rsp_cons


class BackEventPage:
    """The backend's half: pushes events. The producer index is private; the page's copy of it is never read."""

    def __init__(self, page: SharedPage) -> None:
        self._words = page.words
        self._load = page.load
        self._store = page.store
        self._write = page.write
        self.in_prod = page.load(_IN_CONS)
        """The index of the next event."""
        page.store(_IN_PROD, self.in_prod)

    def space(self) -> bool:
        """Return whether an event fits. Raises FrontendBroken when the frontend's index is impossible."""
        words = self._words
        unread = (self.in_prod - (self._load(_IN_CONS) if words is None else words[0])) & _U32
        if unread > EVENT_SLOTS:
            raise FrontendBroken(f"impossible event index: {unread} unread events in a ring of {EVENT_SLOTS}")
        return unread < EVENT_SLOTS

    def put(self, event: bytes) -> None:
        """Push an event. The caller has checked `space` before. The frontend always wants a notification."""
        prod = self.in_prod
        self._write(_HEADER + (prod % EVENT_SLOTS) * MESSAGE_SIZE, event)
        self.in_prod = following = (prod + 1) & _U32
        if self._words is None:
            self._store(_IN_PROD, following)
        else:
            self._words[1] = following


class FrontEventPage:
    """The frontend's half: takes events."""

    def __init__(self, page: SharedPage) -> None:
        self._page = page
        self._in_cons = 0
        page.write(0, bytes(PAGE_SIZE))

    def take(self) -> bytes | None:
        """Return the next event, or None."""
        cons = self._in_cons
        if self._page.load(_IN_PROD) == cons:
            return None
        event = self._page.copy(_HEADER + (cons % EVENT_SLOTS) * MESSAGE_SIZE, MESSAGE_SIZE)
        self._in_cons = (cons + 1) & _U32
        self._page.store(_IN_CONS, self._in_cons)
        return event
