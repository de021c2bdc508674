"""Errors of a card: one exception for each meaning of an errno. The text names the operation and its connector."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from displbe.shortage import shortage

__all__ = ["Busy", "CardGone", "DrmError", "NoResources", "NotMaster", "Unfit", "drm_error", "name_connector"]


class DrmError(Exception):
    """The card refused an operation; `number` is the host's errno."""

    def __init__(self, operation: str, number: int, connector: str = "") -> None:
        super().__init__(operation, number, connector)
        self.operation = operation
        self.number = number
        self.connector = connector
        """The connector that the operation was for; empty: the operation was for the whole card."""

    @property
    def refuses_frame(self) -> bool:
        """Whether the card cannot show such a frame at all. After any other error, it may show the same frame later."""
        return self.number in _REFUSES_FRAME

    def __str__(self) -> str:
        where = f"{self.connector}: " if self.connector else ""
        return f"{where}{self.operation}: {os.strerror(self.number)}"


_REFUSES_FRAME: Final = {errno.EINVAL, errno.ERANGE, errno.ENOSPC, errno.EOPNOTSUPP, errno.E2BIG, errno.EOVERFLOW}


class Busy(DrmError):
    """EBUSY: the kernel has not finished an earlier operation."""


class NotMaster(DrmError):
    """EACCES, EPERM: another program is DRM master."""


class CardGone(DrmError):
    """ENODEV, ENXIO, EBADF: the card has been removed, or its file revoked.

    Some drivers also refuse an import with ENODEV.
    """


class Unfit(DrmError):
    """The card lacks something that this sink needs. It is not tried again."""


class NoResources(DrmError):
    """displbe lacks a thread, a file or memory for the operation, or the guest's limit of copies is reached. It is tried again."""

    def __init__(self, error: OSError) -> None:
        super().__init__("", errno.ENOMEM)
        self._reason = shortage(error)

    def __str__(self) -> str:
        return self._reason


_KINDS: Final[dict[int, type[DrmError]]] = {
    errno.EBUSY: Busy,
    errno.EACCES: NotMaster,
    errno.EPERM: NotMaster,
    errno.ENODEV: CardGone,
    errno.ENXIO: CardGone,
    errno.EBADF: CardGone,
}


def drm_error(operation: str, number: int | None, connector: str = "") -> DrmError:
    """Return the exception for an errno; None stands for EIO."""
    known = number or errno.EIO
    return _KINDS.get(known, DrmError)(operation, known, connector)


@contextmanager
def name_connector(connector: str) -> Iterator[None]:
    """Add the connector's name to each DrmError that the block raises."""
    try:
        yield
    except DrmError as error:
        error.connector = error.connector or connector
        raise
