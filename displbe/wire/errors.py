"""The status numbers of a response, and the errors that carry them.

`status` holds 0 or the negative of one of Xen's numbers (xen/include/public/errno.h), which are the same on every
architecture; the host's own errno is never sent as it is. `protocol/errors.md` says which answer a guest gets when.
"""

from __future__ import annotations

import enum

__all__ = ["Errno", "FrontendBroken", "RequestError", "first_leaf", "from_host"]


class Errno(enum.IntEnum):
    """Xen's error numbers that this backend answers with."""

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
    """A request cannot be served: the guest gets `-code`, the device lives on."""

    def __init__(self, code: Errno, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class FrontendBroken(Exception):
    """The frontend broke a rule that leaves nothing to answer (an impossible ring index): its device is shut off."""


def from_host(number: int | None) -> Errno:
    """The number a guest gets for a failed system call of ours: the same where Xen's table has it, else EIO."""
    try:
        return Errno(number or 0)
    except ValueError:
        return Errno.EIO


def first_leaf(error: BaseException) -> BaseException:
    """Return the first exception in a group of exceptions, or the exception itself if it is not a group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
