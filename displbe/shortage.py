"""Says which resource of the daemon is used up, and where to raise its limit."""

from __future__ import annotations

import errno
import os
from typing import Final

__all__ = ["brief", "is_shortage", "severity", "shortage"]

_WAYS_OUT: Final = {
    errno.EMFILE: "raise LimitNOFILE= in displbe.service",
    errno.ENFILE: "raise fs.file-max of this machine (sysctl)",
    errno.ENOMEM: "raise MemoryMax= in displbe.service, or give this machine more memory",
    errno.ENOBUFS: "give this machine more memory",
}


def is_shortage(error: BaseException) -> bool:
    """Return whether an operation failed because there are no more files, threads or memory: it may succeed later."""
    if isinstance(error, OSError):
        return error.errno in _WAYS_OUT or error.errno == errno.EAGAIN
    return isinstance(error, MemoryError)


def shortage(error: BaseException) -> str:
    """Return the reason of an error in words; for a shortage, with the way out."""
    if isinstance(error, MemoryError):
        error = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
    if not isinstance(error, OSError):
        return str(error)
    reason = error.strerror or str(error)
    is_plain = error.errno is not None and reason == os.strerror(
        error.errno
    )  # other reasons have their way out already
    way_out = _WAYS_OUT.get(error.errno or 0) if is_plain else None
    return f"{reason}: {way_out}" if way_out else reason


def brief(error: BaseException) -> str:
    """Return the reason of an unexpected error in a log line: a shortage in words, or the name of a bug's exception."""
    return shortage(error) if is_shortage(error) else type(error).__name__


def severity(error: BaseException) -> str:
    """Return the level of a log line about an unexpected error. A bug is logged with its traceback, a shortage is not."""
    return "warning" if is_shortage(error) else "exception"
