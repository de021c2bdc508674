"""Keeps packages from importing what displbe never uses.

trio imports ssl and hmac for TLS, and with them OpenSSL; and ctypes.util, which imports shutil and tempfile to search libraries with a
compiler. structlog imports asyncio for its asynchronous loggers, and rich, where it is installed, for tracebacks that displbe does not use
(ops.log). That is a quarter of the daemon's memory and of the time that it takes to start.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any, Final

__all__ = ["import_lean"]

_LATE: Final = ("asyncio", "hmac", "idna", "shutil", "ssl", "tempfile")
"""Modules of which no attribute is needed while the packages are imported. Each is imported when one of its attributes is."""
_ABSENT: Final = ("rich",)
"""Packages that others import if they are installed."""


class _Late(ModuleType):
    """Takes the place of a module until one of its attributes is needed."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system asks for some
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        module = importlib.import_module(self.__name__)
        vars(self).update(vars(module))
        return getattr(module, name)


def import_lean() -> None:
    """Import trio and structlog with stand-ins for what they do not need. Everybody else gets the real modules."""
    names = [name for name in (*_LATE, *_ABSENT) if name not in sys.modules]
    for name in names:
        sys.modules[name] = _Late(name) if name in _LATE else None  # type: ignore[assignment]  # None: it is not found
    try:
        importlib.import_module("trio")
        importlib.import_module("structlog")
    finally:
        for name in names:
            if not isinstance(sys.modules.get(name), ModuleType) or isinstance(sys.modules[name], _Late):
                del sys.modules[name]
