"""What a card answers when it does not do what it was asked: one exception per meaning, with the operation and the connector."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

__all__ = ["Busy", "CardGone", "DrmError", "NotMaster", "Unfit", "about", "drm_error"]


class DrmError(Exception):
    """The card refused: `number` is the host's errno."""

    def __init__(self, operation: str, number: int, connector: str = "") -> None:
        super().__init__(operation, number, connector)
        self.operation = operation
        self.number = number
        self.connector = connector
        """Whose picture it was about; empty: nobody's in particular."""

    @property
    def of_the_picture(self) -> bool:
        """The card does not show such a picture, now or later; else the picture may be taken another time."""
        return self.number in _OF_THE_PICTURE

    def __str__(self) -> str:
        where = f"{self.connector}: " if self.connector else ""
        return f"{where}{self.operation}: {os.strerror(self.number)}"


_OF_THE_PICTURE: Final = {errno.EINVAL, errno.ERANGE, errno.ENOSPC, errno.EOPNOTSUPP, errno.E2BIG, errno.EOVERFLOW}


class Busy(DrmError):
    """EBUSY: the kernel is not done with what it was asked before."""


class NotMaster(DrmError):
    """EACCES: another program is DRM master."""


class CardGone(DrmError):
    """ENODEV: the card, or the right to it, has been taken away. Some drivers answer it to an import too."""


class Unfit(DrmError):
    """The card will never do what this sink needs."""


_KINDS: Final[dict[int, type[DrmError]]] = {
    errno.EBUSY: Busy,
    errno.EACCES: NotMaster,
    errno.EPERM: NotMaster,
    errno.ENODEV: CardGone,
    errno.ENXIO: CardGone,
    errno.EBADF: CardGone,
}


def drm_error(operation: str, number: int | None, connector: str = "") -> DrmError:
    """The exception for an errno."""
    known = number or errno.EIO
    return _KINDS.get(known, DrmError)(operation, known, connector)


@contextmanager
def about(connector: str) -> Iterator[None]:
    """What the card refuses meanwhile is about this connector's picture."""
    try:
        yield
    except DrmError as error:
        error.connector = error.connector or connector
        raise
