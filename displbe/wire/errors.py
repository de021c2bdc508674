"""The error numbers of responses, and the exceptions that carry them.

The `status` of a response is 0 or the negative of one of Xen's error numbers (xen/include/public/errno.h). These are the same on every
architecture; the host's own errno is never sent. `protocol/errors.md` lists the errors of each request.
"""

from __future__ import annotations

import enum

__all__ = ["Errno", "FrontendBroken", "RequestError", "first_leaf", "from_host"]


class Errno(enum.IntEnum):
    """Xen's error numbers, as far as displbe uses them."""

    EPERM = 1
    ENOENT = 2
    EIO = 5
    ENOMEM = 12
    EBUSY = 16
    EEXIST = 17
    ENODEV = 19
    EINVAL = 22
    ENOSPC = 28
    EOPNOTSUPP = 95


class RequestError(Exception):
    """A request cannot be served. The guest gets `-code` as status, and the device goes on."""

    def __init__(self, code: Errno, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class FrontendBroken(Exception):
    """The frontend broke the protocol in a way that no response can report, for example with an impossible ring index.

    The device is shut off.
    """


def from_host(number: int | None) -> Errno:
    """Return the number that a guest gets for the errno of a failed system call: the same if `Errno` has it, else EIO."""
    try:
        return Errno(number or 0)
    except ValueError:
        return Errno.EIO


def first_leaf(error: BaseException) -> BaseException:
    """Return the first exception in a group of exceptions, or the exception itself if it is not a group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
